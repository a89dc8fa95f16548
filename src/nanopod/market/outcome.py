"""What came of an event: fills, changed orders, and the lines that a ledger posts in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass

from nanopod.market.resting import Resting
from nanopod.market.shape import Shape
from nanopod.model.order import CancelReason, OrderStatus, PostingKind

PLATFORM = "platform"
"""The account that fees go to."""


@dataclass(frozen=True, slots=True)
class Fill:
    """One contract of one (maker, taker) pair, at the maker's rate (R13).

    `amount` and `fee` are micro-dollars and exact; `rate` is micro-dollars per node-block. Only for the taker of a
    group purchase may `amount` differ from `rate x node-blocks`; its rate is then the average, rounded down.
    """

    number: int
    maker_order: str
    taker_order: str
    buyer_order: str
    seller_order: str
    buyer_capacity: str
    seller_capacity: str
    buyer_account: str
    seller_account: str
    shape: Shape
    rate: int
    amount: int
    fee: int
    block: int


@dataclass(frozen=True, slots=True)
class Change:
    """The new state of an order. `left` is its open shape (empty once closed), `hold` what it still reserves."""

    order_id: str
    status: OrderStatus
    left: Shape
    filled: int
    hold: int
    reason: CancelReason | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A ledger line in micro-dollars: to the balance, or to the holds for `hold` (+) and `release` (-)."""

    account_id: str
    kind: PostingKind
    micro: int
    reference: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one event changed; `seq` is the event's place in the log of its SKU."""

    seq: int
    fills: tuple[Fill, ...] = ()
    changes: tuple[Change, ...] = ()
    lines: tuple[Line, ...] = ()


def change_of(order: Resting, status: OrderStatus | None = None, reason: CancelReason | None = None) -> Change:
    """The state of an order as a value; a status closes it."""
    if status is None:
        return Change(order.order_id, order.status, order.left, order.filled, order.hold)
    return Change(order.order_id, status, (), order.filled, 0, reason)


def fill_lines(fill: Fill, reference: str, buyer_limit: int, node_blocks: int, *, provider: bool) -> list[Line]:
    """The postings of one contract: buy -A, seller +A - F, platform +F; the hold shrinks by limit x volume.

    A provider's revenue is held until it has delivered (`settlement.delivered`).
    """
    lines = [
        Line(fill.buyer_account, "release", -buyer_limit * node_blocks, fill.buyer_order),
        Line(fill.buyer_account, "buy", -fill.amount, reference),
        Line(fill.seller_account, "sell", fill.amount, reference),
    ]
    if fill.fee:
        lines.append(Line(fill.seller_account, "fee", -fill.fee, reference))
        lines.append(Line(PLATFORM, "fee", fill.fee, reference))
    if provider:
        lines.append(Line(fill.seller_account, "hold", fill.amount - fill.fee, reference))
    return lines
