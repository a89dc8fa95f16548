"""How many nodes rest on one side at each price and block: says "surely not" to a taker before any order is looked at.

Prices fall into buckets: exact below 256, then 256 per octave (steps of at most 0.4 %). Rows of nodes per block are
kept for each bucket and for each 8, 64 and 512 buckets, so that an order changes four rows and a question ("how many
nodes, at this limit or better, in each of these blocks?") sums about ten slices. (A Fenwick tree over the buckets
would ask a little faster but change more rows, and there are several changes to each question.) The bucket's edge is
rounded in the taker's favour, all-or-none makers count as divisible and the taker's own orders count too: the answer
may be too high, never too low.

Rows are kept in pages of 1,440 blocks. Pages near the clock have a value for each block, later ones one per 60 blocks
(an order counts in every cell that it touches); a page is rebuilt finely when the clock comes near. Rows exist only
where orders are, so a book whose prices lie within a few octaves needs a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, cut, normal

Row: TypeAlias = NDArray[np.int32]
PAGE: Final = 1440
COARSE: Final = 60
FINE_PAGES: Final = 3
"""Pages with a value per block: that of the clock and the two after it."""
BUCKETS: Final = 8192
_EIGHTS: Final = 1 << 13
"""Rows are named by number: buckets from 0, groups of 8 from here, ..."""
_SIXTY_FOURS: Final = 1 << 14
_OCTAVES: Final = 1 << 15


def bucket(rate: int) -> int:
    """The price bucket of a rate, 0..8191; never falls as the rate grows."""
    if rate < 256:
        return rate
    shift = rate.bit_length() - 9
    return min(shift * 256 + (rate >> shift), BUCKETS - 1) if shift > 0 else rate


class Ladder:
    """Coverage of one side of a book. Keys as in `Resting`: rate for sells, minus rate for buys."""

    __slots__ = ("_bids", "_fine_until", "_pages")

    def __init__(self, block: int = 0, *, bids: bool = False) -> None:
        self._bids = bids
        self._pages: dict[int, dict[int, Row]] = {}
        self._fine_until = block // PAGE + FINE_PAGES

    def add(self, key: int, shape: Shape, sign: int = 1) -> None:
        """Count (`sign` 1) or discount (-1) a shape that rests at `key`."""
        for page, low, high, nodes in self._spans(shape):
            self._add(page, self._rank(key), low, high, nodes * sign)

    def change(self, key: int, old: Shape, taken: Shape, left: Shape) -> None:
        """`taken` of `old` was filled and `left` remains."""
        if taken[-1][1] <= self._fine_until * PAGE:
            self.add(key, taken, -1)
            return
        # A coarse cell counts what touches it, and the rest may still touch the cells that the fill touched.
        low, high = taken[0][0] // COARSE * COARSE, -(-taken[-1][1] // COARSE) * COARSE
        self.add(key, cut(old, low, high), -1)
        self.add(key, cut(left, low, high), 1)

    def reach(self, key_max: int, want: Shape) -> Shape:
        """The most of `want` that orders with keys up to `key_max` may cover."""
        rank = self._rank(key_max)
        out: list[tuple[int, int, int]] = []
        for start, end, nodes in want:
            for page, low, high, _ in self._spans(((start, end, nodes),)):
                span = self._sum(page, rank, low, high)
                base, cell = page * PAGE, self._cell(page)
                first, last = max(start, base), min(end, base + PAGE)
                if span is None:
                    continue
                if int(span.min()) >= nodes:
                    out.append((first, last, nodes))
                    continue
                edges = [0, *(np.flatnonzero(np.diff(span)) + 1).tolist(), len(span)]
                for a, b in pairwise(edges):
                    lo, hi = base + (low + a) * cell, base + (low + b) * cell
                    out.append((max(first, lo), min(last, hi), min(nodes, int(span[a]))))
        return normal(out)

    def forget(self, before: int) -> None:
        """Drop the pages that have passed entirely."""
        for page in [page for page in self._pages if (page + 1) * PAGE <= before]:
            del self._pages[page]

    def due(self, block: int) -> range:
        """The pages that have to become fine now that the clock stands at `block`."""
        return range(self._fine_until, block // PAGE + FINE_PAGES)

    def refine(self, page: int, orders: Iterable[Resting]) -> None:
        """Rebuild the next page block by block from every order that overlaps it."""
        assert page == self._fine_until, "pages become fine in order"
        self._pages.pop(page, None)
        self._fine_until = page + 1
        for order in orders:
            for found, low, high, nodes in self._spans(order.left):
                if found == page:
                    self._add(page, self._rank(order.key), low, high, nodes)

    def _rank(self, key: int) -> int:
        """The bucket of a key, counted from the best price of this side."""
        return BUCKETS - 1 - bucket(max(0, -key)) if self._bids else bucket(key)

    def _cell(self, page: int) -> int:
        return 1 if page < self._fine_until else COARSE

    def _spans(self, shape: Shape) -> Iterator[tuple[int, int, int, int]]:
        """(page, first cell, cell after the last, nodes) of each part of a shape."""
        for start, end, nodes in shape:
            for page in range(start // PAGE, (end - 1) // PAGE + 1):
                low, high = max(start - page * PAGE, 0), min(end - page * PAGE, PAGE)
                if page >= self._fine_until:
                    low, high = low // COARSE, -(-high // COARSE)
                yield page, low, high, nodes

    def _add(self, page: int, rank: int, low: int, high: int, nodes: int) -> None:
        rows = self._pages.get(page)
        if rows is None:
            rows = self._pages[page] = {}
        for name in (rank, _EIGHTS + (rank >> 3), _SIXTY_FOURS + (rank >> 6), _OCTAVES + (rank >> 9)):
            row = rows.get(name)
            if row is None:
                row = rows[name] = np.zeros(PAGE // self._cell(page), np.int32)
            row[low:high] += nodes

    def _sum(self, page: int, rank: int, low: int, high: int) -> Row | None:
        rows = self._pages.get(page)
        if rows is None:
            return None
        octave, large, small = rank >> 9, rank >> 6, rank >> 3
        total: Row | None = None
        for name in (
            *range(_OCTAVES, _OCTAVES + octave),
            *range(_SIXTY_FOURS + 8 * octave, _SIXTY_FOURS + large),
            *range(_EIGHTS + 8 * large, _EIGHTS + small),
            *range(8 * small, rank + 1),
        ):
            row = rows.get(name)
            if row is not None:
                total = row[low:high].copy() if total is None else np.add(total, row[low:high], out=total)
        return total
