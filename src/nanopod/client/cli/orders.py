"""`nanopod orders create|list|get|cancel|preview`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import ordering, show
from nanopod.client.cli.nouns import Noun, commands, field_of, given, name_of
from nanopod.client.cli.ordering import LIMIT, PRICE
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session

STATUSES: Final = ("pending", "standing", "partially_filled", "filled", "cancelled", "rejected")


def period(session: Session, row: Mapping[str, Any], name: str = "allocation_schedule_delta") -> str | None:
    """From the first start to the last end of a schedule."""
    schedule = row.get(name) or []
    return session.period(schedule[0]["start_at"], schedule[-1].get("end_at")) if schedule else None


def nodes(row: Mapping[str, Any], name: str = "allocation_schedule_delta") -> str | None:
    """How many nodes a schedule has: `4`, or `1-4`."""
    counts = [int(entry["node_count"]) for entry in row.get(name) or []]
    if not counts:
        return None
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _rate(_session: Session, row: Mapping[str, Any]) -> str | None:
    limit, typed = row.get(LIMIT), row.get("requested_limit_price")
    if limit is None:
        return None
    said = f" (you typed {typed})" if typed and prices.amount_of(typed) != prices.amount_of(limit) else ""
    return f"{limit} $/node-hour{said}"


def _filled(session: Session, row: Mapping[str, Any]) -> str | None:
    schedule = row.get("filled_allocation_schedule_delta") or []
    if not schedule:
        return None
    hours = prices.hours_text(prices.node_seconds(schedule))
    return f"{prices.nodes_text(nodes(row, 'filled_allocation_schedule_delta'))}, {hours} node-hours"


def _total(_session: Session, row: Mapping[str, Any]) -> str | None:
    return prices.money_text(row["total"]) if row.get("total") is not None else None


def _hold(_session: Session, row: Mapping[str, Any]) -> str | None:
    return prices.money_text(row["hold"]) if prices.amount_of(row.get("hold")).micro else None


def _fills(session: Session, row: Mapping[str, Any]) -> str | None:
    lines = [
        f"{prices.nodes_text(nodes(fill))}, {period(session, fill)}, {fill.get(f'price_{PRICE}')} $/node-hour"
        f"  {fill.get('contract')}"
        for fill in row.get("fills") or ()
    ]
    return "\n".join(lines) or None


def _status(_session: Session, row: Mapping[str, Any]) -> str:
    reason = row.get("cancel_reason")
    return f"{row.get('status')} ({reason})" if reason else str(row.get("status"))


def _by(_session: Session, row: Mapping[str, Any]) -> Any:
    by = row.get("created_by")
    return (by.get("name") or by.get("email") or by.get("id")) if isinstance(by, Mapping) else by


def _average(_session: Session, row: Mapping[str, Any]) -> str | None:
    value = row.get(f"filled_average_price_{PRICE}")
    return f"{value} $/node-hour" if value else None


NOUN: Final = Noun(
    "order", "orders", "/v1/orders",
    columns=[
        ("ORDER ID", field_of("id")),
        ("SIDE", field_of("side")),
        ("STATUS", _status),
        ("CAPACITY", name_of("capacity")),
        ("NODES", lambda _s, row: nodes(row)),
        ("PERIOD", period),
        ("RATE", lambda _s, row: row.get(LIMIT)),
        ("TOTAL", _total),
    ],
    wide=[
        ("INSTANCE SKU", name_of("instance_sku")),
        ("FILLED", _filled),
        ("AVERAGE", _average),
        ("HOLD", _hold),
        ("PROCUREMENT", name_of("procurement")),
        ("CREATED", lambda session, row: session.when(row.get("created_at"))),
    ],
    facts=[
        ("ORDER ID", field_of("id")),
        ("SIDE", field_of("side")),
        ("STATUS", _status),
        ("CAPACITY", name_of("capacity")),
        ("INSTANCE SKU", name_of("instance_sku")),
        ("NODES", lambda _s, row: nodes(row)),
        ("PERIOD", period),
        ("NODE-HOURS", lambda _s, row: prices.hours_text(
            prices.node_seconds(row.get("allocation_schedule_delta") or ()))),
        ("RATE", _rate),
        ("FILLED", _filled),
        ("AVERAGE", _average),
        ("TOTAL", _total),
        ("HOLD", _hold),
        ("FILLS", _fills),
        ("PROCUREMENT", name_of("procurement")),
        ("CREATED", lambda session, row: session.when(row.get("created_at"))),
        ("BY", _by),
    ],
    empty="no orders; make one with: nanopod buy --duration 1h",
)  # fmt: skip

FLAGS: Final = (
    option("--allow-standing", action="store_true", help="what does not fill at once waits in the book"),
    option("--allow-partial", action="store_true", help="fewer nodes, or a part of the time, is fine"),
)
MAX_RATE: Final = option("--max-rate", metavar="$", help="buy: at most so many dollars per node-hour")
MAX_PRICE: Final = option("--max-price", metavar="$", help="buy: at most so many dollars in total")
MIN_RATE: Final = option("--min-rate", metavar="$", help="sell: at least so many dollars per node-hour")
REQUIRE: Final = option("--require", metavar="KEY=V1,V2", action="append", help="only SKUs like this; may be repeated")


def requirements_of(words: list[str] | None) -> str:
    """`--require key=v1,v2` as the API's filter `key:v1,v2;...`."""
    return ";".join(word.replace("=", ":", 1) for word in words or ())


def create(session: Session) -> int:
    """Place an order; with no limit the preview comes first."""
    session.args.require = requirements_of(session.args.require)
    return ordering.trade(session, session.args.side)


def preview(session: Session) -> int:
    """Show what an order would do, and place nothing."""
    session.args.require = requirements_of(session.args.require)
    session.args.quote = True
    return ordering.trade(session, session.args.side)


def cancel(session: Session) -> int:
    """Cancel orders; what was filled stays."""
    for reference in session.args.ids:
        path = session.path(NOUN.path, reference)
        order = session.api.delete(path, **session.scope)
        if order.get("status") not in (None, "cancelled", "filled", "rejected"):
            order = session.wait_until(
                lambda path=path: session.api.get(path, **session.scope),  # type: ignore[misc]
                lambda row: row.get("status") in ("cancelled", "filled", "rejected"),
                order,
            )
        if session.json:
            show.print_json(order)
        else:
            session.out(f"order {order.get('id', reference)} is {order.get('status', 'cancelled')}")
    return 0


def _filters(session: Session) -> Mapping[str, Any]:
    args = session.args
    return {
        **given(args, "capacity", "side", "status", "procurement", sort_by="sort"),
        "created_after": _whole(session.time(args.created_after, "created-after", past=True)),
        "created_before": _whole(session.time(args.created_before, "created-before", past=True)),
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


CREATED: Final = (
    option("--created-after", "--since", metavar="TIME", help="made at or after this time"),
    option("--created-before", "--until", metavar="TIME", help="made before this time"),
)
SIDE: Final = option("--side", choices=("buy", "sell"), required=True)

configure, run = commands(
    Verb(
        "create", "place an order", create,
        (SIDE, ordering.CAPACITY, *ordering.SIZE, MAX_RATE, MAX_PRICE, MIN_RATE, *FLAGS, ordering.SKU, REQUIRE),
        (
            'nanopod orders create --side buy --capacity dev --nodes 1 --start "in 5h" --duration 24h --max-rate 20.00',
            "nanopod orders create --side sell --capacity dev --nodes 2 --duration 6h --min-rate 1.50 --allow-standing",
            "nanopod orders create --side buy --capacity dev --nodes 4 --duration 2d --max-price 500.00 -y",
        ),
        waits=True,
    ),
    NOUN.list_verb(
        ordering.CAPACITY,
        option("--side", choices=("buy", "sell")),
        option("--status", action="append", choices=STATUSES, help="may be repeated"),
        option("--procurement", metavar="P", completes="/v1/procurements", help="those that this procurement placed"),
        option("--sort", metavar="FIELD", choices=("created_at", "-created_at", "start_at", "-start_at")),
        *CREATED,
        query=_filters,
        examples=("nanopod orders list --status standing", 'nanopod orders list --since "in -24h" -o wide'),
    ),
    NOUN.get_verb(examples=("nanopod orders get ordr_...",)),
    Verb(
        "cancel", "take orders back; what was filled stays", cancel,
        (option("ids", metavar="ID", nargs="+", completes=NOUN.path),), ("nanopod orders cancel ordr_...",),
        aliases=("delete",), waits=True,
    ),
    Verb(
        "preview", "say what an order would do now, and place nothing", preview,
        (SIDE, ordering.CAPACITY, *ordering.SIZE, MAX_RATE, MAX_PRICE, MIN_RATE, *FLAGS, ordering.SKU, REQUIRE),
        ("nanopod orders preview --side buy --nodes 32 --duration 3d",),
    ),
)  # fmt: skip
