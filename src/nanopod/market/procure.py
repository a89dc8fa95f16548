"""Procurement: buy the minutes a capacity lacks, sell those it does not need (R22, R23, protected manual time).

`plan` is the decision: from what is owned and open to cancels and orders, with reasons. `reconcile` carries it out on
an exchange one event at a time, because each order is matched before the next is placed. Running it twice with
nothing in between places and cancels nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanopod.market.events import Cancel, Event, Place
from nanopod.market.exchange import Exchange
from nanopod.market.holding import Holding
from nanopod.market.outcome import Outcome
from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, excess, normal, peak, volume
from nanopod.market.steps import Steps
from nanopod.market.terms import NODES_MAX, blocks_of
from nanopod.model.errors import Invalid, PaymentRequired, count_of
from nanopod.model.money import Money, Rate
from nanopod.model.order import Side
from nanopod.model.procurement import WINDOW_MINUTES_MAX, Procurement, Status
from nanopod.model.schedule import BLOCK_S

SPOT_WINDOW_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Wanted:
    """An order that a plan asks for: standing, partial, one rectangle."""

    side: Side
    rate: int
    shape: Shape
    reason: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """An open order that a plan takes back."""

    order_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProcurementPlan:
    """What to do: `cancels` first, then `orders` one after another. `kept` are manual nodes held back above target."""

    cancels: tuple[Withdrawn, ...]
    orders: tuple[Wanted, ...]
    target: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was done, event by event, and what the procurement says of itself."""

    events: tuple[Event, ...]
    outcomes: tuple[Outcome, ...]
    status: Status


def check(procurement: Procurement) -> None:
    """Raises `Invalid` for settings out of range."""
    if not 1 <= procurement.managed_window_minutes <= WINDOW_MINUTES_MAX:
        raise Invalid(
            f"managed_window_minutes: {procurement.managed_window_minutes} must be from 1 to {WINDOW_MINUTES_MAX}",
            field="managed_window_minutes",
        )
    if procurement.target != "node_count" and procurement.target < 0:
        raise Invalid(f"target: {procurement.target} must be 0 or more, or node_count", field="target")
    if procurement.max_buy.micro_per_block < 1:
        raise Invalid(
            "max_buy_price_dollars_per_node_hour: must be above 0", field="max_buy_price_dollars_per_node_hour"
        )
    if procurement.extend_quantum_minutes < 1:
        raise Invalid("extend_quantum_minutes: must be 1 or more", field="extend_quantum_minutes")


def spot(
    procurement_id: str, capacity_id: str, sku_id: str, max_buy: Rate, *, protect_manual: bool = True
) -> Procurement:
    """R23: the procurement inside a spot deployment: follows the instances, sells at the lowest price there is."""
    return Procurement(
        procurement_id, capacity_id, sku_id, "node_count", max_buy, Rate(1), SPOT_WINDOW_MINUTES,
        protect_manual=protect_manual,
    )  # fmt: skip


def plan(
    procurement: Procurement,
    holding: Holding,
    own: Sequence[Resting],
    live: int,
    block: int,
    block_s: int = BLOCK_S,
) -> ProcurementPlan:
    """R22 for one moment. `own` are the procurement's open orders, `live` its capacity's live instances of the SKU."""
    target = live if procurement.target == "node_count" else procurement.target
    if not procurement.enabled:
        return ProcurementPlan(tuple(Withdrawn(order.order_id, "disabled") for order in own), (), target)
    end = block + blocks_of(procurement.managed_window_minutes, block_s)
    sums = _Sums(holding, own, target, block, end)
    cancels = _withdraw(procurement, own, sums, end)
    orders = [
        Wanted("buy", procurement.max_buy.micro_per_block, shape, f"{target} wanted, {shape[0][2]} missing")
        for shape in _rectangles(sums.missing(), procurement, block, end, block_s)
    ]
    spare = sums.room.shape(block, end)
    held = 0
    if procurement.protect_manual:
        capped = _capped(spare, sums.auto_free)
        held = peak(excess(spare, capped))
        spare = capped
    orders += [
        Wanted("sell", procurement.min_sell.micro_per_block, shape, f"{target} wanted, {shape[0][2]} spare")
        for shape in _rectangles(spare, procurement, block, end, block_s)
    ]
    return ProcurementPlan(tuple(cancels), tuple(orders), target, held)


class _Sums:
    """Per block of the window: `over` = owned + own open buys - target, `room` = owned - target - all open sells."""

    def __init__(self, holding: Holding, own: Sequence[Resting], target: int, block: int, end: int) -> None:
        self.block, self.end = block, end
        self.over, self.room = Steps(), Steps()
        for steps in (self.over, self.room):
            steps.add(holding.owned(block, end))
            steps.add_run(block, end, -target)
        self.room.add(holding.asks(block, end), -1)
        self.auto_free = holding.auto_free(block, end)
        for order in own:
            if order.side == "buy":
                self.over.add(order.left)

    def drop(self, order: Resting) -> None:
        """An own order is taken back."""
        if order.side == "buy":
            self.over.add(order.left, -1)
        else:
            self.room.add(order.left)
            self.auto_free.add(order.left)

    def missing(self) -> Shape:
        """What neither owned time nor open buys cover."""
        return normal((start, end, -value) for start, end, value in self.over.runs(self.block, self.end))


def _withdraw(procurement: Procurement, own: Sequence[Resting], sums: _Sums, end: int) -> list[Withdrawn]:
    """R22 step 1: old prices first, then newest first what is too much, each weighed after those before it were gone.

    Orders that reach beyond the window (it was shortened) go too: beyond it nothing is managed.
    """
    prices = {"buy": procurement.max_buy.micro_per_block, "sell": procurement.min_sell.micro_per_block}
    gone: list[Withdrawn] = []
    stay: list[Resting] = []
    for order in own:
        if order.rate == prices[order.side] and order.end <= end:
            stay.append(order)
            continue
        sums.drop(order)
        reason = "its price is old" if order.end <= end else "it reaches beyond the window"
        gone.append(Withdrawn(order.order_id, reason))
    for order in sorted(stay, key=lambda one: -one.seq):
        if order.side == "buy":
            reason = "more than is wanted"
            wrong = any(_most(sums.over, start, stop) > 0 for start, stop, _ in order.left)
        else:
            reason = "the time is wanted, or was bought by hand"
            wrong = any(
                sums.room.least(start, stop) < 0
                or (procurement.protect_manual and sums.auto_free.least(start, stop) < 0)
                for start, stop, _ in order.left
            )
        if wrong:
            sums.drop(order)
            gone.append(Withdrawn(order.order_id, reason))
    return gone


def _most(steps: Steps, start: int, end: int) -> int:
    return max(value for _, _, value in steps.runs(start, end))


def _capped(spare: Shape, auto_free: Steps) -> Shape:
    capped = Steps()
    for start, end, nodes in spare:
        for low, high, free in auto_free.runs(start, end):
            capped.add_run(low, high, max(0, min(nodes, free)))
    return capped.shape()


def _rectangles(shape: Shape, procurement: Procurement, block: int, end: int, block_s: int) -> Iterator[Shape]:
    """Maximal runs as orders, in time order; at most 1,024 nodes each; short ones at the far edge wait."""
    quantum = blocks_of(procurement.extend_quantum_minutes, block_s)
    for start, stop, nodes in shape:
        if stop == end and stop - start < quantum and start >= block + quantum:
            continue
        for done in range(0, nodes, NODES_MAX):
            yield ((start, stop, min(NODES_MAX, nodes - done)),)


def reconcile(
    exchange: Exchange,
    procurement: Procurement,
    live: int,
    order_ids: Iterator[str],
    spending: int | None = None,
    block_s: int = BLOCK_S,
) -> Reconciled:
    """Carry out R22 at this moment. `spending` is the account's spending power in micro-dollars, None without limit.

    An order whose hold the account cannot cover is left out and tried again next time.
    """
    capacity_id = procurement.capacity_id
    own = [one for one in exchange.of_capacity[capacity_id].values() if one.owner == procurement.procurement_id]
    decided = plan(procurement, exchange.holdings[capacity_id], own, live, exchange.block, block_s)
    account = exchange.capacities[capacity_id].account_id
    events: list[Event] = []
    outcomes: list[Outcome] = []
    refused: PaymentRequired | None = None

    def do(event: Event) -> None:
        nonlocal spending
        outcome = exchange.apply(event)
        events.append(event)
        outcomes.append(outcome)
        if spending is not None:
            for line in outcome.lines:
                if line.account_id == account:
                    held = line.kind in ("hold", "release")
                    spending += -line.micro if held else line.micro

    for withdrawn in decided.cancels:
        do(Cancel(withdrawn.order_id, "automation"))
    for order in decided.orders:
        place = Place(
            next(order_ids), capacity_id, order.side, order.rate, order.shape, allow_standing=True, allow_partial=True,
            owner=procurement.procurement_id, spending=spending,
        )  # fmt: skip
        try:
            do(place)
        except PaymentRequired as error:
            refused = refused or error
    return Reconciled(tuple(events), tuple(outcomes), status(exchange, procurement, decided, refused, block_s))


def status(
    exchange: Exchange,
    procurement: Procurement,
    decided: ProcurementPlan,
    refused: PaymentRequired | None,
    block_s: int = BLOCK_S,
) -> Status:
    """What the procurement says after its orders were placed; the message starts with its code."""
    if not procurement.enabled:
        return Status("info", "disabled", "disabled: nothing is bought or sold")
    if refused is not None:
        return Status("warning", "insufficient_balance", f"insufficient_balance: {refused.message}")
    open_buys = [
        order
        for order in exchange.of_capacity[procurement.capacity_id].values()
        if order.owner == procurement.procurement_id and order.side == "buy"
    ]
    if open_buys:
        start, end = min(order.start for order in open_buys), max(order.end for order in open_buys)
        missing = sum(volume(order.left) for order in open_buys)
        account = exchange.capacities[procurement.capacity_id].account_id
        asks = (ask for ask in exchange.sides["sell"].walk(start, end) if ask.account_id != account)
        cheapest = next((ask for ask in asks if ask.rate > procurement.max_buy.micro_per_block), None)
        if cheapest is None:
            text = f"no_supply: {_node_blocks(missing, 'is', 'are')} not on offer at any price"
            return Status("warning", "no_supply", text)
        price, limit = Rate(cheapest.rate), procurement.max_buy
        text = (
            f"price_above_limit: {_node_blocks(missing, 'waits', 'wait')}; the cheapest ask is "
            f"{price.dollars_per_node_hour(block_s)}, "
            f"the limit {limit.dollars_per_node_hour(block_s)} $/node-hour"
        )
        return Status("warning", "price_above_limit", text)
    if decided.kept:
        manual = count_of(decided.kept, "manually bought node")
        return Status("info", "kept_manual", f"kept_manual: {manual} above target")
    return Status("info", "running", f"running: {count_of(decided.target, 'node')} for the whole window")


def _node_blocks(count: int, one: str, more: str) -> str:
    return f"{count_of(count, 'node-block')} {one if count == 1 else more}"


def expected_cost(procurement: Procurement, live: int, block_s: int = BLOCK_S) -> Money:
    """What the managed window costs at the limit: what a scale-down has to sell again, most likely at a loss."""
    target = live if procurement.target == "node_count" else procurement.target
    return procurement.max_buy.amount(target * blocks_of(procurement.managed_window_minutes, block_s))
