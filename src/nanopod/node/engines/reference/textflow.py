"""Token ids to text that may leave: whole characters only, and never the beginning of a stop string.

`TextFlow` is a pure function of the ids pushed so far. That is what makes a stream continuable: a second worker pushes
the ids the caller already has, throws the flushes away, and stands where the first one stood.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flush:
    """Ids that leave together, and the text that all of them add."""

    first: int
    """Output index of the first id."""
    ids: tuple[int, ...]
    text: str
    offsets: tuple[int, ...]
    """Characters of output text before each id."""
    stopped: bool = False
    """A stop string was completed; `text` ends before it and nothing may follow."""


class TextFlow:
    """Incremental detokenizer and stop-string scan of one choice."""

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str], min_tokens: int) -> None:
        """`stops` are looked for only in text after the first `min_tokens` tokens."""
        self._token_bytes = token_bytes
        self._stops = tuple(stops)
        self._min_tokens = min_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._scan_from = 0
        self._ids: list[int] = []
        # Length of _text after each pending id, or -1 where the id ends inside a character.
        self._marks: list[int] = []
        self._offsets: list[int] = []
        self._left_chars = 0
        self._left_ids = 0

    @property
    def pushed(self) -> int:
        """How many ids came in."""
        return self._left_ids + len(self._ids)

    def push(self, token: int) -> Flush | None:
        """Take one id; returns what may leave now, if anything."""
        self._offsets.append(self._left_chars + len(self._text))
        self._text += self._decoder.decode(self._token_bytes(token))
        self._ids.append(token)
        self._marks.append(-1 if self._decoder.getstate()[0] else len(self._text))
        if not self._stops:
            return self._leave(len(self._text))
        if self.pushed <= self._min_tokens:
            self._scan_from = len(self._text)
            return self._leave(len(self._text))
        found = [at for stop in self._stops if (at := self._text.find(stop, self._scan_from)) >= 0]
        if found:
            return self._cut(min(found), stopped=True)
        return self._leave(len(self._text) - self._held())

    def settle(self) -> Flush | None:
        """Everything pushed so far is with the caller: nothing of it may leave again.

        Called after delivered ids were pushed once more. Where they end in what looks like the beginning of a stop
        string, later ids have shown that it was none, or they would not have been delivered.
        """
        return self._leave(len(self._text))

    def finish(self, last: int | None = None) -> Flush | None:
        """No more text comes: everything pending leaves, with `last` (an end token without text) behind it."""
        self._text += self._decoder.decode(b"", True)
        if last is not None:
            self._offsets.append(self._left_chars + len(self._text))
            self._ids.append(last)
            self._marks.append(len(self._text))
        return self._cut(len(self._text), stopped=False) if self._ids else None

    def _held(self) -> int:
        """Length of the longest end of the text that could still grow into a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._text) - self._scan_from), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _leave(self, safe: int) -> Flush | None:
        """Flush up to the last token boundary at or before character `safe`."""
        count = len(self._marks)
        while count and not 0 <= self._marks[count - 1] <= safe:
            count -= 1
        if not count:
            return None
        size = self._marks[count - 1]
        flush = Flush(self._left_ids, tuple(self._ids[:count]), self._text[:size], tuple(self._offsets[:count]))
        self._text = self._text[size:]
        self._scan_from = max(0, self._scan_from - size)
        self._ids = self._ids[count:]
        self._marks = [mark - size if mark >= 0 else -1 for mark in self._marks[count:]]
        self._offsets = self._offsets[count:]
        self._left_ids += count
        self._left_chars += size
        return flush

    def _cut(self, size: int, *, stopped: bool) -> Flush:
        """Everything pending leaves with the first `size` characters."""
        flush = Flush(self._left_ids, tuple(self._ids), self._text[:size], tuple(self._offsets), stopped)
        self._left_ids += len(self._ids)
        self._left_chars += size
        self._text, self._ids, self._marks, self._offsets, self._scan_from = "", [], [], [], 0
        return flush
