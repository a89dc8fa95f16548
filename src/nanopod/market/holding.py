"""What one capacity owns of one SKU, block by block, and what of it is promised (R5, section "protect manual").

`owned = manual + auto`: time bought, granted or moved in by hand is manual; what a procurement bought is auto. Sells
reserve what they offer until they fill or end, so nobody can sell the same block twice.
"""

from __future__ import annotations

from typing import Any

from nanopod.market.shape import FOREVER, Shape, excess, meet, minus, plus
from nanopod.market.steps import Steps


class Holding:
    """Sums per block: `owned`, the `manual` part of it, open `asks` by hand and by automation, and what is `free`."""

    __slots__ = ("asks_auto", "asks_manual", "free", "manual", "owned")

    def __init__(self) -> None:
        self.owned = Steps()
        self.manual = Steps()
        self.asks_manual = Steps()
        self.asks_auto = Steps()
        self.free = Steps()
        """owned - asks_manual - asks_auto; never negative."""

    def gain(self, shape: Shape, *, auto: bool) -> None:
        """A fill of a buy, a transfer in, a grant."""
        self.owned.add(shape)
        self.free.add(shape)
        if not auto:
            self.manual.add(shape)

    def reserve(self, shape: Shape, *, auto: bool) -> None:
        """A sell was placed."""
        self.free.add(shape, -1)
        (self.asks_auto if auto else self.asks_manual).add(shape)

    def release(self, shape: Shape, *, auto: bool) -> None:
        """A sell ended, or a part of it."""
        self.free.add(shape)
        (self.asks_auto if auto else self.asks_manual).add(shape, -1)

    def deliver(self, shape: Shape, *, auto: bool) -> None:
        """A sell filled: an automation's takes auto time first, anyone else's manual time first."""
        self.lose(shape, auto=auto)
        (self.asks_auto if auto else self.asks_manual).add(shape, -1)
        # `lose` took it from free as well; it had left there when the sell was placed.
        self.free.add(shape)

    def lose(self, shape: Shape, *, auto: bool) -> None:
        """A transfer out, a burn, or the owned half of `deliver`."""
        start, end = shape[0][0], shape[-1][1]
        manual = self.manual.shape(start, end)
        if auto:
            spent = excess(shape, minus(self.owned.shape(start, end), manual))
        else:
            spent = meet(shape, manual)
        self.owned.add(shape, -1)
        self.free.add(shape, -1)
        self.manual.add(spent, -1)

    def auto_free(self, start: int, end: int) -> Steps:
        """`auto - max(0, open manual sells - manual) - open automation sells`; may be negative."""
        owned, manual = self.owned.shape(start, end), self.manual.shape(start, end)
        out = Steps(minus(owned, manual))
        out.add(excess(self.asks_manual.shape(start, end), manual), -1)
        out.add(self.asks_auto.shape(start, end), -1)
        return out

    def forget(self, before: int) -> None:
        """The clock has reached `before`."""
        for steps in (self.owned, self.manual, self.asks_manual, self.asks_auto, self.free):
            steps.forget(before)

    def asks(self, start: int = 0, end: int = FOREVER) -> Shape:
        """Everything on sale."""
        return plus(self.asks_manual.shape(start, end), self.asks_auto.shape(start, end))

    def canonical(self) -> list[Any]:
        """Plain values in a fixed order."""
        return [[list(run) for run in steps.shape()] for steps in (self.owned, self.manual, self.asks_manual, self.asks_auto)]
