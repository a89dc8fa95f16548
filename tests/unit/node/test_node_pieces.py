"""Smaller parts of the node: environment keys, workload, output, streams and their credit, usage of foreign answers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.client import gpus
from nanopod.model import calls, frames
from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ImageSpec, InstanceSpec, ModelSpec
from nanopod.model.registry import RegisteredFunction
from nanopod.node import environment, files, inventory, launch, procs, records
from nanopod.node.engines.command import CommandEngine, EngineFailed, filled
from nanopod.node.engines.observed import Seen
from nanopod.node.runtime import output, table
from nanopod.node.runtime.connection import Connection, Stream
from nanopod.node.runtime.table import DONE, Call, Table
from nanopod.node.runtime.threads import Threads
from nanopod.node.runtime.workload import Workload

# --- environment ---


def test_environments_are_shared_by_what_decides_them() -> None:
    plain = ImageSpec(pip_install=("a", "b"))
    key = environment.key_of(plain, "/usr/bin/python3")
    assert key == environment.key_of(
        ImageSpec(pip_install=("a", "b"), env={"X": "1"}, storage_gb=7), "/usr/bin/python3"
    )
    others = [
        environment.key_of(ImageSpec(pip_install=("a",)), "/usr/bin/python3"),
        environment.key_of(ImageSpec(pip_install=("b", "a")), "/usr/bin/python3"),
        environment.key_of(plain, "/opt/python"),
        environment.key_of(ImageSpec(pip_install=("a", "b"), python=""), "/usr/bin/python3"),
    ]
    assert len({key, *others}) == 5


def test_no_packages_means_the_agents_own_interpreter(tmp_path: Path) -> None:
    found = environment.prepare(ImageSpec(env={"A": "b"}), tmp_path / "envs", tmp_path, local=False)
    assert (found.python, found.env["A"]) == (sys.executable, "b")
    assert not (tmp_path / "envs").exists()
    other = environment.prepare(ImageSpec(python=str(Path(sys.prefix))), tmp_path / "envs", tmp_path, local=False)
    assert other.python == str(Path(sys.prefix) / "bin" / "python")


def test_commands_that_hang_are_given_up(tmp_path: Path) -> None:
    (tmp_path / files.APP).mkdir()
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(environment.EnvironmentFailed, match="no longer wanted"):
        environment.prepare(ImageSpec(runs=("sleep 60 & sleep 60",)), tmp_path, tmp_path, local=False, stop=stop)
    assert time.monotonic() - began < 3


# --- workload ---


def function(**fields: Any) -> RegisteredFunction:
    def call(x: int, y: int = 2) -> int:
        return x * y

    return RegisteredFunction(FunctionSpec("f"), call, **fields)


def test_workload_of_bound_arguments_or_of_one_payload() -> None:
    assert Workload(function(workload=lambda x, y=0: x + y)).of((3,), {"y": 4}) == 7
    assert Workload(function(workload=lambda payload: payload["x"] * 10)).of((3,), {}) == 30
    assert Workload(function()).of((1,), {}) == 100


@pytest.mark.parametrize("nonsense", [lambda x: float("nan"), lambda x: -1, lambda x: 1 / 0, lambda x: "many"])
def test_nonsense_of_a_calculator_is_the_default(nonsense: Any) -> None:
    assert Workload(function(workload=nonsense)).of((1,), {}) == 100


# --- output ---


class Printer:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def on_line(self, stream: str, line: str) -> None:
        self.lines.append((stream, line))


def test_lines_belong_to_the_call_that_prints() -> None:
    log = io.StringIO()
    tee = output.Tee(log, "stdout")
    one, two = Printer(), Printer()
    for printer, text in ((one, "a"), (two, "b"), (one, "c\nd"), (two, "\n\n"), (one, "")):
        output.printing.set(printer)
        tee.write(text)
    output.printing.set(None)
    print("nobody's", file=tee)
    tee.end_of(one)
    tee.end_of(two)
    assert one.lines == [("stdout", "ac"), ("stdout", "d")]
    assert two.lines == [("stdout", "b"), ("stdout", "")]
    assert log.getvalue() == "abc\nd\n\nnobody's\n"
    assert output.tail().endswith("nobody's\nd")


@given(st.lists(st.text(alphabet="ab\n", max_size=6), max_size=12))
def test_no_character_is_lost_however_it_is_cut(parts: list[str]) -> None:
    tee, printer = output.Tee(io.StringIO(), "stdout"), Printer()
    token = output.printing.set(printer)
    for part in parts:
        tee.write(part)
    output.printing.reset(token)
    tee.end_of(printer)
    whole = "".join(parts)
    lines = whole.split("\n")
    assert [line for _, line in printer.lines] == (lines if lines[-1] else lines[:-1])


# --- streams ---


def pair() -> tuple[Connection, socket.socket, list[int]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(2)
    woken: list[int] = []
    return Connection(ours, lambda: woken.append(1)), theirs, woken


def opened(connection: Connection, number: int, credit: int) -> Stream:
    stream = Stream(connection, number, 1, credit)
    connection.streams[number] = stream
    return stream


def test_data_waits_for_credit_and_keeps_its_order() -> None:
    connection, theirs, _ = pair()
    slow, fast = opened(connection, 1, 10), opened(connection, 2, 1000)
    slow.data(b"x" * 30)
    slow.data(b"y" * 5)
    slow.post(frames.pack(frames.END, 1, b"{}"), last=True)
    fast.data(b"z")
    connection.flush()
    got = frames.FrameReader().feed(theirs.recv(65536))
    assert [(stream, payload) for _, stream, _, _, payload in got] == [(1, b"x" * 30), (2, b"z")]
    assert slow.is_waiting
    assert slow.is_open
    slow.give(20)
    connection.flush()
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    slow.give(1)
    connection.flush()
    got = frames.FrameReader().feed(theirs.recv(65536))
    assert [(kind, payload) for kind, _, _, _, payload in got] == [(frames.DATA, b"yyyyy"), (frames.END, b"{}")]
    assert not slow.is_open


def test_drained_waits_for_the_gateway_and_not_for_a_dead_one() -> None:
    async def story() -> None:
        connection, _theirs, _ = pair()
        stream = opened(connection, 1, 1)
        stream.data(b"ab")
        stream.data(b"cd")
        waiting = asyncio.create_task(stream.drained())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        stream.give(10)
        await asyncio.wait_for(waiting, 1)
        stream.credit = 0
        stream.data(b"ef")
        waiting = asyncio.create_task(stream.drained())
        await asyncio.sleep(0.01)
        connection.lost()
        await asyncio.wait_for(waiting, 1)
        stream.data(b"into the void")
        connection.flush()

    asyncio.run(story())


def test_what_the_socket_does_not_take_leaves_later_in_order() -> None:
    connection, theirs, woken = pair()
    stream = opened(connection, 1, 1 << 30)
    sent = os.urandom(1 << 20) * 4
    stream.data(sent)
    connection.flush()
    assert connection.has_backlog
    assert woken
    reader, got = frames.FrameReader(), b""
    while len(got) < len(sent):
        got += b"".join(payload for _, _, _, _, payload in reader.feed(theirs.recv(1 << 16)))
        connection.push()
    assert got == sent
    assert not connection.has_backlog


# --- the table of calls ---


def finished(kept: Table, size: int, now: float) -> Call:
    connection, _, _ = pair()
    call = Call(calls.Call(os.urandom(16)), opened(connection, 1, 0), b"", now)
    kept.calls[call.id] = call
    call.final, call.final_bytes = [b"x"], size
    with kept.lock:
        kept.finished(call, now)
    return call


def test_results_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "KEPT_CALLS_MAX", 3)
    monkeypatch.setattr(table, "KEPT_BYTES_MAX", 1000)
    kept = Table()
    old = finished(kept, 1, 0.0)
    recent = [finished(kept, 10, 700.0) for _ in range(3)]
    assert set(kept.calls) == {call.id for call in recent}, "ten minutes, and three of them"
    assert old.id not in kept.calls
    big = finished(kept, 985, 701.0)
    assert set(kept.calls) == {recent[-1].id, big.id}
    assert all(call.state == DONE for call in kept.held())
    kept.release([big.id, recent[-1].id, os.urandom(16)])
    assert kept.held() == []
    assert set(kept.calls) == {big.id, recent[-1].id}
    assert not kept.undelivered()


def test_a_large_released_result_is_let_go_at_once() -> None:
    kept = Table()
    call = finished(kept, table.RELEASED_BYTES_MAX + 1, 0.0)
    kept.release([call.id])
    assert kept.calls == {}
    assert call.final == []


def test_threads_are_reused_and_never_queue() -> None:
    threads = Threads()
    seen: list[str] = []
    gate = threading.Barrier(4)

    def work(wait: bool) -> None:
        if wait:
            gate.wait(2)
        seen.append(threading.current_thread().name)

    for _ in range(3):
        threads.run(work, True)
    gate.wait(2)
    deadline = time.monotonic() + 2
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    threads.run(work, False)
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(set(seen[:3])) == 3
    assert seen[3] in seen[:3]
    threads.close()
    while any(thread.name in seen for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not any(thread.name in seen for thread in threading.enumerate())


# --- foreign answers ---

EVENTS = b"".join(
    b"data: " + json.dumps(event).encode() + b"\n\n"
    for event in (
        {"choices": [{"index": 0, "delta": {"content": "usage"}, "finish_reason": None}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}},
    )
)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=6))
def test_usage_of_a_stream_is_read_however_it_is_cut(cuts: list[int]) -> None:
    seen = Seen(streaming=True)
    edges = [0, *sorted(cuts), len(EVENTS)]
    for start, end in pairwise(edges):
        seen.feed(EVENTS[start:end])
    assert (seen.prompt_tokens, seen.completion_tokens, seen.finish) == (5, 6, ["length", "stop"])


@given(st.binary(max_size=200), st.booleans())
def test_foreign_noise_is_no_error(data: bytes, streaming: bool) -> None:
    seen = Seen(streaming)
    for part in (data, b"\n", b"data: " + data + b'"usage"\n', b'{"usage": 3}'):
        seen.feed(part)
    assert seen.finish == []


def test_the_command_is_filled_in() -> None:
    argv = ("serve", "{model}", "--port={port}", "--host", "{host}", "--json", '{"a": {}}')
    assert filled(argv, port=81, model="m/x") == [
        "serve", "m/x", "--port=81", "--host", "127.0.0.1", "--json", '{"a": {}}',
    ]  # fmt: skip
    with pytest.raises(EngineFailed, match=r"model\.argv"):
        CommandEngine(ModelSpec("m", "command"))
    assert filled(("{{port}} {x}", "{{{port}}}", "{model}"), port=81, model="{port}") == [
        "{port} {x}", "{{port}}", "{port}",
    ]  # fmt: skip


# --- machine and files ---


def test_gpus_are_read_from_the_drivers_own_words() -> None:
    text = "NVIDIA GeForce RTX 4090, 24564, GPU-1, 550.1\nNVIDIA H100 80GB HBM3, 81559, GPU-2, 550.1\nrubbish\n, , ,\n"
    gpus = inventory.parse_smi(text)
    assert [gpu.name for gpu in gpus] == ["RTX 4090", "H100 SXM"]
    two = inventory.Inventory(8, 64 << 30, 10**12, (gpus[0], gpus[0]))
    sku = two.sku()
    assert (sku.accelerator, sku.num_accelerators, sku.accelerator_memory) == ("RTX 4090", 2, 24564 << 20)


def test_gpus_have_the_names_that_requirements_name_them_by() -> None:
    said = {
        "NVIDIA A100-SXM4-80GB": gpus.A100_SXM4, "NVIDIA A100-PCIE-40GB": gpus.A100_PCIE,
        "NVIDIA A100 80GB PCIe": gpus.A100_PCIE, "NVIDIA H100 PCIe": gpus.H100_PCIE, "NVIDIA H100 NVL": gpus.H100_NVL,
        "NVIDIA H200": gpus.H200, "NVIDIA GH200 480GB": gpus.GH200_SXM, "NVIDIA L40S": gpus.L40S,
        "Tesla T4": gpus.Tesla_T4, "Tesla V100-SXM2-16GB": gpus.Tesla_V100, "NVIDIA A10G": gpus.A10g,
        "NVIDIA RTX 6000 Ada Generation": gpus.RTX_6000Ada, "NVIDIA RTX A6000": gpus.RTX_A6000,
        "NVIDIA GeForce RTX 4070 SUPER": gpus.RTX_4070S, "NVIDIA GeForce RTX 4070 Ti SUPER": gpus.RTX_4070S_Ti,
        "NVIDIA GeForce GTX 1660 SUPER": gpus.GTX_1660_S, "NVIDIA GeForce RTX 4060 Laptop GPU": gpus.RTX_4060_laptop,
        "NVIDIA GeForce RTX 4090 D": gpus.RTX_4090D, "Quadro RTX 8000": gpus.Q_RTX_8000,
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": gpus.RTX_PRO_6000_S,
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": gpus.RTX_PRO_6000_Max_Q,
    }  # fmt: skip
    assert {name: inventory.offered(name) for name in said} == said


def test_the_operator_says_in_which_region_a_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inventory.look(Path("/")).sku().region == "local"
    monkeypatch.setenv("NANOPOD_REGION", "eu-north")
    sku = inventory.look(Path("/")).sku()
    assert (sku.region, sku.availability_zone) == ("eu-north", "eu-north-a")


def test_equal_machines_are_of_one_sku() -> None:
    one = inventory.Inventory(2, (7 << 30) + 5, 3 * 10**11 + 9)
    assert one.sku() == inventory.Inventory(2, (7 << 30) + 99, 3 * 10**11).sku()
    assert one.sku().sku_id != inventory.Inventory(4, 7 << 30, 3 * 10**11).sku().sku_id
    assert one.sku().sku_id.startswith("isku_")
    assert one.slots() == 14
    assert inventory.Inventory(1, 1 << 30, 0).slots() == 4
    assert inventory.look(Path("/")).memory > 0


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    spec = InstanceSpec("inst_a", 3, "w", "e", "r", "n", EndpointSpec("test"), 4, "token")
    start = records.Start(spec, ["unix:/x"], records.Launch(["a"], {}, "/"), "/models")
    records.write_start(tmp_path, start)
    assert records.read_start(tmp_path) == start
    assert (tmp_path / files.SPEC).stat().st_mode & 0o077 == 0, "it holds a token"
    (tmp_path / files.SPEC).write_bytes((tmp_path / files.SPEC).read_bytes()[:-9])
    assert records.read_start(tmp_path) is None
    assert records.read_running(tmp_path) is None
    assert records.read_verdict(tmp_path) is None


def test_how_it_ended_is_read_from_what_is_there(tmp_path: Path) -> None:
    (tmp_path / files.LOG).write_text("last words\n")
    told = launch.exited(tmp_path, 1)
    assert told.failure is not None
    assert not told.failure.user_fault
    assert told.failure.log_tail == "last words"
    assert records.read_verdict(tmp_path) is not None, "so that it is not run again"
    records.write_verdict(tmp_path, records.Verdict(2, 3, phase="loading", log_tail="x"))
    told = launch.exited(tmp_path, 2)
    assert told.failure is not None
    assert (told.failure.stage, told.failure.user_fault, told.exit_code) == ("start", True, 3)
    records.write_verdict(tmp_path, records.Verdict(2, None, 11, phase="ready"))
    told = launch.exited(tmp_path, 2)
    assert told.failure is not None
    assert told.failure.stage == "run"
    assert "SIGSEGV" in told.failure.message


def test_processes_are_known_by_more_than_their_number() -> None:
    assert procs.start_time(os.getpid()) == procs.start_time(os.getpid())
    assert procs.start_time(2**22 + 1) is None
    assert procs.parent_of(os.getpid()) == os.getppid()
    assert procs.boot_id()
