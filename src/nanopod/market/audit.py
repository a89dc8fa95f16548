"""The invariants of a market, checked from scratch: what must hold after every event, whatever happened."""

from __future__ import annotations

from nanopod.market.exchange import Exchange
from nanopod.market.resting import Resting
from nanopod.market.shape import cut, total


def problems(exchange: Exchange) -> list[str]:
    """What is wrong with the books of one SKU, in words; empty when all is well.

    Node-minutes are conserved (R18), nobody offers what it does not own (R5), the indexes say what the orders say.
    """
    found: list[str] = []
    block = exchange.block
    owned = total(holding.owned(block - 1) for holding in exchange.holdings.values())
    if owned != exchange.supply.shape(block - 1):
        found.append(f"the holdings sum to {owned}, the supply is {exchange.supply.shape(block - 1)}")
    for name, holding in exchange.holdings.items():
        orders = list(exchange.of_capacity[name].values())
        for auto, steps in ((False, holding.asks_manual), (True, holding.asks_auto)):
            asked = total(one.left for one in orders if one.side == "sell" and bool(one.owner) == auto)
            if asked != steps.shape():
                found.append(f"{name} offers {asked} but has reserved {steps.shape()}")
        for steps in (holding.manual, holding.auto, holding.free, holding.asks_manual, holding.asks_auto):
            if any(nodes < 0 for _, _, nodes in steps.runs()):
                found.append(f"{name} has a sum below zero: {steps.runs()}")
        left = total((holding.free.shape(block), holding.asks(block)))
        if left != holding.owned(block):
            found.append(f"{name} owns {holding.owned(block)} but offers and keeps {left}")
    for side in ("buy", "sell"):
        found.extend(_index_problems(exchange, [one for one in exchange.orders.values() if one.side == side], side))
    if any(cut(one.left, block) != one.left or not one.left for one in exchange.orders.values()):
        found.append("an order holds blocks that have begun, or none at all")
    return found


def _index_problems(exchange: Exchange, orders: list[Resting], side: str) -> list[str]:
    book = exchange.sides["buy" if side == "buy" else "sell"]
    walked = list(book.walk())
    found = []
    if walked != sorted(orders, key=lambda one: (one.key, one.seq)):
        found.append(f"the {side} index does not hold its orders in priority order")
    for key in {one.key for one in orders}:
        there = total(one.left for one in orders if one.key <= key)
        if book.ladder.reach(key, there) != there:
            found.append(f"the {side} ladder denies {there} at {key}")
    return found
