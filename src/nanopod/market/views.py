"""What anyone may see of a book: best prices, depth, windows on offer, past fills, and what an order would cost.

Nothing here names an account, and nothing changes the book. Shapes are clipped to the window that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nanopod.market.exchange import Exchange
from nanopod.market.match import propose
from nanopod.market.outcome import Fill
from nanopod.market.resting import Resting
from nanopod.market.shape import FOREVER, Shape, cut, rect, total, volume
from nanopod.market.side import ANY
from nanopod.market.terms import NODES_MAX
from nanopod.model.errors import Invalid
from nanopod.model.order import Side

DEPTH_MAX: Final = 100
FILLS_DAYS_MAX: Final = 30
FILLS_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class PriceLevel:
    """All resting time at one rate; `whole_shape` is the share that trades only whole orders at once."""

    rate: int
    shape: Shape
    whole_shape: Shape


@dataclass(frozen=True, slots=True)
class Quote:
    """The best level of each side that overlaps a window."""

    best_bid: PriceLevel | None
    best_ask: PriceLevel | None


@dataclass(frozen=True, slots=True)
class WindowRow:
    """Orders that have exactly this open extent."""

    start: int
    end: int
    bids: int
    asks: int
    best_bid: PriceLevel | None
    best_ask: PriceLevel | None


@dataclass(frozen=True, slots=True)
class PastFill:
    """A fill as everyone sees it."""

    rate: int
    shape: Shape
    block: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What an all-or-none order would do now. `rate` is the limit to post: the worst one used, since limits hold per
    fill. `unavailable` says why there is no price."""

    sku_id: str
    rate: int = 0
    amount: int = 0
    node_blocks: int = 0
    unavailable: Literal["", "no_availability", "no_matching_instance_skus"] = ""


def levels(exchange: Exchange, side: Side, start: int, end: int) -> Iterator[PriceLevel]:
    """Price levels that overlap `[start, end)`, best first."""
    gathered: list[Resting] = []
    for order in exchange.sides[side].walk(start, end):
        if not any(s < end and e > start for s, e, _ in order.left):
            continue
        if gathered and gathered[0].rate != order.rate:
            yield _level(gathered, start, end)
            gathered = []
        gathered.append(order)
    if gathered:
        yield _level(gathered, start, end)


def _level(orders: Sequence[Resting], start: int, end: int) -> PriceLevel:
    shapes = [(order.whole, cut(order.left, start, end)) for order in orders]
    whole = total(shape for is_whole, shape in shapes if is_whole)
    return PriceLevel(orders[0].rate, total(shape for _, shape in shapes), whole)


def quote(exchange: Exchange, start: int, end: int) -> Quote:
    """The best bid and ask for time in a window; either may be None."""
    return Quote(*(next(levels(exchange, side, start, end), None) for side in ("buy", "sell")))


def depth(exchange: Exchange, start: int, end: int, count: int = 20) -> tuple[list[PriceLevel], list[PriceLevel]]:
    """The first `count` levels: bids descending, asks ascending. Raises `Invalid` outside 1..100."""
    if not 1 <= count <= DEPTH_MAX:
        raise Invalid(f"depth: {count} must be from 1 to {DEPTH_MAX}", field="depth")
    sides: list[list[PriceLevel]] = []
    for side in ("buy", "sell"):
        walk = levels(exchange, side, start, end)
        sides.append([level for level, _ in zip(walk, range(count), strict=False)])
    return sides[0], sides[1]


def windows(exchange: Exchange, start: int, end: int) -> list[WindowRow]:
    """One row per distinct open extent of resting orders that overlap the range, sorted by start and end."""
    rows: dict[tuple[int, int], dict[str, list[Resting]]] = {}
    for side in ("buy", "sell"):
        for order in exchange.sides[side].walk(start, end):
            row = rows.setdefault((order.start, order.end), {"buy": [], "sell": []})
            row[side].append(order)
    out = []
    for (low, high), row in sorted(rows.items()):
        best = [
            _level([order for order in orders if order.rate == orders[0].rate], low, high) if orders else None
            for orders in (row["buy"], row["sell"])
        ]
        out.append(WindowRow(low, high, len(row["buy"]), len(row["sell"]), best[0], best[1]))
    return out


def fills(
    history: Iterable[Fill], start: int, end: int, *, block: int, since: int | None = None, day_blocks: int = 1440
) -> list[PastFill]:
    """Past fills of time in a window, newest first. Raises `Invalid` for a `since` more than 30 days ago."""
    first = block - FILLS_DAYS * day_blocks if since is None else since
    if first < block - FILLS_DAYS_MAX * day_blocks:
        raise Invalid(f"since_at: is more than {FILLS_DAYS_MAX} days ago", field="since_at")
    found = [
        (fill.block, fill.number, PastFill(fill.rate, part, fill.block))
        for fill in history
        if fill.block >= first and (part := cut(fill.shape, start, end))
    ]
    return [past for _, _, past in sorted(found, key=_newest)]


def _newest(item: tuple[int, int, PastFill]) -> tuple[int, int]:
    return -item[0], -item[1]


def availability(exchange: Exchange, start: int = 0, end: int = FOREVER) -> Shape:
    """Nodes on offer per block, at any price."""
    return total(cut(order.left, start, end) for order in exchange.sides["sell"].walk(start, end))


def preview(exchange: Exchange, side: Side, start: int, end: int, nodes: int, account_id: str = "") -> Preview:
    """Run the real matcher, all-or-none and without a limit, on the book as it is; own orders are skipped."""
    if not 1 <= nodes <= NODES_MAX:
        raise Invalid(f"node_count: {nodes} must be from 1 to {NODES_MAX}", field="node_count")
    shape = rect(max(start, exchange.block), end, nodes)
    if not shape:
        raise Invalid("start_at: the window has passed", field="start_at")
    taker = Resting(
        order_id="",
        seq=exchange.seq + 1,
        account_id=account_id,
        capacity_id="",
        side=side,
        rate=0,
        left=shape,
        whole=True,
    )
    plan = propose(taker, exchange.sides["sell" if side == "buy" else "buy"], key_max=ANY)
    if not plan.takes:
        return Preview(exchange.sku_id, unavailable="no_availability")
    rates = [take.maker.rate for take in plan.takes]
    return Preview(exchange.sku_id, max(rates) if side == "buy" else min(rates), plan.amount, volume(shape))


def best_preview(found: Sequence[Preview], side: Side) -> Preview:
    """Of previews for every matching SKU, the one with the lowest total, or the highest proceeds; ties by SKU."""
    if not found:
        return Preview("", unavailable="no_matching_instance_skus")
    priced = [one for one in found if not one.unavailable]
    if not priced:
        return found[0]
    sign = 1 if side == "buy" else -1
    return min(priced, key=lambda one: (sign * one.amount, one.sku_id))
