"""Who may run in the present block, and who may start before his first one (R20, W6), carried out on rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nanopod.control.market.floor import Early
from nanopod.control.market.supply import nodes_up
from nanopod.control.market.trading import Trading, owned_at
from nanopod.market.exchange import Exchange
from nanopod.market.quota import GAMING_BLOCKS, Claim, early_starts, quota
from nanopod.model.chain import OUT_OF_TIME, Instance

NO_TIME: Final = f"{OUT_OF_TIME} the capacity holds no time for it any more"


def claim_of(instance: Instance) -> Claim:
    """An instance as the rankings see it. Its number says how old it is, so the clock never does."""
    return Claim(
        instance.instance_id, instance.granted_at is not None, float(instance.seq), instance.priority,
        early=instance.early_until is not None,
    )  # fmt: skip


def skus_of(trading: Trading, instances: Sequence[Instance]) -> list[str]:
    """The kinds of nodes that a capacity's instances run on or wait for; for an unpinned one that is every kind."""
    found = {one.sku_id for one in instances if one.sku_id}
    if any(not one.sku_id for one in instances):
        found |= set(trading.floor.exchanges)
    return sorted(found)


def begun(trading: Trading, capacity_id: str) -> None:
    """Early starts whose first block has come are ordinary from now on."""
    for one in trading.rows.live(capacity_id):
        if one.early_until is not None and one.early_until < trading.block:
            trading.rows.set_instance(one, early_until=None)


def grant(trading: Trading, capacity_id: str) -> None:
    """R20: stop what the present block does not hold, start what it does."""
    instances = trading.rows.live(capacity_id)
    for sku_id in skus_of(trading, instances):
        exchange = trading.exchange(sku_id)
        now_owned = owned_at(exchange, capacity_id, exchange.block - 1)
        # One that was started early owns the next block, not this one: it neither counts nor is it stopped here.
        group = [
            one
            for one in trading.rows.live(capacity_id)
            if one.early_until is None and (one.sku_id == sku_id or (not one.sku_id and one.granted_at is None))
        ]
        plan = quota([claim_of(one) for one in group], now_owned)
        by_id = {one.instance_id: one for one in group}
        for instance_id in plan.stop:
            stop(trading, by_id[instance_id])
        for instance_id in plan.start:
            start(trading, by_id[instance_id], sku_id)


def stop(trading: Trading, instance: Instance) -> None:
    """Its time is over: it is stopped at once."""
    trading.rows.set_instance(instance, intent="stop", reason=NO_TIME)
    trading.notice(
        instance.workspace_id, "instance.terminated", instance.instance_id,
        {"reason": NO_TIME, "capacity": instance.capacity_id, "instance_sku": instance.sku_id},
    )  # fmt: skip
    trading.write.signal("instance", instance.instance_id, 0.0)
    if instance.deployment_id:
        trading.write.signal("deployment", instance.deployment_id, 0.0)
        trading.on_change(instance.capacity_id)
    trading.write.hint("wanted")
    trading.write.hint("tables")


def start(trading: Trading, instance: Instance, sku_id: str, early_until: int | None = None) -> None:
    """Let an instance run; one that was not pinned to a kind of node is from now on."""
    early_block = None if early_until is None else early_until - 1
    trading.rows.set_instance(
        instance, granted_at=trading.now, sku_id=sku_id, early_until=early_until,
        early_block=instance.early_block if early_block is None else early_block, reason="",
    )  # fmt: skip
    trading.notice(
        instance.workspace_id, "instance.granted", instance.instance_id,
        {"capacity": instance.capacity_id, "instance_sku": sku_id, "early_start": early_until is not None},
    )  # fmt: skip
    trading.write.signal("instance", instance.instance_id, 0.0)


def start_early(trading: Trading, capacity_id: str) -> None:
    """W6: boot what the next block holds now, on nodes whose present block nobody owns."""
    if not trading.settings.early_start:
        return
    if all(one.granted_at is not None for one in trading.rows.live(capacity_id)):
        return
    for sku_id in skus_of(trading, trading.rows.live(capacity_id)):
        exchange = trading.exchange(sku_id)
        if exchange.block != trading.block:
            continue  # the boundary that is passed at this very moment decides
        block = exchange.block
        owned_next = owned_at(exchange, capacity_id, block)
        group = [
            one
            for one in trading.rows.live(capacity_id)
            if one.sku_id == sku_id or (not one.sku_id and one.granted_at is None)
        ]
        if not owned_next or all(one.granted_at is not None for one in group):
            continue
        chosen = early_starts(
            [claim_of(one) for one in group],
            owned_next,
            nodes_up=nodes_up(trading, sku_id),
            sold_now=_sold_now(exchange),
            in_progress=_in_progress(trading, sku_id, block),
            recent=_recent(trading, capacity_id, sku_id, block),
        )
        by_id = {one.instance_id: one for one in group}
        for instance_id in chosen:
            start(trading, by_id[instance_id], sku_id, early_until=block)
            trading.floor.early(trading.write, block).append(Early(capacity_id, sku_id, block - 1, instance_id))


def _sold_now(exchange: Exchange) -> int:
    """Nodes whose present block somebody other than their provider owns."""
    return sum(
        owned_at(exchange, name, exchange.block - 1)
        for name, capacity in exchange.capacities.items()
        if capacity.kind != "originating"
    )


def _in_progress(trading: Trading, sku_id: str, block: int) -> int:
    """Early starts of a SKU whose first block is still to come, wherever they are."""
    fresh = {
        one for one in trading.floor.early(trading.write, block) if one.sku_id == sku_id and one.block == block - 1
    }
    live = {one.instance_id: one for name in {one.capacity_id for one in fresh} for one in trading.rows.live(name)}
    return sum(one.instance_id in live and live[one.instance_id].early_until == block for one in fresh)


def _recent(trading: Trading, capacity_id: str, sku_id: str, block: int) -> set[str]:
    """Instances that the capacity started early within the last blocks; nobody where there is nothing to gain."""
    policies = [one for one in trading.rows.offers() if one.sku_id == sku_id and one.enabled]
    # Time that costs nothing cannot be used without paying for it.
    if policies and all(_free_of_charge(one.floor.micro_per_block, one.floor_by_hour) for one in policies):
        return set()
    return {
        one.instance_id
        for one in trading.floor.early(trading.write, block)
        if one.capacity_id == capacity_id and one.sku_id == sku_id and one.block > block - 1 - GAMING_BLOCKS
    }


def _free_of_charge(floor: int, by_hour: object) -> bool:
    return floor == 0 and not by_hour
