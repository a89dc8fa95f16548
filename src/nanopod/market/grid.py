"""An index of resting time by window, price and arrival, for walks that see only what is open near a window.

The unit is an *entry*: one run of the open shape of a partial order (an order that was filled in the middle has two),
or the extent of an all-or-none order. Entries are sorted into *tiers* by length (64, 256, 1024, ... blocks) and,
inside a tier, into cells of that width by their start. An entry so reaches at most into the cell after its own, and a
window is answered by the few cells of each tier that it touches and one before them, however much rests elsewhere in
time. A cell holds price levels: a sorted list of the prices in use and, for each, its entries sorted by arrival.

Adding and removing cost a few bisections. A walk merges the cells it needs by (price, sequence) and is lazy: a taker
that is filled early has looked at a handful of entries. One list sorted by price would be as quick on a book whose
times are spread evenly, but not on the usual one, where "now" is sold out at the good prices and next week is not.

The clock only takes time off the front, so entries may begin in the past: whoever asks, asks for the future.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace, merge
from typing import Final, TypeAlias

from nanopod.market.resting import Resting
from nanopod.market.shape import Run

WIDTHS: Final = tuple(64 << (2 * tier) for tier in range(9))
"""Widths of the cells of each tier in blocks; the last is longer than the longest order."""
Entry: TypeAlias = tuple[int, int, int, int, Resting]
"""(sequence, end, start, nodes, order); nodes is 0 for the extent of an all-or-none order."""


class Cell:
    """The price levels of entries that start in one cell. Keys grow from the best price to the worst."""

    __slots__ = ("keys", "levels")

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.levels: dict[int, list[Entry]] = {}


class Grid:
    """Entries of one side of a book."""

    __slots__ = ("tiers",)

    def __init__(self) -> None:
        self.tiers: tuple[dict[int, Cell], ...] = tuple({} for _ in WIDTHS)

    def add(self, order: Resting, run: Run) -> None:
        """Take in a run of an order."""
        start, end, nodes = run
        tier, index = _place(start, end)
        cell = self.tiers[tier].get(index)
        if cell is None:
            cell = self.tiers[tier][index] = Cell()
        level = cell.levels.get(order.key)
        if level is None:
            level = cell.levels[order.key] = []
            insort(cell.keys, order.key)
        insort(level, (order.seq, end, start, nodes, order))

    def remove(self, order: Resting, run: Run) -> None:
        """Drop a run that was taken in."""
        start, end, _ = run
        tier, index = _place(start, end)
        cell = self.tiers[tier][index]
        level = cell.levels[order.key]
        at = bisect_left(level, (order.seq, end))
        assert level[at][4] is order and level[at][2] == start, "what is removed was added"
        del level[at]
        if not level:
            del cell.levels[order.key]
            del cell.keys[bisect_left(cell.keys, order.key)]
            if not cell.keys:
                del self.tiers[tier][index]

    def near(self, start: int, end: int) -> list[Cell]:
        """Every cell that can hold an entry overlapping `[start, end)`."""
        found: list[Cell] = []
        for width, cells in zip(WIDTHS, self.tiers, strict=True):
            if not cells:
                continue
            first, last = start // width - 1, (end - 1) // width
            if last - first < len(cells):
                for index in range(first, last + 1):
                    cell = cells.get(index)
                    if cell is not None:
                        found.append(cell)
            else:
                found.extend(cell for index, cell in cells.items() if first <= index <= last)
        return found


def _place(start: int, end: int) -> tuple[int, int]:
    tier = max(0, ((end - start - 1) >> 6).bit_length() + 1 >> 1)
    return tier, start // WIDTHS[tier]


def walk(grids: Iterable[Grid], window: list[int], key_max: int) -> Iterator[Entry]:
    """Entries that overlap `window` with a key up to `key_max`, best price first, then lowest sequence, then time.

    `window` is `[start, end]`; the caller may narrow it while it walks. The grids must not change meanwhile.
    """
    cells = [cell for grid in grids for cell in grid.near(*window) if cell.keys[0] <= key_max]
    heads = [(cell.keys[0], number, 0) for number, cell in enumerate(cells)]
    heapify(heads)
    while heads:
        key = heads[0][0]
        levels: list[list[Entry]] = []
        while heads and heads[0][0] == key:
            _, number, position = heads[0]
            cell = cells[number]
            levels.append(cell.levels[key])
            position += 1
            if position < len(cell.keys) and cell.keys[position] <= key_max:
                heapreplace(heads, (cell.keys[position], number, position))
            else:
                heappop(heads)
        # Sequence and end make an entry unique, so the merge never compares two orders.
        for entry in levels[0] if len(levels) == 1 else merge(*levels):
            if entry[2] < window[1] and entry[1] > window[0]:
                yield entry
