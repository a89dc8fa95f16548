"""Management requests go through to the server's socket, body and answer streamed, each on a connection of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

import httptools

from nanopod.gateway import heads
from nanopod.gateway.heads import Head
from nanopod.model.errors import NanopodError, NoCapacity

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

CONNECT_S_MAX: Final = 5.0
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
_OWN: Final = HOP_BY_HOP | {b"content-length", b"date", b"server"}


class _BadUpstream(NanopodError):
    status = 502
    code = "bad_gateway"


class Proxied(asyncio.Protocol):
    """One management request; the protocol of its connection to the server."""

    def __init__(self, gateway: Gateway, connection: HttpConnection, head: Head) -> None:
        self._gw = gateway
        self._caller: HttpConnection | None = connection
        self._head = head
        self._upstream: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []
        self._paused_caller = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._length: int | None = None
        self._started = False
        self._done = False

    def start(self) -> None:
        """Dial the server; what the caller sends meanwhile waits here (the caller is paused)."""
        self._task = asyncio.ensure_future(self._dial())

    async def _dial(self) -> None:
        path = str(self._gw.layout.server_socket)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await self._gw.loop.create_unix_connection(lambda: self, path)
        except OSError:
            self._fail(NoCapacity("the API server is not up; try again", retry_after_s=1.0))
        except TimeoutError:
            self._fail(NoCapacity("the API server does not answer; try again", retry_after_s=2.0))

    def _request_head(self) -> bytes:
        head = self._head
        lines = [f"{head.method} {head.target} HTTP/1.1\r\nconnection: close\r\n".encode("latin-1")]
        for name, value in head.raw_headers:
            if name.lower() not in HOP_BY_HOP:
                lines.append(name + b": " + value + b"\r\n")
        if head.chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if heads.request_id_of(head) is None:
            lines.append(f"x-request-id: {self._gw.request_id()}\r\n".encode())
        return b"".join(lines) + b"\r\n"

    # --- towards the server ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server answered the dial."""
        self._upstream = cast(asyncio.Transport, transport)
        if self._caller is None:
            self._upstream.abort()
            return
        self._upstream.write(self._request_head() + b"".join(self._waiting))
        self._waiting = []
        if self._paused_caller:
            self._paused_caller = False
            self._caller.pause_body(False)

    def body_piece(self, data: bytes, end: bool) -> None:
        """More of the request's body."""
        if self._head.chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if end else b"")
        if not data:
            return
        if self._upstream is not None:
            self._upstream.write(data)
            return
        self._waiting.append(data)
        if not end and not self._paused_caller and self._caller is not None:
            self._paused_caller = True
            self._caller.pause_body(True)

    def pause_writing(self) -> None:
        """The server takes the body more slowly than it comes."""
        if self._caller is not None and not self._paused_caller:
            self._paused_caller = True
            self._caller.pause_body(True)

    def resume_writing(self) -> None:
        """It caught up."""
        if self._caller is not None and self._paused_caller:
            self._paused_caller = False
            self._caller.pause_body(False)

    def caller_gone(self) -> None:
        """The caller left."""
        self._caller = None
        if self._upstream is not None:
            self._upstream.abort()
        elif self._task is not None:
            self._task.cancel()

    def caller_resumed(self) -> None:
        """The caller takes bytes again."""
        if self._upstream is not None and not self._upstream.is_closing():
            self._upstream.resume_reading()

    # --- towards the caller ---

    def data_received(self, data: bytes) -> None:
        """Bytes of the server's answer."""
        self._gw.now = self._gw.loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._broken("the API server's answer is not HTTP")
        if self._caller is not None and self._caller.paused and self._upstream is not None:
            self._upstream.pause_reading()
        self._gw.flush()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by httptools: the answer's head is known."""
        caller = self._caller
        status = self._parser.get_status_code()
        if caller is None:
            return
        if status < 200:
            self._headers = []
            return
        self._started = True
        lines = [f"HTTP/1.1 {status} {heads.REASONS.get(status, 'Unknown')}\r\n".encode()]
        for name, value in self._headers:
            lowered = name.lower()
            if lowered == b"content-length":
                self._length = int(value)
            if lowered not in _OWN:
                lines.append(name + b": " + value + b"\r\n")
        bodyless = caller.head_only or status in (204, 304)
        if self._length is not None and status != 204:
            lines.append(b"content-length: %d\r\n" % self._length)
        if self._paused_caller:
            # It answered without reading the whole body: what the caller still sends belongs to nobody.
            caller.close_after = True
        caller.start_stream(b"".join(lines), chunked=self._length is None and not bodyless)
        if bodyless:
            self._complete()

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        if self._caller is not None:
            self._caller.piece(body)

    def on_message_complete(self) -> None:
        """Called by httptools: the answer is whole."""
        if self._started and not self._done:
            self._complete()

    def _complete(self) -> None:
        self._done = True
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.pause_body(False)
            if caller.reading_body:
                caller.close_after = True
            caller.finish()
        if self._upstream is not None:
            self._upstream.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed."""
        self._gw.now = self._gw.loop.time()
        if self._caller is not None and not self._done:
            if self._started and self._length is None and exc is None and not self._parser_wants_more():
                self._complete()
            else:
                self._broken("the API server closed the connection before its answer was complete")
        self._gw.flush()

    def _parser_wants_more(self) -> bool:
        """True for a chunked answer without its end; an answer that ends with the connection is whole."""
        return any(name.lower() == b"transfer-encoding" for name, _ in self._headers)

    def _broken(self, message: str) -> None:
        if self._started:
            caller, self._caller = self._caller, None
            self._done = True
            if caller is not None:
                caller.exchange = None
                caller.abort()
        else:
            self._fail(_BadUpstream(message))
        if self._upstream is not None:
            self._upstream.abort()

    def _fail(self, error: NanopodError) -> None:
        caller, self._caller = self._caller, None
        self._done = True
        if caller is None:
            return
        self._gw.now = self._gw.loop.time()
        status, body, extra = heads.native_error(error)
        if caller.reading_body:
            caller.close_after = True
        caller.pause_body(False)
        caller.respond(status, body, extra=f"{extra}x-request-id: {self._gw.request_id()}\r\n")
        self._gw.flush()
