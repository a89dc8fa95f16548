"""From the market's blocks and integers to the nouns that are stored and shown (`model.order`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nanopod.market.outcome import Change, Fill, Line
from nanopod.market.shape import from_schedule, to_schedule
from nanopod.model.money import Money, Rate
from nanopod.model.order import Contract, Order, Posting
from nanopod.model.schedule import BLOCK_S


def contract_of(fill: Fill, sku_id: str, contract_id: str, filled_at: float, block_s: int = BLOCK_S) -> Contract:
    """The contract of a fill; `contract_id` is drawn by the caller."""
    return Contract(
        contract_id, sku_id, fill.number, fill.buyer_order, fill.seller_order, fill.buyer_capacity,
        fill.seller_capacity, to_schedule(fill.shape, block_s), Rate(fill.rate), Money(fill.amount), Money(fill.fee),
        filled_at, )  # fmt: skip


def updated(order: Order, change: Change, fills: Iterable[Fill], block_s: int = BLOCK_S) -> Order:
    """An order after an outcome; of `fills` those that are its own count."""
    filled = order.filled
    for fill in fills:
        if order.order_id in (fill.buyer_order, fill.seller_order):
            filled = filled.plus(to_schedule(fill.shape, block_s))
    return replace(
        order, status=change.status, open=to_schedule(change.left, block_s), filled=filled, cancel_reason=change.reason
    )


def posting_of(line: Line) -> Posting:
    """A ledger line as money."""
    return Posting(line.account_id, line.kind, Money(line.micro), line.reference)


def average_price(order: Order, contracts: Iterable[Contract], block_s: int = BLOCK_S) -> Money | None:
    """Dollars per node-hour over all fills of an order, rounded half up to a micro-dollar; None without fills."""
    own = [one for one in contracts if order.order_id in (one.buyer_order_id, one.seller_order_id)]
    amount = sum(one.amount.micro for one in own)
    blocks = sum((e - s) * n for one in own for s, e, n in from_schedule(one.schedule, block_s))
    if not blocks:
        return None
    return Money((2 * amount * Rate.step(block_s) + blocks) // (2 * blocks))
