"""A real shim and a real worker against a gateway made for the purpose."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import FakeGateway, Worker
from node_instances import INSTANCE, Instance, eventually, function_app

from nanopod.model import calls, frames
from nanopod.model.errors import Cancelled, NotFound, SerializationError, WorkerLost
from nanopod.node import files, launch, procs, records

pytestmark = pytest.mark.integration


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: unix sockets have no room for long ones."""
    with tempfile.TemporaryDirectory(prefix="npn-", dir="/tmp") as path:
        yield Path(path)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


CODE = """
starts = []
@remote(concurrency=4)
async def square(x): return x * x
@remote("sync", concurrency=2)
def cube(x): return x ** 3
@remote()
async def fail(x):
    print("before the failure", x)
    print("no line end", end="")
    raise ValueError("hello", x)
@remote()
async def unsendable(): return {"a": [1, {"lock": threading.Lock()}]}
@remote()
async def size_of(data): return len(data), data
@remote()
async def wait(seconds, path=""):
    with open(path or os.devnull, "a") as log: log.write("started\\n")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        with open(path or os.devnull, "a") as log: log.write("cancelled\\n")
        raise
    return "waited"
@remote("sync")
def poll(path):
    while not current.get().cancelled: time.sleep(0.005)
    open(path, "a").write("saw it\\n")
@remote("sync")
def stubborn(seconds): time.sleep(seconds); return "late"
@remote()
async def block(seconds): time.sleep(seconds); return "blocked"
@remote("async_generator")
async def count(n):
    for i in range(n): yield i
@remote("generator")
def count_sync(n):
    for i in range(n): yield i
@remote("async_generator")
async def ends_badly(n):
    for i in range(n): yield i
    raise KeyError("end")
@remote()
async def leave(): sys.exit(3)
@remote()
async def once(path):
    with open(path, "a") as log: log.write(current.get().call_id + "\\n")
    while os.path.exists(path + ".hold"): await asyncio.sleep(0.01)
    open(path + ".ended", "a").close()
    return "done"
@remote("sync", workload=lambda x: x * 2.0)
def weighed(x): return x
@remote("sync", workload=lambda x: 1 / 0)
def badly_weighed(x): return x
"""
APP = function_app("square")


def test_calls_of_every_kind_and_their_answers(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE) as instance:
                worker = await gateway.ready()
                assert time.monotonic() - instance.started_at < 5
                assert worker.hello["slots"] == 8
                assert worker.hello["calls"] == []
                assert gateway.dials[0]["authorization"] == "Bearer secret-join-token"
                assert await worker.run("square", 12) == 144
                assert await worker.run("cube", x=3) == 27
                assert await worker.run("size_of", b"x" * 3_000_000) == (3_000_000, b"x" * 3_000_000)
                with pytest.raises(ValueError, match="hello") as caught:
                    await worker.run("fail", 7)
                assert caught.value.args == ("hello", 7)
                notes = "\n".join(caught.value.__notes__)
                assert "in fail" in notes
                assert "nanopod/node" not in notes
                assert "before the failure 7\nno line end" in notes
                with pytest.raises(SerializationError, match=r"result\.a\[1\]\.lock"):
                    await worker.run("unsendable")
                with pytest.raises(NotFound, match=r"there are: .*square"):
                    await worker.run("nothing")
                with pytest.raises(TypeError, match="missing"):
                    await worker.run("square")
                with pytest.raises(SystemExit):
                    await worker.run("leave")
                assert await worker.run("square", 2) == 4, "sys.exit in a function ends the call, not the worker"
                assert "secret-join-token" not in instance.log

    run(story())


def test_a_call_that_completes_at_once_answers_with_one_write(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                await worker.run("square", 1)
                _, answer = worker.call("square", 3)
                await worker.over(answer)
                assert [kind for kind, _, _ in answer.frames] == [frames.HEAD, frames.DATA, frames.END]
                assert len(answer.writes) == 1
                assert answer.end["ok"] is True
                assert answer.end["run_us"] >= 0
                _, answer = worker.call("weighed", 21)
                await worker.over(answer)
                assert answer.end["workload"] == 42
                _, answer = worker.call("badly_weighed", 1)
                await worker.over(answer)
                assert answer.end["workload"] == 100

    run(story())


def test_generators_keep_to_the_callers_credit(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                for function in ("count", "count_sync"):
                    call_id, answer = worker.call(function, 100)
                    await answer.until(lambda a: len(a.items()) >= calls.ITEM_WINDOW)
                    await asyncio.sleep(0.1)
                    assert answer.items() == list(range(calls.ITEM_WINDOW))
                    worker.tell(answer, calls.Credit(call_id, items=10))
                    await answer.until(lambda a: len(a.items()) >= calls.ITEM_WINDOW + 10)
                    await asyncio.sleep(0.05)
                    assert len(answer.items()) == calls.ITEM_WINDOW + 10
                    worker.tell(answer, calls.Credit(call_id, items=1000))
                    await worker.over(answer)
                    assert answer.items() == list(range(100))
                    assert isinstance(answer.headers()[-1], calls.End)
                    # One that waits for credit can be cancelled.
                    call_id, answer = worker.call(function, 100)
                    await answer.until(lambda a: len(a.items()) >= calls.ITEM_WINDOW)
                    worker.tell(answer, calls.Cancel(call_id, reason="enough"))
                    await worker.over(answer, 3)
                    assert answer.headers()[-1].code == "cancelled"
                _, answer = worker.call("ends_badly", 2)
                await worker.over(answer)
                assert answer.items() == [0, 1]
                with pytest.raises(KeyError):
                    answer.value()

    run(story())


def test_timeouts_and_cancellation(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE, slots=2):
                worker = await gateway.ready()
                seen = root / "seen"
                call_id, answer = worker.call("wait", 30, str(seen))
                await answer.until(lambda a: a.started)
                worker.tell(answer, calls.Cancel(call_id, reason="no longer needed"))
                await worker.over(answer, 3)
                with pytest.raises(AssertionError, match="cancelled"):
                    answer.value()
                assert seen.read_text() == "started\ncancelled\n"

                _, answer = worker.call("wait", 30, timeout_s=0.2)
                await worker.over(answer, 3)
                with pytest.raises(AssertionError, match=r"call_timeout.*timeout of 0\.2 s"):
                    answer.value()

                call_id, answer = worker.call("poll", str(root / "polled"))
                await answer.until(lambda a: a.started)
                worker.tell(answer, calls.Cancel(call_id))
                await worker.over(answer, 3)
                assert (root / "polled").read_text() == "saw it\n"

                # Sync code that does not look: answered after 5 s at most, and its slot stays taken until it is over.
                _, answer = worker.call("stubborn", 7, timeout_s=0.1)
                _, other = worker.call("wait", 0.1)
                await worker.over(other)
                assert other.value() == "waited"
                await worker.over(answer, 6.5)
                with pytest.raises(AssertionError, match="call_timeout"):
                    answer.value()
                _, first = worker.call("wait", 1)
                _, second = worker.call("wait", 0)
                await worker.over(second)
                assert second.reset() == ("refused", "no free slot")
                await worker.over(first)
                await asyncio.sleep(1.0)
                assert await asyncio.gather(worker.run("square", 2), worker.run("square", 3)) == [4, 9]

    run(story())


def test_a_call_id_starts_once_whatever_happens_to_links(root: Path) -> None:
    async def story() -> None:
        log, hold, ended = root / "starts", root / "starts.hold", root / "starts.ended"
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                hold.touch()
                call_id, first = worker.call("once", str(log))
                await first.until(lambda a: a.started)
                _, again = worker.call("once", str(log), call_id=call_id)
                hold.unlink()
                await worker.over(again)
                assert again.value() == "done"

                # The link breaks while it runs: reported, adopted, answered.
                hold.touch()
                call_id, answer = worker.call("once", str(log))
                await answer.until(lambda a: a.started)
                worker.close()
                second = await gateway.ready(2)
                assert {"id": call_id.hex(), "started": True, "done": False} in second.hello["calls"]
                adopted = second.open({"k": "adopt", "id": call_id.hex()})
                hold.unlink()
                await second.over(adopted)
                assert adopted.started
                assert adopted.value() == "done"

                # It ends while nobody is linked: kept and reported as done; asked for twice, answered twice.
                hold.touch()
                ended.unlink()
                call_id, answer = second.call("once", str(log))
                await answer.until(lambda a: a.started)
                await gateway.stop()
                hold.unlink()
                await eventually(ended.exists)
                await gateway.start()
                third = await gateway.ready(3)
                assert {"id": call_id.hex(), "started": True, "done": True} in third.hello["calls"]
                for _ in range(2):
                    adopted = third.open({"k": "adopt", "id": call_id.hex()})
                    await third.over(adopted)
                    assert adopted.value() == "done"

                # Released: not reported any more; sent again soon, it still does not start.
                third.send(frames.pack(frames.RELEASE, 0, call_id))
                await third.run("square", 1)
                third.close()
                fourth = await gateway.ready(4)
                assert call_id.hex() not in {call["id"] for call in fourth.hello["calls"]}
                _, again = fourth.call("once", str(log), call_id=call_id)
                await fourth.over(again)
                assert again.value() == "done"
                unknown = fourth.open({"k": "adopt", "id": os.urandom(16).hex()})
                await fourth.over(unknown)
                assert unknown.reset() is not None
        started = log.read_text().splitlines()
        assert len(started) == len(set(started)) == 3

    run(story())


def test_a_call_whose_payload_was_cut_off_is_handed_back(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                call_id = os.urandom(16)
                half = calls.encode(calls.Call(call_id, "endp_test", "square", size=2000), b"x" * 1000)
                worker.open({"k": "call"}, half, end=False)
                await worker.run("square", 1)
                worker.close()
                second = await gateway.ready(2)
                assert {"id": call_id.hex(), "started": False, "done": False} in second.hello["calls"]
                adopted = second.open({"k": "adopt", "id": call_id.hex()})
                await second.over(adopted)
                reset = adopted.reset()
                assert reset is not None
                assert reset[0] == "refused"

    run(story())


def test_generators_cannot_change_their_link(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                call_id, answer = worker.call("count", 1000)
                await answer.until(lambda a: len(a.items()) >= 10)
                worker.close()
                second = await gateway.ready(2)
                assert call_id.hex() not in {call["id"] for call in second.hello["calls"]}
                assert await second.run("square", 5) == 25

    run(story())


def test_a_blocked_function_does_not_look_like_death(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw", ping_s=0.2) as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                _, answer = worker.call("block", 1.5)
                await answer.until(lambda a: True)
                before = worker.pongs
                for _ in range(4):
                    worker.send(frames.pack(frames.PING, 0, b"12345678"))
                    await asyncio.sleep(0.1)
                assert worker.pongs == before + 4
                assert not answer.over.is_set()
                # A break in the meantime: the link is back, with the call, although the loop is still blocked.
                worker.close()
                second = await gateway.worker(2, 3)
                assert len(second.hello["calls"]) == 1
                assert not answer.over.is_set()
                adopted = second.open({"k": "adopt", "id": second.hello["calls"][0]["id"]})
                await second.over(adopted)
                assert adopted.value() == "blocked"

    run(story())


def test_dialling_goes_on_through_refusal_and_silence(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw", ping_s=0.2) as gateway:
            gateway.status[INSTANCE] = 403
            with Instance(root, gateway.path, APP, CODE) as instance:
                await eventually(lambda: len(gateway.dials) >= 3)
                gateway.status[INSTANCE] = 101
                worker = await gateway.ready()
                gateway.answers_pings = False
                await asyncio.wait_for(worker.closed.wait(), 5)
                gateway.answers_pings = True
                await gateway.ready(2)
                # A newer epoch is known: this one ends by itself, as fenced.
                gateway.status[INSTANCE] = 410
                gateway.workers[-1].close()
                verdict = await instance.verdict()
                assert verdict.exit_code == records.EXIT_FENCED
                assert launch.exited(instance.directory, 1).asked

    run(story())


def test_answers_wait_for_credit(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE):
                worker = await gateway.ready()
                worker.credit = False
                _, answer = worker.call("size_of", b"y" * 5_000_000)
                await answer.until(lambda a: bool(a.of(frames.DATA)))
                await asyncio.sleep(0.2)
                assert sum(map(len, answer.of(frames.DATA))) <= 262_144 + frames.FRAME_BYTES_MAX
                assert not answer.over.is_set()
                # Others are not held up by it.
                assert await worker.run("square", 3) == 9
                worker.credit = True
                worker.send(frames.pack(frames.WINDOW, answer.stream, (8 << 20).to_bytes(4, "big")))
                await worker.over(answer)
                assert answer.value() == (5_000_000, b"y" * 5_000_000)

    run(story())


CONTEXTS = """
def note(text):
    with open(os.environ["NOTES"], "a") as log: log.write(text + "\\n")
@context("model", size=3)
class Model:
    def __init__(self, name, size): self.name, self.size = name, size
    async def __aenter__(self):
        await asyncio.sleep(0.05); note("model entered"); return {"name": self.name, "size": self.size}
    async def __aexit__(self, *about): await asyncio.sleep(0.05); note(f"model left {about[0]}")
@context(needs=[Model])
class Index:
    async def __aenter__(self): note(f"index entered with {app.entered[Model]['size']}"); return self
    async def __aexit__(self, *about): note("index left"); raise RuntimeError("exit failed")
@remote()
async def ask(): return app.entered[Model]
@remote(concurrency=4)
async def slow(seconds): await asyncio.sleep(seconds); return "slow"
"""


def test_drain_finishes_what_runs_hands_back_the_rest_and_leaves_contexts(root: Path) -> None:
    async def story() -> None:
        notes = root / "notes"
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, function_app("ask"), CONTEXTS, env={"NOTES": str(notes)}) as instance:
                worker = await gateway.ready()
                assert await worker.run("ask") == {"name": "model", "size": 3}
                _, running = worker.call("slow", 0.6)
                await running.until(lambda a: a.started)
                instance.terminate()
                await worker.until(lambda w: w.states[-1]["draining"])
                _, late = worker.call("slow", 0)
                await worker.over(late)
                assert late.reset() == ("refused", "draining")
                assert not late.started
                await worker.over(running)
                assert running.value() == "slow"
                verdict = await instance.verdict()
                assert (verdict.exit_code, verdict.asked) == (0, True)
                told = notes.read_text().splitlines()
                assert told[:2] == ["model entered", "index entered with 3"]
                assert set(told[2:]) == {"model left None", "index left"}
                assert "exit failed" in instance.log
                assert not instance.processes()

    run(story())


def test_calls_that_overrun_the_grace_are_given_up_and_contexts_left_all_the_same(root: Path) -> None:
    async def story() -> None:
        notes = root / "notes"
        fields: dict[str, Any] = {"env": {"NOTES": str(notes)}, "grace_s": 1.5}
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, function_app("ask"), CONTEXTS, **fields) as instance:
                worker = await gateway.ready()
                _, running = worker.call("slow", 60)
                await running.until(lambda a: a.started)
                began = time.monotonic()
                instance.terminate()
                await worker.over(running)
                with pytest.raises(WorkerLost, match="SIGTERM was sent") as caught:
                    running.value()
                assert (caught.value.started, caught.value.preempted) == (True, True)
                assert "nanopod.model.errors.WorkerLost" in running.headers()[-1].types
                verdict = await instance.verdict()
                assert verdict.exit_code == 0
                assert 0.9 < time.monotonic() - began < 3.5
                assert "model left None" in notes.read_text()

    run(story())


def test_an_idle_worker_ends_at_once(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE) as instance:
                await gateway.ready()
                began = time.monotonic()
                instance.terminate()
                assert (await instance.verdict()).exit_code == 0
                assert time.monotonic() - began < 4, "without waiting for its grace"

    run(story())


def test_an_answer_that_no_gateway_has_taken_is_kept_through_a_drain(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE, grace_s=12.0) as instance:
                worker = await gateway.ready()
                call_id, answer = worker.call("wait", 0.3)
                await answer.until(lambda a: a.started)
                await gateway.stop()
                instance.terminate()
                await asyncio.sleep(0.8)
                assert records.read_verdict(instance.directory) is None
                await gateway.start()
                second = await gateway.worker(2)
                adopted = second.open({"k": "adopt", "id": call_id.hex()})
                await second.over(adopted)
                assert adopted.value() == "waited"
                assert (await instance.verdict()).exit_code == 0

    run(story())


BROKEN = {
    "import": ("import no_such_module_anywhere\n", "import", "ModuleNotFoundError", "no_such_module_anywhere"),
    "syntax": ("def f(:\n", "import", "SyntaxError", "invalid syntax"),
    "exit": ("print('giving up'); sys.exit(4)\n", "import", "SystemExit", "sys.exit(4)"),
    "missing": ("", "import", "", "does not define square()"),
    "context": (
        "@remote()\nasync def square(x): return x\n"
        "@context()\nclass Good:\n"
        "    async def __aenter__(self): print('good entered'); return self\n"
        "    async def __aexit__(self, *a): print('good left', a[0].__name__)\n"
        "@context(needs=[Good])\nclass Bad:\n"
        "    async def __aenter__(self): raise OSError('no weights here')\n"
        "    async def __aexit__(self, *a): print('bad left')\n",
        "context", "OSError", "Bad: no weights here",
    ),
    "benchmark": (
        "@remote(benchmark_dataset=[{'x': 0}], benchmark_runs=2)\nasync def square(x): return 1 / x\n",
        "benchmark", "ZeroDivisionError", "square: division by zero",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_told_in_the_workers_words(root: Path, case: str) -> None:
    code, stage, type_name, text = BROKEN[case]

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code) as instance:
                verdict = await instance.verdict()
                assert (verdict.exit_code, verdict.asked) == (1, False)
                failure = records.read_failure(instance.directory)
                assert failure is not None
                assert (failure.stage, failure.type_name) == (stage, type_name)
                assert text in failure.message
                assert failure.user_fault
                assert "nanopod/node" not in failure.traceback
                if case == "exit":
                    assert "giving up" in failure.log_tail
                if case == "context":
                    assert "no weights here" in failure.traceback
                    assert "good left OSError" in instance.log
                    assert "bad left" not in instance.log
                told = launch.exited(instance.directory, 1)
                assert told.failure == failure

    run(story())


def test_the_benchmark_comes_before_ready_and_its_median_is_told(root: Path) -> None:
    code = (
        "ran = []\n"
        "@remote(benchmark_dataset=[{'x': 2}], benchmark_runs=3, concurrency=4, workload=lambda x: 10.0)\n"
        "async def square(x): ran.append(x); await asyncio.sleep(0.02); return x * x\n"
        "@remote()\nasync def runs(): return len(ran)\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code):
                worker = await gateway.ready()
                perf = worker.states[-1]["perf"]
                # Four at once of 10 units each, in 20 ms and a little.
                assert 500 < perf <= 2000
                assert await worker.run("runs") == 1 + 3 * 4

    run(story())


def test_kill_9_of_the_worker_is_reported_with_its_signal(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE) as instance:
                await gateway.ready()
                os.kill(instance.worker_pid, signal.SIGKILL)
                verdict = await instance.verdict()
                assert verdict.signal == signal.SIGKILL
                told = launch.exited(instance.directory, 1)
                assert told.failure is not None
                assert (told.failure.stage, told.failure.user_fault) == ("run", False)
                assert not instance.processes()

    run(story())


def test_nothing_outlives_the_shim(root: Path) -> None:
    code = CODE + (
        "import subprocess\n"
        "@remote('sync')\ndef spawn():\n"
        "    return subprocess.Popen(['sleep', '300']).pid, subprocess.Popen(['sleep', '300'], start_new_session=True).pid\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code) as instance:
                worker = await gateway.ready()
                plain, apart = await worker.run("spawn")
                worker_pid = instance.worker_pid
                assert instance.running is not None
                assert set(instance.processes()) == {plain, apart, worker_pid, instance.running.pid}
                os.kill(worker_pid, signal.SIGKILL)
                await instance.verdict()
                await eventually(lambda: not instance.processes(), 3, "children of a killed worker are gone")

    run(story())
    other = root / "second"
    other.mkdir()

    async def shim_killed() -> None:
        async with FakeGateway(other / "gw") as gateway:
            with Instance(other, gateway.path, APP, CODE) as instance:
                worker = await gateway.ready()
                assert instance.running is not None
                pid = instance.worker_pid
                os.kill(instance.running.pid, signal.SIGKILL)
                await asyncio.wait_for(worker.closed.wait(), 3)
                await eventually(lambda: procs.start_time(pid) is None, 3, "the worker dies with its shim")

    run(shim_killed())


def test_a_worker_out_of_touch_with_everybody_is_fenced(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE, lease_s=1.0) as instance:
                worker = await gateway.ready()
                await asyncio.sleep(1.5)
                assert await worker.run("square", 2) == 4, "the link to a gateway alone keeps it"
                await gateway.stop()
                for _ in range(4):
                    await asyncio.sleep(0.4)
                    assert await launch.ask(instance.directory, "ping") is not None, "and so does the agent alone"
                verdict = await instance.verdict(5)
                assert verdict.asked
                assert "fenced" in verdict.reason

    run(story())


def test_control_socket_answers_status_and_stop(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE) as instance:
                await gateway.ready()

                async def phase() -> str:
                    told = await launch.ask(instance.directory, "status")
                    return str(told and told["phase"])

                while await phase() != "ready":
                    await asyncio.sleep(0.01)
                told = await launch.ask(instance.directory, "status")
                assert told is not None
                assert told["linked"] is True
                assert told["worker"] == instance.worker_pid
                assert await launch.ask(instance.directory, "dance") == {
                    "error": "op is one of: ping, status, stop, exec, signal"
                }
                await launch.ask(instance.directory, "stop", reason="enough")
                verdict = await instance.verdict()
                assert (verdict.exit_code, verdict.reason) == (0, "enough")
                assert not (instance.directory / files.CONTROL).exists()

    run(story())


def test_sigterm_while_contexts_enter_rolls_them_back(root: Path) -> None:
    code = (
        "@remote()\nasync def square(x): return x\n"
        "@context()\nclass Slow:\n"
        "    async def __aenter__(self):\n"
        "        print('entering')\n"
        "        try: await asyncio.sleep(60)\n"
        "        finally: print('interrupted')\n"
        "    async def __aexit__(self, *a): pass\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code) as instance:
                await gateway.worker()
                await eventually(lambda: "entering" in instance.log)
                instance.terminate()
                verdict = await instance.verdict(5)
                assert (verdict.exit_code, verdict.asked) == (0, True)
                assert "interrupted" in instance.log

    run(story())


def test_output_is_sent_along_and_kept(root: Path) -> None:
    code = (
        "@remote('sync', concurrency=8)\ndef square(x):\n"
        "    print('value', x); print('oops', file=sys.stderr); time.sleep(0.05); return x\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code) as instance:
                worker: Worker = await gateway.ready()
                answers = [worker.call("square", number)[1] for number in range(4)]
                for number, answer in enumerate(answers):
                    await worker.over(answer)
                    logs = [header for header in answer.headers() if isinstance(header, calls.Log)]
                    assert [(log.stream, log.line) for log in logs] == [
                        ("stdout", f"value {number}"),
                        ("stderr", "oops"),
                    ]
                assert instance.log.count("oops") == 4

    run(story())


def test_cancelled_error_of_their_own_is_an_error_not_a_hang(root: Path) -> None:
    code = "@remote()\nasync def square(x): raise asyncio.CancelledError('mine')\n"

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code):
                worker = await gateway.ready()
                with pytest.raises((asyncio.CancelledError, Cancelled)):
                    await worker.run("square", 1)

    run(story())


def test_threads_that_still_work_do_not_hold_up_the_end(root: Path) -> None:
    code = (
        "@remote()\nasync def square(x):\n"
        "    asyncio.create_task(asyncio.sleep(60))\n"
        "    await asyncio.to_thread(time.sleep, 60)\n"
        "@remote('sync')\ndef asleep(): time.sleep(60)\n"
    )

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code, grace_s=1.0) as instance:
                worker = await gateway.ready()
                answers = [worker.call("square", 1)[1], worker.call("asleep")[1]]
                for answer in answers:
                    await answer.until(lambda a: a.started)
                began = time.monotonic()
                instance.terminate()
                assert (await instance.verdict()).exit_code == 0
                assert time.monotonic() - began < 2.9

    run(story())


def test_a_fenced_worker_does_not_finish_first(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, CODE, grace_s=30.0) as instance:
                worker = await gateway.ready()
                _, answer = worker.call("wait", 25)
                await answer.until(lambda a: a.started)
                gateway.status[INSTANCE] = 410
                worker.close()
                verdict = await instance.verdict(5)
                assert verdict.exit_code == records.EXIT_FENCED

    run(story())


def test_long_calls_show_their_output_while_they_run(root: Path) -> None:
    code = "@remote('sync')\ndef square(x):\n    for step in range(3): print('step', step); time.sleep(0.2)\n"

    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, APP, code):
                worker = await gateway.ready()
                _, answer = worker.call("square", 1)
                await answer.until(lambda a: any(isinstance(header, calls.Log) for header in a.headers()), 0.55)
                assert not answer.over.is_set()
                await worker.over(answer)
                assert len([header for header in answer.headers() if isinstance(header, calls.Log)]) == 3

    run(story())
