"""The market of one SKU: its book, who owns what, the clock. Events go in one by one, outcomes come out (R5-R18).

`Exchange.apply` either does all of an event or raises an error of `model.errors` and changes nothing. The state is a
pure function of the events applied: `digest` is equal after a replay. One writer per SKU owns one of these in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from nanopod.market.events import Burn, Cancel, Clock, Configure, Event, Mint, Open, Place, Transfer, canonical
from nanopod.market.holding import Holding
from nanopod.market.match import Plan, group, propose
from nanopod.market.outcome import Change, Fill, Line, Outcome, change_of, fill_lines
from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, cut, excess, minus, peak, runs_of, volume
from nanopod.market.side import BookSide
from nanopod.market.steps import Steps
from nanopod.market.terms import NODES_MAX, Fees, hold_of
from nanopod.model.errors import Conflict, Denied, Invalid, NotFound, PaymentRequired
from nanopod.model.money import Money
from nanopod.model.order import CancelReason, Side


class NotOwned(Invalid):
    """Time was given away that is not there, or on sale already: `short` nodes too many in blocks `[start, end)`."""

    def __init__(self, capacity_id: str, short: int, start: int, end: int) -> None:
        super().__init__(
            f"allocation_schedule_delta: {capacity_id} lacks {short} free nodes in blocks {start} to {end}",
            field="allocation_schedule_delta",
        )
        self.short, self.start, self.end = short, start, end


class Exchange:
    """All state of one SKU. `block` is the first that has not begun; of the past only the running one is kept."""

    def __init__(self, sku_id: str, block: int = 0) -> None:
        self.sku_id = sku_id
        self.block = block
        self.seq = 0
        self.contracts = 0
        self.settings = Configure()
        self.fees = Fees()
        self.capacities: dict[str, Open] = {}
        self.holdings: dict[str, Holding] = {}
        self.supply = Steps()
        """Nodes that providers have declared, per block; equals the sum of all holdings (R18)."""
        self.orders: dict[str, Resting] = {}
        """Open orders only, in the order of their sequence numbers."""
        self.of_capacity: dict[str, dict[str, Resting]] = {}
        self.sides: dict[Side, BookSide] = {"buy": BookSide(block, bids=True), "sell": BookSide(block)}
        self._starts: list[tuple[int, int, str]] = []
        self._begun: dict[str, Resting] = {}

    # -- events

    def apply(self, event: Event) -> Outcome:
        """Do one event. Raises Invalid, NotFound, Conflict, Denied or PaymentRequired and then has changed nothing."""
        match event:
            case Place():
                return self._place(event)
            case Cancel():
                return self._cancel(event)
            case Clock():
                return self._clock(event)
            case Transfer():
                return self._transfer(event)
            case Mint():
                self._capacity(event.capacity_id)
                self._future(event.shape)
                self.supply.add(event.shape)
                self.holdings[event.capacity_id].gain(event.shape, auto=False)
            case Burn():
                self._capacity(event.capacity_id)
                self._future(event.shape)
                self._must_own(event.capacity_id, event.shape)
                self.supply.add(event.shape, -1)
                self.holdings[event.capacity_id].lose(event.shape)
            case Open():
                self._open(event)
            case Configure():
                self.fees = Fees(event.fee_flat, event.fee_bps)
                self.settings = event
        return Outcome(self._next())

    def replay(self, events: Iterable[Event]) -> Exchange:
        """Apply a log; returns itself."""
        for event in events:
            self.apply(event)
        return self

    def canonical(self) -> dict[str, Any]:
        """The whole state as plain values in a fixed order; what a snapshot stores."""
        return {
            "sku": self.sku_id,
            "block": self.block,
            "seq": self.seq,
            "contracts": self.contracts,
            "settings": [self.settings.fee_flat, self.settings.fee_bps, self.settings.group_purchase],
            "capacities": [[c.capacity_id, c.account_id, c.kind] for _, c in sorted(self.capacities.items())],
            "holdings": {name: holding.canonical() for name, holding in self.holdings.items()},
            "supply": [list(run) for run in self.supply.shape()],
            "orders": [order.canonical() for order in self.orders.values()],
        }

    def digest(self) -> str:
        """SHA-256 over `canonical`, hex."""
        return hashlib.sha256(canonical(self.canonical()).encode()).hexdigest()

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Exchange:
        """The exchange of a `canonical` state, also after a trip through JSON; the tail of a log goes on from it."""
        self = cls(state["sku"], state["block"])
        flat, bps, group_purchase = state["settings"]
        self.settings, self.fees = Configure(flat, bps, group_purchase), Fees(flat, bps)
        for capacity_id, account_id, kind in state["capacities"]:
            self._open(Open(capacity_id, account_id, kind))
            self.holdings[capacity_id] = Holding.restore(state["holdings"][capacity_id], self.block)
        self.supply = Steps(runs_of(state["supply"]))
        for values in state["orders"]:
            self._stand(Resting.restore(values))
        self.seq, self.contracts = state["seq"], state["contracts"]
        return self

    # -- orders

    def propose(self, taker: Resting) -> Plan:
        """What an order would get now; nothing changes."""
        makers = self.sides["sell" if taker.side == "buy" else "buy"]
        plan = propose(taker, makers)
        if not plan.takes and taker.whole and taker.side == "buy" and self.settings.group_purchase:
            found = group(taker, self.sides["sell"], self.sides["buy"])
            if found is not None:
                return Plan((), (), found)
        return plan

    def _place(self, event: Place) -> Outcome:
        shape = self._admit(event)
        account = self.capacities[event.capacity_id].account_id
        lines: list[Line] = []
        if event.side == "buy":
            lines.append(Line(account, "hold", hold_of(event.rate, shape), event.order_id))
        else:
            self.holdings[event.capacity_id].reserve(shape, auto=bool(event.owner))
        taker = Resting(
            order_id=event.order_id,
            seq=self._next(),
            account_id=account,
            capacity_id=event.capacity_id,
            side=event.side,
            rate=event.rate,
            left=shape,
            whole=not event.allow_partial,
            owner=event.owner,
        )
        plan = self.propose(taker)
        fills: list[Fill] = []
        changes: list[Change] = []
        # The one who trades with every maker: the taker, or in a group purchase the ask that is sold whole.
        taken, one = (plan.group.bids, plan.group.ask) if plan.group else (plan.takes, taker)
        for take in taken:
            fills.append(self._contract(take.maker, one, take.shape, take.maker.rate, take.amount, lines))
            self._move(take.maker, take.shape)
            changes.append(self._fill_maker(take.maker, take.shape))
        if plan.group is not None:
            rate = plan.group.amount // volume(shape)
            fills.append(self._contract(one, taker, shape, rate, plan.group.amount, lines))
            self._move(one, one.left)
            changes.append(self._fill_maker(one, one.left))
        if fills:
            self._move(taker, minus(shape, plan.left))
        taker.filled = volume(shape) - volume(plan.left)
        taker.shrink(plan.left)
        changes.append(self._rest(taker, lines, standing=event.allow_standing))
        return Outcome(taker.seq, tuple(fills), tuple(changes), tuple(lines))

    def _admit(self, event: Place) -> Shape:
        """Check an order (R4, R5); returns its shape without the blocks that have begun."""
        capacity = self._capacity(event.capacity_id)
        if event.order_id in self.orders:
            raise Conflict(f"order_id: {event.order_id} is open already", field="order_id")
        if len(event.shape) != 1:
            raise Invalid(
                "allocation_schedule_delta: an order has exactly one entry", field="allocation_schedule_delta"
            )
        shape = cut(event.shape, self.block)
        if not shape:
            raise Invalid("allocation_schedule_delta: the window has passed", field="allocation_schedule_delta")
        if not 1 <= peak(shape) <= NODES_MAX:
            raise Invalid(f"node_count: {peak(shape)} must be from 1 to {NODES_MAX}", field="node_count")
        if capacity.kind == "read_only" or (capacity.kind == "originating" and event.side == "buy"):
            raise Invalid(f"capacity: a capacity of kind {capacity.kind} cannot {event.side}", field="capacity")
        if event.side == "sell":
            self._must_own(event.capacity_id, shape)
            if event.rate < 0:
                raise Invalid("limit price: must not be negative", field="limit_price_dollars_per_node_hour")
            return shape
        if event.rate < 1:
            raise Invalid("limit price: a buy at 0 is not possible", field="limit_price_dollars_per_node_hour")
        hold = hold_of(event.rate, shape)
        if event.spending is not None and hold > event.spending:
            needed, there = Money(hold), Money(event.spending)
            raise PaymentRequired(
                f"balance: this order holds ${needed}, available are ${there}; top up or lower the limit"
            )
        return shape

    def _contract(
        self, maker: Resting, other: Resting, shape: Shape, rate: int, amount: int, lines: list[Line]
    ) -> Fill:
        """Write the contract of one pair; time and open shapes are the caller's to move."""
        buyer, seller = (maker, other) if maker.side == "buy" else (other, maker)
        blocks = volume(shape)
        self.contracts += 1
        fill = Fill(
            self.contracts, maker.order_id, other.order_id, buyer.order_id, seller.order_id, buyer.capacity_id,
            seller.capacity_id, buyer.account_id, seller.account_id, shape, rate, amount, self.fees.of(amount, blocks),
            self.block,
        )  # fmt: skip
        provider = self.capacities[seller.capacity_id].kind == "originating"
        reference = f"{self.sku_id}#{self.contracts}"
        lines.extend(fill_lines(fill, reference, buyer.rate, blocks, provider=provider))
        return fill

    def _move(self, order: Resting, shape: Shape) -> None:
        """One side of what changed hands."""
        holding = self.holdings[order.capacity_id]
        if order.side == "buy":
            holding.gain(shape, auto=bool(order.owner))
        else:
            holding.deliver(shape, auto=bool(order.owner))

    def _fill_maker(self, maker: Resting, shape: Shape) -> Change:
        maker.filled += volume(shape)
        self.sides[maker.side].fill(maker, shape)
        if maker.left:
            return change_of(maker)
        self._close(maker)
        return change_of(maker, "filled")

    def _rest(self, taker: Resting, lines: list[Line], *, standing: bool) -> Change:
        if not taker.left:
            return change_of(taker, "filled")
        if standing:
            self._stand(taker)
            return change_of(taker)
        self._let_go(taker, taker.left, lines)
        return change_of(taker, "cancelled", "unfilled")

    def _stand(self, order: Resting) -> None:
        self.orders[order.order_id] = order
        self.of_capacity[order.capacity_id][order.order_id] = order
        self.sides[order.side].add(order)
        heappush(self._starts, (order.start, order.seq, order.order_id))

    def _cancel(self, event: Cancel) -> Outcome:
        order = self.orders.get(event.order_id)
        if order is None:
            raise NotFound(f"order: {event.order_id} is not open in the book of {self.sku_id}", field="order")
        lines: list[Line] = []
        self.sides[order.side].remove(order)
        self._let_go(order, order.left, lines)
        order.shrink(())
        self._close(order)
        return Outcome(self._next(), (), (change_of(order, "cancelled", event.reason),), tuple(lines))

    def _let_go(self, order: Resting, shape: Shape, lines: list[Line]) -> None:
        """Release what an order reserved for `shape`: money for a buy, time for a sell."""
        if order.side == "buy":
            lines.append(Line(order.account_id, "release", -hold_of(order.rate, shape), order.order_id))
        else:
            self.holdings[order.capacity_id].release(shape, auto=bool(order.owner))

    def _close(self, order: Resting) -> None:
        del self.orders[order.order_id]
        del self.of_capacity[order.capacity_id][order.order_id]
        self._begun.pop(order.order_id, None)

    # -- clock, transfers, capacities

    def _clock(self, event: Clock) -> Outcome:
        """R16: every open order loses the blocks before `event.block`; one with nothing left is cancelled."""
        if event.block < self.block:
            raise Invalid(f"block: {event.block} is before {self.block}; a clock does not go back", field="block")
        block = self.block = event.block
        while self._starts and self._starts[0][0] < block:
            _, seq, order_id = heappop(self._starts)
            order = self.orders.get(order_id)
            if order is not None and order.seq == seq:
                self._begun[order_id] = order
        changes: list[tuple[int, Change]] = []
        lines: list[Line] = []
        for order in sorted(self._begun.values(), key=_seq):
            if order.start < block:
                changes.append((order.seq, self._clip(order, block, lines)))
        for side in self.sides.values():
            side.advance(block)
        for holding in self.holdings.values():
            holding.forget(block)
        self.supply.forget(block - 1)
        return Outcome(self._next(), (), tuple(change for _, change in sorted(changes, key=_first)), tuple(lines))

    def _clip(self, order: Resting, block: int, lines: list[Line]) -> Change:
        left = cut(order.left, block)
        # Reservations of the past need no release: they are forgotten with the past itself.
        if order.side == "buy":
            lost = volume(order.left) - volume(left)
            lines.append(Line(order.account_id, "release", -order.rate * lost, order.order_id))
        self.sides[order.side].clip(order, left)
        if left:
            return change_of(order)
        self._close(order)
        reason: CancelReason = "expired"
        return change_of(order, "cancelled", reason)

    def _transfer(self, event: Transfer) -> Outcome:
        source, target = self._capacity(event.from_capacity), self._capacity(event.to_capacity)
        if source.account_id != target.account_id:
            raise Denied("to_capacity: belongs to another account; sell the time instead", field="to_capacity")
        if "read_only" in (source.kind, target.kind):
            raise Invalid("capacity: a read_only capacity neither gives nor takes", field="from_capacity")
        self._future(event.shape)
        self._must_own(event.from_capacity, event.shape)
        self.holdings[event.from_capacity].lose(event.shape)
        self.holdings[event.to_capacity].gain(event.shape, auto=False)
        return Outcome(self._next())

    def _open(self, event: Open) -> None:
        if event.capacity_id in self.capacities:
            raise Conflict(f"capacity: {event.capacity_id} is known already", field="capacity")
        self.capacities[event.capacity_id] = event
        self.holdings[event.capacity_id] = Holding()
        self.of_capacity[event.capacity_id] = {}

    def _capacity(self, capacity_id: str) -> Open:
        found = self.capacities.get(capacity_id)
        if found is None:
            raise NotFound(f"capacity: {capacity_id} is not known in the market of {self.sku_id}", field="capacity")
        return found

    def _future(self, shape: Shape) -> None:
        if not shape or shape[0][0] < self.block:
            raise Invalid(f"schedule: must lie at or after block {self.block}", field="allocation_schedule_delta")

    def _must_own(self, capacity_id: str, shape: Shape) -> None:
        """R5: free minutes (owned minus open sells) in every block, or `Invalid` naming the first that lacks them."""
        free = self.holdings[capacity_id].free
        if free.covers(shape):
            return
        start, end, short = excess(shape, free.shape(shape[0][0], shape[-1][1]))[0]
        raise NotOwned(capacity_id, short, start, end)

    def _next(self) -> int:
        self.seq += 1
        return self.seq


def _seq(order: Resting) -> int:
    return order.seq


def _first(pair: tuple[int, Change]) -> int:
    return pair[0]
