"""Held time of an endpoint: orders of its own on the desk, for workers that shall not depend on what others leave."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from nanopod.control.choosing import limit_of
from nanopod.control.ports import Reads
from nanopod.market.terms import next_block
from nanopod.model.chain import Deployment, Endpoint
from nanopod.model.errors import Conflict, Invalid, PaymentRequired
from nanopod.model.order import Order
from nanopod.scheduler.placement.held import HeldOrder, order, share

if TYPE_CHECKING:
    from nanopod.control.market.desk import Market

log = logging.getLogger(__name__)

WINDOW_S: Final = 3600
"""Held time is bought for this long at a time."""
RETRY_S: Final = 60.0
"""After an order that nobody filled, or that could not be paid."""
ORDERS_MAX: Final = 200


def lacking(
    read: Reads,
    deployment: Deployment,
    endpoint: Endpoint,
    short: str,
    scarce: tuple[str, ...],
    at: float,
    block_s: int,
) -> HeldOrder | None:
    """The order that is due at `at` (the cluster's time); None for most endpoints, which hold nothing.

    `short` is what the procurement says while time cannot be had, and begins with one of `scarce` then.
    """
    wanted = share(endpoint.scale, deployment.target_instance_count, scarce=short.startswith(scarce))
    if not wanted or not deployment.sku_id:
        return None
    mine = [
        one
        for one in read.orders_page(
            deployment.workspace_id, capacity_id=deployment.capacity_id, side="buy", sku_id=deployment.sku_id,
            procurement_id="none", limit=ORDERS_MAX,
        )
        if one.created_by == deployment.deployment_id
    ]  # fmt: skip
    if mine and _failed_at(mine[0]) > at - RETRY_S:
        return None
    held = [
        (entry.window.start_at // block_s, entry.window.end_at // block_s, entry.node_count)
        for one in mine
        for entry in one.filled.entries
        if entry.window.end_at is not None
    ]
    return order(wanted, held, next_block(at, block_s), WINDOW_S // block_s)


def _failed_at(newest: Order) -> float:
    return newest.created_at if newest.status in ("cancelled", "rejected") else 0.0


def buy(market: Market, deployment: Deployment, wanted: HeldOrder, cap: float | None) -> str:
    """Place the order; what came of it, in words. It pays what the endpoint allows, else what the cluster does."""
    from nanopod.control.market.drafts import OrderDraft

    capacity = market.write.capacity(deployment.capacity_id)
    assert capacity is not None, "a deployment's capacity exists"
    most = market.spot_limit()
    limit = min(most, limit_of(cap, market.block_s)) if cap is not None else most
    what = f"{wanted.nodes} held for {(wanted.end - wanted.start) * market.block_s // 60} minutes"
    draft = OrderDraft(
        deployment.workspace_id, capacity.account_id or capacity.workspace_id, deployment.capacity_id,
        deployment.sku_id, "buy", wanted.start * market.block_s, wanted.end * market.block_s, wanted.nodes, limit,
        allow_partial=True, created_by=deployment.deployment_id,
    )  # fmt: skip
    try:
        placed = market.place(draft)
    except (PaymentRequired, Invalid, Conflict) as error:
        return f"{what} cannot be bought: {error.message}"
    if placed.status == "filled":
        return f"{what} bought"
    price = limit.dollars_per_node_hour(market.block_s)
    return f"{what} cannot {'wholly ' if placed.filled.entries else ''}be had for {price} $/node-hour now"
