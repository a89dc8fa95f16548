"""`nanopod deployments`: what keeps instances at their number; with a maximum price it buys its own time too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import ordering
from nanopod.client.cli.nouns import (
    TAG,
    TAG_FILTERS,
    Noun,
    commands,
    field_of,
    message_of,
    moment_of,
    name_of,
    state_of,
    tag_filter,
    tags_in,
    tags_of,
)  # fmt: skip
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.procurements import MAX_BUY, minutes_of
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

TEMPLATES: Final = "/v1/instance_templates"


def _name(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("name") or row.get("endpoint") or row.get("endpoint_id")


def instances(_session: Session, row: Mapping[str, Any]) -> str:
    """`3/4`: running (else ready) of wanted."""
    counts = [row.get(name) for name in ("running_instance_count", "ready_instance_count", "instance_count")]
    running = next((count for count in counts if count is not None), 0)
    return f"{running}/{row.get('target_instance_count', 0)}"


NOUN: Final = Noun(
    "deployment", "deployments", "/v1/deployments",
    columns=[
        ("NAME", _name), ("CAPACITY", name_of("capacity")), ("INSTANCES", instances), ("STATUS", state_of),
        ("MESSAGE", message_of),
    ],
    wide=[
        ("KIND", field_of("kind")), ("INSTANCE SKU", name_of("instance_sku")),
        ("TEMPLATE", name_of("instance_template")), ("NAMES", field_of("instance_name_template")),
        ("ENABLED", field_of("enabled")), ("ENDPOINT", field_of("endpoint")), ("MAX BUY", field_of(MAX_BUY)),
        ("TAGS", tags_of), ("CREATED", moment_of("created_at")), ("ID", field_of("id")),
    ],
    empty="no deployments; make one with: nanopod deployments create --name D --capacity C --instance-template T",
)  # fmt: skip


def _price(session: Session) -> dict[str, str]:
    typed = session.args.max_buy_price
    if typed is None:
        return {}
    limit = prices.limit_of(typed, block_s=session.cluster.block_s, field="max-buy-price")
    if limit.note():
        session.note(f"--max-buy-price is {limit.echo} $/node-hour{limit.note()}")
    return {MAX_BUY: limit.wire}


def body_of(session: Session) -> dict[str, Any]:
    """The fields that the options name."""
    args = session.args
    found: dict[str, Any] = {
        "name": getattr(args, "name", None),
        "instance_template": args.instance_template,
        "target_instance_count": args.target_instance_count,
        "instance_name_template": args.instance_name_template,
        "managed_window_minutes": minutes_of(args.window, "window"),
        "protect_manual": args.protect_manual,
        "enabled": args.enabled,
        "tags": tags_in(args.tag),
        **_price(session),
    }
    return {name: value for name, value in found.items() if value is not None}


def create(session: Session) -> int:
    """Make a deployment; a spot deployment when a maximum price is given."""
    args = session.args
    body = body_of(session)
    if args.target_instance_count is None:
        raise Invalid("--target-instance-count is needed: how many instances to keep", field="target-instance-count")
    body["kind"] = "spot" if MAX_BUY in body else "generic"
    if body["kind"] == "generic" and (args.window or args.protect_manual is not None):
        raise Invalid("--window and --protect-manual need --max-buy-price (a spot deployment)", field="max-buy-price")
    body["capacity"] = ordering.capacity_of(session)
    if "instance_template" not in body:
        body["instance_template"] = session.pick(
            TEMPLATES, flag="instance-template", label=lambda row: str(row.get("name")),
            missing="make one with: nanopod instance-templates create",
        )["id"]  # fmt: skip
    if args.instance_sku:
        body["instance_sku"] = args.instance_sku
    NOUN.card(session, NOUN.create(session, body))
    return 0


def change(session: Session) -> int:
    """Change it; what is left out stays."""
    NOUN.card(session, NOUN.change(session, body_of(session)))
    return 0


def _query(session: Session) -> Mapping[str, Any]:
    capacity = {"capacity": session.args.capacity} if session.args.capacity else {}
    return {**tag_filter(session.args), **capacity}


_SETTINGS: Final = (
    option("--instance-template", metavar="T", completes=TEMPLATES, help="id or name (default: the only one)"),
    option("--target-instance-count", "--count", type=int, metavar="N", help="instances to keep"),
    option("--instance-name-template", metavar="T", help='such as "worker-{{nanoid(10)}}"'),
    option("--max-buy-price", metavar="$", help="a spot deployment: buy its time for at most so much per node-hour"),
    option("--window", metavar="D", help="of a spot deployment: how far ahead time is kept (default: 1h)"),
    option("--protect-manual", dest="protect_manual", action="store_true", default=None,
           help="of a spot deployment: never sell time that was bought by hand (default)"),
    option("--no-protect-manual", dest="protect_manual", action="store_false", default=None,
           help="of a spot deployment: sell any time above its count"),
    option("--enable", dest="enabled", action="store_true", default=None, help="let it work (default)"),
    option("--disable", dest="enabled", action="store_false", default=None, help="freeze it"),
    TAG,
)  # fmt: skip
_CAPACITY_FILTER: Final = option("--capacity", "--pool", metavar="C", completes=ordering.CAPACITIES)
configure, run = commands(
    Verb(
        "create", "keep instances running", create,
        (option("--name", "-n", metavar="NAME", required=True), ordering.CAPACITY, ordering.SKU, *_SETTINGS),
        ("nanopod deployments create --name inference --capacity inference --instance-template inference-worker "
         "--target-instance-count 4",
         "nanopod deployments create --name batch --capacity dev --instance-template worker --count 2 "
         "--max-buy-price 3.00"),
    ),
    NOUN.list_verb(_CAPACITY_FILTER, *TAG_FILTERS, query=_query),
    NOUN.get_verb(examples=("nanopod deployments get inference",)),
    Verb(
        "set", "change a deployment; what is left out stays", change,
        (NOUN.reference(), option("--name", "-n", metavar="NAME"), *_SETTINGS),
        ("nanopod deployments set inference --target-instance-count 8",), aliases=("update", "scale"),
    ),
    NOUN.delete_verb(
        option("--cascade", action="store_true", help="its instances too; without it they stay, unmanaged"),
        query=("cascade",), examples=("nanopod deployments delete inference --cascade",),
    ),
)  # fmt: skip
