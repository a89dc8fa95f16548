"""The steps at the start of a block, in their order, and how many blocks may be jumped over (R16, R24)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nanopod.control.market import quota, supply
from nanopod.control.market.market import Market
from nanopod.market.events import Clock, canonical
from nanopod.market.exchange import Exchange
from nanopod.market.offers import far_edge
from nanopod.market.terms import blocks_of, next_block
from nanopod.model.procurement import OfferPolicy

SNAPSHOT_EVENTS: Final = 5_000
"""Events after which a book is kept as a whole again; more for a book with very many orders."""
HISTORY_S: Final = 86_400 + 3_600
PRUNE_BLOCKS: Final = 60


def catch_up(market: Market, now: float, blocks_max: int, spent: Callable[[], bool]) -> bool:
    """Pass boundaries until `now`, until `blocks_max` were passed, or until `spent()`; True when more are due."""
    for policy in market.rows.offers():
        market.exchange(policy.sku_id)
    exchanges = market.all_exchanges()
    last = next_block(now, market.block_s)
    block = min((one.block for one in exchanges), default=last)
    if block >= last:
        return False
    market.rows.load_all()
    passed, first = 0, block
    while block < last:
        block = next_due(market, exchanges, block, last)
        pass_one(market, exchanges, block)
        passed += 1
        if passed >= blocks_max or spent():
            break
    supply.deliver(market, block - 1)
    if block // PRUNE_BLOCKS != first // PRUNE_BLOCKS:
        market.write.prune_allocations(block - HISTORY_S // market.block_s)
    for exchange in exchanges:
        _snapshot(market, exchange)
    if block >= last:
        market.at(now)
    return block < last


def pass_one(market: Market, exchanges: list[Exchange], block: int) -> None:
    """The start of the block before `block`: from now on `block` is the next one."""
    market.at(float((block - 1) * market.block_s))
    for exchange in exchanges:
        if exchange.block < block:
            _history(market, exchange, block)
            market.apply(exchange, Clock(block))
    for sku_id in sorted({one.sku_id for one in market.rows.offers()}):
        supply.supply(market, sku_id)
    names = sorted(market.busy())
    for name in names:
        quota.begun(market, name)
        quota.grant(market, name)
    market.steps(names)
    market.settle(fresh=False)


def next_due(market: Market, exchanges: list[Exchange], block: int, last: int) -> int:
    """The next block, after `block`, at whose start something may be due; at most `last`.

    Blocks are left out only while nobody runs, awaits, buys or could be warned, no bid has begun, and supply is even.
    """
    if any(exchange.block != block for exchange in exchanges) or not all(map(market.is_calm, sorted(market.busy()))):
        return block + 1
    found = last
    for policy in market.rows.offers():
        uneven = policy.quiet_hours or policy.floor_by_hour or policy.maintenance.entries or policy.lead_s
        if uneven or any(node.state != "up" for node in market.rows.nodes(policy.sku_id)):
            return block + 1
        quantum = blocks_of(policy.quantum_minutes, market.block_s)
        edge = far_edge(policy, block, market.block_s)
        # The horizon grows by whole quanta, and then there is something to mint.
        found = min(found, block + quantum - (block + _horizon(policy, market.block_s) - edge))
    for exchange in exchanges:
        for order in exchange.orders.values():
            found = min(found, order.start + 1 if order.side == "buy" else order.end)
    return max(block + 1, found)


def _horizon(policy: OfferPolicy, block_s: int) -> int:
    minutes = min(policy.horizon_minutes, policy.ahead_minutes_max) if policy.elastic else policy.horizon_minutes
    return blocks_of(minutes, block_s)


def _history(market: Market, exchange: Exchange, block: int) -> None:
    """Keep what capacities own in the blocks that begin now: the past of a book is forgotten."""
    first = exchange.block - 1
    for name, holding in exchange.holdings.items():
        manual, auto = holding.manual.runs(first, block), holding.auto.runs(first, block)
        if len(manual) == 1 and len(auto) == 1:
            continue
        for at in sorted({run[0] for run in (*manual, *auto) if run[0] > first}):
            nodes = holding.manual.at(at) + holding.auto.at(at)
            market.write.put_allocation(name, exchange.sku_id, at, nodes)


def _snapshot(market: Market, exchange: Exchange) -> None:
    saved = market.floor.saved.get(exchange.sku_id, 0)
    if exchange.seq - saved < max(SNAPSHOT_EVENTS, 2 * len(exchange.orders)):
        return
    market.save()
    market.write.put_snapshot(exchange.sku_id, exchange.seq, canonical(exchange.canonical()))
    market.floor.saved[exchange.sku_id] = exchange.seq
