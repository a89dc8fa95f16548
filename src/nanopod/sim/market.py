"""A week of the market on a simulated clock: the product's own exchange and planners, invented people.

`Week` steps through time in ticks of ten blocks (everything asked for lies on that grid, so nothing is due between
them). In each tick: the clock, providers (S3, S4, S8), quotas (R20, R21), procurements (R22), reserved blocks,
resellers, and quotas again. Every simulated hour the books and the money are audited from scratch. The same seed gives
the same week to the last micro-dollar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count

from nanopod.market.audit import problems
from nanopod.market.events import Burn, Cancel, Clock, Configure, Event, Mint, Open, Place
from nanopod.market.exchange import Exchange
from nanopod.market.offers import declared, loss_of, non_delivery, plan_offers, supply_change
from nanopod.market.outcome import Outcome
from nanopod.market.procure import reconcile
from nanopod.market.quota import Claim, keep_live, quota
from nanopod.market.shape import cut, excess, minus, plus, rect, total, volume
from nanopod.model.errors import Invalid, PaymentRequired
from nanopod.sim.till import Till
from nanopod.sim.traders import (
    DAY_MINUTES,
    TICK_MINUTES,
    Population,
    Reseller,
    Reserver,
    Seller,
    Spot,
    population,
    rate_of,
)

SKU = "isku_sim"
START_BLOCK = 29_460_960
"""Monday, 5 January 2026, 00:00 UTC, in minutes since 1970."""
HOUR = 60
FEE_BPS = 100


@dataclass(slots=True)
class Tally:
    """Sums over the whole run; `*_minutes` are node-minutes."""

    orders: int = 0
    contracts: int = 0
    traded_minutes: int = 0
    traded_micro: int = 0
    resold_minutes: int = 0
    fees_micro: int = 0
    up_minutes: int = 0
    held_minutes: int = 0
    wanted_minutes: int = 0
    served_minutes: int = 0
    interruptions: int = 0
    node_losses: int = 0
    reserved: int = 0
    reserved_refused: int = 0
    short_of_money: int = 0
    audits: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the week was like. Shares are 0..1, money is dollars."""

    days: float
    traders: int
    providers: int
    seed: int
    events: int
    orders: int
    contracts: int
    volume_node_hours: float
    volume_dollars: float
    resold_share: float
    average_price: float
    """Dollars per node-hour over all contracts."""
    fees_dollars: float
    utilisation: float
    """Of the node time that was up, the share that somebody had bought."""
    spot_availability: float
    """Of the node time that spot buyers wanted, the share they had."""
    unmet_node_hours: float
    interruptions: int
    """Running instances of spot buyers that lost their place while they were still wanted."""
    node_losses: int
    refunded_dollars: float
    reserved_blocks: int
    reserved_refused: int
    short_of_money: int
    """Reconciliations that ended for lack of balance."""
    audits: int
    digest: str
    """Over books and accounts at the end: equal for equal seeds."""
    wall_s: float


class Week:
    """The simulated market."""

    def __init__(self, traders: int, seed: int) -> None:
        self.block = START_BLOCK
        self.exchange = Exchange(SKU, self.block)
        self.till = Till()
        self.tally = Tally()
        self.people: Population = population(seed, traders, SKU, self.block)
        self.ids: Iterator[str] = (f"ordr_{number}" for number in count(1))
        self.dirty: set[str] = set()
        """Capacities that lost time since their procurement looked last."""
        self.dues: dict[str, int] = {}
        self._open_all()

    def _open_all(self) -> None:
        self.apply(Configure(fee_bps=FEE_BPS))
        for seller in self.people.sellers:
            self.apply(Open(seller.policy.capacity_id, seller.name, "originating"))
        rich = [one.name for one in self.people.reservers] + [one.name for one in self.people.resellers]
        for name in [spot.name for spot in self.people.spots] + rich:
            self.apply(Open(f"cap_{name}", name))
        for name in rich:
            self.till.top_up(name, 10**12)

    def apply(self, event: Event) -> Outcome:
        """One event into the books, its lines into the till."""
        outcome = self.exchange.apply(event)
        self.seen(outcome)
        return outcome

    def seen(self, outcome: Outcome) -> None:
        """Count and post what came of an event."""
        self.till.post(outcome.lines)
        tally = self.tally
        for fill in outcome.fills:
            blocks = volume(fill.shape)
            tally.contracts += 1
            tally.traded_minutes += blocks
            tally.traded_micro += fill.amount
            tally.fees_micro += fill.fee
            if self.exchange.capacities[fill.seller_capacity].kind == "originating":
                self.till.owe(fill)
            else:
                tally.resold_minutes += blocks

    # -- one tick

    def tick(self) -> None:
        """Ten blocks pass, then everybody acts once."""
        self._measure()
        self.block += TICK_MINUTES
        self.apply(Clock(self.block))
        minute = self.block - START_BLOCK
        if minute % HOUR == 0:
            self.till.deliver(self.block)
        for seller in self.people.sellers:
            self._supply(seller)
        self._pay_for_losses()
        for spot in self.people.spots:
            self._follow(spot, minute)
            self._run(spot)
        for spot in self.people.spots:
            self._procure(spot)
        for reserver in self.people.reservers:
            if reserver.next_at <= self.block:
                self._reserve(reserver)
        for reseller in self.people.resellers:
            if reseller.next_at <= self.block:
                self._resell(reseller)
        for spot in self.people.spots:
            self._run(spot)
        if minute % HOUR == 0:
            self.audit()

    def _measure(self) -> None:
        """Account for the ten blocks that are about to pass."""
        at = self.block
        self.tally.up_minutes += TICK_MINUTES * sum(seller.up for seller in self.people.sellers)
        own = sum(self._owned(seller.policy.capacity_id) for seller in self.people.sellers)
        self.tally.held_minutes += TICK_MINUTES * (self.exchange.supply.at(at) - own)
        for spot in self.people.spots:
            self.tally.wanted_minutes += TICK_MINUTES * spot.need
            self.tally.served_minutes += TICK_MINUTES * min(spot.need, self._owned(spot.procurement.capacity_id))

    def _owned(self, capacity_id: str) -> int:
        """Nodes that a capacity owns in the block that begins now."""
        holding = self.exchange.holdings[capacity_id]
        return holding.manual.at(self.block) + holding.auto.at(self.block)

    def _supply(self, seller: Seller) -> None:
        """Nodes fail and come back; time is minted, burned and offered, once an hour and when nodes changed."""
        before = seller.up
        if seller.missing and self.block >= seller.back_at:
            seller.missing = 0
        if not seller.missing and seller.draw.random() < 0.25 * TICK_MINUTES / DAY_MINUTES:
            seller.missing = seller.draw.randint(1, max(1, seller.nodes // 8))
            seller.back_at = self.block + seller.draw.randrange(HOUR, 6 * HOUR, TICK_MINUTES)
            self.tally.node_losses += seller.missing
        if seller.up == before and seller.minted and self.block % HOUR:
            return
        policy, capacity_id = seller.policy, seller.policy.capacity_id
        holding = self.exchange.holdings[capacity_id]
        change = supply_change(declared(policy, seller.up, self.block), seller.minted, holding, self.block)
        if change.mint:
            self.apply(Mint(capacity_id, change.mint))
        own = list(self.exchange.of_capacity[capacity_id].values())
        plan = plan_offers(policy, holding, own, self.block, leaving=change.burn)
        for gone in plan.cancels:
            self.apply(Cancel(gone.order_id, "automation"))
        if change.burn:
            self.apply(Burn(capacity_id, change.burn))
        seller.minted = minus(plus(cut(seller.minted, self.block), change.mint), change.burn)
        for order in plan.orders:
            self.apply(Place(next(self.ids), capacity_id, "sell", order.rate, order.shape, True, True, seller.name))
            self.tally.orders += 1

    def _pay_for_losses(self) -> None:
        """S8: what was sold beyond the nodes that are up is taken back and refunded, ten blocks at a time."""
        short = [seller for seller in self.people.sellers if seller.missing]
        if not short:
            return
        unsold = total(
            self.exchange.holdings[seller.policy.capacity_id].owned(self.block) for seller in self.people.sellers
        )
        up = sum(seller.up for seller in self.people.sellers)
        lost = non_delivery(self.exchange.supply.shape(self.block), unsold, up, self.block)
        blamed = short[0]
        holders = [spot for spot in self.people.spots if self._owned(spot.procurement.capacity_id)]
        blamed.draw.shuffle(holders)
        others = [one.name for one in self.people.reservers] + [one.name for one in self.people.resellers]
        for name in [spot.name for spot in holders] + others:
            capacity_id = f"cap_{name}"
            if not lost:
                return
            own = list(self.exchange.of_capacity[capacity_id].values())
            loss = loss_of(capacity_id, lost, self.exchange.holdings[capacity_id], own)
            if not loss.shape:
                continue
            for gone in loss.cancels:
                self.apply(Cancel(gone.order_id, "automation"))
            self.apply(Burn(capacity_id, loss.shape))
            blamed.minted = excess(blamed.minted, loss.shape)
            self.till.pay_back(loss.shape, blamed.name)
            self.dirty.add(capacity_id)
            lost = minus(lost, loss.shape)

    # -- buyers

    def _follow(self, spot: Spot, minute: int) -> None:
        """A spot buyer looks at its need every two to five hours, and pays in at midnight."""
        if minute % DAY_MINUTES == 0 or not spot.changes_at:
            self.till.top_up(spot.name, spot.budget)
        if self.block < spot.changes_at:
            return
        spot.changes_at = self.block + spot.draw.randrange(2 * HOUR, 5 * HOUR, TICK_MINUTES)
        need = spot.wish(minute)
        if need == spot.need:
            return
        spot.need = need
        self.dirty.add(spot.procurement.capacity_id)
        plan = keep_live(spot.claims, need)
        gone = set(plan.remove)
        spot.claims = [claim for claim in spot.claims if claim.instance_id not in gone]
        for _ in range(plan.create):
            spot.born += 1
            spot.claims.append(Claim(f"{spot.name}-{spot.born:06d}", False, spot.born))

    def _run(self, spot: Spot) -> None:
        """R20 and R21: stop what has no place, make anew what was stopped, start what has one."""
        owned = self._owned(spot.procurement.capacity_id)
        if (spot.need, owned) == spot.seen:
            return
        spot.seen = (spot.need, owned)
        plan = quota(spot.claims, owned)
        started, stopped = set(plan.start), set(plan.stop)
        self.tally.interruptions += len(stopped)
        claims = []
        for claim in spot.claims:
            if claim.instance_id in stopped:
                spot.born += 1
                claims.append(Claim(f"{spot.name}-{spot.born:06d}", False, spot.born))
            elif claim.instance_id in started:
                claims.append(Claim(claim.instance_id, True, claim.created))
            else:
                claims.append(claim)
        spot.claims = claims

    def _procure(self, spot: Spot) -> None:
        """R22, when the need changed, time was lost, or the window has moved on by a quantum."""
        wish = spot.procurement
        if wish.capacity_id not in self.dirty and self.block < self.dues.get(wish.capacity_id, 0):
            return
        self.dirty.discard(wish.capacity_id)
        self.dues[wish.capacity_id] = self.block + wish.extend_quantum_minutes
        done = reconcile(self.exchange, wish, len(spot.claims), self.ids, self.till.spending(spot.name))
        for event, outcome in zip(done.events, done.outcomes, strict=True):
            self.tally.orders += isinstance(event, Place)
            self.seen(outcome)
        self.tally.short_of_money += done.status.code == "insufficient_balance"

    def _reserve(self, one: Reserver) -> None:
        """Some nodes for 8 to 48 hours, starting within the next day, all or none and at once."""
        draw = one.draw
        one.next_at = self.block + draw.randrange(DAY_MINUTES, 3 * DAY_MINUTES, TICK_MINUTES)
        start = self.block + draw.randrange(0, DAY_MINUTES, TICK_MINUTES)
        length = draw.choice((8, 12, 24, 48)) * HOUR
        shape = rect(start, start + length, draw.randint(2, 8))
        outcome = self._buy(one.name, one.limit, shape, whole=True)
        self.tally.reserved += bool(outcome and outcome.fills)
        self.tally.reserved_refused += not (outcome and outcome.fills)

    def _resell(self, one: Reseller) -> None:
        """Buy eight hours of tomorrow's noon as far as they are cheap; offer all that is free at a markup."""
        draw = one.draw
        one.next_at = self.block + draw.randrange(DAY_MINUTES // 2, 2 * DAY_MINUTES, TICK_MINUTES)
        noon = (self.block // DAY_MINUTES + 1) * DAY_MINUTES + 9 * HOUR
        self._buy(one.name, one.limit, rect(noon, noon + 8 * HOUR, draw.randint(1, 6)), whole=False)
        price = rate_of(one.limit * one.markup * 60 / 1e6)
        for start, end, nodes in self.exchange.holdings[f"cap_{one.name}"].free.shape(self.block):
            self.apply(Place(next(self.ids), f"cap_{one.name}", "sell", price, ((start, end, nodes),), True, True))
            self.tally.orders += 1

    def _buy(self, name: str, limit: int, shape: tuple[tuple[int, int, int], ...], *, whole: bool) -> Outcome | None:
        """An immediate buy; None when the account cannot pay for it."""
        self.tally.orders += 1
        spending = self.till.spending(name)
        try:
            return self.apply(Place(next(self.ids), f"cap_{name}", "buy", limit, shape, False, not whole, "", spending))
        except PaymentRequired:
            return None

    # -- the end

    def audit(self) -> None:
        """Check books and money from scratch; asserts that nothing is wrong."""
        found = problems(self.exchange) + self.till.problems(self.exchange)
        assert not found, f"block {self.block}: {'; '.join(found[:5])}"
        self.tally.audits += 1

    def digest(self) -> str:
        """SHA-256 over the books and all balances."""
        money = sorted((*self.till.cash.items(), *((f"hold {k}", v) for k, v in self.till.holds.items())))
        return hashlib.sha256(f"{self.exchange.digest()} {money}".encode()).hexdigest()


def simulate(
    days: float, traders: int, seed: int, wall: Callable[[], float], step: Callable[[], None] = lambda: None
) -> Report:
    """Run a market for `days`; `wall` is a clock in seconds, `step` is called after each simulated hour.

    Raises `Invalid` for figures out of range.
    """
    if not 0 < days <= 366 or not 1 <= traders <= 20_000:
        raise Invalid("--days must be above 0 and at most 366, --traders from 1 to 20000")
    begun = wall()
    week = Week(traders, seed)
    ticks = max(1, round(days * DAY_MINUTES / TICK_MINUTES))
    for number in range(1, ticks + 1):
        week.tick()
        if number % (HOUR // TICK_MINUTES) == 0:
            step()
    week.till.deliver(week.block)
    week.audit()
    return _report(week, days, traders, seed, wall() - begun)


def _report(week: Week, days: float, traders: int, seed: int, wall_s: float) -> Report:
    tally = week.tally
    hours = tally.traded_minutes / 60
    return Report(
        days=days,
        traders=traders,
        providers=len(week.people.sellers),
        seed=seed,
        events=week.exchange.seq,
        orders=tally.orders,
        contracts=tally.contracts,
        volume_node_hours=round(hours, 1),
        volume_dollars=round(tally.traded_micro / 1e6, 2),
        resold_share=_share(tally.resold_minutes, tally.traded_minutes),
        average_price=round(tally.traded_micro / 1e6 / hours, 4) if hours else 0.0,
        fees_dollars=round(tally.fees_micro / 1e6, 2),
        utilisation=_share(tally.held_minutes, tally.up_minutes),
        spot_availability=_share(tally.served_minutes, tally.wanted_minutes),
        unmet_node_hours=round((tally.wanted_minutes - tally.served_minutes) / 60, 1),
        interruptions=tally.interruptions,
        node_losses=tally.node_losses,
        refunded_dollars=round(week.till.refunded / 1e6, 2),
        reserved_blocks=tally.reserved,
        reserved_refused=tally.reserved_refused,
        short_of_money=tally.short_of_money,
        audits=tally.audits,
        digest=week.digest(),
        wall_s=round(wall_s, 2),
    )


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def describe(report: Report) -> str:
    """A table for people."""
    values = asdict(report)
    width = max(len(name) for name in values)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in values.items())
