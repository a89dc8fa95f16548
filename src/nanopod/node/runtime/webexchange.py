"""One web request on a worker: its body comes in as it is taken, its answer goes out as the caller takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from struct import Struct
from typing import Final

import msgspec

from nanopod.model import frames
from nanopod.node.runtime.connection import Stream

CREDIT_BYTES: Final = 65_536
"""Credit for the body is given back in steps of at least this much."""
BODY_BYTES_MAX: Final = 64 << 20

_U32: Final = Struct(">I")
_json: Final = msgspec.json.Encoder().encode


class WebOpened(msgspec.Struct, frozen=True):
    """Head of an OPEN frame of kind `web`. `path` is percent-encoded, below `root`; header names are lower case."""

    id: str = ""
    method: str = "GET"
    path: str = "/"
    root: str = ""
    query: str = ""
    headers: list[tuple[str, str]] = []
    client: tuple[str, int] = ("", 0)
    scheme: str = "http"
    mount: str = ""
    function: str = ""
    params: dict[str, str] = {}
    timeout_s: float = 0.0
    ws: bool = False
    call: str = ""
    """The id by which the gateway knows it as the parent of calls that the function makes."""


class Gone(ConnectionError):
    """The caller left, or the link to the gateway broke: nobody hears the answer."""


class TooLarge(ValueError):
    """The body is above what a function takes."""


class Exchange:
    """The worker's end of a web stream. Methods are called on the event loop, those that say so on any thread."""

    __slots__ = (
        "_arrived", "_ended", "_flushing", "_loop", "_owed", "_parts", "began", "ended", "gone", "opened", "stream",
        "task",
    )  # fmt: skip

    def __init__(self, stream: Stream, opened: WebOpened) -> None:
        self.stream = stream
        self.opened = opened
        self.gone = asyncio.Event()
        """Set when the caller left."""
        self.task: asyncio.Task[None] | None = None
        """What runs for this exchange."""
        self.began = False
        """HEAD was sent."""
        self.ended = False
        """END or RESET was sent."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parts: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._owed = 0
        self._flushing = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop on which everything of this exchange happens."""
        self._loop = loop

    # --- the request's body ---

    def feed(self, data: bytes, end: bool) -> None:
        """More of the body."""
        if data:
            self._parts.append(data)
        self._ended = self._ended or end
        self._arrived.set()

    def lost(self) -> None:
        """The caller left."""
        self.gone.set()
        self._arrived.set()

    async def receive(self) -> tuple[bytes, bool]:
        """(next piece, whether more follows). Raises `Gone` when the caller left before the body was whole."""
        while not self._parts and not self._ended:
            if self.gone.is_set():
                raise Gone("the caller left")
            self._arrived.clear()
            await self._arrived.wait()
        piece = self._parts.popleft() if self._parts else b""
        more = bool(self._parts) or not self._ended
        if more and not self.gone.is_set():
            self._owed += len(piece)
            if self._owed >= CREDIT_BYTES or not self._parts:
                self._give_credit()
        return piece, more

    async def body(self) -> bytes:
        """All of it. Raises `TooLarge` above 64 MiB, and `Gone`."""
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            piece, more = await self.receive()
            size += len(piece)
            if size > BODY_BYTES_MAX:
                raise TooLarge(f"the body is above {BODY_BYTES_MAX} bytes")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _give_credit(self) -> None:
        """WINDOW: let the gateway send on. It passes what of the answer waits for the caller."""
        credit, self._owed = self._owed, 0
        if credit:
            stream = self.stream
            frame = frames.pack(frames.WINDOW, stream.id, _U32.pack(credit), 0, stream.epoch)
            stream.connection.post(frame)
            self.flush_soon()

    # --- the answer ---

    def head(self, status: int, headers: Iterable[tuple[str, str]], subprotocol: str = "") -> None:
        """HEAD; any thread. Raises ValueError for a header that cannot be sent."""
        lines = [(_checked(name), _checked(value)) for name, value in headers]
        self.began = True
        stream = self.stream
        fields = {"status": status, "headers": lines, "subprotocol": _checked(subprotocol)}
        stream.post(frames.pack(frames.HEAD, stream.id, _json(fields), 0, stream.epoch))

    def post(self, data: bytes) -> None:
        """DATA; any thread. Leaves with the next flush."""
        self.stream.data(data)

    async def send(self, data: bytes) -> None:
        """DATA, at the caller's pace. Raises `Gone`."""
        if self.gone.is_set() or not self.stream.is_open:
            raise Gone("the caller left")
        self.stream.data(data)
        self.flush_soon()
        if self.stream.is_waiting:
            await self.stream.drained()

    def end(self, run_us: int) -> None:
        """END; any thread."""
        if self.ended:
            return
        self.ended = True
        stream = self.stream
        stream.post(frames.pack(frames.END, stream.id, b'{"run_us":%d}' % run_us, 0, stream.epoch), last=True)
        self.flush_soon()

    def reset(self, code: int, text: str) -> None:
        """Break off."""
        if not self.ended:
            self.ended = True
            self.stream.reset(code, text)

    def flush_soon(self) -> None:
        """Send what the present pass of the loop makes with one write; any thread."""
        loop = self._loop
        if loop is None or not _is_running(loop):
            self.stream.connection.flush()
        elif not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.stream.connection.flush()


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _checked(text: str) -> str:
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError(f"a header may not have line breaks: {text[:60]!r}")
    return text
