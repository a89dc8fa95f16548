"""What an order would do now, without placing it."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Final, Literal, NotRequired, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.market import views
from nanopod.market.shape import rect, to_schedule
from nanopod.market.terms import Fees, admit_window
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.money import Money, Rate
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.orderbook import books_of
from nanopod.server.api.orders import WORKSPACE
from nanopod.server.api.references import canonical, find_capacity, scope_of, workspace_reference
from nanopod.server.api.settings import Notice, notices_of
from nanopod.server.api.showing import ScheduleEntry, entries_of, price
from nanopod.store.transaction import Transaction


class PreviewOrder(msgspec.Struct, frozen=True):
    """An order to try: all or none, without a limit. `requirements` is `key[:op]:v1,v2;...`; empty means any kind.

    Own orders are skipped: those of the capacity's account, else of the key's.
    """

    side: Literal["buy", "sell"]
    start_at: int
    duration_seconds: int
    node_count: int
    requirements: str = ""
    capacity: str | None = None
    pool: str | None = None
    workspace: str | None = None


class FeeAnswer(TypedDict):
    """What the seller pays of each contract; buyers pay none."""

    flat_dollars_per_node_hour: str
    percentage_bps: int


class PostOrderBody(TypedDict):
    """A body for POST /v1/orders that fills at the estimate if the book has not moved."""

    side: Literal["buy", "sell"]
    instance_sku: str
    allocation_schedule_delta: list[ScheduleEntry]
    limit_price_dollars_per_node_hour: str
    allow_standing: bool
    allow_partial: bool
    capacity: NotRequired[str]


class PreviewAnswer(TypedDict):
    """`quoted` with a body to post, the total in dollars and the average price; or `unavailable` with a reason."""

    type: Literal["quoted", "unavailable"]
    requested_at: int
    fee: FeeAnswer
    notices: list[Notice]
    reason: NotRequired[Literal["no_matching_instance_skus", "no_availability"]]
    post_order_body: NotRequired[PostOrderBody]
    estimated_total: NotRequired[str]
    estimated_average: NotRequired[str]


def _fee(fees: Fees, block_s: int) -> FeeAnswer:
    return {"flat_dollars_per_node_hour": price(Rate(fees.flat), block_s), "percentage_bps": fees.bps}


def _average(amount: int, node_blocks: int, block_s: int) -> str:
    micro = Decimal(amount * (3600 // block_s)) / node_blocks
    return str(Money(int(micro.to_integral_value(ROUND_HALF_UP))))


async def preview_order(context: Context, request: Request, key: Key) -> Response:
    """Run the matcher on the book as it is, for every matching kind of node, and name the cheapest (or dearest)."""
    wish = await body_as(request, PreviewOrder)
    block_s, now = context.block_s, context.clock()
    if wish.duration_seconds <= 0 or wish.duration_seconds % block_s:
        raise Invalid(
            f"duration_seconds: {wish.duration_seconds} must be a positive multiple of {block_s}",
            field="duration_seconds",
        )
    if wish.capacity and wish.pool and canonical(wish.capacity) != canonical(wish.pool):
        raise Invalid(f"capacity: {wish.capacity!r} and pool {wish.pool!r} differ; send one of them", field="capacity")
    end_at = wish.start_at + wish.duration_seconds
    shape = admit_window(wish.start_at, end_at, wish.node_count, now=now, block_s=block_s)
    start, end, nodes = shape[0]
    reference, place = wish.capacity or wish.pool, workspace_reference(request, wish.workspace)

    def read(read: Transaction) -> tuple[Capacity | None, str, list[Notice]]:
        scope = scope_of(read, key, place)
        capacity = find_capacity(read, scope, reference) if reference else None
        return capacity, scope.workspace.account_id, notices_of(read, now)

    capacity, account_id, notices = await context.store.read(read)
    account_id = capacity.account_id if capacity is not None else account_id
    books = {sku.sku_id: exchange for sku, exchange in await books_of(context, wish.requirements)}
    best = views.best_preview(
        [views.preview(book, wish.side, start, end, nodes, account_id) for book in books.values()], wish.side
    )
    book = books.get(best.sku_id)
    shown: PreviewAnswer = {
        "type": "unavailable" if best.unavailable else "quoted",
        "requested_at": int(now),
        "fee": _fee(book.fees if book is not None else Fees(), block_s),
        "notices": notices,
    }
    if best.unavailable:
        shown["reason"] = best.unavailable
        return answer(shown)
    # Time may be on offer for nothing, but nobody may bid nothing: one step then, and the fill is at 0 still.
    limit = max(best.rate, 1) if wish.side == "buy" else best.rate
    body: PostOrderBody = {
        "side": wish.side,
        "instance_sku": best.sku_id,
        "allocation_schedule_delta": entries_of(to_schedule(rect(start, end, nodes), block_s)),
        "limit_price_dollars_per_node_hour": price(Rate(limit), block_s),
        "allow_standing": False,
        "allow_partial": False,
    }
    if capacity is not None:
        body["capacity"] = capacity.capacity_id
    shown["post_order_body"] = body
    shown["estimated_total"] = str(Money(best.amount))
    shown["estimated_average"] = _average(best.amount, best.node_blocks, block_s)
    return answer(shown)


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/order_preview", preview_order, "What an order would do now", scope="read", body=PreviewOrder,
        answer=PreviewAnswer, query=(WORKSPACE,),
    ),
)  # fmt: skip
