"""What a function learns of its call, what an error tells, slots that are lent, methods of entered objects, the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import cloudpickle
import pytest
from executor_stage import Ended, Stage, on_stage, until

from nanopod.model import pickled, vastjson
from nanopod.model.calls import Call, Error
from nanopod.model.errors import SerializationError, WorkerLost
from nanopod.model.registry import Waiting, current
from nanopod.node.runtime import executor as executor_module
from nanopod.node.runtime.answers import class_names


def seen() -> Any:
    context = current.get()
    assert context is not None
    return context


class AppError(ValueError):
    """Of the user's own module."""


def test_a_function_knows_its_call() -> None:
    async def who() -> Any:
        context = seen()
        return [
            context.call_id, context.attempt, context.endpoint, context.function, context.timeout_s,
            context.route_key, context.session, context.depth, context.cancelled,
        ]  # fmt: skip

    async def story() -> None:
        stage = Stage().open()
        stage.add(who)
        asked = stage.ask("who", attempt=3, timeout_s=7.0, route_key="french", session="sess_1", depth=2)
        found = await asked.value()
        assert found == [asked.call.id.hex(), 3, "endp_x", "who", 7.0, "french", "sess_1", 2, False]

    on_stage(story)


def test_a_retry_runs_again_and_a_repeat_does_not() -> None:
    attempts: list[int] = []

    async def flaky() -> str:
        attempts.append(seen().attempt)
        if len(attempts) < 3:
            raise ConnectionResetError("again")
        return "done"

    async def story() -> None:
        stage = Stage().open()
        stage.add(flaky)
        first = stage.ask("flaky")
        with pytest.raises(ConnectionResetError):
            await first.value()
        header = first.call.header
        repeat = stage.ask("flaky", header=header)
        with pytest.raises(ConnectionResetError):
            await repeat.value()
        assert attempts == [1], "the same attempt has its answer already"
        second = stage.ask("flaky", header=header, attempt=2)
        with pytest.raises(ConnectionResetError):
            await second.value()
        assert second.header.attempt == 2
        third = stage.ask("flaky", header=header, attempt=3)
        assert await third.value() == "done"
        late = stage.ask("flaky", header=header, attempt=2)
        assert await late.value() == "done", "an older attempt is answered with what is known"
        assert attempts == [1, 2, 3]
        held = [call.id for call in stage.executor.table.held()]
        assert held == [header.id]

    on_stage(story)


def test_errors_name_their_classes_for_retry_policies() -> None:
    async def fail() -> None:
        raise AppError("x")

    async def story() -> None:
        stage = Stage().open()
        stage.add(fail)
        asked = stage.ask("fail")
        with pytest.raises(AppError):
            await asked.value()
        header = asked.header
        assert isinstance(header, Error)
        assert header.types == [f"{__name__}.AppError", "ValueError", "Exception", "BaseException"]
        assert (header.code, header.started, header.attempt) == ("remote_error", True, 1)
        missing = stage.ask("nothing")
        with pytest.raises(Exception, match="there are: fail"):
            await missing.value()
        assert missing.header.types[0] == "nanopod.model.errors.NotFound"
        assert missing.header.started is False

    on_stage(story)
    # Where the file is run its module is `__main__`: a policy that was written there names it so.
    assert class_names(AppError, __name__)[:2] == [f"{__name__}.AppError", "__main__.AppError"]


def test_a_call_that_waits_for_a_remote_one_lends_its_slot() -> None:
    """Functions of concurrency 1 that call each other (and themselves) on the only worker there is."""

    async def story() -> None:
        stage = Stage(1).open()
        loop = asyncio.get_running_loop()

        async def down(depth: int) -> int:
            if not depth:
                return 0
            with Waiting():
                return 1 + await stage.ask("up", depth - 1).value()

        def up(depth: int) -> int:
            if not depth:
                return 0
            with Waiting():
                asked: Any = asyncio.run_coroutine_threadsafe(nested(depth), loop).result()
                return 1 + int(asked)

        async def nested(depth: int) -> int:
            return int(await stage.ask("down", depth - 1).value())

        async def idle() -> None:
            return None

        for function in (down, up, idle):
            stage.add(function)
        assert await stage.run("down", 7) == 7
        assert not stage.executor.active

        gate = asyncio.Event()

        async def busy(lends: bool) -> str:
            if lends:
                with Waiting():
                    await gate.wait()
            else:
                await gate.wait()
            return "done"

        stage.add(busy)
        plain = stage.ask("busy", False)
        assert stage.ask("idle").reset is None
        second = stage.ask("idle")
        await until(second.over.is_set)
        assert second.reset == ("refused", "no free slot")
        gate.set()
        assert await plain.value() == "done"
        gate.clear()
        lending = stage.ask("busy", True)
        await until(lambda: lending.call.context and lending.call.context.waits)
        assert await stage.run("idle") is None
        gate.set()
        assert await lending.value() == "done"

    on_stage(story)


def test_waiting_outside_of_a_call_is_nothing() -> None:
    with Waiting() as context:
        assert context is None


class Model:
    def __init__(self) -> None:
        self.name = "entered"
        self.asked: list[Any] = []

    async def answer(self, x: int, y: int = 1) -> Any:
        self.asked.append(x)
        return self.name, x + y

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def many(self, x: list[int]) -> list[int]:
        return [len(self.asked) + value for value in x]


def test_methods_belong_to_the_entered_object() -> None:
    async def story() -> None:
        stage = Stage().open()
        model = Model()
        stage.app.entered[Model] = model
        stage.add(Model.answer, "Model.answer", owner=Model, workload=lambda x, y=1: x * 2.0)
        stage.add(Model.count, "Model.count", owner=Model)
        stage.add(Model.many, "Model.many", owner=Model, batch_max=4, concurrency=4)
        stage.executor.attach(asyncio.get_running_loop(), stage.app)
        asked = stage.ask("Model.answer", 4)
        assert await asked.value() == ("entered", 5)
        assert asked.end["workload"] == 8
        assert model.asked == [4]
        assert await stage.run("Model.many", 1) == 2
        items = stage.ask("Model.count", 3)
        await until(items.over.is_set)
        assert items.end["ok"]

    on_stage(story)


def test_calls_that_cannot_end_in_time_are_lost_or_go_elsewhere() -> None:
    async def story() -> None:
        stage = Stage().open()
        saw: list[str] = []

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                saw.append("cancelled" if seen().cancelled else "")

        def busy() -> None:
            while not seen().cancelled:
                time.sleep(0.002)

        async def items() -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(60)

        async def batch(x: list[int]) -> list[int]:
            await asyncio.sleep(60)
            return x

        for function in (slow, busy, items):
            stage.add(function)
        stage.add(batch, batch_max=2, concurrency=2)
        lost = [stage.ask("slow"), stage.ask("busy"), stage.ask("items"), stage.ask("batch", 1), stage.ask("batch", 2)]
        again, pinned = stage.ask("slow", idempotent=True), stage.ask("slow", session="sess_1")
        for asked in (*lost, again, pinned):
            await asked.until_started()
        stage.executor.draining = True
        assert await stage.executor.drain(0.05, lost="the price rose") == 7
        for asked in lost:
            with pytest.raises(WorkerLost, match="the price rose") as caught:
                await asked.value()
            assert (caught.value.started, caught.value.preempted) == (True, True)
            assert asked.header.code == "worker_lost"
        for asked in (again, pinned):
            await asked.over.wait()
            assert asked.reset == ("engine_lost", "the price rose"), "the gateway queues it anew, or ends its session"
        assert not stage.executor.table.undelivered()
        await until(lambda: len(saw) == 3)
        assert saw == ["cancelled"] * 3
        await until(lambda: not stage.executor.active)

    on_stage(story)


def test_a_function_that_cannot_be_stopped_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "CANCEL_S_MAX", 0.05)
    release = threading.Event()

    def deaf() -> None:
        release.wait(30)

    async def story() -> None:
        stage = Stage(2).open()
        stuck: list[str] = []
        stage.executor.on_stuck = lambda call: stuck.append(call.header.function)
        stage.add(deaf, "polite")
        stage.add(deaf, "killed", kill_on_cancel=True)
        asked = [await stage.ask(name).until_started() for name in ("polite", "killed")]
        for one in asked:
            one.cancel()
            with pytest.raises(Ended, match="cancelled"):
                await one.value()
        assert stuck == ["killed"]
        assert len(stage.executor.active) == 2
        assert await stage.executor.drain(30.0, forsaken=True) == 0, "what is left behind is not waited for"
        release.set()
        await until(lambda: not stage.executor.active)

    on_stage(story)


def test_pickles_are_read_where_the_deployment_says_so() -> None:
    async def call_it(function: Any) -> Any:
        return lambda: function() + 1

    sent = pickled.encode(((lambda: 41,), {}))

    async def story() -> None:
        stage = Stage(serializer="pickle").open()
        stage.add(call_it)
        asked = stage.ask("call_it", payload=sent)
        await until(asked.over.is_set)
        assert cloudpickle.loads(asked.payload()[1:])() == 42
        plain = Stage().open()
        plain.add(call_it)
        with pytest.raises(SerializationError, match="does not read"):
            await plain.ask("call_it", payload=sent).value()

    on_stage(story)


def test_calls_in_foreign_json() -> None:
    async def add(x: int, y: int = 1) -> dict[str, Any]:
        if x < 0:
            raise ValueError("hello")
        return {"sum": x + y, "raw": b"a"}

    def count(n: int) -> Iterator[int]:
        yield from range(n)

    async def drops() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async def story() -> None:
        stage = Stage().open()
        for function in (add, count, drops):
            stage.add(function)

        async def run(name: str, *args: Any, **kwargs: Any) -> Any:
            payload = json.dumps({"args": args, "kwargs": kwargs}).encode()
            header = Call(name.encode()[:1] * 16 if not kwargs else b"k" * 16, "e", name, codec=vastjson.CODEC)
            asked = stage.ask(name, payload=payload, header=header)
            await until(asked.over.is_set)
            return json.loads(asked.payload()), asked.end["ok"]

        assert await run("count", 3) == ({"ok": {"type": "list", "contents": [0, 1, 2]}}, True)
        assert await run("drops") == ({"ok": {"type": "list", "contents": ["a", "b"]}}, True)
        found, ok = await run("add", 2)
        assert ok
        assert vastjson.decode(found["ok"], "deployment") == {"sum": 3, "raw": b"a"}
        found, ok = await run("add", x=-1)
        assert not ok
        assert found["err"]["class"] == "ValueError"

        odd = Call(b"o" * 16, "e", "add", codec="morse")
        asked = stage.ask("add", payload=b"-", header=odd)
        await until(asked.over.is_set)
        assert "codec 'morse'" in json.loads(asked.payload())["err"]["contents"]["args"]["contents"][0]

    on_stage(story)


def test_synchronous_functions_share_the_worker_up_to_their_concurrency() -> None:
    gate = threading.Barrier(4)

    def together() -> str:
        gate.wait(10)
        return threading.current_thread().name

    async def story() -> None:
        stage = Stage(4).open()
        stage.add(together, concurrency=4)
        asked = [stage.ask("together") for _ in range(4)]
        assert len({await one.value() for one in asked}) == 4

    on_stage(story)
