"""Orders: place, list, look at, cancel."""

from __future__ import annotations

from typing import Final, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.market.drafts import OrderDraft
from nanopod.market.record import average_price
from nanopod.market.shape import from_schedule, volume
from nanopod.market.terms import parse_rate
from nanopod.model.capacity import Capacity, Sku
from nanopod.model.chain import Key
from nanopod.model.errors import NotFound
from nanopod.model.money import Money
from nanopod.model.order import Contract, Order
from nanopod.server.api import once
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import Price, Window, time_of, window_of, word_of, words_of
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.references import (
    canonical,
    capacity_reference,
    find_capacity,
    find_order,
    find_procurement,
    find_sku,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.showing import (
    Owners,
    ScheduleEntry,
    Scoped,
    Summary,
    entries_of,
    price,
    scoped,
    sku_summary,
    summary_of,
)
from nanopod.store.trade import NO_AUTOMATION
from nanopod.store.transaction import Transaction

SIDES: Final = ("buy", "sell")
STATUSES: Final = ("pending", "standing", "partially_filled", "filled", "cancelled", "rejected")
SORTS: Final = ("created_at", "-created_at", "start_at", "-start_at")
PLACE: Final = "order.create"


class NewOrder(msgspec.Struct, frozen=True):
    """A wish to buy or sell time. `allow_standing` false: what does not fill at once is cancelled; `allow_partial`
    false: all or none. `pool` is read as `capacity`."""

    side: Literal["buy", "sell"]
    instance_sku: str
    allocation_schedule_delta: list[Window]
    limit_price_dollars_per_node_hour: Price
    capacity: str | None = None
    pool: str | None = None
    allow_standing: bool = False
    allow_partial: bool = False
    workspace: str | None = None


class FillAnswer(TypedDict):
    """One fill of an order; the other side is never shown."""

    contract: str
    filled_at: int
    allocation_schedule_delta: list[ScheduleEntry]
    price_dollars_per_node_hour: str


class CreatedBy(TypedDict):
    """Who placed it: a key (`token`), a procurement, or a provider's offers."""

    id: str
    type: Literal["user", "token", "procurement", "provider"]
    name: str | None


class OrderAnswer(Scoped):
    """An order. Prices are dollars per node-hour; `hold` and `total` are dollars: what is reserved for the open part,
    and what its fills amount to."""

    side: Literal["buy", "sell"]
    status: Literal["pending", "standing", "partially_filled", "filled", "cancelled", "rejected"]
    capacity: Summary
    pool: Summary
    instance_sku: Summary
    allocation_schedule_delta: list[ScheduleEntry]
    filled_allocation_schedule_delta: list[ScheduleEntry]
    open_allocation_schedule_delta: list[ScheduleEntry]
    limit_price_dollars_per_node_hour: str
    requested_limit_price: str
    allow_standing: bool
    allow_partial: bool
    fills: list[FillAnswer]
    filled_at: int | None
    filled_average_price_dollars_per_node_hour: str | None
    hold: str
    total: str
    created_by: CreatedBy
    procurement: str | None
    cancelled_at: int | None
    cancel_reason: Literal["unfilled", "user", "expired", "automation"] | None


def created_by(read: Transaction, order: Order) -> CreatedBy:
    """Who placed an order."""
    if order.procurement_id:
        procurement = read.procurement(order.procurement_id)
        return {"id": order.procurement_id, "type": "procurement", "name": procurement.name if procurement else None}
    if order.created_by.startswith("prov_"):
        provider = read.provider(order.created_by)
        return {"id": order.created_by, "type": "provider", "name": provider.name if provider else None}
    key = read.key(order.created_by) if order.created_by else None
    return {"id": order.created_by, "type": "token", "name": key.name if key else None}


class Shown:
    """Makes answers of orders inside one transaction; capacities and SKUs are looked up once."""

    def __init__(self, read: Transaction, block_s: int) -> None:
        self._read = read
        self._block_s = block_s
        self._owners = Owners(read)
        self._capacities: dict[str, Summary] = {}
        self._skus: dict[str, Summary] = {}
        self._makers: dict[tuple[str, str], CreatedBy] = {}

    def know(self, capacity: Capacity, sku: Sku) -> None:
        """Spare the look-up of what was read already."""
        self._capacities[capacity.capacity_id] = summary_of(capacity, capacity.capacity_id)
        self._skus[sku.sku_id] = sku_summary(sku, sku.sku_id)

    def capacity(self, capacity_id: str) -> Summary:
        """A capacity in short."""
        if capacity_id not in self._capacities:
            self._capacities[capacity_id] = summary_of(self._read.capacity(capacity_id), capacity_id)
        return self._capacities[capacity_id]

    def sku(self, sku_id: str) -> Summary:
        """A kind of node in short."""
        if sku_id not in self._skus:
            self._skus[sku_id] = sku_summary(self._read.sku(sku_id), sku_id)
        return self._skus[sku_id]

    def maker(self, order: Order) -> CreatedBy:
        """Who placed an order."""
        who = (order.procurement_id, order.created_by)
        if who not in self._makers:
            self._makers[who] = created_by(self._read, order)
        return self._makers[who]

    def all(self, orders: list[Order]) -> list[OrderAnswer]:
        """Orders with their fills."""
        fills: dict[str, list[Contract]] = {}
        known = {order.order_id for order in orders}
        for contract in self._read.contracts_of(list(known)):
            for order_id in {contract.buyer_order_id, contract.seller_order_id} & known:
                fills.setdefault(order_id, []).append(contract)
        return [self.one(order, fills.get(order.order_id, [])) for order in orders]

    def one(self, order: Order, fills: list[Contract]) -> OrderAnswer:
        """One order."""
        average = average_price(order, fills, self._block_s) if fills else None
        capacity = self.capacity(order.capacity_id)
        open_blocks = volume(from_schedule(order.open, self._block_s))
        holds = order.side == "buy" and order.status in ("pending", "standing", "partially_filled")
        own = scoped(self._owners, "order", order.order_id, order.workspace_id, None, order.created_at)
        return {
            **own,
            "side": order.side,
            "status": order.status,
            "capacity": capacity,
            "pool": capacity,
            "instance_sku": self.sku(order.sku_id),
            "allocation_schedule_delta": entries_of(order.shape),
            "filled_allocation_schedule_delta": entries_of(order.filled),
            "open_allocation_schedule_delta": entries_of(order.open),
            "limit_price_dollars_per_node_hour": price(order.limit, self._block_s),
            "requested_limit_price": order.requested_limit_price or price(order.limit, self._block_s),
            "allow_standing": order.allow_standing,
            "allow_partial": order.allow_partial,
            "fills": [
                {
                    "contract": fill.contract_id,
                    "filled_at": int(fill.filled_at),
                    "allocation_schedule_delta": entries_of(fill.schedule),
                    "price_dollars_per_node_hour": price(fill.rate, self._block_s),
                }
                for fill in sorted(fills, key=lambda fill: fill.number)
            ],
            "filled_at": int(order.filled_at) if order.filled_at is not None else None,
            "filled_average_price_dollars_per_node_hour": str(average) if average is not None else None,
            "hold": str(order.limit.amount(open_blocks) if holds else Money(0)),
            "total": str(Money(sum(fill.amount.micro for fill in fills))),
            "created_by": self.maker(order),
            "procurement": order.procurement_id or None,
            "cancelled_at": int(order.cancelled_at) if order.cancelled_at is not None else None,
            "cancel_reason": order.cancel_reason,
        }


async def create_order(context: Context, request: Request, key: Key) -> Response:
    """Place an order; what it fills at once is in the answer."""
    wish = await body_as(request, NewOrder)
    idempotency = once.key_of(request)
    now = context.clock()
    block_s = context.block_s
    reference = capacity_reference(wish.capacity, wish.pool)
    place = workspace_reference(request, wish.workspace)
    limit = parse_rate(wish.limit_price_dollars_per_node_hour, wish.side, block_s=block_s)

    def write(write: Transaction) -> tuple[OrderAnswer, bool]:
        scope = scope_of(write, key, place)
        shown = Shown(write, block_s)
        workspace_id = scope.workspace.workspace_id
        seen = once.replayed(write, workspace_id, PLACE, idempotency)
        if seen is not None and (first := write.order(seen)) is not None:
            return shown.all([first])[0], True
        capacity = find_capacity(write, scope, reference, "capacity" if wish.capacity else "pool")
        sku = find_sku(write, wish.instance_sku)
        shown.know(capacity, sku)
        _, start_at, end_at, nodes = window_of(wish.allocation_schedule_delta, now=now, block_s=block_s)
        draft = OrderDraft(
            workspace_id=capacity.workspace_id, account_id=capacity.account_id, capacity_id=capacity.capacity_id,
            sku_id=sku.sku_id, side=wish.side, start_at=start_at, end_at=end_at, node_count=nodes, limit=limit,
            requested_limit_price=wish.limit_price_dollars_per_node_hour, allow_standing=wish.allow_standing,
            allow_partial=wish.allow_partial, created_by=key.key_id,
        )  # fmt: skip
        with context.desk.session(write, now) as market:
            order = market.place(draft)
        once.remember(write, workspace_id, PLACE, idempotency, order.order_id, now)
        # What follows from it (procurements, other orders) may have changed it by the end of the session.
        return shown.all([write.order(order.order_id) or order])[0], False

    shown, repeat = await context.store.write(write)
    return answer(shown, 200 if repeat else 201, once.REPLAYED if repeat else {})


async def list_orders(context: Context, request: Request, key: Key) -> Response:
    """Orders; those that a procurement placed only with `procurement=`."""
    page = page_of(request, "ordr_")
    statuses = words_of(request, "status", STATUSES)
    side = word_of(request, "side", SIDES)
    sort = word_of(request, "sort_by", SORTS) or "-created_at"
    after, before = time_of(request, "created_after"), time_of(request, "created_before")
    query = request.query_params
    ids = [canonical(text) for text in words_of(request, "id")]

    def read(read: Transaction) -> list[OrderAnswer]:
        scope = scope_of(read, key, query.get("workspace"))
        wanted, sku = query.get("procurement"), query.get("instance_sku")
        capacity = query.get("capacity") or query.get("pool")
        orders = read.orders_page(
            scope.listed,
            ids=ids,
            capacity_id=find_capacity(read, scope, capacity).capacity_id if capacity else None,
            sku_id=find_sku(read, sku).sku_id if sku else None,
            side=side,
            statuses=statuses,
            created_after=after,
            created_before=before,
            procurement_id=find_procurement(read, scope, wanted).procurement_id if wanted else NO_AUTOMATION,
            sort=sort,
            limit=page.fetch,
            after=page.after,
            before=page.before,
        )
        return Shown(read, context.block_s).all(orders)

    rows = await context.store.read(read)
    return page_answer(page, rows, lambda row: row, lambda row: row["id"])


async def get_order(context: Context, request: Request, key: Key) -> Response:
    """One order with its fills."""

    def read(read: Transaction) -> OrderAnswer:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        order = find_order(read, scope, request.path_params["id"])
        return Shown(read, context.block_s).all([order])[0]

    return answer(await context.store.read(read))


async def cancel_order(context: Context, request: Request, key: Key) -> Response:
    """Cancel what is open of an order; what was filled stays. A closed order is answered as it is."""
    now = context.clock()

    def write(write: Transaction) -> OrderAnswer:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        order = find_order(write, scope, request.path_params["id"])
        if order.status in ("pending", "standing", "partially_filled"):
            with context.desk.session(write, now) as market:
                market.cancel(order.order_id)
        found = write.order(order.order_id)
        if found is None:
            raise NotFound(f"there is no order {order.order_id!r}")
        return Shown(write, context.block_s).all([found])[0]

    return answer(await context.store.write(write))


WORKSPACE: Final = Query(
    "workspace", "Another workspace than the key's own, by id or name; for the cluster's operator. Lists take `*`: all."
)
FILTERS: Final[tuple[Query, ...]] = (
    WORKSPACE,
    Query("id", "Only these orders.", repeated=True),
    Query("capacity", "Only orders of this capacity, by id or name."),
    Query("pool", "The same as `capacity`."),
    Query("instance_sku", "Only orders for this kind of node."),
    Query("side", "Only this side.", values=SIDES),
    Query("status", "Only orders in one of these states.", values=STATUSES, repeated=True),
    Query("created_after", "Made after this time, Unix seconds.", "integer"),
    Query("created_before", "Made before this time, Unix seconds.", "integer"),
    Query("procurement", "The orders that this procurement placed."),
    Query("sort_by", "The order of the list; - is descending.", values=SORTS, default="-created_at"),
)
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/orders", create_order, "Place an order", body=NewOrder, answer=OrderAnswer, status=201,
        errors=(402, 409), once=True, query=(WORKSPACE,),
    ),
    Operation(
        "GET", "/v1/orders", list_orders, "List orders", scope="read", answer=OrderAnswer, listed=True,
        query=(*FILTERS, *PAGING),
    ),
    Operation("GET", "/v1/orders/{id}", get_order, "One order", scope="read", answer=OrderAnswer, query=(WORKSPACE,)),
    Operation(
        "DELETE", "/v1/orders/{id}", cancel_order, "Cancel an order", answer=OrderAnswer, query=(WORKSPACE,),
    ),
)  # fmt: skip
