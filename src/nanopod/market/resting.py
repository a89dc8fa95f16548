"""One open order inside a book. Mutable and small: a book has a hundred thousand of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanopod.market.shape import Shape, runs_of, volume
from nanopod.model.order import OrderStatus, Side


class Resting:
    """An order that stands, or one that is being matched.

    `left` is its open shape with extent `[start, end)`; `key` grows from the best price to the worst (rate for sells,
    minus rate for buys); `whole` means all-or-none; `laid` are the runs under which the grid keeps it, which may begin
    in the past.
    """

    __slots__ = (
        "account_id", "capacity_id", "end", "filled", "key", "laid", "left", "order_id", "owner",
        "rate", "seq", "side", "start", "whole",
    )  # fmt: skip

    def __init__(
        self,
        *,
        order_id: str,
        seq: int,
        account_id: str,
        capacity_id: str,
        side: Side,
        rate: int,
        left: Shape,
        whole: bool,
        owner: str = "",
        filled: int = 0,
    ) -> None:
        assert left, "an order asks for something"
        self.order_id = order_id
        self.seq = seq
        self.account_id = account_id
        self.capacity_id = capacity_id
        self.side: Side = side
        self.rate = rate
        self.key = rate if side == "sell" else -rate
        self.left = left
        self.start = left[0][0]
        self.end = left[-1][1]
        self.whole = whole
        self.owner = owner
        """The procurement that placed it, or ""."""
        self.filled = filled
        """Node-blocks filled so far."""
        self.laid: Shape = ()

    @classmethod
    def restore(cls, values: Sequence[Any]) -> Resting:
        """The order of `canonical` values."""
        seq, order_id, account_id, capacity_id, side, rate, left, whole, owner, filled = values
        return cls(
            order_id=order_id,
            seq=seq,
            account_id=account_id,
            capacity_id=capacity_id,
            side=side,
            rate=rate,
            left=runs_of(left),
            whole=whole,
            owner=owner,
            filled=filled,
        )

    @property
    def key_max(self) -> int:
        """The worst key of an opposite order that crosses this limit."""
        return self.rate if self.side == "buy" else -self.rate

    @property
    def status(self) -> OrderStatus:
        """The state of an order that still rests."""
        return "partially_filled" if self.filled else "standing"

    @property
    def hold(self) -> int:
        """Micro-dollars that this order keeps reserved: limit times open node-blocks for a buy, nothing for a sell."""
        return self.rate * volume(self.left) if self.side == "buy" else 0

    def shrink(self, left: Shape) -> None:
        """Set a smaller open shape."""
        self.left = left
        if left:
            self.start = left[0][0]
            self.end = left[-1][1]

    def canonical(self) -> list[Any]:
        """Everything that decides its future, as plain values in a fixed order."""
        return [
            self.seq, self.order_id, self.account_id, self.capacity_id, self.side, self.rate,
            [list(run) for run in self.left], self.whole, self.owner, self.filled,
        ]  # fmt: skip
