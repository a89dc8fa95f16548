"""Supply out of nodes: what providers declare, offer and fail to deliver (S1-S8), carried out on the books."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nanopod.control.market.floor import Sold
from nanopod.control.market.trading import Asker, Trading
from nanopod.market.events import Burn, Mint, Place
from nanopod.market.exchange import Exchange
from nanopod.market.holding import Holding
from nanopod.market.offers import LOST_BLOCKS, declared, loss_of, non_delivery, plan_offers, supply_change
from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, cut, from_schedule, meet, minus, plus, to_schedule, total, volume
from nanopod.model.chain import Instance
from nanopod.model.money import Money
from nanopod.model.procurement import OfferPolicy, Provider

log = logging.getLogger(__name__)

DECLARED_STATES: Final = ("up", "unreachable")
"""A machine that is not heard for some seconds stays on offer: taking a week of asks back for it helps nobody."""
DELIVERED_MAX: Final = 200
"""Running contracts whose revenue is released in every block."""


def supply(trading: Trading, sku_id: str) -> None:
    """Bring the offers of a SKU and the world in line with the nodes there are; then see what cannot be delivered."""
    if trading.rows.is_deleted(sku_id):
        return
    policies = [one for one in trading.rows.offers() if one.sku_id == sku_id]
    for policy in policies:
        provider = trading.rows.provider(policy.provider_id)
        if provider is not None:
            _offer(trading, policy, provider)
    if policies and not any(policy.elastic for policy in policies):
        _undeliverable(trading, sku_id)


def nodes_up(trading: Trading, sku_id: str, provider_id: str | None = None, states: Sequence[str] = ("up",)) -> int:
    """Places on nodes of a SKU in these states; of one provider, or of all."""
    return sum(
        node.slots
        for node in trading.rows.nodes(sku_id)
        if node.state in states and provider_id in (None, node.provider_id)
    )


def _offer(trading: Trading, policy: OfferPolicy, provider: Provider) -> None:
    """S3, S4: mint or burn what changed, then offer what is free."""
    exchange, block_s = trading.exchange(policy.sku_id), trading.block_s
    capacity_id = provider.capacity_id
    trading.opened(exchange, capacity_id)
    holding, block = exchange.holdings[capacity_id], exchange.block
    there = nodes_up(trading, policy.sku_id, provider.provider_id, DECLARED_STATES)
    maintenance = from_schedule(policy.maintenance, block_s)
    wanted = declared(policy, there, block, block_s, maintenance)
    minted = cut(from_schedule(policy.minted, block_s), block)
    change = supply_change(wanted, minted, holding, block)
    if change.burn:
        own = _own(exchange, capacity_id, provider.provider_id)
        for gone in plan_offers(policy, holding, own, block, block_s, leaving=change.burn).cancels:
            trading.withdraw(exchange, gone.order_id)
        # What somebody offers by hand from here is not taken from under him.
        burn = meet(change.burn, holding.free.shape(block))
        if burn:
            trading.apply(exchange, Burn(capacity_id, burn))
            minted = minus(minted, burn)
    if change.mint:
        trading.apply(exchange, Mint(capacity_id, change.mint))
        minted = plus(minted, change.mint)
    if change.burn or change.mint:
        keep_minted(trading, policy, minted)
    elif _is_offered(trading, policy, holding):
        return
    plan = plan_offers(policy, holding, _own(exchange, capacity_id, provider.provider_id), block, block_s)
    for gone in plan.cancels:
        trading.withdraw(exchange, gone.order_id)
    asker = Asker(provider.workspace_id, provider.account_id, provider.provider_id)
    for order in plan.orders:
        place = Place(
            trading.floor.new_id("order"), capacity_id, "sell", order.rate, order.shape, allow_standing=True,
            allow_partial=True, owner=provider.provider_id,
        )  # fmt: skip
        trading.apply(exchange, place, asker)


def _is_offered(trading: Trading, policy: OfferPolicy, holding: Holding) -> bool:
    """True when all free time of an offer is on sale as its present settings say, so that there is nothing to plan."""
    known = trading.floor.offered.get(policy.offer_id) == policy.generation
    trading.floor.offered[policy.offer_id] = policy.generation
    if not known or policy.lead_s or policy.floor_by_hour:
        return False
    return not holding.free.shape(trading.exchange(policy.sku_id).block)


def keep_minted(trading: Trading, policy: OfferPolicy, minted: Shape) -> None:
    """Remember what an offer has put into the world."""
    trading.write.set_minted(policy.offer_id, json.dumps([list(run) for run in minted]))
    trading.rows.set_offer(policy, replace(policy, minted=to_schedule(minted, trading.block_s)))


def _own(exchange: Exchange, capacity_id: str, provider_id: str) -> list[Resting]:
    return [one for one in exchange.of_capacity[capacity_id].values() if one.owner == provider_id]


def _undeliverable(trading: Trading, sku_id: str) -> None:
    """S8: time that is sold beyond the nodes that are there is lost by those whose instances were on lost nodes."""
    exchange = trading.exchange(sku_id)
    block = exchange.block
    originating = [name for name, one in exchange.capacities.items() if one.kind == "originating"]
    unsold = total(exchange.holdings[name].owned(block) for name in originating)
    there = nodes_up(trading, sku_id, states=("up", "draining", "unreachable"))
    lost = non_delivery(exchange.supply.shape(block), unsold, there, block)
    if not lost:
        return
    log.warning("sku=%s node_blocks_lost=%d nodes=%d", sku_id, volume(lost), there)
    for capacity_id in _losers(trading, exchange, sku_id):
        if not lost:
            return
        loss = loss_of(
            capacity_id, lost, exchange.holdings[capacity_id], list(exchange.of_capacity[capacity_id].values())
        )
        if not loss.shape:
            continue
        for gone in loss.cancels:
            trading.withdraw(exchange, gone.order_id)
        taken = meet(loss.shape, exchange.holdings[capacity_id].free.shape(block))
        if not taken:
            continue
        trading.apply(exchange, Burn(capacity_id, taken))
        lost = minus(lost, taken)
        trading.floor.lost[capacity_id, sku_id] = block + LOST_BLOCKS
        _forget_minted(trading, sku_id, taken)
        _refund(trading, sku_id, capacity_id, taken)
        trading.on_change(capacity_id)


def _losers(trading: Trading, exchange: Exchange, sku_id: str) -> list[str]:
    """Capacities in the order in which they lose time: those with instances on lost nodes, then the largest."""
    lost_nodes = {node.node_id for node in trading.rows.nodes(sku_id) if node.state == "lost"}
    block = exchange.block

    def hit(one: Instance) -> bool:
        return one.node_id in lost_nodes

    def rank(name: str) -> tuple[int, int, str]:
        owned = volume(exchange.holdings[name].owned(block, block + LOST_BLOCKS))
        return -sum(map(hit, trading.rows.live(name))), -owned, name

    holders = [
        name
        for name, one in exchange.capacities.items()
        if one.kind == "market" and exchange.holdings[name].owned(block, block + LOST_BLOCKS)
    ]
    return sorted(holders, key=rank)


def _forget_minted(trading: Trading, sku_id: str, taken: Shape) -> None:
    """Time that nobody can deliver is no longer in the world."""
    left = taken
    for policy in [one for one in trading.rows.offers() if one.sku_id == sku_id]:
        minted = cut(from_schedule(policy.minted, trading.block_s), trading.block - 1)
        part = meet(minted, left)
        if part:
            keep_minted(trading, policy, minus(minted, part))
            left = minus(left, part)


def _refund(trading: Trading, sku_id: str, capacity_id: str, lost: Shape) -> None:
    """Pay lost node-blocks back at the rate of the providers' newest contracts that cover them."""
    capacity = trading.rows.capacity(capacity_id)
    assert capacity is not None, "it holds time"
    sold = trading.sold()
    block_s = trading.block_s
    start_at, end_at = lost[0][0] * block_s, lost[-1][1] * block_s
    providers = {one.provider_id for one in trading.rows.offers() if one.sku_id == sku_id}
    contracts = [
        one
        for provider_id in sorted(providers)
        for one in trading.write.contracts_covering(sku_id, provider_id, start_at, end_at)
    ]
    contracts.sort(key=lambda one: (one.buyer_capacity_id != capacity_id, -one.number))
    for contract in contracts:
        shape = from_schedule(contract.schedule, block_s)
        part = meet(shape, lost)
        whole, before = volume(shape), contract.refunded
        after = min(whole - contract.delivered, before + volume(part)) if part else before
        if after <= before:
            continue
        lost = minus(lost, part)
        amount, fee = contract.amount.micro, contract.fee.micro
        back = amount * after // whole - amount * before // whole
        back_fee = fee * after // whole - fee * before // whole
        if back:
            trading.purse.refund(
                f"{contract.contract_id}/refund/{after}", contract.contract_id, capacity.workspace_id,
                contract.seller_workspace_id, back - back_fee, back_fee, sku_id,
            )  # fmt: skip
        trading.write.set_contract(contract.contract_id, refunded=after)
        known = sold.get(contract.contract_id)
        if known is not None:
            known.refunded = after
        trading.notice(
            capacity.workspace_id, "contract.refunded", contract.contract_id,
            {"amount": str(Money(back)), "node_blocks": after - before, "instance_sku": sku_id},
        )  # fmt: skip
        if not lost:
            return


def deliver(trading: Trading, block: int, *, all_of_them: bool = False) -> None:
    """Release what providers earned with the blocks before `block`; exact once a contract is over.

    Of very many contracts that are running each is looked at every few blocks only, and at its end.
    """
    sold = trading.sold()
    every = 1 + len(sold) // DELIVERED_MAX
    turn = block % every
    for place, one in enumerate(list(sold.values())):
        over = one.shape[-1][1] <= block
        if one.shape[0][0] >= block or not (over or all_of_them or place % every == turn):
            continue
        _deliver(trading, one, block, over=over)


def _deliver(trading: Trading, one: Sold, block: int, *, over: bool) -> None:
    passed = min(volume(cut(one.shape, 0, block)), one.total - one.refunded)
    if passed <= one.delivered and not over:
        return
    net = one.amount - one.fee
    if over and one.refunded:
        back = (one.amount * one.refunded // one.total) - (one.fee * one.refunded // one.total)
        rest = net - back - net * one.delivered // one.total
        trading.purse.earned(f"{one.contract_id}/rest", one.contract_id, one.workspace_id, rest)
    elif passed > one.delivered:
        trading.purse.delivered(one.contract_id, one.workspace_id, net, one.delivered, passed, one.total)
    trading.write.set_contract(one.contract_id, delivered=passed, settled=over)
    one.delivered = passed
    if over:
        trading.sold().pop(one.contract_id)
