"""Events and what follows from them on rows: orders, contracts, postings, notices. The lower half of a session."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final

import msgspec

from nanopod.control.market.drafts import Fee, MarketSettings
from nanopod.control.market.floor import Floor, Sold
from nanopod.control.market.news import Applied
from nanopod.control.market.postings import Purse, hold_of_text, hold_text
from nanopod.control.market.rows import Rows
from nanopod.control.ports import OrderFacts, Writes
from nanopod.ledger.orders import Seller
from nanopod.ledger.recipes import Hold
from nanopod.market.events import Cancel, Clock, Configure, Event, Open, Place, encode
from nanopod.market.exchange import Exchange, NotOwned
from nanopod.market.outcome import Change, Fill, Outcome
from nanopod.market.record import contract_of
from nanopod.market.shape import FOREVER, Shape, cut, plus, to_schedule, volume
from nanopod.market.shape import from_schedule as shape_of
from nanopod.market.terms import hold_of, next_block
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.model.money import Money, Rate
from nanopod.model.order import CLOSED, Contract, Order, Side

PROVIDER_PREFIX: Final = "prov_"
_START: Final = itemgetter(0)
_END: Final = itemgetter(1)
_encode: Final = msgspec.json.Encoder().encode
_runs: Final = msgspec.json.Decoder(list[tuple[int, int, int]]).decode


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose order an event places, for the row that users see."""

    workspace_id: str
    account_id: str
    created_by: str = ""
    requested_price: str = ""
    procurement_id: str = ""


@dataclass(slots=True)
class _Side:
    """One order while an event is written down. `left` are its open node-blocks, before its next fill."""

    order_id: str
    workspace_id: str
    capacity_id: str
    side: Side
    rate: int
    created_by: str
    procurement_id: str
    before: str
    """What was filled before this event, as JSON."""
    left: int
    hold: Hold | None
    filled: Shape = ()
    """What this event filled."""


class Trading:
    """Applies events to the books and writes down what came of them."""

    def __init__(self, floor: Floor, settings: MarketSettings, write: Writes, now: float) -> None:
        self.floor = floor
        self.settings = settings
        self.block_s = settings.block_s
        self.write = write
        self.rows = Rows(write)
        self.purse = Purse(write, floor, int(now * 1_000_000))
        self.touched: dict[str, list[tuple[int, int, Event]]] = {}
        """(number, microseconds since 1970, event) by SKU; a SKU is in here before its exchange changes."""
        self.on_change: Callable[[str], None] = lambda capacity_id: None
        """Called with each capacity whose time or orders changed."""
        self.at(now)

    def at(self, now: float) -> None:
        """Go on at `now` (Unix seconds)."""
        self.now = now
        self.block = next_block(now, self.block_s)
        """The next block: the first that has not begun."""
        self.purse.flush()
        self.purse.now_us = int(now * 1_000_000)

    # --- exchanges ---

    def exchange(self, sku_id: str) -> Exchange:
        """The book of a SKU. Raises `NotFound` for a kind of node that was never seen."""
        known = self.floor.exchanges.get(sku_id)
        if known is not None:
            return known
        if self.write.market_book(sku_id) is None and self.write.sku(sku_id) is None:
            raise NotFound(f"instance_sku: {sku_id} does not exist", field="instance_sku")
        exchange = self.floor.exchange(self.write, sku_id, self.block)
        self._configure(exchange)
        return exchange

    def all_exchanges(self) -> list[Exchange]:
        """Every book there is, by SKU."""
        return [self.exchange(sku_id) for sku_id in sorted({*self.write.market_heads(), *self.floor.exchanges})]

    def _configure(self, exchange: Exchange) -> None:
        fee = self.settings.fees.get(exchange.sku_id) or self.settings.fees.get("*") or Fee()
        wanted = Configure(fee.flat, fee.bps, self.settings.group_purchase)
        if exchange.settings != wanted:
            self.apply(exchange, wanted)

    def opened(self, exchange: Exchange, capacity_id: str) -> None:
        """Have a capacity known to a book. Raises `NotFound` when there is no such capacity."""
        if capacity_id not in exchange.capacities:
            self.apply(exchange, self.opening(capacity_id))

    def opening(self, capacity_id: str) -> Open:
        """The event that makes a capacity known to a book. Raises `NotFound` when there is no such capacity."""
        capacity = self.rows.capacity(capacity_id)
        if capacity is None:
            raise NotFound(f"capacity: {capacity_id} does not exist", field="capacity")
        # A capacity without an account trades for its workspace alone.
        return Open(capacity_id, capacity.account_id or capacity.workspace_id, capacity.kind)

    def apply(self, exchange: Exchange, event: Event, asker: Asker | None = None) -> Outcome:
        """Do one event with all its consequences. Raises what `Exchange.apply` raises, and then did nothing."""
        try:
            outcome = exchange.apply(event)
        except NotOwned as error:
            # Blocks are the books' own numbers; people think in seconds.
            start_at, end_at = error.start * self.block_s, error.end * self.block_s
            raise Invalid(
                f"allocation_schedule_delta: the capacity lacks {error.short} free nodes from {start_at} to {end_at} "
                "(what is on sale already is not free); take less, another window, or cancel an order",
                field="allocation_schedule_delta",
            ) from error
        self.note(exchange, event, outcome, asker)
        return outcome

    def note(self, exchange: Exchange, event: Event, outcome: Outcome, asker: Asker | None = None) -> None:
        """Write down an event that was applied."""
        at_us = self.purse.now_us
        self.touched.setdefault(exchange.sku_id, []).append((outcome.seq, at_us, event))
        match event:
            case Place():
                assert asker is not None, "somebody asks"
                self._placed(exchange, event, outcome, asker)
            case Cancel():
                self._ended(exchange, outcome)
            case Clock():
                self._clipped(exchange, outcome)
            case _:
                pass

    def save(self) -> None:
        """Append the events to their logs, post what is left, announce."""
        self.purse.flush()
        for sku_id, events in self.touched.items():
            if not events:
                continue
            first, exchange = self.floor.first[sku_id], self.floor.exchanges[sku_id]
            rows = [(seq, at_us, encode(event)) for seq, at_us, event in events]
            self.write.append_events(sku_id, rows, exchange.block, first)
            for seq, _, event in events:
                self.write.announce(Applied(sku_id, seq, event, first))
            events.clear()

    def order_ids(self) -> Iterator[str]:
        """Ids for orders of automation."""
        while True:
            yield self.floor.new_id("order")

    def notice(self, workspace_id: str, type: str, object_id: str, data: Mapping[str, Any]) -> None:
        """Tell a workspace something."""
        self.write.add_notice(self.now, workspace_id, type, object_id, data)

    # --- orders ---

    def _placed(self, exchange: Exchange, event: Place, outcome: Outcome, asker: Asker) -> None:
        shape = cut(event.shape, exchange.block)
        change = outcome.changes[-1]
        own = _Side(
            event.order_id, asker.workspace_id, event.capacity_id, event.side, event.rate, asker.created_by,
            asker.procurement_id, "[]", volume(shape), None,
        )  # fmt: skip
        sides = {event.order_id: own}
        if event.side == "buy" and (outcome.fills or change.left):
            own.hold = self.purse.hold(event.order_id, asker.workspace_id, hold_of(event.rate, shape))
        if not event.owner:
            self._tell("created", own, exchange.sku_id, "pending", shape)
        for other in outcome.changes[:-1]:
            sides[other.order_id] = self._maker(other, outcome.fills)
        for fill in outcome.fills:
            self._contract(exchange, fill, sides)
        for one in outcome.changes[:-1]:
            self._changed(exchange.sku_id, sides[one.order_id], one)
        self._end_hold(own, change)
        order = Order(
            event.order_id, asker.workspace_id, asker.account_id, event.capacity_id, exchange.sku_id, event.side,
            to_schedule(shape, self.block_s), Rate(event.rate), event.allow_standing, event.allow_partial,
            change.status, to_schedule(change.left, self.block_s), to_schedule(own.filled, self.block_s),
            change.reason, asker.requested_price, asker.procurement_id, self.now, asker.created_by,
            self.now if own.filled else None, self.now if change.status == "cancelled" else None,
        )  # fmt: skip
        self.write.add_order(order, self.write.next_number("order"), hold_text(own.hold))
        if change.status != "standing":
            self._tell(change.status, own, exchange.sku_id, change.status, own.filled, change.reason)
        self.on_change(event.capacity_id)

    def _maker(self, change: Change, fills: tuple[Fill, ...]) -> _Side:
        facts = self.write.order_facts(change.order_id)
        assert facts is not None, "an open order has its row"
        taken = sum(volume(one.shape) for one in fills if change.order_id in (one.buyer_order, one.seller_order))
        return _Side(
            facts.order_id, facts.workspace_id, facts.capacity_id, facts.side, facts.rate, facts.created_by,
            facts.procurement_id, facts.filled, volume(change.left) + taken, hold_of_text(facts.hold),
        )  # fmt: skip

    def _contract(self, exchange: Exchange, fill: Fill, sides: dict[str, _Side]) -> None:
        """One fill: its contract, its postings, and what it leaves held of the buy."""
        buyer, seller = sides[fill.buyer_order], sides[fill.seller_order]
        blocks = volume(fill.shape)
        for side in (buyer, seller):
            side.left -= blocks
            side.filled = plus(side.filled, fill.shape)
        provider = None
        if exchange.capacities[fill.seller_capacity].kind == "originating":
            provider = self.rows.provider_of(fill.seller_capacity)
        owner = provider.workspace_id if provider else seller.workspace_id
        fee = min(fill.fee, fill.amount)
        contract_id = self.floor.new_id("contract")
        assert buyer.hold is not None, "an open buy has its hold"
        buyer.hold = self.purse.contract(
            contract_id, buyer.hold, fill.amount, fee, buyer.rate * buyer.left, Seller(owner, provider is not None),
            exchange.sku_id,
        )  # fmt: skip
        made = replace(
            contract_of(fill, exchange.sku_id, contract_id, self.now, self.block_s),
            fee=Money(fee),
            buyer_workspace_id=buyer.workspace_id,
            seller_workspace_id=owner,
            provider_id=provider.provider_id if provider else "",
        )
        net = fill.amount - fee
        self.write.add_contract(made, settled=provider is None or net == 0)
        if provider is not None and net and self.floor.sold is not None:
            self.floor.sold[contract_id] = Sold(contract_id, owner, fill.shape, fill.amount, fee, blocks, 0, 0)
        data = {
            "instance_sku": exchange.sku_id,
            "price_dollars_per_node_hour": Rate(fill.rate).dollars_per_node_hour(self.block_s),
            "amount": str(Money(fill.amount)),
            "allocation_schedule_delta": self._entries(fill.shape),
        }
        for one in (buyer, seller):
            if not one.created_by.startswith(PROVIDER_PREFIX):
                whose = {"capacity": one.capacity_id, "side": one.side, "order": one.order_id}
                self.notice(one.workspace_id, "contract.created", contract_id, {**data, **whose})
        for capacity_id in (fill.buyer_capacity, fill.seller_capacity):
            self.on_change(capacity_id)

    def _end_hold(self, side: _Side, change: Change) -> None:
        """Nothing stays held for an order that is closed."""
        if not change.left and side.hold is not None:
            self.purse.release(f"{side.order_id}/end", side.hold)
            side.hold = None

    def _changed(self, sku_id: str, side: _Side, change: Change) -> None:
        """Write the state of a resting order after its fills."""
        self._end_hold(side, change)
        filled = joined(shape_of_text(side.before), side.filled)
        self.write.set_order(
            side.order_id, status=change.status, open=shape_text(change.left), filled=shape_text(filled),
            cancel_reason=change.reason, filled_at=self.now, hold=hold_text(side.hold),
        )  # fmt: skip
        self._tell(change.status, side, sku_id, change.status, side.filled, change.reason)

    def _tell(
        self, what: str, side: _Side, sku_id: str, status: str, shape: Shape, reason: str | None = None
    ) -> None:  # fmt: skip
        """Tell the owner of an order; `shape` is what was filled just now, or asked for. Providers ask for no news."""
        if side.created_by.startswith(PROVIDER_PREFIX):
            return
        data: dict[str, Any] = {
            "status": status, "side": side.side, "capacity": side.capacity_id, "instance_sku": sku_id,
            "allocation_schedule_delta": self._entries(shape),
        }  # fmt: skip
        if side.procurement_id:
            data["procurement"] = side.procurement_id
        if reason:
            data["cancel_reason"] = reason
        self.notice(side.workspace_id, f"order.{what}", side.order_id, data)

    def _entries(self, shape: Shape) -> list[dict[str, int | None]]:
        at = self.block_s
        return [
            {"start_at": start * at, "end_at": None if end >= FOREVER else end * at, "node_count": nodes}
            for start, end, nodes in shape
        ]

    def _ended(self, exchange: Exchange, outcome: Outcome) -> None:
        """An order was cancelled."""
        (change,) = outcome.changes
        self._close(exchange.sku_id, change)

    def _close(self, sku_id: str, change: Change) -> None:
        side = self._maker(change, ())
        self._end_hold(side, change)
        self.write.set_order(
            side.order_id, status="cancelled", open="[]", cancel_reason=change.reason, cancelled_at=self.now, hold=""
        )  # fmt: skip
        self._tell("cancelled", side, sku_id, "cancelled", (), change.reason)
        self.on_change(side.capacity_id)

    def _clipped(self, exchange: Exchange, outcome: Outcome) -> None:
        """R16: orders lost the blocks that have begun, buys what was held for them."""
        buys = {line.reference for line in outcome.lines}
        for change in outcome.changes:
            order_id = change.order_id
            if not change.left:
                self._close(exchange.sku_id, change)
                continue
            values: dict[str, Any] = {"open": shape_text(change.left)}
            if order_id in buys:
                hold = hold_of_text(self.write.order_hold(order_id))
                assert hold is not None, "an open buy has its hold"
                values["hold"] = hold_text(self.purse.shrink(f"{order_id}/{outcome.seq}", hold, change.hold))
            self.write.set_order(order_id, **values)

    # --- shared by the steps ---

    def sold(self) -> dict[str, Sold]:
        """Contracts that providers still deliver and are paid for, by id."""
        if self.floor.sold is None:
            self.floor.sold = {
                one.contract_id: self._sold(one)
                for provider in self.write.providers()
                for one in self.write.contracts_undelivered(provider.provider_id)
            }
        return self.floor.sold

    def _sold(self, one: Contract) -> Sold:
        shape = shape_of(one.schedule, self.block_s)
        return Sold(
            one.contract_id, one.seller_workspace_id, shape, one.amount.micro, one.fee.micro, volume(shape),
            one.delivered, one.refunded,
        )  # fmt: skip

    def withdraw(self, exchange: Exchange, order_id: str) -> None:
        """Automation takes an order back."""
        self.apply(exchange, Cancel(order_id, "automation"))

    def refuse_closed(self, order_id: str) -> OrderFacts:
        """The facts of an open order. Raises `NotFound`, or `Conflict` for a closed one."""
        order = self.write.order_facts(order_id)
        if order is None:
            raise NotFound(f"order: {order_id} does not exist", field="order")
        if order.status in CLOSED:
            raise Conflict(f"order: {order_id} is {order.status} already; nothing of it is open", field="order")
        return order


def shape_text(shape: Shape) -> str:
    """A shape as its column keeps it."""
    return _encode(shape).decode()


def shape_of_text(text: str) -> Shape:
    """The inverse of `shape_text`."""
    return tuple(_runs(text)) if text != "[]" else ()


def joined(long: Shape, short: Shape) -> Shape:
    """`plus(long, short)`, looking only at that part of the long one which the short one touches."""
    if not long or not short:
        return long or short
    first = bisect_left(long, short[0][0], key=_END)
    last = bisect_right(long, short[-1][1], key=_START)
    return (*long[:first], *plus(long[first:last], short), *long[last:])


def owned_at(exchange: Exchange, capacity_id: str, block: int) -> int:
    """Nodes that a capacity owns in a block (the running one or a later one)."""
    holding = exchange.holdings.get(capacity_id)
    return holding.manual.at(block) + holding.auto.at(block) if holding else 0


def owned_shape(exchange: Exchange, capacity_id: str, start: int, end: int = FOREVER) -> Shape:
    """What a capacity owns inside `[start, end)`."""
    holding = exchange.holdings.get(capacity_id)
    return holding.owned(start, end) if holding else ()
