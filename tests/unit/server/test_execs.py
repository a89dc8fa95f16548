"""Exec sessions as the server keeps them: offsets, the bounded ring, waiting, ends, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nanopod.model.errors import Conflict, Invalid, NotFound, QuotaExceeded
from nanopod.model.wire import ExecExit, ExecInput, ExecOutput, ExecStart, Message
from nanopod.server import execs
from nanopod.server.execs import ExecSession, ExecSessions


class Machine:
    """The far end: takes messages."""

    def __init__(self) -> None:
        self.linked = True
        self.got: list[Message] = []
        self.sessions = ExecSessions(self.send, time.time)

    def send(self, machine_id: str, message: Message) -> bool:
        assert machine_id == "machine_1"
        self.got.append(message)
        return self.linked

    def start(self, instance_id: str = "inst_1", **fields: Any) -> ExecSession:
        return self.sessions.start("machine_1", "wksp_1", instance_id, ["ls"], **fields)

    def output(self, session: ExecSession, data: bytes, stream: int = 1) -> None:
        self.sessions.on_output("machine_1", ExecOutput(session.exec_id, stream, data))

    def exit(self, session: ExecSession, code: int = 0, error: str = "") -> None:
        self.sessions.on_exit("machine_1", ExecExit(session.exec_id, code, error))


def story(told: Callable[[Machine], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await told(Machine())

    asyncio.run(limited())


def test_output_is_read_by_offset_and_the_end_comes_last() -> None:
    async def told(machine: Machine) -> None:
        session = machine.start(env={"A": "b"}, cwd="x", tty=True, rows=10, cols=20, timeout_s=5.0)
        started = ExecStart(session.exec_id, "inst_1", ("ls",), {"A": "b"}, "x", True, 10, 20, 5.0)
        assert machine.got == [started]
        assert (await machine.sessions.read(session.exec_id)).chunks == ()
        machine.output(session, b"abc")
        machine.output(session, b"def", 2)
        machine.exit(session, 3)
        page = await machine.sessions.read(session.exec_id, 1)
        assert [(c.offset, c.stream, c.data) for c in page.chunks] == [(1, 1, b"bc"), (3, 2, b"def")]
        assert (page.next_offset, page.truncated, page.status, page.exit_code) == (6, False, "exited", 3)
        again = await machine.sessions.read(session.exec_id, 6, 30.0)
        assert (again.chunks, again.next_offset, again.status) == ((), 6, "exited")
        with pytest.raises(Invalid, match="offset"):
            await machine.sessions.read(session.exec_id, 7)

    story(told)


def test_long_polls_end_with_output_with_the_end_and_with_time() -> None:
    async def told(machine: Machine) -> None:
        session = machine.start()
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, machine.output, session, b"x")
        page = await machine.sessions.read(session.exec_id, 0, 10.0)
        assert (page.next_offset, page.status) == (1, "running")
        began = time.monotonic()
        assert (await machine.sessions.read(session.exec_id, 1, 0.1)).chunks == ()
        assert 0.09 < time.monotonic() - began < 1
        loop.call_later(0.05, machine.exit, session)
        readers = [machine.sessions.read(session.exec_id, 1, 10.0) for _ in range(3)]
        assert [page.status for page in await asyncio.gather(*readers)] == ["exited"] * 3

    story(told)


def test_the_ring_is_bounded_and_says_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execs, "RING_BYTES_MAX", 1000)
    monkeypatch.setattr(execs, "PAGE_BYTES_MAX", 250)

    async def told(machine: Machine) -> None:
        session = machine.start()
        for number in range(50):
            machine.output(session, b"%02d" % number * 50)
        machine.exit(session)
        assert session.end - session.first <= 1000
        page = await machine.sessions.read(session.exec_id, 0)
        assert page.truncated
        assert page.status == "running", "there is more to read before the end"
        assert page.chunks[0].offset == session.first == 4000
        read = b""
        offset = page.chunks[0].offset
        for _ in range(20):
            page = await machine.sessions.read(session.exec_id, offset)
            read += b"".join(chunk.data for chunk in page.chunks)
            offset = page.next_offset
            if page.status != "running":
                break
        assert read == b"".join(b"%02d" % number * 50 for number in range(40, 50))
        assert (offset, page.status) == (5000, "exited")

    story(told)


def test_input_signals_and_kill() -> None:
    async def told(machine: Machine) -> None:
        session = machine.start()
        machine.sessions.input(session.exec_id, b"x", eof=True, resize=(5, 6), signal=2)
        machine.sessions.kill(session.exec_id)
        assert machine.got[1:] == [
            ExecInput(session.exec_id, b"x", True, (5, 6), 2), ExecInput(session.exec_id, signal=9)
        ]  # fmt: skip
        for wrong in ({"data": b"x" * (execs.INPUT_BYTES_MAX + 1)}, {"signal": 0}, {"resize": (0, 5)}):
            with pytest.raises(Invalid):
                machine.sessions.input(session.exec_id, **wrong)  # type: ignore[arg-type]
        machine.linked = False
        with pytest.raises(Conflict, match="not connected"):
            machine.sessions.input(session.exec_id, b"x")
        machine.exit(session)
        with pytest.raises(Conflict, match="over"):
            machine.sessions.input(session.exec_id, b"x")
        with pytest.raises(NotFound):
            machine.sessions.input("exec_none", b"x")

    story(told)


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ([], {}), ([""], {}), (["a\0"], {}), (["a"], {"env": {"A=": "b"}}), (["a"], {"rows": 0}),
        (["a"], {"cols": 1001}), (["a"], {"timeout_s": 0.0}), (["a"], {"timeout_s": float("nan")}),
        (["a" * 200_000], {}),
    ],
)  # fmt: skip
def test_what_no_machine_could_run_is_refused(command: list[str], fields: dict[str, Any]) -> None:
    machine = Machine()
    with pytest.raises(Invalid):
        machine.sessions.start("machine_1", "wksp_1", "inst_1", command, **fields)
    assert machine.got == []


def test_a_machine_that_is_gone_ends_its_sessions() -> None:
    async def told(machine: Machine) -> None:
        session = machine.start()
        machine.sessions.on_output("machine_2", ExecOutput(session.exec_id, 1, b"forged"))
        machine.sessions.on_unlinked("machine_1")
        page = await machine.sessions.read(session.exec_id)
        assert (page.status, page.exit_code, page.chunks) == ("failed", None, ())
        assert "lost" in page.error
        machine.exit(session)
        assert session.status == "failed", "an end is final"
        machine.linked = False
        with pytest.raises(Conflict):
            machine.start()

    story(told)


def test_limits_and_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execs, "SESSIONS_MAX", 4)
    monkeypatch.setattr(execs, "INSTANCE_SESSIONS_MAX", 2)
    monkeypatch.setattr(execs, "KEEP_S", 0.05)

    async def told(machine: Machine) -> None:
        sessions = [machine.start(f"inst_{number // 2}") for number in range(4)]
        with pytest.raises(QuotaExceeded, match="at most 2"):
            machine.start("inst_0")
        with pytest.raises(QuotaExceeded, match="at most 4"):
            machine.start("inst_9")
        machine.exit(sessions[0])
        machine.start("inst_9")
        with pytest.raises(NotFound):
            machine.sessions.get(sessions[0].exec_id)
        machine.exit(sessions[1], error="no such program")
        assert sessions[1].status == "failed"
        await asyncio.sleep(0.2)
        with pytest.raises(NotFound, match="restarted"):
            await machine.sessions.read(sessions[1].exec_id)

    story(told)
