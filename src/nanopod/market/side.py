"""One side of a book: its orders by time, price and arrival, and how much of everything there is."""

from __future__ import annotations

from collections.abc import Iterator

from nanopod.market.grid import Entry, Grid, walk
from nanopod.market.ladder import PAGE, Ladder
from nanopod.market.resting import Resting
from nanopod.market.shape import FOREVER, Shape, carve, minus

ANY: int = 1 << 62
"""A key that no order exceeds: every price."""


class BookSide:
    """Resting orders of one side: partial and all-or-none ones in two grids, all of them in one ladder."""

    __slots__ = ("ladder", "partial", "whole")

    def __init__(self, block: int = 0, *, bids: bool = False) -> None:
        self.partial = Grid()
        self.whole = Grid()
        self.ladder = Ladder(block, bids=bids)

    def add(self, order: Resting) -> None:
        """Let an order rest here."""
        self.ladder.add(order.key, order.left)
        if order.whole:
            order.laid = ((order.start, order.end, 0),)
            self.whole.add(order, order.laid[0])
        else:
            order.laid = order.left
            for run in order.laid:
                self.partial.add(order, run)

    def remove(self, order: Resting) -> None:
        """Take an order away, with what is left of it."""
        self.ladder.add(order.key, order.left, -1)
        self._lift(order)

    def fill(self, order: Resting, taken: Shape) -> None:
        """`taken` of a resting order changes hands; an order with nothing left goes. The order keeps its place."""
        left = minus(order.left, taken)
        if not left:
            self.remove(order)
        else:
            self.ladder.change(order.key, order.left, taken, left)
            order.laid, gone, new = carve(order.laid, taken)
            for run in gone:
                self.partial.remove(order, run)
            for run in new:
                self.partial.add(order, run)
        order.shrink(left)

    def clip(self, order: Resting, left: Shape) -> None:
        """The clock has taken blocks off the front. The ladder never answers for the past, so it need not know."""
        if not left:
            self._lift(order)
        elif not order.whole:
            while order.laid[0][1] <= left[0][0]:
                self.partial.remove(order, order.laid[0])
                order.laid = order.laid[1:]
        order.shrink(left)

    def _lift(self, order: Resting) -> None:
        grid = self.whole if order.whole else self.partial
        for run in order.laid:
            grid.remove(order, run)
        order.laid = ()

    def advance(self, block: int) -> None:
        """Move the clock of the ladder; every order must have been clipped to `block` before."""
        self.ladder.forget(block)
        for page in self.ladder.due(block):
            self.ladder.refine(page, self.walk(page * PAGE, (page + 1) * PAGE))

    def entries(self, window: list[int], key_max: int, *, partial_only: bool = False) -> Iterator[Entry]:
        """Entries overlapping a window in priority order; see `grid.walk`."""
        return walk((self.partial,) if partial_only else (self.partial, self.whole), window, key_max)

    def walk(self, start: int = 0, end: int = FOREVER, key_max: int = ANY) -> Iterator[Resting]:
        """Orders with open time in `[start, end)` in priority order, each once."""
        return _orders((self.partial, self.whole), start, end, key_max)

    def walk_whole(self, start: int, end: int, key_max: int) -> Iterator[Resting]:
        """The all-or-none ones alone."""
        return _orders((self.whole,), start, end, key_max)


def _orders(grids: tuple[Grid, ...], start: int, end: int, key_max: int) -> Iterator[Resting]:
    last: Resting | None = None
    for entry in walk(grids, [start, end], key_max):
        # Runs of one order have one price and one sequence number, so they come one after another.
        if entry[4] is not last:
            last = entry[4]
            yield last
