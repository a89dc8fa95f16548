"""Windows and schedules: how many nodes are held, block by block. Times are integer Unix seconds, `[start, end)`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

BLOCK_S: Final = 60
"""Default length of a block in seconds; the smallest unit of time that is sold."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """`[start_at, end_at)` in Unix seconds; `end_at` None is open-ended."""

    start_at: int
    end_at: int | None = None

    def __post_init__(self) -> None:
        assert self.end_at is None or self.end_at > self.start_at, "a window ends after it starts"

    def covers(self, at: float) -> bool:
        """True when `at` lies inside."""
        return self.start_at <= at and (self.end_at is None or at < self.end_at)

    def aligned(self, block_s: int = BLOCK_S) -> bool:
        """True when both ends lie on block boundaries."""
        return self.start_at % block_s == 0 and (self.end_at is None or self.end_at % block_s == 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """`node_count` nodes during `window`."""

    window: Window
    node_count: int

    def __post_init__(self) -> None:
        assert type(self.node_count) is int and self.node_count >= 0, "node counts are non-negative integers"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A step function of time: entries in order, disjoint, gaps mean 0 nodes; only the last may be open-ended."""

    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        for before, after in zip(self.entries, self.entries[1:], strict=False):
            end = before.window.end_at
            assert end is not None and end <= after.window.start_at, "entries are ordered and disjoint"

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Schedule:
        """Normal form: zero entries dropped, neighbours of equal count merged."""
        kept: list[Entry] = []
        for entry in entries:
            if entry.node_count == 0:
                continue
            last = kept[-1] if kept else None
            if last and last.node_count == entry.node_count and last.window.end_at == entry.window.start_at:
                kept[-1] = Entry(Window(last.window.start_at, entry.window.end_at), entry.node_count)
            else:
                kept.append(entry)
        return cls(tuple(kept))

    def nodes_at(self, at: float) -> int:
        """Nodes held at `at` (Unix seconds)."""
        for entry in self.entries:
            if entry.window.covers(at):
                return entry.node_count
        return 0

    def next_change(self, at: float) -> int | None:
        """The first instant after `at` when the count may change, or None."""
        for entry in self.entries:
            if entry.window.start_at > at:
                return entry.window.start_at
            if entry.window.end_at is not None and entry.window.end_at > at:
                return entry.window.end_at
        return None

    def plus(self, other: Schedule) -> Schedule:
        """The block-wise sum of two schedules."""
        return self._merge(other, 1)

    def minus(self, other: Schedule) -> Schedule:
        """The block-wise difference; asserts that no block goes below zero."""
        return self._merge(other, -1)

    def _merge(self, other: Schedule, sign: int) -> Schedule:
        cuts = sorted(
            {e.window.start_at for s in (self, other) for e in s.entries}
            | {e.window.end_at for s in (self, other) for e in s.entries if e.window.end_at is not None}
        )
        pieces: list[Entry] = []
        for start, end in itertools.zip_longest(cuts, cuts[1:]):
            count = self.nodes_at(start) + sign * other.nodes_at(start)
            assert count >= 0, "a schedule cannot hold fewer than zero nodes"
            pieces.append(Entry(Window(start, end), count))
        return Schedule.of(pieces)
