"""The SDK's link: one websocket per client process, each binary message one call frame."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Final, cast

from nanopod.gateway import admission, tables
from nanopod.gateway.called import Called
from nanopod.gateway.callframes import error_frame
from nanopod.gateway.calls import CallJob
from nanopod.gateway.links import LARGE_BYTES, write
from nanopod.gateway.server import HIGH_WATER, LOW_WATER, STALLED_S_MAX
from nanopod.gateway.wheel import Timed
from nanopod.model import calls, frames, websocket
from nanopod.model.errors import Cancelled, Conflict, NanopodError, QuotaExceeded
from nanopod.model.wire import KeyRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

PING_S: Final = 15.0
MISSES_MAX: Final = 3
HELLO_S_MAX: Final = 10.0
OPEN_CALLS_MAX: Final = 16_384
"""Unfinished calls of one client."""
UPLOAD_BYTES_MAX: Final = 256 << 20
"""Payload bytes of one client's calls that are still being sent."""


class ClientLink(asyncio.Protocol, Timed):
    """One linked SDK process."""

    __slots__ = (
        "_dirty", "_greeted", "_gw", "_misses", "_out", "_parser", "_stalled_at", "_transport", "authorization",
        "closed", "jobs", "key", "paused", "uploads",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, key: KeyRow, authorization: str) -> None:
        Timed.__init__(self)
        self._gw = gateway
        self._parser = websocket.Parser(server=True, message_bytes_max=frames.FRAME_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._dirty = False
        self._greeted = False
        self._misses = 0
        self._stalled_at = 0.0
        self.key = key
        self.authorization = authorization
        self.jobs: set[Called] = set()
        self.uploads: set[Called] = set()
        """Calls of which parts are still to come."""
        self.paused = False
        self.closed = False

    # --- the connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Taken over from the HTTP protocol after 101."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self._gw.clients.add(self)
        self._gw.wheel.at(self, self._gw.now + HELLO_S_MAX)

    def data_received(self, data: bytes) -> None:
        """A read's worth of messages; everything they cause leaves in one pass."""
        gw = self._gw
        gw.now = gw.loop.time()
        self._misses = 0
        try:
            for opcode, payload in self._parser.feed(data):
                if opcode == websocket.BINARY:
                    self._on_frame(payload)
                elif opcode == websocket.PING:
                    self._write(websocket.encode(websocket.PONG, payload))
                elif opcode == websocket.CLOSE:
                    self.close(websocket.NORMAL, "")
                elif opcode == websocket.TEXT:
                    raise websocket.ProtocolError("calls are binary messages", websocket.INVALID_DATA)
                if self.closed:
                    break
        except websocket.ProtocolError as error:
            self.close(error.code, str(error))
        except ValueError as error:
            self.close(websocket.PROTOCOL_ERROR, str(error))
        gw.flush()

    def pause_writing(self) -> None:
        """The client reads more slowly than its workers answer."""
        self.paused = True
        self._stalled_at = self._gw.now

    def resume_writing(self) -> None:
        """The client caught up."""
        self.paused = False
        for job in self.jobs:
            job.resumed()
        self._gw.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; it may come back with the same calls."""
        gw = self._gw
        gw.now = gw.loop.time()
        self.closed = True
        gw.clients.discard(self)
        gw.wheel.clear(self)
        jobs, self.jobs = self.jobs, set()
        for job in jobs:
            if job.client is self:
                job.client_lost()
        gw.flush()

    def eof_received(self) -> bool:
        """A half-closed client is gone."""
        return False

    def on_timer(self, now: float) -> None:
        """Ping every 15 s; a client that is silent for three of them, or stopped reading, is gone."""
        transport = self._transport
        if self.closed or transport is None:
            return
        if not self._greeted:
            self.close(websocket.PROTOCOL_ERROR, f"no Hello within {HELLO_S_MAX:.0f} s")
        elif self._misses >= MISSES_MAX or (self.paused and now - self._stalled_at > STALLED_S_MAX):
            transport.abort()
        else:
            self._misses += 1
            self._write(websocket.encode(websocket.PING, b""))
            self._gw.wheel.at(self, now + PING_S)

    def close(self, code: int, reason: str) -> None:
        """Close with a reason."""
        if self.closed:
            return
        self.closed = True
        self._write(websocket.encode_close(code, reason))

    def check_key(self) -> None:
        """The tables changed: a revoked or expired key ends the link."""
        key = self._gw.tables.authenticate(self.authorization)
        if key is None or not tables.may_call(key):
            self.close(websocket.POLICY, "the API key is not valid any more")
        else:
            self.key = key

    # --- frames ---

    def send(self, frame: bytes) -> None:
        """One call frame to the client; leaves with this pass."""
        if len(frame) < LARGE_BYTES:
            self._write(websocket.encode(websocket.BINARY, frame))
        else:
            self._write(websocket.head(websocket.BINARY, len(frame)))
            self._write(frame)

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._dirty:
            self._dirty = True
            self._gw.dirty.append(self)

    def flush(self) -> None:
        """Send what this pass produced, with one write."""
        self._dirty = False
        out, self._out = self._out, []
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        write(transport, out)
        if self.closed:
            transport.close()

    def _on_frame(self, frame: bytes) -> None:
        header, start = calls.decode_head(frame)
        if not self._greeted:
            self._on_hello(header)
            return
        if isinstance(header, calls.Call):
            if header.size > len(frame) - start:
                prepare_large()
            self._on_call(header, frame, len(frame) - start)
            return
        if isinstance(header, calls.Ack):
            for call_id in header.ids:
                self._gw.kept.acked(call_id, self.key.workspace_id)
            return
        if isinstance(header, calls.SessionOpen):
            self._gw.sessions.open(self, header, frame[start:])
            return
        if isinstance(header, calls.SessionClose):
            self._gw.sessions.close(self, header)
            return
        job = self._gw.calls.get(header.id)
        if isinstance(header, calls.Cancel) and (job is None or job.client is not self):
            self._on_late_cancel(header, job)
            return
        if job is None or job.client is not self:
            return  # it ended meanwhile
        if isinstance(header, calls.Part):
            if job.wants_frames:
                self._on_part(job, frame, len(frame) - start)
        elif isinstance(header, (calls.Credit, calls.Cancel)):
            job.client_frame(header, frame)
        else:
            raise websocket.ProtocolError(f"a client sends no {type(header).__name__}")

    def _on_hello(self, header: calls.Header) -> None:
        if not isinstance(header, calls.Hello):
            raise websocket.ProtocolError("the first frame must be Hello")
        if header.protocol != calls.PROTOCOL:
            raise websocket.ProtocolError(f"this gateway speaks protocol {calls.PROTOCOL}, not {header.protocol}")
        self._greeted = True
        self._gw.wheel.at(self, self._gw.now + PING_S)
        self.send(calls.encode(calls.Welcome(self._gw.process_id, PING_S, calls.INLINE_BYTES_MAX)))

    def _on_call(self, call: calls.Call, frame: bytes, payload_bytes: int) -> None:
        gw = self._gw
        known = gw.calls.get(call.id)
        if known is not None and known.workspace_id == self.key.workspace_id:
            known.found_again(self, call)
            if known.wants_frames:
                known.add_frame(frame, payload_bytes)
            return
        try:
            if known is not None:
                raise Conflict("this call id is taken", field="id")
            if len(self.jobs) >= OPEN_CALLS_MAX:
                raise QuotaExceeded(f"this client has {OPEN_CALLS_MAX} unfinished calls", retry_after_s=1.0)
            job = admission.admit(gw, self.key, call, len(frame))
        except NanopodError as error:
            self.send(error_frame(call.id, error, False, 1))
            return
        gw.calls[call.id] = job
        job.client = self
        self.jobs.add(job)
        job.add_frame(frame, payload_bytes)

    def _on_late_cancel(self, header: calls.Cancel, job: CallJob | None) -> None:
        """A cancellation that survived a lost connection."""
        if job is None and self._gw.sessions.cancel(self, header.id):
            return
        if job is None or job.workspace_id != self.key.workspace_id:
            self.send(error_frame(header.id, Cancelled("cancelled; the call is not known here"), None, 1))
            return
        job.found_again(self)
        if not job.answered:
            job.cancel(header.reason or "cancelled by the caller")

    def _on_part(self, job: CallJob, frame: bytes, payload_bytes: int) -> None:
        if sum(other.bytes_held for other in self.uploads) > UPLOAD_BYTES_MAX:
            job.fail(QuotaExceeded("too much is being sent at once; send it in turn", retry_after_s=1.0), started=False)
            return
        job.add_frame(frame, payload_bytes)


def prepare_large() -> None:
    """Let websockets mask large payloads with numpy from soon on; it is loaded when the first one comes, beside it."""
    global _prepared
    if _prepared:
        return
    _prepared = True

    def load() -> None:
        with contextlib.suppress(ImportError):
            import numpy

            websocket.mask_with(numpy)

    threading.Thread(target=load, name="numpy", daemon=True).start()


_prepared = False
