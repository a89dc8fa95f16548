"""The order book as everyone sees it: best prices, depth, windows, past fills. Participants are never shown."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.market import views
from nanopod.market.exchange import Exchange
from nanopod.market.shape import FOREVER, cut, from_schedule, to_schedule
from nanopod.model.capacity import Sku
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.money import Rate
from nanopod.model.order import Contract
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import time_of, whole_of
from nanopod.server.api.requirements import matching, parse
from nanopod.server.api.showing import ScheduleEntry, Summary, entries_of, price
from nanopod.store.transaction import Transaction

DAY_S: Final = 86_400
FILLS_MAX: Final = 1_000
ROWS_MAX: Final = 5_000


class PriceLevel(TypedDict):
    """All resting time of one kind at one price; `all_or_none_schedule_delta` is the share that trades only whole."""

    instance_sku: Summary
    dollars_per_node_hour: str
    allocation_schedule_delta: list[ScheduleEntry]
    all_or_none_schedule_delta: list[ScheduleEntry]


class QuoteAnswer(TypedDict):
    """The best price of each side for time in a window."""

    object: Literal["orderbook_quote"]
    requested_at: int
    best_bid: PriceLevel | None
    best_ask: PriceLevel | None


class DepthAnswer(TypedDict):
    """Bids falling, asks rising."""

    object: Literal["orderbook_depth"]
    requested_at: int
    bids: list[PriceLevel]
    asks: list[PriceLevel]


class WindowAnswer(TypedDict):
    """Orders that have exactly this open extent."""

    instance_sku: Summary
    start_at: int
    end_at: int
    duration_hours: float
    duration_minutes: float
    total_bid_order_count: int
    total_ask_order_count: int
    best_bid: PriceLevel | None
    best_ask: PriceLevel | None


class WindowsAnswer(TypedDict):
    """The windows that are bid for or on offer, by start, end and kind."""

    object: Literal["list"]
    requested_at: int
    cursor: None
    has_more: bool
    data: list[WindowAnswer]


class PastFill(TypedDict):
    """A fill as everyone sees it."""

    instance_sku: Summary
    dollars_per_node_hour: str
    allocation_schedule_delta: list[ScheduleEntry]
    filled_at: int


class FillsAnswer(TypedDict):
    """What traded, newest first."""

    object: Literal["list"]
    requested_at: int
    cursor: None
    has_more: bool
    data: list[PastFill]


def _summary(sku: Sku) -> Summary:
    return {"id": sku.sku_id, "name": sku.alias}


def _level(sku: Sku, level: views.PriceLevel | None, block_s: int) -> PriceLevel | None:
    return None if level is None else _whole_level(sku, level, block_s)


def _whole_level(sku: Sku, level: views.PriceLevel, block_s: int) -> PriceLevel:
    return {
        "instance_sku": _summary(sku),
        "dollars_per_node_hour": price(Rate(level.rate), block_s),
        "allocation_schedule_delta": entries_of(to_schedule(level.shape, block_s)),
        "all_or_none_schedule_delta": entries_of(to_schedule(level.whole_shape, block_s)),
    }


async def books_of(context: Context, text: str) -> list[tuple[Sku, Exchange]]:
    """The kinds of nodes that meet a filter and have a book, with their books. Raises `Invalid` for a bad filter."""
    rules = parse(text)
    skus = matching(rules, await context.store.read(lambda read: read.skus()))
    found = ((sku, context.books.exchange(sku.sku_id)) for sku in skus)
    return [(sku, exchange) for sku, exchange in found if exchange is not None]


def window_blocks(
    context: Context, request: Request, start: str = "start_at", end: str = "end_at", *, needed: bool = True
) -> tuple[int, int]:
    """The blocks that a window in the query touches. Raises `Invalid`."""
    start_at, end_at = time_of(request, start, needed=needed), time_of(request, end, needed=needed)
    if start_at is not None and end_at is not None and end_at <= start_at:
        raise Invalid(f"{end}: {end_at} must be after {start} {start_at}", field=end)
    block_s = context.block_s
    return (
        start_at // block_s if start_at is not None else 0,
        -(-end_at // block_s) if end_at is not None else FOREVER,
    )


def _filter(request: Request) -> str:
    return request.query_params.get("requirements", "")


async def quote(context: Context, request: Request, _key: Key) -> Response:
    """The best bid and ask whose resting time overlaps the window, clipped to it; either may be null."""
    start, end = window_blocks(context, request)
    best: dict[str, tuple[Sku, views.PriceLevel] | None] = {"bid": None, "ask": None}
    for sku, exchange in await books_of(context, _filter(request)):
        found = views.quote(exchange, start, end)
        for side, level, sign in (("bid", found.best_bid, -1), ("ask", found.best_ask, 1)):
            known = best[side]
            if level is not None and (known is None or sign * level.rate < sign * known[1].rate):
                best[side] = (sku, level)
    bid, ask = best["bid"], best["ask"]
    shown: QuoteAnswer = {
        "object": "orderbook_quote",
        "requested_at": int(context.clock()),
        "best_bid": _level(*bid, context.block_s) if bid is not None else None,
        "best_ask": _level(*ask, context.block_s) if ask is not None else None,
    }
    return answer(shown)


async def depth(context: Context, request: Request, _key: Key) -> Response:
    """The first levels of each side over all matching kinds of nodes."""
    start, end = window_blocks(context, request)
    count = whole_of(request, "depth", default=20, least=1, most=views.DEPTH_MAX) or 20
    bids: list[tuple[int, str, Sku, views.PriceLevel]] = []
    asks: list[tuple[int, str, Sku, views.PriceLevel]] = []
    for sku, exchange in await books_of(context, _filter(request)):
        buying, selling = views.depth(exchange, start, end, count)
        bids += [(-level.rate, sku.sku_id, sku, level) for level in buying]
        asks += [(level.rate, sku.sku_id, sku, level) for level in selling]
    shown: DepthAnswer = {
        "object": "orderbook_depth",
        "requested_at": int(context.clock()),
        "bids": _first(bids, count, context.block_s),
        "asks": _first(asks, count, context.block_s),
    }
    return answer(shown)


def _first(rows: Iterable[tuple[int, str, Sku, views.PriceLevel]], count: int, block_s: int) -> list[PriceLevel]:
    best = heapq.nsmallest(count, rows, key=lambda row: row[:2])
    return [_whole_level(sku, level, block_s) for _, _, sku, level in best]


async def windows(context: Context, request: Request, _key: Key) -> Response:
    """One row per distinct open extent of resting orders that overlap the range."""
    start, end = window_blocks(context, request, "range_start_at", "range_end_at")
    block_s = context.block_s
    rows = [
        (row.start, row.end, sku.sku_id, sku, row)
        for sku, exchange in await books_of(context, _filter(request))
        for row in views.windows(exchange, start, end)
    ]
    rows.sort(key=lambda row: row[:3])
    shown: WindowsAnswer = {
        "object": "list",
        "requested_at": int(context.clock()),
        "cursor": None,
        "has_more": len(rows) > ROWS_MAX,
        "data": [
            {
                "instance_sku": _summary(sku),
                "start_at": low * block_s,
                "end_at": high * block_s,
                "duration_hours": (high - low) * block_s / 3600,
                "duration_minutes": (high - low) * block_s / 60,
                "total_bid_order_count": row.bids,
                "total_ask_order_count": row.asks,
                "best_bid": _level(sku, row.best_bid, block_s),
                "best_ask": _level(sku, row.best_ask, block_s),
            }
            for low, high, _, sku, row in rows[:ROWS_MAX]
        ],
    }
    return answer(shown)


async def fills(context: Context, request: Request, _key: Key) -> Response:
    """What traded since `since_at` (7 days ago unless given, at most 30) with time in the window, newest first."""
    start, end = window_blocks(context, request, needed=False)
    limit = whole_of(request, "limit", default=FILLS_MAX, least=1, most=FILLS_MAX) or FILLS_MAX
    now, block_s = int(context.clock()), context.block_s
    since_at = time_of(request, "since_at")
    if since_at is None:
        since_at = now - views.FILLS_DAYS * DAY_S
    elif since_at < now - views.FILLS_DAYS_MAX * DAY_S:
        raise Invalid(
            f"since_at: {since_at} is more than {views.FILLS_DAYS_MAX} days ago; use "
            f"{now - views.FILLS_DAYS_MAX * DAY_S} or later",
            field="since_at",
        )
    rules = parse(_filter(request))

    def read(read: Transaction) -> tuple[dict[str, Sku], list[Contract]]:
        skus = {sku.sku_id: sku for sku in matching(rules, read.skus())}
        return skus, read.fills_since(list(skus), since_at, limit + 1) if skus else []

    skus, contracts = await context.store.read(read)
    data: list[PastFill] = []
    for contract in contracts[:limit]:
        shape = cut(from_schedule(contract.schedule, block_s), start, end)
        if shape:
            data.append(
                {
                    "instance_sku": _summary(skus[contract.sku_id]),
                    "dollars_per_node_hour": price(contract.rate, block_s),
                    "allocation_schedule_delta": entries_of(to_schedule(shape, block_s)),
                    "filled_at": int(contract.filled_at),
                }
            )
    shown: FillsAnswer = {
        "object": "list", "requested_at": now, "cursor": None, "has_more": len(contracts) > limit, "data": data,
    }  # fmt: skip
    return answer(shown)


REQUIREMENTS: Final = Query("requirements", "Which kinds of nodes: `key[:op]:v1,v2;key2:v`; all unless given.")
_WINDOW: Final = (
    Query("start_at", "The window's start, Unix seconds.", "integer", required=True),
    Query("end_at", "The window's end, Unix seconds.", "integer", required=True),
)
OPERATIONS: Final = (
    Operation(
        "GET", "/v1/orderbook/quote", quote, "The best bid and ask", scope="read", answer=QuoteAnswer,
        query=(REQUIREMENTS, *_WINDOW),
    ),
    Operation(
        "GET", "/v1/orderbook/depth", depth, "Bids and asks by price", scope="read", answer=DepthAnswer,
        query=(
            REQUIREMENTS, *_WINDOW,
            Query("depth", "Levels of each side.", "integer", least=1, most=views.DEPTH_MAX, default=20),
        ),
    ),
    Operation(
        "GET", "/v1/orderbook/windows", windows, "The windows that are bid for or on offer", scope="read",
        answer=WindowsAnswer,
        query=(
            REQUIREMENTS,
            Query("range_start_at", "The range's start, Unix seconds.", "integer", required=True),
            Query("range_end_at", "The range's end, Unix seconds.", "integer", required=True),
        ),
    ),
    Operation(
        "GET", "/v1/orderbook/fills", fills, "What traded", scope="read", answer=FillsAnswer,
        query=(
            REQUIREMENTS,
            Query("start_at", "Only fills with time from here on, Unix seconds.", "integer"),
            Query("end_at", "Only fills with time before this, Unix seconds.", "integer"),
            Query("since_at", "Only fills since then, Unix seconds; 7 days ago unless given.", "integer"),
            Query("limit", "Rows at most.", "integer", least=1, most=FILLS_MAX, default=FILLS_MAX),
        ),
    ),
)  # fmt: skip
