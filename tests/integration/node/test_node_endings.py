"""How real workers end and begin: announced ends, hooks, health, what cannot be stopped, snapshots, classes, batches."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import FakeGateway, Worker
from node_instances import INSTANCE, Instance, eventually, function_app, instance_spec
from node_stage import Node, on_a_node

from nanopod.model import calls
from nanopod.model.endpoint import Fingerprints
from nanopod.model.errors import WorkerLost
from nanopod.model.wire import ShutdownNotice
from nanopod.node import files, launch, records

pytestmark = pytest.mark.integration

SDK = """
from nanopod import Batch, Deployment, Notice, current_call, enter, exit, method
from nanopod.model.registry import Waiting
app = Deployment(name="test")
def note(*words):
    with open(os.environ["NOTES"], "a") as log: log.write(" ".join(map(str, words)) + "\\n")
@app.remote(concurrency=4)
async def slow(seconds): await asyncio.sleep(seconds); return "slow"
"""
ENDING = (
    SDK
    + """
@app.context()
class Model:
    async def __aenter__(self): note("entered"); return self
    async def __aexit__(self, *about): note("left")
@app.on_preempt
async def told(notice: Notice): note("told", notice.reason, round(notice.deadline - time.time()))
@app.on_preempt
def broken(notice): raise OSError("no disk for this")
"""
)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(90):
            await work

    asyncio.run(limited())


def announce(instance: Instance, in_s: float, reason: str = "price") -> None:
    notice = {"at": time.time() + in_s, "lead_s": in_s, "reason": reason}
    files.write_atomic(instance.directory / files.SHUTDOWN, json.dumps(notice).encode())


def started(root: Path, gateway: FakeGateway, code: str, **fields: Any) -> Instance:
    app = fields.pop("app", function_app())
    fields.setdefault("instance_id", INSTANCE)
    return Instance(root, gateway.path, app, code, env={"NOTES": str(root / "notes")}, **fields)


def notes(root: Path) -> list[str]:
    path = root / "notes"
    return path.read_text().splitlines() if path.exists() else []


def test_sigterm_is_told_to_hooks_and_what_overruns_is_lost_before_contexts_are_left(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, ENDING, grace_s=3.0) as instance:
                worker = await gateway.ready()
                _, running = worker.call("slow", 60)
                await running.until(lambda a: a.started)
                instance.terminate()
                await worker.over(running)
                with pytest.raises(WorkerLost) as caught:
                    running.value()
                assert caught.value.preempted
                assert (await instance.verdict()).exit_code == 0
                assert notes(root) == ["entered", "told SIGTERM was sent 3", "left"]
                assert "no disk for this" in instance.log

    run(story())


def test_an_announced_end_drains_in_time_and_waits_for_the_end(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, ENDING, grace_s=4.0) as instance:
                worker = await gateway.ready()
                announce(instance, 600)
                await eventually(lambda: "told price 600" in notes(root))
                assert await worker.run("slow", 0) == "slow", "there is time: it goes on"
                _, running = worker.call("slow", 0.5)
                await running.until(lambda a: a.started)
                announce(instance, 3.5)
                await worker.until(lambda w: w.states[-1]["draining"])
                _, late = worker.call("slow", 0)
                await worker.over(late)
                assert late.reset() == ("refused", "draining")
                await worker.over(running)
                assert running.value() == "slow"
                await eventually(lambda: notes(root)[-1] == "left")
                assert notes(root) == ["entered", "told price 600", "left"], "told once"
                # Its contexts are left; the process stays until its time is over, so that nobody starts another.
                assert records.read_verdict(instance.directory) is None
                instance.terminate()
                assert (await instance.verdict()).exit_code == 0

    run(story())


def test_an_end_that_is_taken_back_after_the_drain_makes_the_worker_start_anew(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, ENDING, grace_s=20.0) as instance:
                await gateway.ready()
                announce(instance, 15)
                await eventually(lambda: notes(root)[-1:] == ["left"])
                (instance.directory / files.SHUTDOWN).unlink()
                verdict = await instance.verdict()
                assert (verdict.exit_code, verdict.asked) == (1, False)
                failure = launch.exited(instance.directory, 1).failure
                assert failure is not None
                assert not failure.user_fault
                assert "taken back" in failure.message

    run(story())


def test_a_sick_worker_is_replaced_and_says_why(root: Path) -> None:
    code = SDK + (
        "@app.healthcheck\n"
        "def fine():\n"
        "    note('asked')\n"
        "    if len(open(os.environ['NOTES']).readlines()) > 1: raise RuntimeError('cuda is gone')\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            (root / "notes").write_text("first is bad\n")
            with started(root, gateway, code, grace_s=1.5) as instance:
                worker = await gateway.ready()
                _, running = worker.call("slow", 60)
                await running.until(lambda a: a.started)
                verdict = await instance.verdict(30)
                assert verdict.exit_code == 1
                told = launch.exited(instance.directory, 1)
                assert told.failure is not None
                assert told.failure.stage == "run"
                assert told.failure.message == "healthcheck failed 2 times: RuntimeError: cuda is gone"
                assert notes(root)[1:] == ["asked", "asked"]
                await worker.over(running)
                with pytest.raises(WorkerLost, match="cuda is gone"):
                    running.value()

    run(story())


def test_a_function_that_ignores_its_end_takes_the_process_with_it(root: Path) -> None:
    code = SDK + (
        "@app.remote(kill_on_cancel=True)\n"
        "def deaf():\n"
        "    time.sleep(60)\n"
        "@app.context()\nclass Model:\n"
        "    async def __aenter__(self): return self\n"
        "    async def __aexit__(self, *a): note('left')\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, code, grace_s=30.0) as instance:
                worker = await gateway.ready()
                call_id, deaf = worker.call("deaf")
                _, other = worker.call("slow", 6)
                for answer in (deaf, other):
                    await answer.until(lambda a: a.started)
                worker.tell(deaf, calls.Cancel(call_id))
                await worker.over(deaf)
                assert deaf.headers()[-1].code == "cancelled"
                await worker.until(lambda w: w.states[-1]["draining"])
                await worker.over(other)
                assert other.value() == "slow", "others may finish"
                verdict = await instance.verdict(30)
                assert verdict.exit_code == 1
                failure = launch.exited(instance.directory, 1).failure
                assert failure is not None
                assert not failure.user_fault
                assert "deaf()" in failure.message
                assert "kill_on_cancel" in failure.message
                assert notes(root) == ["left"]
                assert not instance.processes()

    run(story())


SNAPSHOT = (
    SDK
    + """
@app.context()
class Weights:
    async def __aenter__(self): note("loaded"); self.data = "weights"; return self
    async def __aexit__(self, *about): note("left")
    async def __asnapshot__(self, dir): (dir / "data").write_text(self.data); note("kept")
    async def __arestore__(self, dir): self.data = (dir / "data").read_text() + " again"; note("restored")
@app.remote()
async def ask(): return app.get_context(Weights).data
"""
)


def test_what_a_worker_kept_is_restored_by_the_next_one_of_the_same_code(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            lives = (
                ("one", ["loaded", "kept", "left"]),
                ("one", ["restored", "kept", "left"]),
                ("two", ["loaded", "kept", "left"]),
            )
            for number, (code, told) in enumerate(lives, 1):
                (root / "notes").unlink(missing_ok=True)
                app = function_app(fingerprints=Fingerprints(code, "image"))
                with started(root, gateway, SNAPSHOT, app=app, instance_id=f"{INSTANCE}_{number}") as instance:
                    worker = await gateway.ready(number)
                    data = await worker.run("ask")
                    assert data == ("weights again" if told[0] == "restored" else "weights")
                    instance.terminate()
                    assert (await instance.verdict()).exit_code == 0
                assert notes(root) == told

    run(story())


def test_a_worker_that_was_killed_leaves_no_half_snapshot(root: Path) -> None:
    code = SNAPSHOT.replace('note("kept")', 'note("keeping"); await asyncio.sleep(60)')

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, code, grace_s=20.0) as instance:
                await gateway.ready()
                instance.terminate()
                await eventually(lambda: notes(root)[-1:] == ["keeping"])
                os.kill(instance.worker_pid, signal.SIGKILL)
                await instance.verdict()
            names = [path.name for path in (root / "snapshots").iterdir()]
            assert all(name.startswith(".new-") for name in names if name != "lock")

    run(story())


CLASSES = (
    SDK
    + """
@app.multiplexed(max=2)
async def adapter(name):
    note("load", name)
    class Adapter:
        def __init__(self): self.name = name
        def close(self): note("close", name)
    return Adapter()
@app.cls(concurrency=4)
class Counter:
    @enter()
    def load(self): self.count = 0; note("enter")
    @method()
    async def add(self, n): self.count += n; return self.count
    @method(batch=Batch(max_size=4, wait_ms=5))
    def square(self, x): note("batch", sorted(x)); return [value * value for value in x]
    @method()
    def items(self, n): yield from range(n)
    @exit()
    async def close(self): note("exit", self.count)
@app.remote(concurrency=4)
async def who(): return (await adapter()).name, current_call().route_key, current_call().depth
@app.remote()
async def nested(n):
    with Waiting():
        note("waits")
        while len(open(os.environ["NOTES"]).readlines()) < n: await asyncio.sleep(0.01)
    return "done"
@app.remote()
def inner(): note("ran")
"""
)


def call_with(worker: Worker, function: str, **fields: Any) -> Any:
    """A call with further header fields; its answer."""
    from nanopod.model import codec

    payload = codec.encode(((), {}))
    header = calls.Call(os.urandom(16), "endp_test", function, size=len(payload), **fields)
    return worker.open({"k": "call", "attempt": 2}, calls.encode(header, payload))


def test_classes_batches_and_cached_models_in_a_real_worker(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, CLASSES, slots=16) as instance:
                worker = await gateway.ready()
                assert [await worker.run("Counter.add", n) for n in (1, 2, 3)] == [1, 3, 6]
                answers = [worker.call("Counter.square", n)[1] for n in range(4)]
                assert [(await worker.over(answer)).value() for answer in answers] == [0, 1, 4, 9]
                _, items = worker.call("Counter.items", 3)
                assert (await worker.over(items)).items() == [0, 1, 2]
                for name in ("a", "b", "a", "c"):
                    answer = call_with(worker, "who", route_key=name, depth=3)
                    await worker.over(answer)
                    assert answer.value() == (name, name, 3)
                await eventually(lambda: "close b" in notes(root))
                instance.terminate()
                assert (await instance.verdict()).exit_code == 0
                told = notes(root)
                assert told[0] == "enter"
                assert sum(int(number) for line in told if "batch" in line for number in line[7:-1].split(", ")) == 6
                assert [line for line in told if line.startswith("load")] == ["load a", "load b", "load c"]
                assert set(told[-3:]) == {"close a", "close c", "exit 6"}
                assert told[-1] == "exit 6", "what was loaded goes before the contexts"

    run(story())


def test_on_a_worker_of_one_slot_a_waiting_call_makes_room(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, CLASSES, slots=1):
                worker = await gateway.ready()
                _, outer = worker.call("nested", 3)
                await eventually(lambda: "waits" in notes(root))
                _, full = worker.call("nested", 3)
                # The second one gets the lent slot, lends it in turn, and the last of the three runs in it.
                await full.until(lambda a: a.started)
                await eventually(lambda: notes(root).count("waits") == 2 or notes(root)[-1] == "waits")
                assert await worker.run("inner") is None
                for answer in (outer, full):
                    assert (await worker.over(answer)).value() == "done"

    run(story())


def test_a_benchmark_is_told_to_the_gateway(root: Path) -> None:
    code = SDK + (
        "@app.remote(benchmark_dataset=[{'x': 2}], benchmark_runs=2, concurrency=2, benchmark_weight=2.0,\n"
        "            workload_calculator=lambda payload: payload['x'] * 5.0)\n"
        "async def square(x): await asyncio.sleep(0.01); return x * x\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with started(root, gateway, code):
                worker = await gateway.ready()
                state = worker.states[-1]
                told = state["benchmark"]["square"]
                assert (told["rounds"], told["at_once"], told["errors"]) == (2, 2, 0)
                assert 0 < state["perf"] <= 2 * 10 / 0.01
                assert told["p99_ms"] >= 10
                assert state["detail"].startswith("square: ")
                assert state["in_flight"] == 0
                assert worker.hello["calls"] == []

    run(story())


def test_an_agent_passes_on_what_the_server_announces(root: Path) -> None:
    async def story(node: Node) -> None:
        path = root / "notes"
        code = ENDING.replace('os.environ["NOTES"]', repr(str(path))) + "@app.remote()\ndef square(x): return x\n"
        spec = instance_spec(node.app(code), INSTANCE, grace_s=4.0)
        node.server.want(spec)
        worker = await node.gateway.ready()
        node.server.want(spec, notices={INSTANCE: ShutdownNotice(int(time.time()) + 600, "sold")})
        await eventually(lambda: any(line.startswith("told sold") for line in notes(root)))
        assert await worker.run("slow", 0) == "slow"
        node.server.want(spec, notices={INSTANCE: ShutdownNotice(int(time.time()) + 3, "sold")})
        await worker.until(lambda w: w.states[-1]["draining"])
        await eventually(lambda: notes(root)[-1] == "left")
        assert node.server.observed[INSTANCE].phase == "loading", "it runs until its time is over"
        node.server.want(killed=(INSTANCE,))
        await node.server.phase("ended", INSTANCE)
        assert notes(root).count("left") == 1

    on_a_node(root, story)
