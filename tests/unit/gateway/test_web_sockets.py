"""A caller's websocket after 101, with time in the test's hands: pings, stalls, closes, back-pressure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nanopod.gateway.websockets import CLOSE_S_MAX, PING_S, SocketSide
from nanopod.gateway.wheel import Wheel
from nanopod.model import websocket


class Wire:
    """A transport."""

    def __init__(self) -> None:
        self.sent = b""
        self.reading = True
        self.closed = self.aborted = False

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...

    def resume_reading(self) -> None:
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted


class Gate:
    """The parts of a gateway that a socket uses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wheel = Wheel(0.0)
        self.websockets: set[SocketSide] = set()
        self.dirty: list[Any] = []
        self.soon: list[Any] = []
        self.loop = SimpleNamespace(time=lambda: self.now, call_soon=self.soon.append)

    def flush(self) -> None:
        while self.dirty:
            dirty, self.dirty = self.dirty, []
            for one in dirty:
                one.flush()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.wheel.advance(self.now)
        self.flush()
        for call in self.soon:
            call()
        self.soon.clear()


class Job:
    """What the socket tells its job."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def message(self, opcode: int, payload: bytes) -> None:
        self.told.append((str(opcode), payload))

    def closed_by_caller(self, payload: bytes) -> None:
        self.told.append(("closed", websocket.close_code(payload)))

    def side_lost(self) -> None:
        self.told.append(("lost", None))

    def caller_resumed(self) -> None:
        self.told.append(("resumed", None))


@pytest.fixture
def scene() -> tuple[Gate, Wire, Job, SocketSide]:
    gate, wire, job = Gate(), Wire(), Job()
    side = SocketSide(cast(Any, gate), cast(Any, job))
    side.connection_made(cast(Any, wire))
    return gate, wire, job, side


def frames_of(wire: Wire) -> list[tuple[int, bytes]]:
    data, wire.sent = wire.sent, b""
    return websocket.Parser(server=False).feed(data)


def test_pings_and_silence(scene: tuple[Gate, Wire, Job, SocketSide]) -> None:
    gate, wire, job, side = scene
    gate.pass_time(PING_S + 0.2)
    assert frames_of(wire) == [(websocket.PING, b"")]
    side.data_received(websocket.encode(websocket.PONG, b"", b"mask"))
    for _ in range(2):
        gate.pass_time(PING_S + 0.2)
        assert frames_of(wire) == [(websocket.PING, b"")]
    assert not wire.aborted
    gate.pass_time(PING_S + 0.2)
    assert wire.aborted
    side.connection_lost(None)
    assert job.told == [("lost", None)]
    assert not gate.websockets


def test_a_caller_that_does_not_read_is_cut(scene: tuple[Gate, Wire, Job, SocketSide]) -> None:
    gate, wire, job, side = scene
    side.pause_writing()
    for _ in range(5):
        side.data_received(websocket.encode(websocket.TEXT, b"still here", b"mask"))
        gate.pass_time(PING_S + 0.2)
    assert wire.aborted
    side.resume_writing()
    assert ("resumed", None) in job.told


def test_the_caller_closes(scene: tuple[Gate, Wire, Job, SocketSide]) -> None:
    gate, wire, job, side = scene
    side.data_received(websocket.encode_close(4001, "enough", b"mask"))
    gate.pass_time(0.1)
    assert websocket.close_code(frames_of(wire)[0][1])[0] == 4001
    assert wire.closed
    assert job.told == [("closed", (4001, "enough"))]
    side.connection_lost(None)
    assert len(job.told) == 1


def test_the_application_closes_and_the_caller_does_not_answer(scene: tuple[Gate, Wire, Job, SocketSide]) -> None:
    gate, wire, job, side = scene
    side.close(websocket.encode_close(4002, "told to")[2:])
    side.write(websocket.encode(websocket.TEXT, b"too late"))
    gate.flush()
    assert frames_of(wire) == [(websocket.CLOSE, websocket.encode_close(4002, "told to")[2:])]
    side.data_received(websocket.encode(websocket.TEXT, b"not heard any more", b"mask"))
    assert job.told == []
    gate.pass_time(CLOSE_S_MAX + 0.2)
    assert wire.aborted


def test_a_broken_protocol_ends_it_at_once(scene: tuple[Gate, Wire, Job, SocketSide]) -> None:
    gate, wire, job, side = scene
    side.data_received(b"\x81\x01x")
    gate.pass_time(0.1)
    assert websocket.close_code(frames_of(wire)[0][1])[0] == websocket.PROTOCOL_ERROR
    assert wire.closed
    assert job.told[0][0] == "closed"


def test_the_caller_is_read_as_fast_as_its_messages_leave(scene: tuple[Gate, Wire, Job, SocketSide]) -> None:
    gate, wire, _, side = scene
    side.hold(True)
    assert not wire.reading
    # A caller that is not read cannot answer a ping.
    for _ in range(5):
        gate.pass_time(PING_S + 0.2)
    assert not wire.aborted
    side.hold(False)
    assert wire.reading
