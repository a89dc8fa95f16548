"""What one capacity owns of one SKU, block by block, and what of it is promised (R5, section "protect manual").

`owned = manual + auto`: time bought, granted or moved in by hand is manual; what a procurement bought is auto. Sells
reserve what they offer until they fill or end, so nobody can sell the same block twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nanopod.market.shape import FOREVER, Shape, cut, excess, meet, minus, plus, runs_of, within
from nanopod.market.steps import Steps


class Holding:
    """Sums per block: `manual` and `auto` time owned, open `asks` by hand and by automation, and what is `free`."""

    __slots__ = ("asks_auto", "asks_manual", "auto", "free", "manual")

    def __init__(self) -> None:
        self.manual = Steps()
        self.auto = Steps()
        self.asks_manual = Steps()
        self.asks_auto = Steps()
        self.free = Steps()
        """manual + auto - asks_manual - asks_auto; never negative."""

    def owned(self, start: int = 0, end: int = FOREVER) -> Shape:
        """Everything that the capacity holds."""
        return plus(self.manual.shape(start, end), self.auto.shape(start, end))

    def asks(self, start: int = 0, end: int = FOREVER) -> Shape:
        """Everything on sale."""
        return plus(self.asks_manual.shape(start, end), self.asks_auto.shape(start, end))

    def gain(self, shape: Shape, *, auto: bool) -> None:
        """A fill of a buy, a transfer in, a grant."""
        (self.auto if auto else self.manual).add(shape)
        self.free.add(shape)

    def reserve(self, shape: Shape, *, auto: bool) -> None:
        """A sell was placed."""
        self.free.add(shape, -1)
        (self.asks_auto if auto else self.asks_manual).add(shape)

    def release(self, shape: Shape, *, auto: bool) -> None:
        """A sell ended, or a part of it."""
        self.free.add(shape)
        (self.asks_auto if auto else self.asks_manual).add(shape, -1)

    def deliver(self, shape: Shape, *, auto: bool) -> None:
        """A sell filled. Its time had left `free` when it was placed."""
        (self.asks_auto if auto else self.asks_manual).add(shape, -1)
        self._spend(shape, auto=auto)

    def lose(self, shape: Shape) -> None:
        """A transfer out or a burn: manual time first."""
        self.free.add(shape, -1)
        self._spend(shape, auto=False)

    def _spend(self, shape: Shape, *, auto: bool) -> None:
        """Automation spends auto time first, everyone else manual time first."""
        first, second = (self.auto, self.manual) if auto else (self.manual, self.auto)
        have = first.shape(shape[0][0], shape[-1][1])
        if within(shape, have):
            first.add(shape, -1)
            return
        spent = meet(shape, have)
        first.add(spent, -1)
        second.add(minus(shape, spent), -1)

    def auto_free(self, start: int, end: int) -> Steps:
        """`auto - max(0, open manual sells - manual) - open automation sells`; may be negative."""
        out = Steps(self.auto.shape(start, end))
        out.add(excess(self.asks_manual.shape(start, end), self.manual.shape(start, end)), -1)
        out.add(self.asks_auto.shape(start, end), -1)
        return out

    def forget(self, before: int) -> None:
        """The clock has reached `before`. What is owned in the block that runs now is kept."""
        for steps in (self.asks_manual, self.asks_auto, self.free):
            steps.forget(before)
        for steps in (self.manual, self.auto):
            steps.forget(before - 1)

    @classmethod
    def restore(cls, state: Sequence[Iterable[Iterable[int]]], block: int) -> Holding:
        """The holding of a `canonical` state whose next block is `block`."""
        self = cls()
        kept = (self.manual, self.auto, self.asks_manual, self.asks_auto)
        for steps, values, sign in zip(kept, state, (1, 1, -1, -1), strict=True):
            shape = runs_of(values)
            steps.add(shape)
            self.free.add(cut(shape, block), sign)
        return self

    def canonical(self) -> list[Any]:
        """Plain values in a fixed order."""
        kept = (self.manual, self.auto, self.asks_manual, self.asks_auto)
        return [[list(run) for run in steps.shape()] for steps in kept]
