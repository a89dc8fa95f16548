"""`nanopod instances`: what runs inside capacities; a terminal in them, their logs, their ends."""

from __future__ import annotations

import base64
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli import fanout, ordering, orders, shell, show, templates
from nanopod.client.cli.nouns import (
    TAG,
    TAG_FILTERS,
    Noun,
    commands,
    field_of,
    moment_of,
    name_of,
    tag_filter,
    tags_in,
    tags_of,
)  # fmt: skip
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("ENDPOINT", lambda row: row.get("endpoint") or row.get("endpoint_id")),
    ("PHASE", show.field("phase")),
    ("IN FLIGHT", show.field("in_flight")),
    ("NODE", show.field("node_id")),
    ("EPOCH", show.field("epoch")),
    ("CREATED", show.moment("created_at")),
    ("WHY", show.field("reason")),
]
"""Of the workers below an endpoint."""
PRIORITIES: Final = ("yield", "normal", "preferred", "critical")
STATUSES: Final = ("awaiting_allocation", "running", "hibernated", "failed", "terminated")
ENDED: Final = frozenset({"terminated", "failed"})
LOG_PAGE: Final = 2500
FOLLOW_S: Final = (0.3, 2.0)
"""First and longest pause between two looks at a log."""
SHELL: Final = ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash -l || exec sh -l")


def _name(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("name") or row.get("endpoint") or row.get("endpoint_id")


def _why(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("status_reason") or row.get("reason")


def _next(session: Session, row: Mapping[str, Any]) -> str | None:
    """When it starts, if it waits; when it must stop, if it runs."""
    if row.get("expected_start_at") and row.get("status") in (None, "awaiting_allocation"):
        return f"starts {session.when(row['expected_start_at'])}"
    return f"until {session.when(row['expected_shutdown_at'])}" if row.get("expected_shutdown_at") else None


def _owner(_session: Session, row: Mapping[str, Any]) -> Any:
    owner = row.get("managed_by")
    return (owner.get("name") or owner.get("id")) if isinstance(owner, Mapping) else owner


NOUN: Final = Noun(
    "instance", "instances", "/v1/instances",
    columns=[
        ("NAME", _name), ("STATUS", field_of("status")), ("PHASE", field_of("phase")),
        ("CAPACITY", name_of("capacity")), ("INSTANCE SKU", name_of("instance_sku")), ("NEXT", _next),
        ("ID", field_of("id")),
    ],
    wide=[
        ("MANAGED BY", _owner), ("PRIORITY", field_of("priority_level")), ("IMAGE", name_of("image")),
        ("PUBLIC IP", field_of("public_ip")), ("NODE", field_of("node_id")), ("EPOCH", field_of("epoch")),
        ("ENDPOINT", field_of("endpoint")), ("IN FLIGHT", field_of("in_flight")),
        ("EARLY START", field_of("early_start")), ("TAGS", tags_of), ("CREATED", moment_of("created_at")),
        ("WHY", _why),
    ],
    empty="nothing runs; --all shows what did",
)  # fmt: skip


def create(session: Session) -> int:
    """Make an instance; waits until it runs, unless its time comes later."""
    args = session.args
    name = args.name or args.name_option
    body: dict[str, Any] = {
        "name": name or f"instance-{secrets.token_hex(3)}", "capacity": ordering.capacity_of(session),
        "image": templates.image_of(session), **templates.cloud_init_of(args.cloud_init),
    }  # fmt: skip
    body |= {"instance_sku": args.instance_sku} if args.instance_sku else {}
    body |= {"priority_level": args.priority} if args.priority else {}
    body |= {"enable_public_ipv4": True} if args.public_ipv4 else {}
    if tags := tags_in(args.tag):
        body["tags"] = tags
    _started(session, NOUN.create(session, body))
    return 0


def _started(session: Session, made: dict[str, Any]) -> None:
    path = session.path(NOUN.path, str(made["id"]))
    latest = session.now + session.wait_s

    def settled(row: Mapping[str, Any]) -> bool:
        if row.get("status") != "awaiting_allocation":
            return True
        start_at = row.get("expected_start_at")
        return start_at is None or start_at > latest

    made = session.wait_until(lambda: session.api.get(path, **session.scope), settled, made)
    NOUN.card(session, made)
    if made.get("status") == "awaiting_allocation":
        start_at = made.get("expected_start_at")
        session.note(
            f"it waits for its time, which comes {session.when(start_at)}"
            if start_at
            else "it waits: its capacity has no spare time; buy some (nanopod buy), or let a procurement do that"
        )


def _filters(session: Session) -> dict[str, Any]:
    args = session.args
    after = session.time(args.created_after, "created-after", past=True)
    before = session.time(args.created_before, "created-before", past=True)
    shown = args.all or args.status
    return {
        "live": None if shown else 1, "endpoint": args.endpoint, "capacity": args.capacity, "status": args.status,
        "instance_sku": args.instance_sku, "created_after": None if after is None else int(after),
        "created_before": None if before is None else int(before), **tag_filter(args),
    }  # fmt: skip


def change(session: Session) -> int:
    """Change one; or the priority of several, all or none."""
    args = session.args
    body: dict[str, Any] = {"name": args.name} if args.name else {}
    body |= {"priority_level": args.priority} if args.priority else {}
    if tags := tags_in(args.tag):
        body["tags"] = tags
    if not body:
        raise Invalid("nothing to change: give --priority, --name or --tag", field="priority")
    if len(args.ids) == 1:
        NOUN.card(session, session.api.patch(session.path(NOUN.path, args.ids[0]), body, **session.scope))
        return 0
    if set(body) != {"priority_level"}:
        raise Invalid("of several instances only --priority can be set at once", field="priority")
    data = [{"id": reference, **body} for reference in args.ids]
    page = session.api.patch(NOUN.path, {"data": data}, **session.scope)
    if session.json:
        show.print_json(page)
    else:
        NOUN.table(session, page.get("data", []))
    return 0


def terminate(session: Session) -> int:
    """End instances for good; waits until they are gone."""
    for reference in session.args.ids:
        path = session.path(NOUN.path, reference)
        row = session.api.post(f"{path}/terminate", **session.scope)
        path = session.path(NOUN.path, str(row.get("id") or reference))
        row = session.wait_until(
            lambda path=path: session.api.get(path, **session.scope),  # type: ignore[misc]
            lambda row: row.get("status") in ENDED,
            row,
        )
        if session.json:
            show.print_json(row)
        else:
            session.out(f"instance {reference} is {row.get('status')}")
    return 0


def replace(session: Session) -> int:
    """End one and make another in its place, in one step; the script is not taken over."""
    args = session.args
    body: dict[str, Any] = {"image": args.image} if args.image else {}
    body |= {"name": args.name} if args.name else {}
    body |= templates.cloud_init_of(args.cloud_init)
    if not args.cloud_init:
        session.note("the new instance has no start-up script: give --cloud-init to run one")
    path = session.path(NOUN.path, args.id, "replace")
    _started(session, session.api.post(path, body, once=True, **session.scope))
    return 0


# --- logs ---


def logs(session: Session) -> int:
    """Print an instance's output, and with -f what is added until it ends."""
    args = session.args
    path = session.path(NOUN.path, args.id, "logs")
    since, until = session.time(args.since, "since", past=True), session.time(args.until, "until", past=True)
    limit = args.limit or (100 if not args.follow else LOG_PAGE)
    query: dict[str, Any] = {
        "seqnum_after": args.after, "seqnum_before": args.before, "limit": limit,
        "realtime_after": None if since is None else int(since),
        "realtime_before": None if until is None else int(until),
    }  # fmt: skip
    newest_first = args.after is None and since is None
    page = session.api.get(path, **session.scope, **query, sort_by="-seqnum" if newest_first else "seqnum")
    if session.json and not args.follow:
        show.print_json(page)
        return 0
    rows = list(page.get("data") or ())
    last = _print_log(session, list(reversed(rows)) if newest_first else rows, -1)
    if args.follow:
        _follow(session, path, last)
    return 0


def _print_log(session: Session, rows: list[dict[str, Any]], last: int) -> int:
    for row in rows:
        last = max(last, int(row.get("seqnum", last)))
        if session.json:
            show.print_line(row)
            continue
        data = base64.b64decode(row.get("data") or "")
        if session.args.timestamps:
            data = f"{session.when(row.get('timestamp_realtime'))}  ".encode() + data
        sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
    sys.stdout.flush()
    return last


def _follow(session: Session, path: str, last: int) -> None:
    pause_s = FOLLOW_S[0]
    while True:
        page = session.api.get(path, **session.scope, seqnum_after=last + 1, limit=LOG_PAGE, sort_by="seqnum")
        rows = [row for row in page.get("data") or () if int(row.get("seqnum", 0)) > last]
        if rows:
            last, pause_s = _print_log(session, rows, last), FOLLOW_S[0]
            continue
        if session.api.get(path.removesuffix("/logs"), **session.scope).get("status") in ENDED:
            return
        time.sleep(pause_s)
        pause_s = min(FOLLOW_S[1], pause_s * 1.5)


# --- inside ---


def enter(session: Session) -> int:
    """A terminal inside, or one command with this one's input and output; its exit status is ours."""
    args = session.args
    command = list(args.command) or list(SHELL)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    tty = args.tty if args.tty is not None else (not args.command and terminal)
    env = {"TERM": args.term or os.environ.get("TERM") or "xterm-256color"} if tty else {}
    return shell.attached(session, args.id, command, tty=tty, env=env)


_IDS: Final = option("ids", metavar="ID", nargs="+", help="ids or names", completes=NOUN.path)
_PRIORITY: Final = option("--priority", choices=PRIORITIES, help="who goes first when time is short")
configure, run = commands(
    Verb(
        "create", "run an instance inside a capacity", create,
        (
            option("name", metavar="NAME", nargs="?", help="default: a made-up one"),
            option("--name", "-n", dest="name_option", metavar="NAME", help="the same"),
            ordering.CAPACITY, templates.image_option(), templates.CLOUD_INIT, ordering.SKU, _PRIORITY,
            option("--public-ipv4", action="store_true", help="with a public address, where nodes have them"), TAG,
        ),
        ("nanopod instances create dev-1 --capacity dev --image host --cloud-init ./startup.sh",), waits=True,
    ),
    NOUN.list_verb(
        option("--all", action="store_true", help="also those that ended"),
        option("--endpoint", metavar="NAME", completes="/v1/endpoints", help="only those of this endpoint"),
        option("--capacity", "--pool", metavar="C", completes=ordering.CAPACITIES),
        option("--status", action="append", choices=STATUSES, help="may be repeated"),
        option("--instance-sku", metavar="SKU", completes=ordering.SKUS), *orders.CREATED, *TAG_FILTERS,
        query=_filters, examples=("nanopod instances list", "nanopod instances list --capacity dev --status running"),
    ),
    NOUN.get_verb(examples=("nanopod instances get dev-1",)),
    Verb(
        "ssh", "open a terminal in an instance, or run one command there", enter,
        (
            NOUN.reference(),
            option("--tty", "-t", dest="tty", action="store_true", default=None, help="a terminal for a command too"),
            option("--no-tty", "-T", dest="tty", action="store_false", default=None, help="no terminal"),
            option("--term", metavar="NAME", help="TERM inside (default: as here)"),
        ),
        ("nanopod instances ssh dev-1", "nanopod instances ssh dev-1 -- nvidia-smi"), takes_command=True,
    ),
    Verb(
        "run", "run one command on many instances at once", fanout.run,
        (
            option("names", metavar="NAME", nargs="*", help="instances", completes=NOUN.path), *TAG_FILTERS,
            option("--deployment", metavar="D", completes="/v1/deployments", help="all running ones of a deployment"),
            option("--fan-out", type=int, default=16, metavar="N", help="at once (default: 16)"),
            option("--timeout", metavar="D", help="ends a command that takes longer, such as 5m"),
        ),
        ("nanopod instances run --deployment inference -- nvidia-smi -L",
         "nanopod instances run --tag role=web --fan-out 4 --timeout 1m -- uptime"), takes_command=True,
    ),
    Verb(
        "logs", "print what an instance wrote", logs,
        (
            NOUN.reference(),
            option("--follow", "-f", action="store_true", help="and what it writes, until it ends"),
            option("--after", type=int, metavar="SEQ", help="from this sequence number on"),
            option("--before", type=int, metavar="SEQ", help="up to this sequence number"),
            option("--since", metavar="TIME", help='from this time on, such as "in -10m"'),
            option("--until", metavar="TIME", help="up to this time"),
            option("--limit", type=int, metavar="N", help="pieces, 1 to 2500 (default: 100)"),
            option("--timestamps", action="store_true", help="the time of each piece"),
        ),
        ("nanopod instances logs dev-1 -f", 'nanopod instances logs dev-1 --since "in -10m"'),
    ),
    Verb("terminate", "end instances for good", terminate, (_IDS,), ("nanopod instances terminate dev-1",),
         waits=True),
    Verb(
        "replace", "end one and make another in its place", replace,
        (NOUN.reference(), templates.image_option(), templates.CLOUD_INIT, option("--name", "-n", metavar="NAME")),
        ("nanopod instances replace dev-1 --cloud-init ./startup.sh",), waits=True,
    ),
    Verb(
        "set", "change priority, name or tags", change,
        (_IDS, _PRIORITY, option("--name", "-n", metavar="NAME"), TAG),
        ("nanopod instances set dev-1 dev-2 --priority preferred",), aliases=("update",),
    ),
    NOUN.delete_verb(examples=("nanopod instances delete dev-1",)),
)  # fmt: skip
