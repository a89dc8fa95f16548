"""How typed words become an order: its window, its limit, its preview, its echo; and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from nanopod.client import prices, times
from nanopod.client.cli import show
from nanopod.client.cli.parser import Option, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid, NanopodError
from nanopod.model.money import Money

UNFILLED: Final = 7
"""Exit status of an order that found no counterpart."""
PRICE: Final = "dollars_per_node_hour"
LIMIT: Final = f"limit_price_{PRICE}"
CAPACITIES: Final = "/v1/capacities"
SKUS: Final = "/v1/instance_skus"

WINDOW: Final[tuple[Option, ...]] = (
    option("--start", metavar="TIME", default="now", help="default: now, the next block"),
    option("--duration", metavar="D", help="how long: 90m, 1h, 7d, 2w, 1d12h"),
    option("--stop", "--end", metavar="TIME", help="instead of --duration"),
)
SIZE: Final[tuple[Option, ...]] = (
    option("--nodes", "--count", "-n", type=int, default=1, metavar="N", help="nodes (default: 1)"),
    *WINDOW,
)
CAPACITY: Final = option(
    "--capacity", "--pool", metavar="C", completes=CAPACITIES, help="id or name (default: the only one)"
)
SKU: Final = option(
    "--instance-sku", metavar="SKU", completes=SKUS, help="kind of node, id or name (default: the only one)"
)


@dataclass(frozen=True, slots=True)
class Span:
    """A window on block boundaries, as it was meant and as it is sent."""

    start_at: int
    end_at: int
    typed_duration: str

    @property
    def seconds(self) -> int:
        """Its length."""
        return self.end_at - self.start_at


def span_of(session: Session, *, past: bool = False) -> Span:
    """The window of `--start` with `--duration` or `--stop`; says when alignment moved a time.

    Raises `Invalid` for options that do not fit, and unless `past` for a start that lies more than a block back.
    """
    args, block_s = session.args, session.cluster.block_s
    if bool(args.duration) == bool(args.stop):
        raise Invalid("give --duration or --stop" + (", not both" if args.stop else ""), field="duration")
    word = (args.start or "now").strip()
    if word.lower() == "now":
        start_at = (int(session.now) // block_s + 1) * block_s
    else:
        start_at = _aligned(session, session.time(word, "start"), "start")
        if start_at < session.now - block_s and not past:
            first = session.when((int(session.now) // block_s + 1) * block_s)
            told = f"--start {word!r} is {session.when(start_at)}, which is past; the first is {first}"
            raise Invalid(told, field="start")
    if args.stop:
        end_at = _aligned(session, session.time(args.stop, "stop"), "stop")
        if end_at <= start_at:
            raise Invalid(
                f"--stop {args.stop!r} is {session.when(end_at)}, not after the start {session.when(start_at)}",
                field="stop",
            )
        return Span(start_at, end_at, times.duration_text(end_at - start_at))
    seconds = times.parse_duration(args.duration)
    whole = times.aligned_up(seconds, block_s)
    if whole != seconds:
        session.note(f"--duration {args.duration} became {times.duration_text(whole)}: a block is {block_s} s")
    return Span(start_at, start_at + whole, args.duration if whole == seconds else times.duration_text(whole))


def held_span(session: Session) -> Span:
    """For a sale without a length: from `--start` (else from the first block held) for as long as so much is held.

    Raises `Invalid` when less than `--nodes` is held then.
    """
    args, block_s = session.args, session.cluster.block_s
    args.capacity, args.instance_sku = capacity_of(session), sku_of(session)
    sku_id = session.api.get(session.path(SKUS, args.instance_sku))["id"]
    row = session.api.get(session.path(CAPACITIES, args.capacity), **session.scope)
    held = (row.get("allocation_schedule") or {}).get("by_instance_sku", {}).get(sku_id, [])
    now = (args.start or "now").strip().lower() == "now"
    typed = session.now if now else _aligned(session, session.time(args.start, "start"), "start")
    first = max((int(session.now) // block_s + 1) * block_s, int(typed))
    runs = [entry for entry in held if entry["node_count"] >= args.nodes and (entry["end_at"] or first + 1) > first]
    if not runs or (not now and runs[0]["start_at"] > first):
        raise Invalid(f"--nodes: {row.get('name')} does not hold {args.nodes} then; see: nanopod capacities get "
                      f"{row.get('name')} --verbose", field="nodes")  # fmt: skip
    start_at, end_at = max(first, runs[0]["start_at"]), runs[0]["end_at"]
    for entry in runs[1:]:
        if entry["start_at"] != end_at:
            break
        end_at = entry["end_at"]
    if end_at is None:
        raise Invalid("give --duration or --stop: what is held has no end", field="duration")
    session.note(f"selling what {row.get('name')} holds: {session.period(start_at, end_at)}")
    return Span(start_at, end_at, times.duration_text(end_at - start_at))


def _aligned(session: Session, seconds: float | None, field: str) -> int:
    assert seconds is not None, "only given times are aligned"
    block_s = session.cluster.block_s
    moved = times.aligned_up(seconds, block_s)
    if moved != int(seconds):
        session.note(f"--{field} moved to {session.when(moved)}, the next block (a block is {block_s} s)")
    return moved


def capacity_of(session: Session) -> str:
    """`--capacity`, or the only one, or the picked one."""
    if session.args.capacity:
        return str(session.args.capacity)
    picked = session.pick(
        CAPACITIES, flag="capacity", label=lambda row: str(row.get("name")),
        wanted=lambda row: row.get("kind") in (None, "market"),
        missing="make one with: nanopod capacities create --name NAME",
    )  # fmt: skip
    return str(picked["id"])


def sku_of(session: Session) -> str:
    """`--instance-sku`, or the only one, or the picked one."""
    if session.args.instance_sku:
        return str(session.args.instance_sku)
    picked = session.pick(
        SKUS, flag="instance-sku", label=sku_label, missing="no node has joined, or none is like that",
        requirements=getattr(session.args, "require", None) or None,
    )  # fmt: skip
    return str(picked["id"])


def sku_label(row: Mapping[str, Any]) -> str:
    """What a kind of node is called."""
    return str(row.get("alias") or row.get("name") or row.get("id"))


def entry_of(span: Span, nodes: int) -> list[dict[str, int]]:
    """The schedule of an order: one entry with both ends."""
    if nodes < 1:
        raise Invalid(f"--nodes {nodes} must be 1 or more", field="nodes")
    return [{"start_at": span.start_at, "end_at": span.end_at, "node_count": nodes}]


def typed_limit(session: Session, side: str, span: Span) -> prices.Limit | None:
    """The limit that the options name, or None. Raises `Invalid` for options of the other side."""
    args, block_s = session.args, session.cluster.block_s
    highest, total, lowest = (getattr(args, name, None) for name in ("max_rate", "max_price", "min_rate"))
    if side == "buy" and lowest is not None:
        raise Invalid("--min-rate is for selling; a buy takes --max-rate or --max-price", field="min-rate")
    if side == "sell" and (highest is not None or total is not None):
        raise Invalid("--max-rate and --max-price are for buying; a sell takes --min-rate", field="min-rate")
    if highest is not None and total is not None:
        raise Invalid("give --max-rate (per node-hour) or --max-price (in total), not both", field="max-price")
    if total is not None:
        limit = prices.limit_of_total(total, args.nodes * span.seconds // block_s, block_s=block_s)
        session.note(
            f"--max-price {total} is {limit.echo} $/node-hour, rounded down so that the total cannot exceed it"
        )
        return limit
    if highest is not None:
        return prices.limit_of(highest, block_s=block_s, field="max-rate")
    return prices.limit_of(lowest, block_s=block_s, field="min-rate") if lowest is not None else None


def preview(
    session: Session, side: str, span: Span, nodes: int, *, capacity: str | None, requirements: str | None = None
) -> dict[str, Any]:
    """What the market would do with this order now."""
    body: dict[str, Any] = {
        "side": side, "start_at": span.start_at, "duration_seconds": span.seconds, "node_count": nodes,
        "requirements": requirements or "",
    }  # fmt: skip
    if capacity:
        body["capacity"] = capacity
    return session.api.post("/v1/order_preview", {**session.scope, **body})


def fee_of(found: Mapping[str, Any], nodes: int, seconds: int, total: Money) -> Money:
    """What the seller pays by the preview's fee."""
    fee = found.get("fee") or {}
    flat = Decimal(str(fee.get(f"flat_{PRICE}") or 0)) * nodes * seconds / 3600
    return Money(int(flat * 1_000_000) + total.micro * int(fee.get("percentage_bps") or 0) // 10_000)


def preview_facts(
    session: Session, found: Mapping[str, Any], side: str, nodes: int, span: Span
) -> list[tuple[str, Any]]:
    """The rows of a preview's card."""
    seconds = span.seconds
    body = found.get("post_order_body") or {}
    fee = found.get("fee") or {}
    facts: list[tuple[str, Any]] = [
        ("PREVIEW", found.get("type")),
        ("REASON", found.get("reason")),
        ("SIDE", side),
        ("INSTANCE SKU", _sku_name(session, body.get("instance_sku"))),
        ("NODES", nodes),
        ("PERIOD", session.period(span.start_at, span.end_at)),
        ("NODE-HOURS", prices.hours_text(nodes * seconds)),
        ("LIMIT", body.get(LIMIT) and f"{body[LIMIT]} $/node-hour (the worst price it needs)"),
        ("AVERAGE", found.get("estimated_average") and f"{found['estimated_average']} $/node-hour"),
        ("TOTAL", found.get("estimated_total") and prices.money_text(found["estimated_total"])),
    ]
    if side == "buy" and body.get(LIMIT):
        limit = prices.limit_of(str(body[LIMIT]), block_s=session.cluster.block_s, field="limit")
        hold = limit.rate.amount(nodes * seconds // limit.block_s)
        facts.append(("HOLD", prices.money_text(hold)))
    flat, bps = fee.get(f"flat_{PRICE}") or "0", int(fee.get("percentage_bps") or 0)
    facts.append(("FEE", f"{flat} $/node-hour + {bps / 100:g}% (the seller pays)"))
    for notice in found.get("notices") or ():
        facts.append(("NOTICE", f"{notice.get('title')}: {notice.get('description')}"))
    return facts


def _sku_name(session: Session, reference: str | None) -> str | None:
    return sku_label(session.api.get(session.path(SKUS, reference))) if reference else None


def place(session: Session, body: dict[str, Any]) -> int:
    """Post an order, wait for its outcome, show it. Exit status 7 when it did not fill."""
    order = session.api.post("/v1/orders", {**session.scope, **body}, once=True)
    path = session.path("/v1/orders", str(order.get("id")))
    order = session.wait_until(
        lambda: session.api.get(path, **session.scope), lambda row: row.get("status") != "pending", order
    )
    from nanopod.client.cli.orders import NOUN

    NOUN.card(session, order)
    status, filled = order.get("status"), bool(order.get("fills") or order.get("filled_allocation_schedule_delta"))
    if status == "pending":
        session.note(f"it is still pending and stays listed: nanopod orders get {order.get('id')}")
    if status in ("cancelled", "rejected") and not filled:
        session.note(f"it did not fill ({order.get('cancel_reason') or status}); nothing was paid")
        return UNFILLED
    if status == "cancelled":
        session.note("it filled in part; the rest was cancelled")
    return 0


def trade(session: Session, side: str) -> int:
    """Make an order of the options and place it; without a limit the preview is shown first, and asked about."""
    args = session.args
    span = held_span(session) if side == "sell" and not (args.duration or args.stop) else span_of(session)
    schedule = entry_of(span, args.nodes)
    quote_only = bool(getattr(args, "quote", False))
    limit = typed_limit(session, side, span)
    if limit is None or quote_only:
        return _previewed(session, side, span, limit, quote_only)
    capacity, sku = capacity_of(session), sku_of(session)
    fee = None
    if side == "sell":
        fee = _fee(session, span, limit.rate.amount(args.nodes * span.seconds // limit.block_s))
    _say(session, f"{session.period(span.start_at, span.end_at)}")
    _say(
        session,
        prices.echo(
            side=side, nodes=args.nodes, duration=span.typed_duration, seconds=span.seconds, limit=limit, fee=fee
        ),
    )
    if session.interactive:
        session.confirm("Place this order?", otherwise="")
    return place(session, {
        "capacity": capacity, "side": side, "instance_sku": sku, "allocation_schedule_delta": schedule,
        LIMIT: limit.wire, **_flags(args),
    })  # fmt: skip


def _flags(args: Any) -> dict[str, bool]:
    return {name: True for name in ("allow_standing", "allow_partial") if getattr(args, name, False)}


def _fee(session: Session, span: Span, total: Money) -> Money | None:
    nodes = session.args.nodes
    try:
        return fee_of(preview(session, "sell", span, nodes, capacity=None), nodes, span.seconds, total)
    except NanopodError:
        return None  # an echo without the fee is better than no order


def _previewed(session: Session, side: str, span: Span, limit: prices.Limit | None, quote_only: bool) -> int:
    args = session.args
    requirements = getattr(args, "require", None)
    if args.instance_sku:
        requirements = ";".join(part for part in (requirements, f"instance_sku:{args.instance_sku}") if part)
    capacity = args.capacity if quote_only else capacity_of(session)
    found = preview(session, side, span, args.nodes, capacity=capacity, requirements=requirements)
    if session.json and quote_only:
        show.print_json(found)
    elif not session.json:
        show.print_card(preview_facts(session, found, side, args.nodes, span))
    if found.get("type") != "quoted":
        if session.json and not quote_only:
            show.print_json(found)
        session.note(_advice(side, found))
        return UNFILLED
    if quote_only:
        return 0
    body = {**found["post_order_body"], **_flags(args)}
    body.setdefault("capacity", capacity)
    if session.json and not getattr(args, "yes", False):
        raise Invalid("an order without a limit needs -y (take the preview), or a limit: --max-rate, --min-rate")
    session.confirm(
        "Place this order?",
        otherwise="an order without a limit needs -y (take the preview above), or a limit: --max-rate, --min-rate",
    )
    return place(session, body)


def _advice(side: str, found: Mapping[str, Any]) -> str:
    reason = found.get("reason") or "unavailable"
    way = "--max-rate R --allow-standing" if side == "buy" else "--min-rate R --allow-standing"
    return f"nothing would trade now ({reason}); to wait in the book, name a limit: {way}"


def _say(session: Session, text: str) -> None:
    if session.json:
        session.note(text)
    else:
        print(text, flush=True)
