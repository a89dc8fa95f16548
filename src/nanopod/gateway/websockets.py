"""A caller's websocket, passed through: its messages become DATA frames, the application's become websocket frames.

A DATA payload is one byte, fragment bit and opcode as in a websocket frame, and the bytes. Pings are answered here and
sent from here; the application sees messages and the close alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final, cast

from nanopod.gateway.server import HIGH_WATER, LOW_WATER, STALLED_S_MAX
from nanopod.gateway.webhttp import WebRequest
from nanopod.gateway.webjob import DONE, QUEUED_BYTES_MAX, WebHead
from nanopod.gateway.wheel import Timed
from nanopod.model import frames, websocket

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

MESSAGE_BYTES_MAX: Final = 16 << 20
PIECE_BYTES: Final = 128 << 10
"""Longer messages are cut, so that one does not hold up what else the link carries."""
PING_S: Final = 20.0
MISSES_MAX: Final = 2
CLOSE_S_MAX: Final = 5.0
"""The other side has so long to answer a close."""
FIN: Final = 128
_OWN: Final = frozenset({"sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions"})
_HOP: Final = frozenset({"connection", "upgrade", "content-length", "transfer-encoding", "x-request-id"})
_BREAKING: Final = frozenset("\r\n\0")


class WebSocketJob(WebRequest):
    """One websocket: a request until the application accepts (or refuses) it, messages afterwards."""

    __slots__ = ("_closing_at", "_side")

    is_websocket = True

    def __init__(self, *request: Any) -> None:
        super().__init__(*request)
        self._side: SocketSide | None = None
        self._closing_at = 0.0

    def body_piece(self, data: bytes, end: bool) -> None:
        """The request has no body; its stream stays open for messages."""
        super().body_piece(data, False)

    # --- the caller's side, once it is open ---

    def message(self, opcode: int, payload: bytes) -> None:
        """A message of the caller's; the worker gets it as far as it has given credit."""
        first = opcode
        for at in range(0, len(payload) or 1, PIECE_BYTES):
            piece = payload[at : at + PIECE_BYTES]
            last = at + PIECE_BYTES >= len(payload)
            self._pending.append(bytes((first | (FIN if last else 0),)) + piece)
            self._pending_bytes += len(piece) + 1
            first = websocket.CONTINUATION
        self._send_body()

    def closed_by_caller(self, payload: bytes) -> None:
        """The caller's close: the application hears of it and ends."""
        if self._state != DONE:
            self._closing_at = self._gw.now + CLOSE_S_MAX
            self._gw.wheel.by(self, self._closing_at)
            self.message(websocket.CLOSE, payload)

    @property
    def is_allowed(self) -> bool:
        """False once the key that it was opened with is not valid any more."""
        return self._target.auth != "key" or self._gw.tables.authenticate(self._head.authorization) is not None

    def side_lost(self) -> None:
        """The caller's connection is gone."""
        self._side = None
        if self._state == DONE or self._closing_at:
            return
        self.caller_gone()

    def _send_body(self) -> None:
        super()._send_body()
        self._hold_caller()

    def _hold_caller(self) -> None:
        side = self._side
        if side is not None:
            side.hold(self._pending_bytes > (QUEUED_BYTES_MAX // 4 if side.held else QUEUED_BYTES_MAX))

    def _caller_takes(self) -> bool:
        side = self._side
        return not side.paused if side is not None else super()._caller_takes()

    # --- the application's side ---

    def _on_head(self, head: WebHead) -> None:
        connection = self.connection
        if head.status != 101 or connection is None:
            super()._on_head(head)
            return
        key = self._head.headers["sec-websocket-key"]
        lines = [
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
            f"Sec-WebSocket-Accept: {websocket.accept_key(key)}\r\nx-request-id: {self.shown_id}\r\n",
        ]
        given = [*head.headers, *([("Sec-WebSocket-Protocol", head.subprotocol)] if head.subprotocol else [])]
        for index, (name, value) in enumerate(given):
            if not name or not _BREAKING.isdisjoint(name + value) or " " in name or ":" in name:
                self._broken(f"the worker's header {name!r:.60} is not one")
                return
            if (index == len(head.headers) or name.lower() not in _OWN) and name.lower() not in _HOP:
                lines.append(f"{name}: {value}\r\n")
        self._status = 101
        self.connection = None
        connection.exchange = None
        self._side = side = SocketSide(self._gw, self)
        connection.upgrade(side, ("".join(lines) + "\r\n").encode("latin-1", "replace"))

    def _on_data(self, payload: bytes) -> None:
        side = self._side
        if self._status != 101:
            super()._on_data(payload)
        elif side is not None and payload:
            opcode = payload[0] & 15
            if opcode == websocket.CLOSE:
                side.close(payload[1:])
            else:
                side.write(websocket.encode(opcode, payload[1:], fin=payload[0] >= FIN))

    def _on_end(self) -> None:
        if self._status != 101:
            super()._on_end()
            return
        if self._state == DONE:
            return
        side, self._side = self._side, None
        self._meter(101)
        self._close()
        if side is not None:
            side.finish(websocket.NORMAL, "")

    def _broken(self, reason: str) -> None:
        if self._status != 101:
            super()._broken(reason)
            return
        link = self.link
        if link is not None:
            link.reset(self, frames.CANCELLED, reason)
        if self._state == DONE:
            return
        side, self._side = self._side, None
        self._meter(101 if self._closing_at else 502)
        self._close()
        if side is not None:
            side.finish(websocket.INTERNAL, reason)

    def on_timer(self, now: float) -> None:
        """Until it is open, the limits of a request; then none but that of closing."""
        if self._status != 101 or self._state == DONE:
            super().on_timer(now)
        elif self._closing_at and now >= self._closing_at:
            self._broken("the application did not end after the close")
        elif self._closing_at:
            self._gw.wheel.by(self, self._closing_at)


class SocketSide(asyncio.Protocol, Timed):
    """The caller's connection after 101."""

    __slots__ = (
        "_closed", "_dirty", "_gw", "_job", "_misses", "_out", "_parser", "_stalled_at", "_transport", "held", "paused",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, job: WebSocketJob) -> None:
        Timed.__init__(self)
        self._gw = gateway
        self._job: WebSocketJob | None = job
        self._parser = websocket.Parser(server=True, message_bytes_max=MESSAGE_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._dirty = False
        self._closed = False
        """Our close frame was sent."""
        self._misses = 0
        self._stalled_at = 0.0
        self.held = False
        """The caller is not read, because its messages leave more slowly than they come."""
        self.paused = False
        """The caller does not read as fast as the application writes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Taken over from the HTTP protocol after 101."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self._transport.resume_reading()
        self._gw.websockets.add(self)
        self._gw.wheel.at(self, self._gw.now + PING_S)

    def data_received(self, data: bytes) -> None:
        """A read's worth of messages."""
        gw = self._gw
        gw.now = gw.loop.time()
        self._misses = 0
        try:
            for opcode, payload in self._parser.feed(data):
                self._on_message(opcode, payload)
        except websocket.ProtocolError as error:
            self.leave(error.code, str(error))
            self._end_soon(0.0)
        gw.flush()

    def _on_message(self, opcode: int, payload: bytes) -> None:
        job = self._job
        if opcode in (websocket.TEXT, websocket.BINARY):
            if job is not None and not self._closed:
                job.message(opcode, payload)
        elif opcode == websocket.PING:
            self.write(websocket.encode(websocket.PONG, payload))
        elif opcode == websocket.CLOSE:
            self._job = None
            self.close(payload[:2])
            self._end_soon(0.0)
            if job is not None:
                job.closed_by_caller(payload)

    def hold(self, held: bool) -> None:
        """Stop or go on reading the caller."""
        if held != self.held and self._transport is not None and not self._transport.is_closing():
            self.held = held
            self._transport.pause_reading() if held else self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """A frame for the caller; leaves with this pass. Nothing follows a close."""
        if self._closed:
            return
        self._out.append(data)
        if not self._dirty:
            self._dirty = True
            self._gw.dirty.append(self)

    def flush(self) -> None:
        """Send what this pass produced, with one write."""
        self._dirty = False
        out, self._out = self._out, []
        transport = self._transport
        if transport is not None and out and not transport.is_closing():
            transport.write(b"".join(out) if len(out) > 1 else out[0])

    def close(self, payload: bytes) -> None:
        """Send a close frame with this payload; the caller has a moment to answer it."""
        if not self._closed:
            self.write(websocket.encode(websocket.CLOSE, payload))
            self._closed = True
            self._end_soon(CLOSE_S_MAX)

    def check_key(self) -> None:
        """The tables changed: a revoked or expired key ends the websocket."""
        job = self._job
        if job is not None and not job.is_allowed:
            self.leave(websocket.POLICY, "the API key is not valid any more")

    def leave(self, code: int, reason: str) -> None:
        """This process ends: close, and tell the application."""
        job, payload = self._job, websocket.encode_close(code, reason)[2:]
        self.finish(code, reason)
        if job is not None:
            job.closed_by_caller(payload)

    def finish(self, code: int, reason: str) -> None:
        """The application is gone: close, if that was not done."""
        self._job = None
        self.hold(False)
        self.close(websocket.encode_close(code, reason)[2:])

    def _end_soon(self, wait_s: float) -> None:
        if wait_s:
            self._gw.wheel.at(self, self._gw.now + wait_s)
        else:
            self._gw.loop.call_soon(self._hang_up)

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        """The caller reads more slowly than the application writes."""
        self.paused = True
        self._stalled_at = self._gw.now

    def resume_writing(self) -> None:
        """The caller caught up."""
        self.paused = False
        if self._job is not None:
            self._gw.now = self._gw.loop.time()
            self._job.caller_resumed()
            self._gw.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        gw = self._gw
        gw.now = gw.loop.time()
        self._closed = True
        gw.websockets.discard(self)
        gw.wheel.clear(self)
        job, self._job = self._job, None
        if job is not None:
            job.side_lost()
        gw.flush()

    def eof_received(self) -> bool:
        """A half-closed caller is gone."""
        return False

    def on_timer(self, now: float) -> None:
        """Ping every 20 s; a caller that is silent for two of them, or stopped reading, is gone."""
        transport = self._transport
        if transport is None:
            return
        late = self._misses >= MISSES_MAX and not self.held
        if self._closed or late or (self.paused and now - self._stalled_at > STALLED_S_MAX):
            transport.abort()
            return
        self._misses += 1
        self.write(websocket.encode(websocket.PING, b""))
        self._gw.wheel.at(self, now + PING_S)
