"""What a spawned call printed: its last 256 KiB, numbered, kept as text and followed while it grows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

TAIL_BYTES_MAX: Final = 256 << 10
LINE_BYTES_MAX: Final = 64 << 10
_encode: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One line. `seq` counts a call's lines from 1, `at` is Unix seconds, `stream` stdout or stderr."""

    seq: int
    at: float
    stream: str
    line: str


_decode: Final = msgspec.json.Decoder(list[Line]).decode


def lines_of(text: str) -> list[Line]:
    """Lines as a call's row keeps them."""
    return _decode(text) if text else []


@dataclass(slots=True)
class Tail:
    """The newest lines of one call."""

    lines: deque[Line] = field(default_factory=deque)
    size: int = 0
    last: int = 0
    ended: bool = False
    unsaved: bool = False
    _news: set[asyncio.Event] = field(default_factory=set)

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Tail:
        """A tail that begins with lines that were kept."""
        tail = cls(deque(lines))
        tail.size = sum(len(line.line) for line in tail.lines)
        tail.last = tail.lines[-1].seq if tail.lines else 0
        return tail

    def add(self, at: float, stream: str, text: str) -> None:
        """A new line; old ones go when there are too many."""
        text = text[:LINE_BYTES_MAX]
        self.last += 1
        self.lines.append(Line(self.last, at, stream, text))
        self.size += len(text)
        self.unsaved = True
        while self.size > TAIL_BYTES_MAX:
            self.size -= len(self.lines.popleft().line)
        self.tell()

    def end(self) -> None:
        """There will be no more."""
        self.ended = True
        self.tell()

    def tell(self) -> None:
        """Wake whoever follows."""
        for event in self._news:
            event.set()

    def text(self) -> str:
        """As the row keeps it."""
        return _encode(list(self.lines)).decode() if self.lines else ""

    def after(self, seq: int) -> list[Line]:
        """The lines that are numbered above `seq`."""
        if self.last <= seq:
            return []
        return [line for line in self.lines if line.seq > seq]

    async def wait(self, seq: int, wait_s_max: float) -> None:
        """Until there is a line above `seq`, or there will be none; at most `wait_s_max` seconds."""
        if self.ended or self.last > seq:
            return
        event = asyncio.Event()
        self._news.add(event)
        try:
            async with asyncio.timeout(wait_s_max):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self._news.discard(event)
