"""`nanopod procurements`: standing wishes that buy the time a capacity needs and sell what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client import prices, times
from nanopod.client.cli import ordering
from nanopod.client.cli.nouns import Noun, commands, field_of, message_of, moment_of, name_of, state_of
from nanopod.client.cli.ordering import PRICE
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid, NanopodError
from nanopod.model.money import Rate

WINDOW_ADVISED_MINUTES: Final = 15
MAX_BUY: Final = f"max_buy_price_{PRICE}"
MIN_SELL: Final = f"min_sell_price_{PRICE}"


def _window(_session: Session, row: Mapping[str, Any]) -> str | None:
    minutes = row.get("managed_window_minutes")
    return None if minutes is None else times.duration_text(60 * int(minutes))


NOUN: Final = Noun(
    "procurement", "procurements", "/v1/procurements",
    columns=[
        ("NAME", field_of("name")), ("CAPACITY", name_of("capacity")), ("TARGET", field_of("target")),
        ("MAX BUY", field_of(MAX_BUY)), ("MIN SELL", field_of(MIN_SELL)), ("WINDOW", _window),
        ("STATUS", state_of), ("MESSAGE", message_of),
    ],
    wide=[
        ("INSTANCE SKU", name_of("instance_sku")), ("ENABLED", field_of("enabled")),
        ("PROTECT MANUAL", field_of("protect_manual")),
        ("EXTENDS BY", lambda _s, row: f"{row.get('extend_quantum_minutes', 1)} min"),
        ("DEPLOYMENT", name_of("deployment")), ("CREATED", moment_of("created_at")), ("ID", field_of("id")),
    ],
    empty="no procurements; make one with: nanopod procurements create --name N --capacity C --max-buy-price 20.00",
)  # fmt: skip


def target_of(text: str | None) -> int | str | None:
    """`node_count` or a number of nodes. Raises `Invalid`."""
    if text is None:
        return None
    word = text.strip().lower().replace("-", "_")
    if word == "node_count":
        return word
    if not word.isdigit():
        raise Invalid(f"--target {text!r} must be node_count, or a number of nodes", field="target")
    return int(word)


def minutes_of(text: str | None, field: str) -> int | None:
    """A duration as whole minutes. Raises `Invalid`."""
    if text is None:
        return None
    seconds = times.parse_duration(text, field=field)
    if seconds % 60:
        raise Invalid(f"--{field} {text!r} must be whole minutes, such as 90m or 2h", field=field)
    return seconds // 60


def body_of(session: Session) -> dict[str, Any]:
    """The fields that the options name."""
    args = session.args
    found: dict[str, Any] = {
        "name": getattr(args, "name", None),
        "target": target_of(args.target),
        "managed_window_minutes": minutes_of(args.window, "window"),
        "extend_quantum_minutes": minutes_of(args.extend_by, "extend-by"),
        "protect_manual": args.protect_manual,
        "enabled": args.enabled,
    }
    for field, typed, flag in (
        (MAX_BUY, args.max_buy_price, "max-buy-price"), (MIN_SELL, args.min_sell_price, "min-sell-price"),
    ):  # fmt: skip
        if typed is not None:
            limit = prices.limit_of(typed, block_s=session.cluster.block_s, field=flag)
            if limit.note():
                session.note(f"--{flag} is {limit.echo} $/node-hour{limit.note()}")
            found[field] = limit.wire
    return {name: value for name, value in found.items() if value is not None}


def create(session: Session) -> int:
    """Make a procurement; says what a full window may cost."""
    body = body_of(session)
    if MAX_BUY not in body:
        raise Invalid("--max-buy-price is needed: the most to pay per node-hour, such as 20.00", field="max-buy-price")
    body.setdefault("target", "node_count")
    body.setdefault(MIN_SELL, Rate(1).dollars_per_node_hour(session.cluster.block_s))
    body |= {"capacity": ordering.capacity_of(session), "instance_sku": ordering.sku_of(session)}
    made = NOUN.create(session, body)
    NOUN.card(session, made)
    _say_costs(session, made)
    if int(made.get("managed_window_minutes") or WINDOW_ADVISED_MINUTES) < WINDOW_ADVISED_MINUTES:
        session.note(
            "a shutdown is known at most one window ahead; at least 15m lets instances hibernate or hand over in time"
        )
    return 0


def _say_costs(session: Session, made: Mapping[str, Any]) -> None:
    """The most that a full window holds, and what of it may be lost on scaling down."""
    try:
        block_s = session.cluster.block_s
        limit = prices.limit_of(str(made[MAX_BUY]), block_s=block_s, field="max-buy-price")
        least = prices.limit_of(str(made[MIN_SELL]), block_s=block_s, field="min-sell-price")
    except (NanopodError, KeyError):
        return
    blocks = int(made.get("managed_window_minutes") or 60) * 60 // block_s
    nodes = int(made["target"]) if str(made.get("target")).isdigit() else 1
    most = limit.rate.amount(nodes * blocks)
    lost = most - least.rate.amount(nodes * blocks)
    session.note(
        f"a full window holds at most {prices.money_text(most)} for {prices.nodes_text(nodes)}; scaled "
        f"down at once, it is sold back for {least.echo} $/node-hour or more, so at most {prices.money_text(lost)} is "
        "lost (a shorter window risks gaps, a longer one this)"
    )


def change(session: Session) -> int:
    """Change it; what is left out stays."""
    NOUN.card(session, NOUN.change(session, body_of(session)))
    return 0


_SETTINGS: Final = (
    option("--target", metavar="N", help="nodes, or node_count: as many as the capacity has instances"),
    option("--max-buy-price", metavar="$", help="the most to pay per node-hour"),
    option("--min-sell-price", metavar="$", help="the least to take per node-hour (default: one step)"),
    option("--window", metavar="D", help="how far ahead time is kept (default: 1h; at most 90d)"),
    option("--extend-by", metavar="D", help="extend the far edge by so much at once (default: 1m)"),
)
_SWITCHES: Final = (
    option("--protect-manual", dest="protect_manual", action="store_true", default=None,
           help="never sell time that was bought by hand (default)"),
    option("--no-protect-manual", dest="protect_manual", action="store_false", default=None,
           help="sell any time above the target"),
    option("--enable", dest="enabled", action="store_true", default=None, help="let it work (default)"),
    option("--disable", dest="enabled", action="store_false", default=None, help="stop it; its orders are cancelled"),
)  # fmt: skip
configure, run = commands(
    Verb(
        "create", "keep a capacity supplied", create,
        (option("--name", "-n", metavar="NAME", required=True), ordering.CAPACITY, ordering.SKU, *_SETTINGS,
         *_SWITCHES),
        ("nanopod procurements create --name inference --capacity inference --target node_count --max-buy-price 20.00 "
         "--min-sell-price 10.00 --window 2h",),
    ),
    NOUN.list_verb(examples=("nanopod procurements list -o wide",)),
    NOUN.get_verb(examples=("nanopod procurements get inference",)),
    Verb(
        "set", "change a procurement; what is left out stays", change,
        (NOUN.reference(), option("--name", "-n", metavar="NAME"), *_SETTINGS, *_SWITCHES),
        ("nanopod procurements set inference --max-buy-price 25.00", "nanopod procurements set inference --disable"),
        aliases=("update",),
    ),
    NOUN.delete_verb(examples=("nanopod procurements delete inference",)),
)  # fmt: skip
