"""`nanopod providers` and `nanopod offers`: who sells time on nodes, at what floor price, how far ahead."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import orders, show
from nanopod.client.cli.nouns import Noun, commands, field_of, given, moment_of, name_of
from nanopod.client.cli.ordering import PRICE, SKUS
from nanopod.client.cli.parser import PAGING, Verb, option
from nanopod.client.cli.procurements import minutes_of
from nanopod.client.cli.session import Session
from nanopod.client.times import duration_text, parse_duration
from nanopod.model.errors import Invalid

FLOOR: Final = f"floor_price_{PRICE}"


def _money(name: str) -> Any:
    return lambda _session, row: None if row.get(name) is None else prices.money_text(row[name])


def _minutes(name: str) -> Any:
    return lambda _session, row: None if row.get(name) is None else duration_text(60 * int(row[name]))


def _quiet(_session: Session, row: Mapping[str, Any]) -> str:
    return " ".join(
        f"{hours['from_hour']:02d}-{hours['to_hour']:02d}" if isinstance(hours, Mapping) else "-".join(map(str, hours))
        for hours in row.get("quiet_hours") or ()
    )


PROVIDERS: Final = Noun(
    "provider", "providers", "/v1/providers",
    columns=[
        ("NAME", field_of("name")), ("CAPACITY", name_of("capacity")), ("NOTICE", lambda _s, row: _notice(row)),
        ("REVENUE", _money("revenue")), ("CREATED", moment_of("created_at")), ("ID", field_of("id")),
    ],
    wide=[("AVERAGE PRICE", field_of(f"average_price_{PRICE}")), ("UTILISATION", field_of("utilisation")),
          ("OPEN OFFERS", field_of("open_offers")), ("UNDELIVERED", _money("undelivered"))],
    empty="no providers; the first node that joins makes one",
)  # fmt: skip
OFFERS: Final = Noun(
    "offer", "offers", "/v1/offers",
    columns=[
        ("OFFER ID", field_of("id")), ("PROVIDER", name_of("provider")), ("INSTANCE SKU", name_of("instance_sku")),
        ("FLOOR", field_of(FLOOR)), ("HORIZON", _minutes("horizon_minutes")), ("MAX NODES", field_of("max_nodes")),
        ("QUIET HOURS", _quiet), ("ENABLED", field_of("enabled")),
    ],
    wide=[("QUANTUM", _minutes("quantum_minutes")), ("LEAD", lambda _s, row: f"{row.get('lead_s', 0)} s"),
          ("ELASTIC", field_of("elastic")), ("UPDATED", moment_of("updated_at"))],
    empty="no offers; each kind of node that a provider has makes one",
)  # fmt: skip


def _notice(row: Mapping[str, Any]) -> str | None:
    return None if row.get("notice_s") is None else f"{row['notice_s']} s"


def quiet_hours(words: list[str] | None) -> list[list[int]] | None:
    """`22-6` as `[22, 6]`, hours of the UTC day; `none` is no quiet hours. Raises `Invalid`."""
    if words is None:
        return None
    if words == ["none"]:
        return []
    found = []
    for word in words:
        hours = re.fullmatch(r"(\d{1,2})-(\d{1,2})", word)
        if hours is None or int(hours[1]) > 23 or int(hours[2]) > 24:
            raise Invalid(f"--quiet-hours {word!r}: write UTC hours such as 22-6, or none", field="quiet-hours")
        found.append([int(hours[1]), int(hours[2])])
    return found


def _lead(text: str | None) -> int | None:
    if text is None or text in ("0", "0s"):
        return None if text is None else 0
    return parse_duration(text, field="lead")


def body_of(session: Session) -> dict[str, Any]:
    """The fields of an offer that the options name."""
    args = session.args
    body: dict[str, Any] = {
        "horizon_minutes": minutes_of(args.horizon, "horizon"), "quantum_minutes": minutes_of(args.quantum, "quantum"),
        "quiet_hours": quiet_hours(args.quiet_hours), "max_nodes": args.max_nodes, "enabled": args.enabled,
        "lead_s": _lead(args.lead),
    }  # fmt: skip
    if args.floor_price is not None:
        limit = prices.limit_of(args.floor_price, block_s=session.cluster.block_s, field="floor-price")
        if limit.note():
            session.note(f"--floor-price is {limit.echo} $/node-hour{limit.note()}")
        body[FLOOR] = limit.wire
    return {name: value for name, value in body.items() if value is not None}


def change_offer(session: Session) -> int:
    """Change one offer."""
    OFFERS.card(session, OFFERS.change(session, body_of(session)))
    return 0


def create_offer(session: Session) -> int:
    """Make an offer for a provider and a kind of node."""
    body = {**given(session.args, "provider", "instance_sku"), **body_of(session)}
    OFFERS.card(session, session.api.post(OFFERS.path, body, retry=False))
    return 0


def change_provider(session: Session) -> int:
    """Change a provider, or with an offer's settings its offers (all of them, or those of --instance-sku)."""
    args = session.args
    offer = body_of(session)
    body = given(args, "name") | ({"notice_s": int(args.notice)} if args.notice is not None else {})
    path = session.path(PROVIDERS.path, args.id)
    if not offer:
        PROVIDERS.card(session, PROVIDERS.change(session, body))
        return 0
    provider = session.api.patch(path, body, **session.scope) if body else session.api.get(path, **session.scope)
    wanted = {"provider": provider["id"]} | ({"instance_sku": args.instance_sku} if args.instance_sku else {})
    offers = session.rows(OFFERS.path, **wanted)
    if not offers:
        raise Invalid("this provider has no such offer; make one with: nanopod offers create", field="instance-sku")
    changed = [session.api.patch(session.path(OFFERS.path, row["id"]), offer, **session.scope) for row in offers]
    if session.json:
        show.print_page(changed)
    else:
        OFFERS.table(session, changed)
    return 0


def create_provider(session: Session) -> int:
    """Make a provider with an account of its own."""
    args = session.args
    body = {"name": args.name} | ({"notice_s": int(args.notice)} if args.notice is not None else {})
    PROVIDERS.card(session, session.api.post(PROVIDERS.path, body, retry=False))
    return 0


def get_provider(session: Session) -> int:
    """One provider, with what it earned, and its offers."""
    row = session.api.get(session.path(PROVIDERS.path, session.args.id), **session.scope)
    PROVIDERS.card(session, row)
    if not session.json:
        offers = session.rows(OFFERS.path, provider=row["id"])
        print()
        OFFERS.table(session, offers)
    return 0


def provider_orders(session: Session) -> int:
    """The orders that a provider's offers placed, and what they brought."""
    args = session.args
    paging = {"limit": args.limit, "starting_after": args.starting_after, "ending_before": args.ending_before}
    query = {"provider": args.provider, "status": args.status, **paging}
    page = session.api.get("/v1/provider/orders", **session.scope, **query)
    if session.json:
        show.print_json(page)
        return 0
    summary = page.get("summary") or {}
    average = summary.get(f"average_price_{PRICE}")
    if summary:
        show.print_card([
            ("REVENUE", prices.money_text(summary.get("revenue"))),
            ("UNDELIVERED", prices.money_text(summary.get("undelivered"))),
            ("AVERAGE PRICE", average and f"{average} $/node-hour"),
            ("UTILISATION", f"{100 * float(summary.get('utilisation') or 0):.1f}% of the next 24 hours"),
            ("OPEN OFFERS", summary.get("open_offers")),
        ])  # fmt: skip
        print()
    orders.NOUN.table(session, page.get("data", []))
    if page.get("has_more"):
        session.note(f"there are more: --starting-after {page.get('cursor')}")
    return 0


_OFFER: Final = (
    option("--floor-price", metavar="$", help="never sell below so many dollars per node-hour"),
    option("--horizon", metavar="D", help="how far ahead to sell (1h to 90d; default: 7d)"),
    option("--quantum", metavar="D", help="how much the far edge grows at once (default: 1h)"),
    option("--max-nodes", type=int, metavar="N", help="offer at most so many"),
    option("--lead", metavar="D", help="how long a node needs from wish to ready"),
    option("--quiet-hours", action="append", metavar="FROM-TO", help="UTC hours without offers, such as 22-6; or none"),
    option("--enable", dest="enabled", action="store_true", default=None, help="sell (default)"),
    option("--disable", dest="enabled", action="store_false", default=None, help="stop selling; what is sold is owed"),
)
_NOTICE: Final = option("--notice", choices=("0", "30", "120"), help="seconds before a machine is taken away")
_SKU: Final = option("--instance-sku", metavar="SKU", completes=SKUS, help="only this kind of node")
_BY_PROVIDER: Final = option("--provider", metavar="P", completes=PROVIDERS.path)
_providers, run = commands(
    PROVIDERS.list_verb(),
    Verb("get", "show one provider: revenue, prices, offers", get_provider, (PROVIDERS.reference(),),
         ("nanopod providers get local-node",), aliases=("show",)),
    Verb("create", "make a provider with an account of its own", create_provider,
         (option("--name", "-n", metavar="NAME", required=True), _NOTICE), ("nanopod providers create --name lab",)),
    Verb("set", "change a provider, or the terms of its offers", change_provider,
         (PROVIDERS.reference(), option("--name", "-n", metavar="NAME"), _NOTICE, _SKU, *_OFFER),
         ("nanopod providers set local-node --floor-price 1.20 --horizon 7d",), aliases=("update",)),
    PROVIDERS.delete_verb(examples=("nanopod providers delete lab",)),
    Verb("orders", "show what its offers placed and brought", provider_orders,
         (_BY_PROVIDER, option("--status", action="append", choices=orders.STATUSES, help="may be repeated"), *PAGING),
         ("nanopod providers orders --provider local-node --status filled",)),
)  # fmt: skip


def _offers_query(session: Session) -> Mapping[str, Any]:
    return given(session.args, "provider", "instance_sku")


_offers, _ = commands(
    OFFERS.list_verb(_BY_PROVIDER, _SKU, query=_offers_query),
    OFFERS.get_verb(examples=("nanopod offers get offr_...",)),
    Verb("create", "offer a kind of node", create_offer,
         (option("--provider", metavar="P", required=True, completes=PROVIDERS.path),
          option("--instance-sku", metavar="SKU", required=True, completes=SKUS), *_OFFER),
         ("nanopod offers create --provider lab --instance-sku isku_... --floor-price 1.20",)),
    Verb("set", "change the terms of an offer", change_offer, (OFFERS.reference(), *_OFFER),
         ("nanopod offers set offr_... --quiet-hours 22-6 --max-nodes 4",), aliases=("update",)),
    OFFERS.delete_verb(examples=("nanopod offers delete offr_...",)),
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod providers` or `nanopod offers`."""
    (_offers if parser.prog.endswith("offers") else _providers)(parser)
