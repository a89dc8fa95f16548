"""Postings of the compute market: hold, contract with fee, release, delivery and refund of non-delivery.

Bought time is paid through the account `orders`, which is back at zero after every contract. A contract of amount A
with fee F: the buyer's hold posts A and shrinks, `orders -> seller` A, `seller -> fees` F, in one chain.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nanopod.ledger import chart
from nanopod.ledger.funding import Part
from nanopod.ledger.recipes import Chain, Hold, Move, moves, rest, settle, together
from nanopod.model.errors import Invalid


class Seller(msgspec.Struct, frozen=True):
    """Who sells: a provider is paid as it delivers, a reseller (a workspace) at once."""

    id: str
    provider: bool = False

    @property
    def account(self) -> str:
        """Where the price goes first."""
        return chart.undelivered(self.id) if self.provider else chart.prepaid(self.id)


def order_hold(order_id: str, parts: Sequence[Part]) -> Hold:
    """The hold of a buy order: limit rate x nodes x blocks, until it is filled or cancelled. Post its `chain()`."""
    return Hold(order_id, chart.ORDERS, tuple(parts), order_id)


def fill(
    contract_id: str, hold: Hold, amount: int, fee: int, keep: int, seller: Seller, sku: str
) -> tuple[Chain, Hold | None]:
    """One contract: (the chain, the hold that covers the open part of the order, or None when it is filled).

    `keep` is limit rate x node-blocks that stay open. The new hold is named after the contract. Raises `Invalid` when
    amount and rest exceed the hold, or the fee the amount.
    """
    if not 0 <= fee <= amount:
        raise Invalid(f"fee: {fee} must be from 0 to the amount {amount}", field="fee")
    if amount + keep > hold.amount:
        raise Invalid(f"amount: {amount} and {keep} still open exceed the hold of {hold.amount}", field="amount")
    bought, _ = settle(contract_id, hold, amount, "buy")
    left = rest(f"{contract_id}/rest", hold, amount, keep) if keep else None
    sold = moves(contract_id, "sell", [(chart.ORDERS, seller.account, amount)], hold.ref)
    paid = moves(contract_id, "fee", [(seller.account, chart.fees(sku), fee)], hold.ref)
    return together(bought, left.chain() if left else (), sold, paid), left


def released(net: int, delivered: int, total: int) -> int:
    """How much of a provider's `net` is earned after `delivered` of `total` node-blocks: exact at the end."""
    assert 0 <= delivered <= total and total > 0, "at most everything is delivered"
    return net * delivered // total


def deliver(contract_id: str, owner: str, net: int, before: int, delivered: int, total: int) -> Chain:
    """A provider delivered `delivered` of `total` node-blocks, `before` of which were posted earlier."""
    amount = released(net, delivered, total) - released(net, before, total)
    key = f"{contract_id}/{delivered}"
    return moves(key, "delivered", [(chart.undelivered(owner), chart.supplier_payable(owner), amount)], contract_id)


def refund_undelivered(
    key: str, contract_id: str, buyer: Sequence[Part], seller: Seller, net: int, fee: int, sku: str
) -> Chain:
    """The buyer gets back what lost blocks cost: `net` from the seller and `fee` from the platform.

    `buyer` says which sources are repaid. Raises `Invalid` when they do not add up to net and fee.
    """
    if sum(part.amount for part in buyer) != net + fee:
        raise Invalid(f"buyer: the parts repaid must add up to {net + fee}", field="buyer")
    back: list[Move] = [(seller.account, chart.ORDERS, net), (chart.fees(sku), chart.ORDERS, fee)]
    for part in buyer:
        back += [(credit, debit, part.amount) for debit, credit in part.source.legs(chart.ORDERS)]
    return moves(key, "refund", back, contract_id)
