"""What user code prints: to the instance's log as ever, and by call, so that an error can show its last lines."""

from __future__ import annotations

import io
import sys
from collections import deque
from contextvars import ContextVar
from typing import Any, Final, Protocol, TextIO, cast

from nanopod.node import redact
from nanopod.node.files import TAIL_LINES

LINE_CHARS_MAX: Final = 16_384


class Printing(Protocol):
    """A call as far as its output goes."""

    def on_line(self, stream: str, line: str) -> None:
        """One finished line."""
        ...


printing: ContextVar[Printing | None] = ContextVar("nanopod_printing", default=None)
"""Whose output this is; set while a remote function runs."""

_last: Final[deque[str]] = deque(maxlen=TAIL_LINES)


class Tee(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr: passes everything on, and cuts it into lines for the running call."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._open: dict[int, tuple[Printing | None, str]] = {}
        """{id of the call: (call, its unfinished line)}"""

    def write(self, text: str) -> int:
        """Write to the log and to the call that prints."""
        written = self._stream.write(text)
        if text:
            call = printing.get()
            if "\n" in text or len(text) > LINE_CHARS_MAX or id(call) in self._open:
                self._cut(call, text)
            else:
                self._open[id(call)] = (call, text)
        return written

    def _cut(self, call: Printing | None, text: str) -> None:
        kept = self._open.pop(id(call), None)
        *lines, rest = ((kept[1] if kept else "") + text).split("\n")
        for line in lines:
            self._line(call, line[:LINE_CHARS_MAX])
        if len(rest) > LINE_CHARS_MAX:
            self._line(call, rest[:LINE_CHARS_MAX])
        elif rest:
            self._open[id(call)] = (call, rest)

    def _line(self, call: Printing | None, line: str) -> None:
        line = redact.here().text(line)
        _last.append(line)
        if call is not None:
            call.on_line(self._name, line)

    def end_of(self, call: Printing) -> None:
        """The call is over: what it printed without a line's end is a line too."""
        if self._open:
            kept = self._open.pop(id(call), None)
            if kept:
                self._line(call, kept[1])

    def flush(self) -> None:
        """Flush the log."""
        self._stream.flush()

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """False."""
        return False

    def fileno(self) -> int:
        """The log's."""
        return self._stream.fileno()

    @property
    def buffer(self) -> Any:
        """The binary stream below; what goes there is in the log only."""
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The log's."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The log's."""
        return self._stream.errors

    def reconfigure(self, **options: Any) -> None:
        """As of the stream below."""
        cast(io.TextIOWrapper, self._stream).reconfigure(**options)


_tees: Final[list[Tee]] = []


def capture() -> None:
    """Put the tees in place of stdout and stderr; once."""
    if _tees:
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
        tee = Tee(stream, name)
        _tees.append(tee)
        setattr(sys, name, tee)


def end_of(call: Printing) -> None:
    """Give the call its unfinished lines."""
    for tee in _tees:
        tee.end_of(call)


def tail() -> str:
    """The last lines that anything in this process printed."""
    return "\n".join(_last)
