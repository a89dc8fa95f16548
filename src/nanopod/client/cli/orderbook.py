"""`nanopod orderbook quote|depth|windows|fills`: what the market offers, without names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import ordering, orders, show
from nanopod.client.cli.nouns import commands, named
from nanopod.client.cli.ordering import PRICE
from nanopod.client.cli.parser import Option, Verb, option
from nanopod.client.cli.session import Session

BASE: Final = "/v1/orderbook"
DEFAULT_DURATION: Final = "1h"


def requirements(session: Session) -> dict[str, str]:
    """The filter of `--instance-sku` and `--require`."""
    parts = [f"instance_sku:{session.args.instance_sku}"] if session.args.instance_sku else []
    parts += [word.replace("=", ":", 1) for word in session.args.require or ()]
    return {"requirements": ";".join(parts)} if parts else {}


def _window(session: Session, *names: str) -> dict[str, int]:
    if not (session.args.duration or session.args.stop):
        session.args.duration = DEFAULT_DURATION
    span = ordering.span_of(session, past=True)
    return {names[0]: span.start_at, names[1]: span.end_at}


def _sku(level: Mapping[str, Any]) -> Any:
    return named(level.get("instance_sku"))


def _schedule(session: Session, level: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{prices.nodes_text(entry['node_count'])}  {session.period(entry['start_at'], entry.get('end_at'))}"
        for entry in level.get("allocation_schedule_delta") or ()
    )


def _level(session: Session, level: Mapping[str, Any] | None) -> str:
    if not level:
        return "none"
    return f"{level.get(PRICE)} $/node-hour  {_sku(level)}\n{_schedule(session, level)}"


def _answer(session: Session, verb: str, query: Mapping[str, Any]) -> dict[str, Any] | None:
    """The view; None when it was printed as JSON."""
    found = session.api.get(f"{BASE}/{verb}", **session.scope, **requirements(session), **query)
    if session.json:
        show.print_json(found)
        return None
    return found


def quote(session: Session) -> int:
    """The best bid and ask that overlap the window."""
    found = _answer(session, "quote", _window(session, "start_at", "end_at"))
    if found is not None:
        show.print_card([
            ("BEST BID", _level(session, found.get("best_bid"))), ("BEST ASK", _level(session, found.get("best_ask"))),
            ("AS OF", session.when(found.get("requested_at"))),
        ])  # fmt: skip
    return 0


def depth(session: Session) -> int:
    """Bids and asks by price."""
    limit = {"depth": session.args.depth} if session.args.depth else {}
    found = _answer(session, "depth", {**_window(session, "start_at", "end_at"), **limit})
    if found is None:
        return 0
    levels = [("ask", level) for level in reversed(found.get("asks") or [])]
    levels += [("bid", level) for level in found.get("bids") or []]
    rows = [{"side": side, **level} for side, level in levels]
    columns: list[show.Column] = [
        ("SIDE", show.field("side")), ("RATE", show.field(PRICE)), ("INSTANCE SKU", _sku),
        ("NODES", lambda row: orders.nodes(row)), ("PERIOD", lambda row: orders.period(session, row)),
        ("NODE-HOURS", lambda row: prices.hours_text(prices.node_seconds(row.get("allocation_schedule_delta") or ()))),
    ]  # fmt: skip
    show.print_rows(rows, columns, empty="nobody bids or asks for this time")
    return 0


def windows(session: Session) -> int:
    """The distinct windows that are bid for or on sale."""
    found = _answer(session, "windows", _window(session, "range_start_at", "range_end_at"))
    if found is None:
        return 0
    best: Callable[[Mapping[str, Any], str], Any] = lambda row, side: (row.get(side) or {}).get(PRICE)  # noqa: E731
    columns: list[show.Column] = [
        ("INSTANCE SKU", _sku), ("PERIOD", lambda row: session.period(row["start_at"], row["end_at"])),
        ("HOURS", show.field("duration_hours")), ("BIDS", show.field("total_bid_order_count")),
        ("BEST BID", lambda row: best(row, "best_bid")), ("ASKS", show.field("total_ask_order_count")),
        ("BEST ASK", lambda row: best(row, "best_ask")),
    ]  # fmt: skip
    show.print_rows(found.get("data") or found.get("windows") or [], columns, empty="nothing rests in the book")
    return 0


def fills(session: Session) -> int:
    """What traded, newest first."""
    args = session.args
    query: dict[str, Any] = {}
    if args.duration or args.stop:
        query = _window(session, "start_at", "end_at")
    since = session.time(args.since, "since", past=True)
    found = _answer(session, "fills", {**query, "since_at": None if since is None else int(since)})
    if found is None:
        return 0
    columns: list[show.Column] = [
        ("FILLED", lambda row: session.when(row.get("filled_at"))), ("INSTANCE SKU", _sku),
        ("RATE", show.field(PRICE)), ("NODES", lambda row: orders.nodes(row)),
        ("PERIOD", lambda row: orders.period(session, row)),
    ]  # fmt: skip
    show.print_rows(found.get("data") or found.get("fills") or [], columns, empty="nothing traded")
    return 0


_FILTERS: Final[tuple[Option, ...]] = (ordering.SKU, orders.REQUIRE, *ordering.WINDOW)
configure, run = commands(
    Verb("quote", "show the best bid and ask", quote, _FILTERS,
         ("nanopod orderbook quote --duration 24h", 'nanopod orderbook quote --start "in 5h" --duration 1h')),
    Verb("depth", "show bids and asks by price", depth,
         (*_FILTERS, option("--depth", type=int, metavar="N", help="levels a side, 1 to 100 (default: 20)")),
         ("nanopod orderbook depth --duration 7d --depth 50",)),
    Verb("windows", "show the windows that are bid for or on sale", windows, _FILTERS,
         ("nanopod orderbook windows --duration 7d",)),
    Verb("fills", "show what traded", fills,
         (*_FILTERS, option("--since", metavar="TIME", help='from this time on (default: 7 days ago), e.g. "in -24h"')),
         ('nanopod orderbook fills --since "in -24h"',)),
)  # fmt: skip
