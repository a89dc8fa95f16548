"""Procurements carried out on the books: buy what is missing, sell or lend what is spare, say how it goes (R22)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nanopod.control.choosing import limit_of
from nanopod.control.market.drafts import SPOT_SETTING
from nanopod.control.market.trading import Asker, Trading
from nanopod.ledger.transfers import AMOUNT_MAX
from nanopod.market.events import Place
from nanopod.market.events import Transfer as Move
from nanopod.market.exchange import Exchange
from nanopod.market.procure import plan, reconcile
from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, meet, to_schedule
from nanopod.market.terms import parse_rate
from nanopod.model.chain import Instance
from nanopod.model.money import Rate
from nanopod.model.order import Transfer
from nanopod.model.procurement import Procurement, Status
from nanopod.scheduler.placement.fit import price_cap

DEFAULT_NAME: Final = "default-"
"""How the names of procurements begin that the default chain made for itself."""
DEFAULT_WINDOW_MINUTES: Final = 60
DEFAULT_QUANTUM_MINUTES: Final = 15


def ensure(trading: Trading, capacity_id: str, sku_id: str) -> bool:
    """The default chain's procurement of a SKU in a capacity; True when it had to be made."""
    if trading.write.procurement_of_pair(capacity_id, sku_id) is not None:
        return False
    capacity = trading.rows.capacity(capacity_id)
    assert capacity is not None, "instances count against a capacity that exists"
    sku = trading.write.sku(sku_id)
    taken = {one.name for one in trading.write.procurements(capacity.workspace_id)}
    base = name = f"{DEFAULT_NAME}{sku.alias if sku else sku_id}"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    made = Procurement(
        trading.floor.new_id("procurement"), capacity_id, sku_id, "node_count", spot_limit(trading), Rate(1),
        DEFAULT_WINDOW_MINUTES, extend_quantum_minutes=DEFAULT_QUANTUM_MINUTES, created_at=trading.now,
        workspace_id=capacity.workspace_id, name=name, updated_at=trading.now,
    )  # fmt: skip
    trading.write.add_procurement(made)
    trading.notice(capacity.workspace_id, "procurement.created", made.procurement_id, {"name": name})
    return True


def is_capped(trading: Trading, capacity_id: str, sku_id: str) -> bool:
    """True when the default procurement pays less than the cluster allows because of endpoints that limit it."""
    procurement = trading.write.procurement_of_pair(capacity_id, sku_id)
    if procurement is None or not is_default(procurement) or procurement.max_buy >= spot_limit(trading):
        return False  # most of the time: nobody has to look at every endpoint
    return any(cap is not None for cap in _caps(trading, capacity_id, sku_id))


def reprice(trading: Trading, capacity_id: str, sku_id: str) -> bool:
    """Have the default chain's procurement pay what the endpoints that run on it allow; True when that changed.

    They share its time, so the highest of their limits counts; one without a limit pays up to the cluster's.
    """
    procurement = trading.write.procurement_of_pair(capacity_id, sku_id)
    if procurement is None or not is_default(procurement):
        return False
    most = spot_limit(trading)
    limits = [most if cap is None else limit_of(cap, trading.block_s) for cap in _caps(trading, capacity_id, sku_id)]
    wanted = min(most, max(limits, default=most))
    if wanted == procurement.max_buy:
        return False
    trading.write.set_procurement(procurement, max_buy=wanted)
    return True


def _caps(trading: Trading, capacity_id: str, sku_id: str) -> list[float | None]:
    """What the endpoints that run there may pay, in dollars per node-hour; None: no limit of their own."""
    found: list[float | None] = []
    for deployment in trading.write.deployments_on(capacity_id):
        if deployment.sku_id != sku_id or not deployment.endpoint_id:
            continue
        endpoint = trading.write.endpoint(deployment.endpoint_id)
        revision = trading.write.revision(deployment.revision_id)
        if endpoint is not None and endpoint.deleted_at is None and revision is not None:
            found.append(price_cap(revision.spec.image.query, endpoint.scale.max_price))
    return found


def spot_limit(trading: Trading) -> Rate:
    """The highest bid of the default chain: the cluster's setting, which may change while it runs."""
    text = trading.write.setting(SPOT_SETTING)
    return parse_rate(text, "buy", block_s=trading.block_s) if text else trading.settings.spot_max_buy


def live_of(instances: Sequence[Instance], procurement: Procurement, procurements: Sequence[Procurement]) -> int:
    """Live instances that a procurement counts: those of its SKU; the oldest `node_count` one has unpinned ones too."""
    first = next((one for one in procurements if one.target == "node_count"), None)
    unpinned = first is not None and first.procurement_id == procurement.procurement_id
    return sum(one.sku_id == procurement.sku_id or (unpinned and not one.sku_id) for one in instances)


def procure(trading: Trading, procurement: Procurement) -> None:
    """Carry out R22 for one procurement at this moment."""
    if procurement.enabled and trading.rows.is_deleted(procurement.sku_id):
        say(trading, procurement, Status("warning", "no_supply", "no_supply: the instance SKU is deleted"))
        return
    exchange = trading.exchange(procurement.sku_id)
    trading.opened(exchange, procurement.capacity_id)
    capacity = trading.rows.capacity(procurement.capacity_id)
    assert capacity is not None, "its capacity exists"
    siblings = trading.rows.procurements(procurement.capacity_id)
    live = live_of(trading.rows.live(procurement.capacity_id), procurement, siblings)
    if procurement.enabled and not procurement.deployment_id:
        _lend(trading, exchange, procurement, live)
    spending = min(AMOUNT_MAX, trading.purse.spending(capacity.workspace_id))
    # From here on the book may be ahead of its log: a failure has to drop it.
    trading.touched.setdefault(exchange.sku_id, [])
    done = reconcile(exchange, procurement, live, trading.order_ids(), spending, trading.block_s)
    asker = Asker(
        capacity.workspace_id, capacity.account_id or capacity.workspace_id, procurement.procurement_id,
        procurement_id=procurement.procurement_id,
    )  # fmt: skip
    for event, outcome in zip(done.events, done.outcomes, strict=True):
        trading.note(exchange, event, outcome, asker if isinstance(event, Place) else None)
    say(trading, procurement, done.status)
    if procurement.enabled and any(isinstance(event, Place) and event.side == "buy" for event in done.events):
        _borrow(trading, exchange, procurement)


def say(trading: Trading, procurement: Procurement, status: Status) -> None:
    """Keep what a procurement says of itself; tell it when its code changed."""
    before = procurement.status
    if before == status:
        return
    trading.write.set_procurement_status(procurement.procurement_id, status)
    trading.rows.set_procurement(procurement, replace(procurement, status=status))
    if before is None or before.code != status.code:
        trading.notice(
            procurement.workspace_id, "procurement.status_changed", procurement.procurement_id,
            {"state": status.state, "code": status.code, "message": status.message},
        )  # fmt: skip


# --- within one account nobody meets his own orders, so the default chain lends its spare time instead ---


def is_default(procurement: Procurement) -> bool:
    """True for a procurement that the default chain made for itself."""
    return procurement.name.startswith(DEFAULT_NAME) and procurement.target == "node_count"


def _lend(trading: Trading, exchange: Exchange, procurement: Procurement, live: int) -> None:
    """Move time that would be put on sale to capacities of the same account that try to buy it."""
    if not is_default(procurement):
        return
    buyers = _wishes(exchange, procurement.capacity_id)
    if not buyers:
        return
    capacity_id = procurement.capacity_id
    own = [one for one in exchange.of_capacity[capacity_id].values() if one.owner == procurement.procurement_id]
    decided = plan(procurement, exchange.holdings[capacity_id], own, live, exchange.block, trading.block_s)
    going = {one.order_id for one in decided.cancels}
    for ask in [one for one in own if one.side == "sell" and one.order_id not in going]:
        if any(meet(ask.left, buy.left) for buy in buyers):
            trading.withdraw(exchange, ask.order_id)
    own = [one for one in exchange.of_capacity[capacity_id].values() if one.owner == procurement.procurement_id]
    decided = plan(procurement, exchange.holdings[capacity_id], own, live, exchange.block, trading.block_s)
    for order in decided.orders:
        if order.side == "sell":
            _move(trading, exchange, procurement, order.shape, buyers)


def _borrow(trading: Trading, exchange: Exchange, procurement: Procurement) -> None:
    """A buy of this procurement stands: let default procurements of its account that sell such time look again."""
    wishes = [
        one
        for one in exchange.of_capacity[procurement.capacity_id].values()
        if one.owner == procurement.procurement_id and one.side == "buy"
    ]
    if not wishes:
        return
    account = exchange.capacities[procurement.capacity_id].account_id
    for name, capacity in exchange.capacities.items():
        if name == procurement.capacity_id or capacity.account_id != account:
            continue
        asks = [one for one in exchange.of_capacity[name].values() if one.side == "sell" and one.owner]
        if any(meet(ask.left, wish.left) for ask in asks for wish in wishes):
            lenders = [one for one in trading.rows.procurements(name) if one.sku_id == exchange.sku_id]
            if any(is_default(one) for one in lenders):
                trading.on_change(name)


def _wishes(exchange: Exchange, capacity_id: str) -> list[Resting]:
    """Open buys of automation in other capacities of the same account, oldest first."""
    account = exchange.capacities[capacity_id].account_id
    return [
        order
        for name, capacity in exchange.capacities.items()
        if capacity.account_id == account and name != capacity_id
        for order in exchange.of_capacity[name].values()
        if order.side == "buy" and order.owner
    ]


def _move(
    trading: Trading, exchange: Exchange, procurement: Procurement, spare: Shape, buyers: Sequence[Resting]
) -> None:
    giver = trading.rows.capacity(procurement.capacity_id)
    assert giver is not None, "its capacity exists"
    for buy in buyers:
        free = exchange.holdings[procurement.capacity_id].free.shape(exchange.block)
        part = meet(meet(spare, free), buy.left)
        if not part:
            continue
        trading.apply(exchange, Move(procurement.capacity_id, buy.capacity_id, part))
        made = Transfer(
            trading.floor.new_id("transfer"), giver.workspace_id, procurement.capacity_id, buy.capacity_id,
            exchange.sku_id, to_schedule(part, trading.block_s), "executed", "", trading.now,
            procurement.procurement_id,
        )  # fmt: skip
        trading.write.add_transfer(made)
        trading.notice(giver.workspace_id, "transfer.executed", made.transfer_id, {"to_capacity": buy.capacity_id})
        trading.on_change(buy.capacity_id)
        # The rest of the spare time is what the next buyer may have; what was given is no longer free.
        spare = meet(spare, exchange.holdings[procurement.capacity_id].free.shape(exchange.block))
