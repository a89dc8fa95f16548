"""Warnings of the end that is near (W2-W5), carried out on rows; the agents hear of them through `wanted`."""

from __future__ import annotations

import json
from typing import Any

from nanopod.control.market.quota import claim_of
from nanopod.control.market.supply import nodes_up
from nanopod.control.market.trading import Trading
from nanopod.market.quota import Reason, Warned, expected_shutdown, warn, why_short
from nanopod.market.shape import cut, from_schedule
from nanopod.market.terms import blocks_of
from nanopod.model.chain import Instance
from nanopod.model.procurement import Procurement

SALES_MAX = 50
"""Sells that are looked at for the reason of a warning."""


def warn_all(trading: Trading, capacity_id: str) -> None:
    """Warn, or take a warning back, for every running instance of a capacity."""
    running = [one for one in trading.rows.live(capacity_id) if one.granted_at is not None and one.sku_id]
    for sku_id in sorted({one.sku_id for one in running}):
        _warn(trading, capacity_id, sku_id, [one for one in running if one.sku_id == sku_id])


def managed_until(trading: Trading, procurement: Procurement | None, block: int) -> int | None:
    """W4: up to when (Unix seconds) the procurement of a SKU is going to buy; None when nothing manages it."""
    if procurement is None or not procurement.enabled:
        return None
    return (block + blocks_of(procurement.managed_window_minutes, trading.block_s)) * trading.block_s


def told(instance: Instance) -> Warned | None:
    """What an instance was told of its end."""
    if not instance.warned:
        return None
    kept = json.loads(instance.warned)
    return Warned(kept["at"], tuple(kept["leads_s"]))


def of_market(instance: Instance) -> bool:
    """False when somebody else announced its end (a fault on purpose): no bought time takes that back."""
    return not instance.warned or "by" not in json.loads(instance.warned)


def _warn(trading: Trading, capacity_id: str, sku_id: str, running: list[Instance]) -> None:
    exchange = trading.exchange(sku_id)
    holding = exchange.holdings.get(capacity_id)
    owned = holding.owned(exchange.block - 1) if holding else ()
    ends = expected_shutdown([claim_of(one) for one in running], owned, exchange.block)
    procurement = next((one for one in trading.rows.procurements(capacity_id) if one.sku_id == sku_id), None)
    until = managed_until(trading, procurement, exchange.block)
    notice_s = _notice_s(trading, sku_id)
    for instance in running:
        if not of_market(instance):
            continue
        end = ends[instance.instance_id]
        before = told(instance)
        at = None if end is None else end * trading.block_s
        settings = {"leads_s": trading.settings.shutdown_warnings_s, "managed_until": until, "notice_s": notice_s}
        now_told, notice = _weigh(instance, at, trading.now, before, "schedule", settings)
        if notice is not None and not notice.cleared:
            reason = _reason(trading, capacity_id, sku_id, procurement, notice.at)
            now_told, notice = _weigh(instance, at, trading.now, before, reason, settings)
        if now_told == before and notice is None:
            continue
        text = ""
        if now_told is not None:
            why = notice.reason if notice is not None else "schedule"
            text = json.dumps({"at": now_told.at, "leads_s": list(now_told.leads_s), "reason": why})
        trading.rows.set_instance(instance, warned=text)
        if notice is not None:
            kind = "shutdown_cleared" if notice.cleared else "shutdown_expected"
            data: dict[str, Any] = {"at": notice.at}
            if not notice.cleared:
                data |= {"lead_s": notice.lead_s, "reason": notice.reason}
            trading.notice(instance.workspace_id, f"instance.{kind}", instance.instance_id, data)
            trading.write.hint("wanted")
            _replace_early(trading, instance)


def _replace_early(trading: Trading, instance: Instance) -> None:
    """A worker whose end is near counts no longer: its endpoint asks for another one now, or takes that back."""
    if instance.endpoint_id:
        trading.write.signal("endpoint", instance.endpoint_id, 0.0)
        trading.write.signal("deployment", instance.deployment_id, 0.0)


def _weigh(instance: Instance, at: int | None, now: float, before: Warned | None, reason: Reason, settings: Any) -> Any:
    return warn(instance.instance_id, at, now, before, reason, **settings)


def _notice_s(trading: Trading, sku_id: str) -> int:
    """The longest notice that a provider of a SKU gives."""
    providers = {one.provider_id for one in trading.rows.offers() if one.sku_id == sku_id}
    found = [trading.rows.provider(provider_id) for provider_id in sorted(providers)]
    return max((one.notice_s for one in found if one is not None), default=0)


def _reason(
    trading: Trading, capacity_id: str, sku_id: str, procurement: Procurement | None, at: int
) -> Reason:  # fmt: skip
    """W1: why the time ends there."""
    block = at // trading.block_s
    code = procurement.status.code if procurement is not None and procurement.status is not None else ""
    sold = any(
        cut(from_schedule(order.filled, trading.block_s), block, block + 1)
        for order in trading.write.orders_page(
            None,
            capacity_id=capacity_id,
            sku_id=sku_id,
            side="sell",
            statuses=("filled", "partially_filled", "cancelled"),
            limit=SALES_MAX,
        )
    )
    return why_short(
        provider_lost=trading.floor.lost.get((capacity_id, sku_id), -1) > block - 1 or not nodes_up(trading, sku_id),
        balance=code == "insufficient_balance",
        limit=code == "price_above_limit",
        sold=sold,
    )
