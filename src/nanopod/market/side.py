"""One side of a book: its orders by time, price and arrival, and how much of everything there is."""

from __future__ import annotations

from collections.abc import Iterator

from nanopod.market.grid import Grid, walk
from nanopod.market.ladder import Ladder
from nanopod.market.resting import Resting
from nanopod.market.shape import FOREVER, Shape, minus

ANY: int = 1 << 62
"""A key that no order exceeds: every price."""


class BookSide:
    """Resting orders of one side: partial and all-or-none ones in two grids, all of them in one ladder."""

    __slots__ = ("ladder", "partial", "whole")

    def __init__(self, block: int = 0) -> None:
        self.partial = Grid()
        self.whole = Grid()
        self.ladder = Ladder(block)

    def add(self, order: Resting) -> None:
        """Let an order rest here."""
        (self.whole if order.whole else self.partial).add(order)
        self.ladder.add(order.key, order.left)

    def remove(self, order: Resting) -> None:
        """Take an order away, with what is left of it."""
        (self.whole if order.whole else self.partial).remove(order)
        self.ladder.add(order.key, order.left, -1)

    def fill(self, order: Resting, taken: Shape) -> None:
        """`taken` of a resting order changes hands; an order with nothing left goes. The order keeps its place."""
        left = minus(order.left, taken)
        if left:
            self.ladder.change(order.key, order.left, taken, left)
            order.shrink(left)
        else:
            self.remove(order)
            order.shrink(left)

    def clip(self, order: Resting, left: Shape) -> None:
        """The clock has taken blocks off the front. The ladder never answers for the past, so it need not know."""
        if not left:
            (self.whole if order.whole else self.partial).remove(order)
        order.shrink(left)

    def advance(self, block: int) -> None:
        """Move the clock of the ladder; every order must have been clipped to `block` before."""
        self.ladder.forget(block)
        for page in self.ladder.due(block):
            start = page * 1440
            self.ladder.refine(page, walk((self.partial, self.whole), start, start + 1440, ANY))

    def walk(self, start: int, end: int, key_max: int) -> Iterator[Resting]:
        """Orders overlapping `[start, end)` in priority order."""
        return walk((self.partial, self.whole), start, end, key_max)

    def walk_partial(self, start: int, end: int, key_max: int) -> Iterator[Resting]:
        """The divisible ones alone."""
        return walk((self.partial,), start, end, key_max)

    def walk_whole(self, start: int, end: int, key_max: int) -> Iterator[Resting]:
        """The all-or-none ones alone."""
        return walk((self.whole,), start, end, key_max)

    def all(self) -> Iterator[Resting]:
        """Every order, in priority order."""
        return walk((self.partial, self.whole), 0, FOREVER, ANY)
