"""Supply: what a provider declares, offers and owes (S1-S8). Pure plans; events carry them out.

A provider's free time is always on sale: `plan_offers` keeps standing, partial asks at the floor over a rolling horizon
whose far edge grows by whole quanta. Nothing is sold below the floor, because the floor is the ask's limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nanopod.market.holding import Holding
from nanopod.market.outcome import PLATFORM, Fill, Line
from nanopod.market.procure import Wanted, Withdrawn
from nanopod.market.resting import Resting
from nanopod.market.shape import EMPTY, Run, Shape, cut, excess, meet, minus, normal, rect, volume
from nanopod.market.steps import Steps
from nanopod.market.terms import BPS, NODES_MAX, blocks_of
from nanopod.model.errors import Invalid
from nanopod.model.money import Money, Rate
from nanopod.model.procurement import OfferPolicy
from nanopod.model.schedule import BLOCK_S

HOUR_S: Final = 3600
DAY_S: Final = 86_400
FRAGMENTS: Final = 4
"""Open asks per quantum of the horizon above which all are posted anew."""
LOST_BLOCKS: Final = 10
HORIZON_MINUTES: Final = (60, 129_600)


@dataclass(frozen=True, slots=True)
class SupplyChange:
    """S3: time to mint and to burn so that the declared nodes and the world agree."""

    mint: Shape
    burn: Shape


@dataclass(frozen=True, slots=True)
class OfferPlan:
    """Asks to take back, then asks to place."""

    cancels: tuple[Withdrawn, ...]
    orders: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """S8: what one capacity loses of one SKU, and the open sells of it that have to go first."""

    capacity_id: str
    shape: Shape
    cancels: tuple[Withdrawn, ...]


def check(policy: OfferPolicy) -> None:
    """Raises `Invalid` for settings out of range (S1)."""
    low, high = HORIZON_MINUTES
    if not low <= policy.horizon_minutes <= high:
        raise Invalid(f"horizon_minutes: {policy.horizon_minutes} must be from {low} to {high}", field="horizon")
    if not 1 <= policy.quantum_minutes <= policy.horizon_minutes:
        raise Invalid(f"quantum_minutes: {policy.quantum_minutes} must be from 1 to the horizon", field="quantum")
    if policy.max_nodes < 1 or policy.lead_s < 0:
        raise Invalid("max_nodes must be 1 or more and lead_s 0 or more", field="max_nodes")
    if any(not (0 <= a < 24 and 0 <= b <= 24 and a != b) for a, b in policy.quiet_hours):
        raise Invalid("quiet_hours: pairs of different hours of the UTC day, such as 22, 6", field="quiet_hours")


def far_edge(policy: OfferPolicy, block: int, block_s: int = BLOCK_S) -> int:
    """S5: the end of the horizon on the grid of quanta, so that it grows by whole ones."""
    minutes = min(policy.horizon_minutes, policy.ahead_minutes_max) if policy.elastic else policy.horizon_minutes
    quantum = blocks_of(policy.quantum_minutes, block_s)
    return (block + blocks_of(minutes, block_s)) // quantum * quantum


def declared(
    policy: OfferPolicy, nodes_up: int, block: int, block_s: int = BLOCK_S, maintenance: Iterable[Run] = ()
) -> Shape:
    """S3: nodes that exist for sale per block: those up (an elastic fleet: those it may rent), not in quiet hours.

    `maintenance` are runs `(start, end, nodes)` that are out of service.
    """
    nodes = policy.max_nodes if policy.elastic else min(nodes_up, policy.max_nodes)
    start = block + (-(-policy.lead_s // block_s) if policy.elastic else 0)
    open_ = Steps(rect(start, far_edge(policy, block, block_s), nodes) if policy.enabled else EMPTY)
    for low, high in _quiet(policy, block, far_edge(policy, block, block_s), block_s):
        for first, last, count in open_.runs(low, high):
            open_.add_run(first, last, -count)
    for low, high, out in maintenance:
        for first, last, count in open_.runs(low, high):
            open_.add_run(first, last, -min(count, out))
    return open_.shape()


def _quiet(policy: OfferPolicy, start: int, end: int, block_s: int) -> Iterable[tuple[int, int]]:
    day, hour = DAY_S // block_s, HOUR_S // block_s
    for begin in range(start // day * day - day, end + day, day):
        for low, high in policy.quiet_hours:
            length = (high - low) % 24
            a, b = max(start, begin + low * hour), min(end, begin + (low + length) * hour)
            if b > a:
                yield a, b


def supply_change(wanted: Shape, minted: Shape, holding: Holding, block: int) -> SupplyChange:
    """S3: mint what is declared and not there yet; burn what is no longer declared and not sold.

    `minted` is everything this provider has put into the world and not withdrawn, sold or not.
    """
    minted = cut(minted, block)
    surplus = excess(minted, wanted)
    return SupplyChange(excess(wanted, minted), meet(surplus, holding.owned(block)))


def floor_at(policy: OfferPolicy, block: int, block_s: int = BLOCK_S) -> Rate:
    """S6: the floor in one block: by the hour of the UTC day, else the constant one."""
    hour = block * block_s % DAY_S // HOUR_S
    return (policy.floor_by_hour or {}).get(hour, policy.floor)


def plan_offers(
    policy: OfferPolicy,
    holding: Holding,
    own: Sequence[Resting],
    block: int,
    block_s: int = BLOCK_S,
    *,
    kept: Shape = EMPTY,
    leaving: Shape = EMPTY,
) -> OfferPlan:
    """S4: cancel asks at an old floor or above what is wanted (newest first), then offer each run that is free.

    `kept` is time for own use, `leaving` time that is about to be burned; neither is offered.
    """
    first, end = block + -(-policy.lead_s // block_s), far_edge(policy, block, block_s)
    want = Steps(holding.owned(first, end) if policy.enabled else EMPTY)
    for part in (kept, leaving):
        for start, stop, nodes in part:
            for low, high, have in want.runs(start, stop):
                want.add_run(low, high, -min(have, nodes))
    open_ = Steps()
    for order in own:
        open_.add(order.left)
    gone: list[Withdrawn] = []
    many = len(own) > FRAGMENTS * policy.horizon_minutes // policy.quantum_minutes
    # Free time may itself be in pieces; posting it anew must leave fewer.
    if many and len(list(_priced(policy, want.shape(), block_s))) < len(own):
        gone = [Withdrawn(order.order_id, "the offers have become fragments") for order in own]
        open_ = Steps()
    else:
        for order in sorted(own, key=lambda one: -one.seq):
            if reason := _unwanted(policy, order, open_, want, first, block_s):
                open_.add(order.left, -1)
                gone.append(Withdrawn(order.order_id, reason))
    free = Steps(want.shape())
    free.add(open_.shape(), -1)
    # An order that stays may begin before `first` (its lead is running out); it is not offered again.
    orders = [
        Wanted("sell", floor_at(policy, shape[0][0], block_s).micro_per_block, shape, "free time within the horizon")
        for shape in _priced(policy, free.shape(first, end), block_s)
    ]
    return OfferPlan(tuple(gone), tuple(orders))


def _unwanted(policy: OfferPolicy, order: Resting, open_: Steps, want: Steps, first: int, block_s: int) -> str:
    """Why an ask has to go, or ""."""
    hour = HOUR_S // block_s
    for start, end, _ in order.left:
        for at in (start, *range((start // hour + 1) * hour, end, hour)) if policy.floor_by_hour else (start,):
            if floor_at(policy, at, block_s).micro_per_block != order.rate:
                return "its floor is old"
        for low, high, asked in open_.runs(start, end):
            if low < first:
                return "it begins sooner than a node can be ready"
            if asked > want.least(low, high):
                return "more is offered than is free"
    return ""


def _priced(policy: OfferPolicy, shape: Shape, block_s: int) -> Iterable[Shape]:
    """One rectangle per maximal run, cut where the floor changes and at 1,024 nodes."""
    hour = HOUR_S // block_s
    for start, end, nodes in shape:
        cuts = [start]
        if policy.floor_by_hour:
            for at in range((start // hour + 1) * hour, end, hour):
                if floor_at(policy, at, block_s) != floor_at(policy, cuts[-1], block_s):
                    cuts.append(at)
        for low, high in zip(cuts, [*cuts[1:], end], strict=True):
            for done in range(0, nodes, NODES_MAX):
                yield ((low, high, min(NODES_MAX, nodes - done)),)


def default_floor(max_watts: int, per_kwh: Money, margin_bps: int = 0, block_s: int = BLOCK_S) -> Rate:
    """S6: what a node's power costs, plus a margin, rounded up to a whole step."""
    per_hour_scaled = max_watts * per_kwh.micro * (BPS + margin_bps)
    return Rate(-(-per_hour_scaled // (1000 * BPS * Rate.step(block_s))))


def rented_floor(cost_per_node_hour: Money, margin_bps: int, block_s: int = BLOCK_S) -> Rate:
    """S6: cost of a rented node times one plus the margin, rounded up to a whole step."""
    return Rate(-(-cost_per_node_hour.micro * (BPS + margin_bps) // (BPS * Rate.step(block_s))))


def non_delivery(supply: Shape, unsold: Shape, nodes_up: int, block: int) -> Shape:
    """S8: node-blocks that are sold but cannot be delivered within the next 10 blocks.

    `supply` is everything declared of the SKU; unsold time goes first, then idle nodes take over, so that only what is
    sold beyond the nodes that are up is lost.
    """
    sold = minus(supply, unsold)
    there = rect(block, block + LOST_BLOCKS, nodes_up)
    return excess(cut(sold, block, block + LOST_BLOCKS), there)


def loss_of(capacity_id: str, lost: Shape, holding: Holding, own: Sequence[Resting]) -> Loss:
    """S8: what the capacity whose instance was on the lost node gives up, at most what it owns.

    Open sells over that time are taken back, newest first, until the rest is free.
    """
    shape = meet(lost, holding.owned())
    free = Steps(holding.free.shape())
    gone = []
    for order in sorted((one for one in own if one.side == "sell"), key=lambda one: -one.seq):
        if free.covers(shape):
            break
        if meet(order.left, shape):
            free.add(order.left)
            gone.append(Withdrawn(order.order_id, "its time is not delivered"))
    return Loss(capacity_id, shape, tuple(gone))


def refund(lost: Shape, contracts: Sequence[Fill], refunded: dict[int, int] | None = None) -> tuple[list[Line], Shape]:
    """S8: refund lost node-blocks at the rate of the provider's newest contracts covering them.

    Also returns what no contract covers. `refunded` counts node-blocks refunded before, by contract number.

    The buyer gets the amount back, net from the provider and the fee from the platform, exactly in sum.
    """
    lines: list[Line] = []
    for fill in sorted(contracts, key=lambda one: -one.number):
        part = meet(fill.shape, lost)
        if not part:
            continue
        lost = minus(lost, part)
        whole, before = volume(fill.shape), (refunded or {}).get(fill.number, 0)
        after = min(whole, before + volume(part))
        amount = fill.amount * after // whole - fill.amount * before // whole
        fee = fill.fee * after // whole - fill.fee * before // whole
        reference = f"refund#{fill.number}"
        lines.append(Line(fill.buyer_account, "refund", amount, reference))
        lines.append(Line(fill.seller_account, "refund", fee - amount, reference))
        if fee:
            lines.append(Line(PLATFORM, "refund", -fee, reference))
    return lines, lost


def earned(net: int, node_blocks: int, delivered: int) -> int:
    """Section "ledger": of a provider's net revenue, how much has been released once `delivered` of its blocks were."""
    assert 0 <= delivered <= node_blocks, "no more is delivered than was sold"
    return net * delivered // node_blocks


def repartition(burn: Shape, mint: Shape, holding: Holding) -> SupplyChange:
    """S2: a machine becomes nodes of another SKU: its unsold minutes of the old one go, never sold ones.

    `mint` (of the new SKU) is granted only where the old time could be withdrawn, run by run.
    """
    free = meet(burn, holding.free.shape())
    blocked = excess(burn, free)
    granted = [run for run in mint if not meet((run,), normal((s, e, run[2]) for s, e, _ in blocked))]
    return SupplyChange(normal(granted), free)
