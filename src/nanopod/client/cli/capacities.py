"""`nanopod capacities`: time held on nodes; and `capacities transfers`, time moved between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import ordering, orders
from nanopod.client.cli.nouns import TAG, TAG_FILTERS, Noun, commands, field_of, moment_of, name_of, tag_filter, tags_in
from nanopod.client.cli.nouns import named as name
from nanopod.client.cli.nouns import tags_of as tags
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session

OPEN_YEARS: Final = 4_000_000_000
"""Beyond this moment a schedule is as good as open-ended."""


def total_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The total schedule of a capacity, nodes of all SKUs together."""
    return list((row.get("allocation_schedule") or {}).get("total") or ())


def by_sku(row: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The schedule of each SKU, by its id."""
    return dict((row.get("allocation_schedule") or {}).get("by_instance_sku") or {})


def schedule_lines(session: Session, schedule: Iterable[Mapping[str, Any]]) -> list[str]:
    """`4 nodes  Mar 19, 5:00pm -> 6:00pm PDT (UTC-7)`, a line per entry that has nodes."""
    entries = list(schedule)
    lines = []
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        count = int(entry["node_count"])
        end_at = entry.get("end_at") or (following["start_at"] if following else None)
        if count:
            lines.append(f"{prices.nodes_text(count):>10}  {session.period(entry['start_at'], end_at)}")
    return lines or ["   0 nodes"]


def _now_of(row: Mapping[str, Any], now: float) -> int:
    for entry in total_of(row):
        if entry["start_at"] <= now and (entry.get("end_at") is None or now < entry["end_at"]):
            return int(entry["node_count"])
    return 0


def _nodes(session: Session, row: Mapping[str, Any]) -> str:
    now = int(row["nodes_now"]) if row.get("nodes_now") is not None else _now_of(row, session.shown_now)
    most = max((int(entry["node_count"]) for entry in total_of(row)), default=now)
    return str(now) if most <= now else f"{now} (up to {most})"


def _period(session: Session, row: Mapping[str, Any]) -> str | None:
    held = [entry for entry in total_of(row) if entry["node_count"]]
    if not held:
        return None
    end_at = held[-1].get("end_at")
    return session.period(held[0]["start_at"], end_at if (end_at or OPEN_YEARS) < OPEN_YEARS else None)


def _names(field: str) -> Any:
    return lambda _session, row: [name(part) for part in row.get(field) or ()]


NOUN: Final = Noun(
    "capacity", "capacities", "/v1/capacities",
    columns=[("NAME", field_of("name")), ("NODES", _nodes), ("PERIOD", _period)],
    wide=[
        ("KIND", field_of("kind")), ("PROCUREMENTS", _names("procurements")), ("DEPLOYMENTS", _names("deployments")),
        ("TAGS", tags), ("CREATED", moment_of("created_at")), ("ID", field_of("id")),
    ],
    facts=[
        ("NAME", field_of("name")), ("ID", field_of("id")), ("KIND", field_of("kind")),
        ("NODES", _nodes), ("PERIOD", _period),
        ("PROCUREMENTS", _names("procurements")), ("DEPLOYMENTS", _names("deployments")), ("TAGS", tags),
        ("CREATED", moment_of("created_at")), ("PATH", field_of("resource_path")),
    ],
    empty="no capacities; make one with: nanopod capacities create --name dev",
)  # fmt: skip

TRANSFERS: Final = Noun(
    "transfer", "capacities transfers", "/v1/capacity_transfers",
    columns=[
        ("TRANSFER ID", field_of("id")), ("STATUS", field_of("status")), ("FROM", name_of("from_capacity")),
        ("TO", name_of("to_capacity")), ("NODES", lambda _s, row: orders.nodes(row)), ("PERIOD", orders.period),
        ("REASON", field_of("rejected_reason")),
    ],
    wide=[("INSTANCE SKU", name_of("instance_sku")), ("CREATED", moment_of("created_at"))],
    empty="no transfers; make one with: nanopod capacities transfers create --from A --to B --duration 1h",
)  # fmt: skip


def create(session: Session) -> int:
    """Make an empty capacity."""
    body = {"name": session.args.name, **_tags(session)}
    NOUN.card(session, NOUN.create(session, body))
    return 0


def _tags(session: Session) -> dict[str, Any]:
    found = tags_in(session.args.tag)
    return {} if found is None else {"tags": found}


def change(session: Session) -> int:
    """Rename it, or replace its tags."""
    named = {"name": session.args.name} if session.args.name else {}
    NOUN.card(session, NOUN.change(session, named | _tags(session)))
    return 0


def get(session: Session) -> int:
    """One capacity; with --verbose a schedule per SKU and the total."""
    history = {"schedule_history_minutes": session.args.history} if session.args.history else {}
    row = session.api.get(session.path(NOUN.path, session.args.id), **session.scope, **history)
    NOUN.card(session, row)
    if session.args.verbose and not session.json:
        names = {sku["id"]: ordering.sku_label(sku) for sku in session.rows(ordering.SKUS)}
        for sku, schedule in by_sku(row).items():
            print(f"\n{names.get(sku, sku)}")
            print("\n".join(f"  {line}" for line in schedule_lines(session, schedule)))
        print("\nTOTAL SCHEDULE")
        print("\n".join(f"  {line}" for line in schedule_lines(session, total_of(row))))
    return 0


def transfer(session: Session) -> int:
    """Move time to another capacity of the same account. Exit status 6 when it was rejected."""
    args = session.args
    span = ordering.span_of(session)
    body = {
        "from_capacity": args.source, "to_capacity": args.target, "instance_sku": ordering.sku_of(session),
        "allocation_schedule_delta": ordering.entry_of(span, args.nodes),
    }  # fmt: skip
    made = TRANSFERS.create(session, body, once=True)
    path = session.path(TRANSFERS.path, str(made["id"]))
    made = session.wait_until(
        lambda: session.api.get(path, **session.scope), lambda row: row.get("status") != "pending", made
    )
    TRANSFERS.card(session, made)
    if made.get("status") == "rejected":
        session.note(f"it was rejected: {made.get('rejected_reason')}")
        return 6
    return 0


def _list_query(session: Session) -> Mapping[str, Any]:
    return {**tag_filter(session.args), **({"id": session.args.only} if session.args.only else {})}


NAME: Final = option("--name", "-n", metavar="NAME", required=True)
_ENDS: Final = (
    option("--from", dest="source", metavar="C", required=True, completes=NOUN.path, help="capacity that gives"),
    option("--to", dest="target", metavar="C", required=True, completes=NOUN.path, help="capacity that receives"),
)
configure, run = commands(
    Verb(
        "create", "make an empty capacity", create, (NAME, TAG),
        ("nanopod capacities create --name inference", "nanopod capacities create --name dev --tag team=search"),
    ),
    NOUN.list_verb(
        option("--id", dest="only", action="append", metavar="ID", help="only these; may be repeated"), *TAG_FILTERS,
        query=_list_query, examples=("nanopod capacities list", "nanopod pools list -o wide"),
    ),
    Verb(
        "get", "show one capacity", get,
        (
            NOUN.reference(),
            option("--verbose", "-v", action="store_true", help="the schedule of each SKU, and the total"),
            option("--history", type=int, metavar="MIN", help="show so many past minutes too (0 to 1440)"),
        ),
        ("nanopod capacities get dev", "nanopod capacities get dev --verbose"), aliases=("show",),
    ),
    Verb(
        "set", "rename a capacity or replace its tags", change,
        (NOUN.reference(), option("--name", "-n", metavar="NAME"), TAG), ("nanopod capacities set dev --name lab",),
        aliases=("update",),
    ),
    NOUN.delete_verb(examples=("nanopod capacities delete dev",)),
    Verb(
        "transfers", "move time between capacities",
        verbs=(
            Verb(
                "create", "move time to another capacity", transfer, (*_ENDS, *ordering.SIZE, ordering.SKU),
                ("nanopod capacities transfers create --from dev --to inference --nodes 2 --duration 4h",),
                waits=True,
            ),
            TRANSFERS.list_verb(examples=("nanopod capacities transfers list",)),
            TRANSFERS.get_verb(examples=("nanopod capacities transfers get cxfr_...",)),
        ),
    ),
)  # fmt: skip
