"""HTTP/1.1 towards callers: one protocol object per connection, one request at a time, one write per pass.

Framing is decided here and nowhere else: a head is parsed whole, a body is counted, and what follows waits until the
answer has ended. A caller who closes (or half-closes) has left: the running exchange hears it in the same pass.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from nanopod.gateway import heads
from nanopod.gateway.heads import BadRequest, Chunks, Failed, Head
from nanopod.gateway.wheel import Timed

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

HEAD_S_MAX: Final = 10.0
IDLE_S_MAX: Final = 75.0
BODY_S_MAX: Final = 60.0
"""A body may pause for so long between two reads."""
LINGER_S_MAX: Final = 2.0
STALLED_S_MAX: Final = 60.0
"""A caller that takes nothing for so long is cut."""
AHEAD_BYTES_MAX: Final = 65_536
"""What a caller may send ahead while its present request is being answered."""
HIGH_WATER, LOW_WATER = 65_536, 16_384
HEAD, BODY, BUSY, LINGER, CLOSED = range(5)

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_log: Final = logging.getLogger(__name__)


class Exchange(Protocol):
    """What answers a request; told about the caller's side of it."""

    def caller_gone(self) -> None:
        """The caller left before the answer was complete."""

    def caller_resumed(self) -> None:
        """The caller's socket takes bytes again."""

    def body_piece(self, data: bytes, end: bool) -> None:
        """More of the request body (streamed requests only)."""


Handler = Callable[["HttpConnection", Head, bytes], None]
"""Answers a request with its whole body."""
Streamer = Callable[["HttpConnection", Head], Exchange]
"""Starts answering a request; its body follows through `Exchange.body_piece`."""


class Refused:
    """A route's verdict before the body is read."""

    __slots__ = ("failed",)

    def __init__(self, failed: Failed) -> None:
        self.failed = failed


class HttpConnection(asyncio.Protocol, Timed):
    """One caller's connection."""

    __slots__ = (
        "_body", "_buffer", "_chunks", "_dirty", "_gw", "_handler", "_head", "_left", "_out", "_phase", "_pieces",
        "_stalled_at", "_stopped_reading", "_streaming", "_tail", "_transport", "chunked", "close_after", "deadline",
        "exchange", "head_only", "paused",
    )  # fmt: skip

    def __init__(self, gateway: Gateway) -> None:
        Timed.__init__(self)
        self._gw = gateway
        self._transport: asyncio.Transport | None = None
        self._phase = HEAD
        self._buffer = b""
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._left = 0
        self._chunks: Chunks | None = None
        self._handler: Handler | None = None
        self._out: list[bytes] = []
        self._pieces: list[bytes] = []
        self._tail = b""
        self._dirty = False
        self._stalled_at = 0.0
        self._stopped_reading = False
        """The body's taker asked for a pause."""
        self._streaming = False
        """The head of a streamed answer was sent."""
        self.exchange: Exchange | None = None
        self.paused = False
        self.chunked = False
        self.close_after = False
        self.head_only = False
        self.deadline = 0.0

    # --- the connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller connected."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # Without this a streamed token waits up to 40 ms for the acknowledgement of the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        gw = self._gw
        gw.connections.add(self)
        self.deadline = gw.loop.time() + HEAD_S_MAX
        gw.wheel.at(self, self.deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        self._phase = CLOSED
        gw = self._gw
        gw.now = gw.loop.time()
        gw.connections.discard(self)
        gw.wheel.clear(self)
        self._gone()
        gw.flush()

    def eof_received(self) -> bool:
        """A half-closed caller counts as gone."""
        return False

    def _gone(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.caller_gone()

    def pause_writing(self) -> None:
        """The caller reads more slowly than its worker writes."""
        self.paused = True
        self._stalled_at = self._gw.now

    def resume_writing(self) -> None:
        """The caller caught up."""
        self.paused = False
        if self.exchange is not None:
            self._gw.now = self._gw.loop.time()
            self.exchange.caller_resumed()
            self._gw.flush()

    def on_timer(self, now: float) -> None:
        """Cut callers that are too slow; look again later."""
        if self._phase == CLOSED or self._transport is None:
            return
        if self._phase == BUSY:
            if self.paused and now - self._stalled_at > STALLED_S_MAX:
                self._gw.counters["callers_cut"] += 1
                self.abort()
                return
            self._gw.wheel.at(self, now + 5.0)
        elif self._phase == BODY and self._stopped_reading:
            # It is not the caller who is slow.
            self._gw.wheel.at(self, now + 5.0)
        elif now >= self.deadline:
            self._transport.abort() if self._phase == LINGER else self._transport.close()
        else:
            self._gw.wheel.at(self, self.deadline)

    def _due(self, seconds: float) -> None:
        self.deadline = self._gw.now + seconds

    @property
    def peer(self) -> tuple[str, int]:
        """The caller's address and port; ("", 0) behind a unix socket."""
        found = self._transport.get_extra_info("peername") if self._transport is not None else None
        return (str(found[0]), int(found[1])) if isinstance(found, tuple) and len(found) >= 2 else ("", 0)

    @property
    def idle(self) -> bool:
        """True between two requests."""
        return self._phase == HEAD and not self._buffer

    @property
    def busy(self) -> bool:
        """True while a request is read or answered."""
        return self._phase in (BODY, BUSY)

    @property
    def reading_body(self) -> bool:
        """True while the request's body is still coming."""
        return self._phase == BODY

    def shut(self) -> None:
        """The process is ending: no further request on this connection."""
        self.close_after = True
        if self.idle and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection, so that the caller can tell that its answer is not whole."""
        self._phase = CLOSED
        self._gone()
        if self._transport is not None:
            self._transport.abort()

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of the next one."""
        gw = self._gw
        gw.now = gw.loop.time()
        phase = self._phase
        if phase == HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            self._advance()
        elif phase == BODY:
            self._on_body(data)
            self._advance()
        elif phase == BUSY:
            self._buffer += data
            if len(self._buffer) > AHEAD_BYTES_MAX and self._transport is not None:
                self._transport.pause_reading()
        gw.flush()

    def _advance(self) -> None:
        """Parse whatever requests are there, one after the other."""
        while self._phase == HEAD and self._buffer:
            end = self._buffer.find(b"\r\n\r\n")
            try:
                if end < 0:
                    self._wait_for_head()
                    return
                data, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
                if len(data) > heads.HEAD_BYTES_MAX:
                    raise BadRequest(431, f"the request head is above {heads.HEAD_BYTES_MAX} bytes")
                self._begin(self._gw.heads.parse(data))
            except BadRequest as error:
                self._refuse(error)
                return
            if self._phase == BODY and self._buffer:
                rest, self._buffer = self._buffer, b""
                self._on_body(rest)

    def _wait_for_head(self) -> None:
        if len(self._buffer) > heads.HEAD_BYTES_MAX:
            raise BadRequest(431, f"the request head is above {heads.HEAD_BYTES_MAX} bytes")
        if b"\n\n" in self._buffer:
            raise BadRequest(400, "lines must end in CRLF")
        gw = self._gw
        if self.deadline - gw.now > HEAD_S_MAX:
            self._due(HEAD_S_MAX)
            gw.wheel.at(self, self.deadline)

    def _refuse(self, error: BadRequest) -> None:
        self._left = 1
        if error.status == 413 and self._head is not None:
            self.fail(self._gw.surface.too_large(self._head, self._gw.surface.body_limit(self._head)), close=True)
            return
        self.fail(Failed(error.status, "invalid_request_error", "bad_request", str(error)), close=True)

    def _begin(self, head: Head) -> None:
        """A head is complete: find who answers it."""
        self._head = head
        self.head_only = head.method == "HEAD"
        self.close_after = not head.keep_alive or self._gw.stopping
        self.chunked = False
        self._stopped_reading = self._streaming = False
        self.exchange = None
        found = self._gw.surface.route(self, head)
        if found is None:
            return  # upgraded, or already answered
        streamer, handler, refused, limit = found
        has_body = head.chunked or head.length > 0
        if head.length > limit:
            self._left = 1
            self.fail(self._gw.surface.too_large(head, limit), close=True)
            return
        if refused is not None and (head.chunked or head.length > 65_536 or head.expects):
            # Not worth reading the body for: say no and close.
            self._left = 1
            self.fail(refused.failed, close=True)
            return
        self._left = head.length
        self._chunks = Chunks() if head.chunked else None
        self._body = []
        if has_body:
            self._phase = BODY
            self._due(BODY_S_MAX)
            if head.expects and not self._buffer:
                self.write(_CONTINUE)
        else:
            self._phase = BUSY
        if streamer is not None:
            self._handler = None
            self.exchange = streamer(self, head)
            if not has_body and self.exchange is not None:
                self.exchange.body_piece(b"", True)
            return
        self._handler = _refuser(refused) if refused is not None else handler
        if not has_body:
            self._complete(b"")

    def _on_body(self, data: bytes) -> None:
        """Bytes of the body (and, after its end, of the next request)."""
        chunks = self._chunks
        try:
            if chunks is not None:
                pieces = chunks.feed(data)
                limit = self._gw.surface.body_limit(self._head)
                if chunks.total > limit:
                    raise BadRequest(413, f"the body is above {limit} bytes")
                end = chunks.done
                self._buffer = chunks.rest
            else:
                if len(data) > self._left:
                    data, self._buffer = data[: self._left], data[self._left :]
                self._left -= len(data)
                pieces = [data]
                end = not self._left
        except BadRequest as error:
            if self._streaming:
                self.abort()
                return
            self._gone()
            self._refuse(error)
            return
        self._due(BODY_S_MAX)
        if end:
            self._phase = BUSY
            self._left = 0
            self._chunks = None
        if self._handler is None:
            if self.exchange is not None:
                self.exchange.body_piece(b"".join(pieces) if len(pieces) != 1 else pieces[0], end)
            return
        self._body += pieces
        if end:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            self._complete(body)

    def _complete(self, body: bytes) -> None:
        handler, head = self._handler, self._head
        assert handler is not None, "a complete request has a handler"
        assert head is not None, "a complete request has a head"
        try:
            handler(self, head, body)
        except Failed as failed:
            self.fail(failed)
        except Exception:
            _log.exception("%s %s failed", head.method, head.path)
            if self.exchange is not None or self._streaming:
                self.abort()  # it has begun: nobody can tell how far it came
            else:
                self.fail(Failed(500, "server_error", "internal_error", "the gateway failed; its log says why"))

    def upgrade(self, protocol: asyncio.Protocol, answer: bytes) -> None:
        """Hand the connection to another protocol, after a 101 answer."""
        transport = self._transport
        assert transport is not None, "only open connections are upgraded"
        self._phase = CLOSED
        gw = self._gw
        gw.connections.discard(self)
        gw.wheel.clear(self)
        transport.write(answer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        rest, self._buffer = self._buffer, b""
        if rest:
            protocol.data_received(rest)

    def pause_body(self, paused: bool) -> None:
        """Stop or go on reading the request body (the upstream cannot take it as fast)."""
        if self._stopped_reading and not paused:
            self._due(BODY_S_MAX)
        self._stopped_reading = paused
        if self._transport is not None and self._phase != CLOSED:
            self._transport.pause_reading() if paused else self._transport.resume_reading()

    # --- answers ---

    def _touch(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._gw.dirty.append(self)

    def write(self, data: bytes) -> None:
        """Raw bytes: a head, or a whole response."""
        self._out.append(data)
        self._touch()

    def piece(self, data: bytes) -> None:
        """Bytes of a streamed body; all of one pass leave as one chunk."""
        self._pieces.append(data)
        self._touch()

    def respond(self, status: int, body: bytes, *, content_type: str = "application/json", extra: str = "") -> None:
        """Answer with a body of known length; the request is over."""
        data = heads.response(status, body, content_type=content_type, extra=extra, close=self.close_after)
        self.write(data[: len(data) - len(body)] if self.head_only else data)
        self.finish()

    def fail(self, failed: Failed, *, close: bool = False, extra: str = "") -> None:
        """Answer with an error."""
        self.close_after = self.close_after or close
        if "x-request-id" not in failed.extra + extra:
            extra += f"x-request-id: {self._gw.request_id()}\r\n"
        self.respond(failed.status, failed.body(), content_type=failed.content_type, extra=failed.extra + extra)

    def start_stream(self, head: bytes, *, chunked: bool) -> None:
        """Send the head of a streamed answer (without framing lines); pieces follow."""
        self._streaming = True
        self.chunked = chunked and not (self._head is not None and self._head.http10)
        if chunked and not self.chunked:
            self.close_after = True
        lines = b"transfer-encoding: chunked\r\n" if self.chunked else b""
        self.write(head + lines + (b"connection: close\r\n\r\n" if self.close_after else b"\r\n"))

    def finish(self) -> None:
        """The answer is complete: the next request may come, or the connection ends."""
        self.exchange = None
        if self._phase == BODY:
            # Whatever is left of this body belongs to nobody, and must not be read as a request.
            self.close_after = True
            self._left = self._left or 1
        if self.chunked and not self.head_only:
            self._tail = b"0\r\n\r\n"
        self.chunked = False
        self._touch()
        if self.close_after:
            self._phase = LINGER
            self._buffer = b""
            self._due(LINGER_S_MAX)
            return
        self._phase = HEAD
        self._due(IDLE_S_MAX)
        if self._buffer:
            self._gw.loop.call_soon(self._next)
            if len(self._buffer) > AHEAD_BYTES_MAX and self._transport is not None:
                self._transport.resume_reading()

    def _next(self) -> None:
        """Go on with what the caller sent ahead."""
        self._gw.now = self._gw.loop.time()
        self._advance()
        self._gw.flush()

    def flush(self) -> None:
        """Send what this pass produced, with one write."""
        self._dirty = False
        transport = self._transport
        out = self._out
        pieces = self._pieces
        if pieces:
            body = b"".join(pieces) if len(pieces) > 1 else pieces[0]
            self._pieces = []
            if self._tail or self.chunked:
                out.append(b"%x\r\n%b\r\n%b" % (len(body), body, self._tail))
                self._tail = b""
            else:
                out.append(body)
        elif self._tail:
            out.append(self._tail)
            self._tail = b""
        if not out or transport is None:
            if self._phase == LINGER:
                self._linger()
            return
        data = b"".join(out) if len(out) > 1 else out[0]
        out.clear()
        transport.write(data)
        if self._phase == LINGER:
            self._linger()

    def _linger(self) -> None:
        """End the connection so that the caller still reads the answer, whatever it was sending."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._left and transport.can_write_eof():
            transport.write_eof()
            self._gw.wheel.at(self, self.deadline)
        else:
            transport.close()


def _refuser(refused: Refused) -> Handler:
    def refuse(connection: HttpConnection, head: Head, body: bytes) -> None:
        raise refused.failed

    return refuse
