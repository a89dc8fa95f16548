"""Calls that run as one batch: when it leaves, what the function sees, and what each caller gets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from executor_stage import Asked, Ended, Stage, on_stage, until
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopod.model.registry import Waiting, current
from nanopod.node.runtime import output


class Gate:
    """A batched function that waits to be let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def double(self, x: list[int]) -> list[int]:
        self.batches.append(x)
        await self.open.wait()
        return [value * 2 for value in x]


def stage_of(gate: Gate, size: int, batches: int = 1, wait_ms: float = 0.0) -> Stage:
    stage = Stage(64).open()
    stage.add(gate.double, concurrency=size * batches, batch_max=size, batch_wait_ms=wait_ms)
    return stage


def test_an_idle_function_starts_at_once_with_all_that_came_together() -> None:
    async def story() -> None:
        gate = Gate()
        stage = stage_of(gate, 4, wait_ms=60_000)
        first = [stage.ask("double", x) for x in range(3)]
        await until(lambda: gate.batches)
        gate.open.set()
        assert [await asked.value() for asked in first] == [0, 2, 4]
        assert gate.batches == [[0, 1, 2]]
        assert await stage.run("double", 9) == 18, "one alone does not wait either"

    on_stage(story)


def test_what_comes_meanwhile_leaves_when_it_is_enough_or_has_waited_long_enough() -> None:
    async def story() -> None:
        gate = Gate()
        stage = stage_of(gate, 3, batches=3, wait_ms=60_000)
        asked = [stage.ask("double", 0)]
        await until(lambda: len(gate.batches) == 1)
        asked += [stage.ask("double", x) for x in (1, 2)]
        await asyncio.sleep(0.02)
        assert gate.batches == [[0]], "two of three wait for a third"
        assert not asked[1].started, "what waits has not started"
        asked.append(stage.ask("double", 3))
        await until(lambda: len(gate.batches) == 2)
        assert gate.batches[1] == [1, 2, 3]
        gate.open.set()
        assert [await one.value() for one in asked] == [0, 2, 4, 6]

        patient = Gate()
        stage = stage_of(patient, 3, batches=2, wait_ms=30)
        asked = [stage.ask("double", 0)]
        await until(lambda: len(patient.batches) == 1)
        asked.append(stage.ask("double", 1))
        await until(lambda: len(patient.batches) == 2)
        asked += [stage.ask("double", x) for x in range(2, 7)]
        await asyncio.sleep(0.08)
        assert patient.batches == [[0], [1]], "no more batches at once than there are places for"
        patient.open.set()
        assert [await one.value() for one in asked] == [0, 2, 4, 6, 8, 10, 12]
        assert patient.batches[2:] == [[2, 3, 4], [5, 6]]

    on_stage(story)


def test_each_parameter_is_a_list() -> None:
    seen: list[Any] = []

    def plain(a: Any, b: Any = 5, *, c: Any = "c") -> list[Any]:
        seen.append((a, b, c, threading.current_thread() is threading.main_thread()))
        return list(zip(a, b, c, strict=True))

    async def story() -> None:
        stage = Stage().open()
        stage.add(plain, batch_max=8, concurrency=8)
        asked = [
            stage.ask("plain", 1),
            stage.ask("plain", 2, kwargs={"c": "x"}),
            stage.ask("plain", 3, 6, 7, 8),
            stage.ask("plain", kwargs={"a": 4, "b": [0]}),
        ]
        assert await asked[0].value() == (1, 5, "c")
        assert await asked[1].value() == (2, 5, "x")
        assert await asked[3].value() == (4, [0], "c")
        with pytest.raises(TypeError, match="too many positional"):
            await asked[2].value()
        assert seen == [([1, 2, 4], [5, 5, [0]], ["c", "x", "c"], False)]

    on_stage(story)


def always(answer: Any) -> Callable[[list[int]], Any]:
    def function(x: list[int]) -> Any:
        return answer

    return function


def test_what_is_no_list_of_that_length_is_an_error_to_all() -> None:
    answers: dict[str, Any] = {
        "short": [1],
        "text": "ab",
        "one": 7,
    }

    async def story() -> None:
        stage = Stage(16).open()
        for name, answer in answers.items():
            stage.add(always(answer), name, batch_max=4, concurrency=4)
        for name, error, text in (
            ("short", ValueError, "was given 2 calls and returned 1 results"),
            ("text", TypeError, "must return a list with one result for each of its 2 calls, not str"),
            ("one", TypeError, "not int"),
        ):
            for asked in [stage.ask(name, 1), stage.ask(name, 2)]:
                with pytest.raises(error, match=text):
                    await asked.value()

        async def breaks(x: list[int]) -> list[int]:
            raise KeyError(len(x))

        async def rest(*x: list[int]) -> list[int]:
            return [0]

        stage.add(breaks, batch_max=4, concurrency=4)
        stage.add(rest, batch_max=4, concurrency=4)
        for asked in [stage.ask("breaks", 1), stage.ask("breaks", 2)]:
            with pytest.raises(KeyError, match="2"):
                await asked.value()
            assert "KeyError" in asked.header.types
        with pytest.raises(Exception, match=r"\*x cannot be one"):
            await stage.run("rest", 1)

    on_stage(story)


def test_one_elements_error_is_its_own() -> None:
    async def halve(x: list[int]) -> list[Any]:
        return [ValueError(value) if value % 2 else threading.Lock() if value == 4 else value // 2 for value in x]

    async def story() -> None:
        stage = Stage().open()
        stage.add(halve, batch_max=8, concurrency=8)
        asked = [stage.ask("halve", x) for x in (2, 3, 4, 6)]
        assert await asked[0].value() == 1
        with pytest.raises(ValueError, match="3"):
            await asked[1].value()
        with pytest.raises(Exception, match=r"^result: .*_thread\.lock"):
            await asked[2].value()
        assert await asked[3].value() == 3
        assert asked[1].end["ok"] is False

    on_stage(story)


def test_time_is_split_so_that_nothing_is_lost() -> None:
    async def slow(x: list[int]) -> list[int]:
        await asyncio.sleep(0.03)
        return x

    async def story() -> None:
        stage = Stage().open()
        stage.add(slow, batch_max=8, concurrency=8)
        asked = [stage.ask("slow", x) for x in range(7)]
        for one in asked:
            await one.value()
        shares = [one.end["run_us"] for one in asked]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) >= 30_000
        assert [one.header.usage.run_us for one in asked] == shares

    on_stage(story)


def test_cancelled_calls_leave_the_batch_and_the_others_stay() -> None:
    async def story() -> None:
        gate, cancelled = Gate(), []

        async def watched(x: list[int]) -> list[int]:
            try:
                return await gate.double(x)
            except asyncio.CancelledError:
                cancelled.append(x)
                raise

        stage = Stage(16).open()
        stage.add(watched, "double", batch_max=4, concurrency=4)
        first = [stage.ask("double", x) for x in range(2)]
        await until(lambda: gate.batches)
        waiting = [stage.ask("double", x) for x in (7, 8)]
        waiting[0].cancel()
        first[0].cancel()
        for asked in (waiting[0], first[0]):
            with pytest.raises(Ended, match="cancelled"):
                await asked.value()
        assert (waiting[0].started, first[0].started) == (False, True)
        assert len(stage.executor.active) == 2, "their slots are free"
        gate.open.set()
        assert (await first[1].value(), await waiting[1].value()) == (2, 16)
        assert gate.batches == [[0, 1], [8]]

        # When nobody is left, the function is cancelled too.
        gate.open.clear()
        last = [stage.ask("double", x) for x in range(2)]
        await until(lambda: len(gate.batches) == 3)
        for asked in last:
            asked.cancel()
        await until(lambda: cancelled)
        assert cancelled == [[0, 1]]
        assert not stage.executor.active

    on_stage(story)


def test_timeouts_hold_before_and_in_a_batch() -> None:
    async def story() -> None:
        gate = Gate()
        stage = stage_of(gate, 2)
        running, other = stage.ask("double", 1, timeout_s=0.2), stage.ask("double", 2)
        await until(lambda: gate.batches)
        waiting = stage.ask("double", 3, timeout_s=0.1)
        for asked in (waiting, running):
            with pytest.raises(Ended, match="call_timeout"):
                await asked.value()
        gate.open.set()
        assert await other.value() == 4

    on_stage(story)


def test_waiting_calls_go_back_when_the_worker_drains() -> None:
    async def story() -> None:
        gate = Gate()
        stage = stage_of(gate, 2)
        running = stage.ask("double", 1)
        await until(lambda: gate.batches)
        waiting = stage.ask("double", 2)
        stage.executor.draining = True
        drain = asyncio.create_task(stage.executor.drain(30.0))
        await until(waiting.over.is_set)
        assert waiting.reset == ("refused", "draining")
        assert not waiting.started
        assert not drain.done()
        gate.open.set()
        assert await running.value() == 2
        assert await drain == 0

    on_stage(story)


def test_a_waiting_call_survives_its_link() -> None:
    async def story() -> None:
        gate = Gate()
        stage = stage_of(gate, 2)
        running = stage.ask("double", 1)
        await until(lambda: gate.batches)
        waiting = stage.ask("double", 2)
        stage.executor.link_lost([waiting.stream])
        held = {call.id: call.started for call in stage.executor.table.held()}
        assert held == {running.call.id: True, waiting.call.id: False}
        again = stage.ask("double", header=waiting.call.header)
        assert again.call is waiting.call
        gate.open.set()
        assert await again.value() == 4

    on_stage(story)


def test_what_a_batch_prints_belongs_to_all_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    tee = output.Tee(io.StringIO(), "stdout")
    monkeypatch.setattr(output, "_tees", [tee])

    def talk(x: list[int]) -> list[Any]:
        print("together", len(x), file=tee)
        print("no end", end="", file=tee)
        return [ValueError("x") for _ in x]

    async def story() -> None:
        stage = Stage().open()
        stage.add(talk, batch_max=4, concurrency=4)
        for asked in [stage.ask("talk", 1), stage.ask("talk", 2)]:
            with pytest.raises(ValueError, match="x"):
                await asked.value()
            assert asked.lines() == ["together 2", "no end"]
            assert asked.header.log_tail == "together 2\nno end"

    on_stage(story)


def test_a_batch_that_waits_for_another_lets_it_run() -> None:
    async def story() -> None:
        stage = Stage(1).open()
        inner: list[Asked] = []

        async def down(x: list[int]) -> list[int]:
            if x[0] == 0:
                return [0]
            with Waiting():
                inner.append(stage.ask("down", x[0] - 1))
                return [await inner[-1].value() + 1]

        stage.add(down, batch_max=1, concurrency=1)
        assert await stage.run("down", 4) == 4

    on_stage(story)


def test_a_batch_knows_that_it_is_a_call() -> None:
    async def who(x: list[int]) -> list[Any]:
        context = current.get()
        assert context is not None
        return [(context.call_id, context.function, context.depth)] * len(x)

    async def story() -> None:
        stage = Stage().open()
        stage.add(who, batch_max=4, concurrency=4)
        asked = [stage.ask("who", 1, depth=1), stage.ask("who", 2, depth=3)]
        assert await asked[1].value() == (asked[0].call.id.hex(), "who", 3)

    on_stage(story)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 5), batches=st.integers(1, 3), wait_ms=st.sampled_from([0.0, 1.0, 50.0]),
    steps=st.lists(st.sampled_from(["ask", "ask", "ask", "cancel", "pause"]), max_size=30), plain=st.booleans(),
)  # fmt: skip
def test_everybody_gets_his_own_answer_once(
    size: int, batches: int, wait_ms: float, steps: list[str], plain: bool
) -> None:
    async def story() -> None:
        seen: list[int] = []

        async def coroutine(x: list[int]) -> list[int]:
            assert 1 <= len(x) <= size
            seen.extend(x)
            await asyncio.sleep(0.001)
            return [value * 3 for value in x]

        def function(x: list[int]) -> list[int]:
            assert 1 <= len(x) <= size
            seen.extend(x)
            return [value * 3 for value in x]

        stage = Stage(1000).open()
        spec: dict[str, Any] = {"batch_max": size, "concurrency": size * batches, "batch_wait_ms": wait_ms}
        stage.add(function if plain else coroutine, "f", **spec)
        asked: list[Asked] = []
        given_up: set[int] = set()
        for step in steps:
            if step == "ask":
                asked.append(stage.ask("f", len(asked)))
            elif step == "cancel" and asked:
                given_up.add(len(asked) // 2)
                asked[len(asked) // 2].cancel()
            else:
                await asyncio.sleep(0.0005)
        for number, one in enumerate(asked):
            if number in given_up:
                with contextlib.suppress(Ended):  # the result may have won the race
                    assert await one.value() == number * 3
            else:
                assert await one.value() == number * 3
        assert len(seen) == len(set(seen)), "none ran twice"
        assert set(seen) >= set(range(len(asked))) - given_up
        await until(lambda: not stage.executor.active)

    on_stage(story)
