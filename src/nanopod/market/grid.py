"""An index of resting orders by time, price and arrival, for walks that see only orders near a window.

Orders are sorted into *tiers* by the length of their window (64, 256, 1024, ... blocks) and, inside a tier, into cells of
that width by their start. An order therefore reaches at most into the cell after its own, so a window is answered by the
few cells of each tier that it touches and one before them, however many orders rest elsewhere in time. A cell holds price
levels: a sorted list of the prices in use and, for each, its orders by arrival (a dict: append, remove and walk in
insertion order, which is the order of sequence numbers). A clip or a fill only shrinks an order, so it never moves.

Insert and remove cost a few dict operations plus one bisection among the distinct prices of one cell. A walk merges the
cells it needs by (price, sequence) and is lazy: a taker that is filled early has looked at a handful of orders.
Scanning one list sorted by price would be as quick on a book whose times are spread evenly, but not on the usual one,
where "now" is sold out at the good prices and next week is not.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace, merge
from typing import Final

from nanopod.market.resting import Resting

WIDTHS: Final = tuple(64 << (2 * tier) for tier in range(9))
"""Widths of the cells of each tier in blocks; the last is longer than the longest order."""


class Cell:
    """The price levels of orders that start in one cell. Keys grow from the best price to the worst."""

    __slots__ = ("keys", "levels")

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.levels: dict[int, dict[int, Resting]] = {}


class Grid:
    """Resting orders of one side."""

    __slots__ = ("tiers",)

    def __init__(self) -> None:
        self.tiers: tuple[dict[int, Cell], ...] = tuple({} for _ in WIDTHS)

    def add(self, order: Resting) -> None:
        """Take in an order; its sequence number must be the highest so far."""
        length = order.end - order.start
        tier = 0
        while WIDTHS[tier] < length:
            tier += 1
        index = order.start // WIDTHS[tier]
        order.place = (tier, index)
        cell = self.tiers[tier].get(index)
        if cell is None:
            cell = self.tiers[tier][index] = Cell()
        level = cell.levels.get(order.key)
        if level is None:
            level = cell.levels[order.key] = {}
            insort(cell.keys, order.key)
        level[order.seq] = order

    def remove(self, order: Resting) -> None:
        """Drop an order that was taken in."""
        tier, index = order.place
        cell = self.tiers[tier][index]
        level = cell.levels[order.key]
        del level[order.seq]
        if not level:
            del cell.levels[order.key]
            del cell.keys[bisect_left(cell.keys, order.key)]
            if not cell.keys:
                del self.tiers[tier][index]

    def near(self, start: int, end: int) -> list[Cell]:
        """Every cell that can hold an order overlapping `[start, end)`."""
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


def walk(grids: Iterable[Grid], start: int, end: int, key_max: int) -> Iterator[Resting]:
    """Orders that overlap `[start, end)` with a key up to `key_max`, best price first, then lowest sequence.

    The grids must not change while the walk goes on.
    """
    cells = [cell for grid in grids for cell in grid.near(start, end) if cell.keys[0] <= key_max]
    heads = [(cell.keys[0], number, 0) for number, cell in enumerate(cells)]
    heapify(heads)
    while heads:
        key = heads[0][0]
        levels: list[dict[int, Resting]] = []
        while heads and heads[0][0] == key:
            _, number, position = heads[0]
            cell = cells[number]
            levels.append(cell.levels[key])
            position += 1
            if position < len(cell.keys) and cell.keys[position] <= key_max:
                heapreplace(heads, (cell.keys[position], number, position))
            else:
                heappop(heads)
        if len(levels) == 1:
            for order in levels[0].values():
                if order.start < end and order.end > start:
                    yield order
        else:
            # Sequence numbers are unique, so the merge never compares two orders.
            for _, order in merge(*(level.items() for level in levels)):
                if order.start < end and order.end > start:
                    yield order
