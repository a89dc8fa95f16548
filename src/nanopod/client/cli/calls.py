"""`nanopod calls`: spawned calls, which the server makes whether or not their caller stays."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import CallTimeout, NoCapacity

STATUSES: Final = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
PATIENCE: Final = 20
"""How often a broken stream of lines is taken up again in a row."""


def _target(_session: Session, row: Mapping[str, Any]) -> str:
    name = str(row.get("endpoint") or row.get("endpoint_id") or "").removesuffix(":default")
    return f"{name}.{row.get('function')}"


def _ran(_session: Session, row: Mapping[str, Any]) -> str:
    micro = row.get("run_us") or 0
    return f"{micro / 1e6:.3f} s" if micro else "-"


def _error(_session: Session, row: Mapping[str, Any]) -> Any:
    error = row.get("error")
    return f"{error['type']}: {error['message']}" if error else None


NOUN: Final = Noun(
    "call", "calls", "/v1/calls",
    columns=[
        ("ID", field_of("id")), ("FUNCTION", _target), ("STATUS", field_of("status")),
        ("CREATED", moment_of("created_at")), ("RAN", _ran), ("COST", field_of("cost")),
    ],
    wide=[
        ("ORIGIN", field_of("origin")), ("ATTEMPT", field_of("attempt")), ("WORKER", field_of("worker")),
        ("ENDED", moment_of("ended_at")), ("EXPIRES", moment_of("expires_at")), ("ERROR", _error),
    ],
    empty="no spawned calls; a function's .spawn() makes one, and so does a schedule",
)  # fmt: skip


def _filters(session: Session) -> dict[str, Any]:
    args = session.args
    return {"endpoint": args.endpoint, "function": args.function, "status": args.status, "schedule": args.schedule}


def result(session: Session) -> int:
    """Wait for a call's result and print it as JSON. Exit status 1 when the function raised."""
    path = session.path(NOUN.path, session.args.id)
    limit = time.monotonic() + session.wait_s
    while True:
        left_s = max(0.0, limit - time.monotonic())
        found = session.api.get(f"{path}/result", wait_s=round(min(20.0, left_s), 3))
        if found.get("object") == "call_result":
            break
        if left_s <= 0:
            raise CallTimeout(
                f"call {session.args.id} has no result yet ({found.get('status')}); it goes on: ask again, or wait "
                "longer with --wait 10m"
            )
    if session.json:
        show.print_json(found)
    elif found["error"] is not None:
        error = found["error"]
        print(f"{error['type']}: {error['message']}", file=sys.stderr)
    else:
        print(json.dumps(found["items"] if found["items"] is not None else found["value"], indent=2))
    return 0 if found["error"] is None else 1


def logs(session: Session) -> int:
    """What a call printed; with --follow until it ends."""
    path = session.path(NOUN.path, session.args.id, "logs")
    if not session.args.follow:
        rows = session.api.get(path).get("data", [])
        if session.json:
            show.print_json(rows)
        for row in rows if not session.json else ():
            _print(session, row)
        return 0
    last, misses = "", 0
    while True:
        try:
            for number, row in session.api.subscribe(path, last_event_id=last, follow="true"):
                last, misses = number or last, 0
                if row is not None:
                    _print(session, row)
            if session.api.get(session.path(NOUN.path, session.args.id)).get("ended_at") is not None:
                return 0  # else the server was restarted
        except NoCapacity:
            misses += 1
            if misses > PATIENCE:
                raise
            time.sleep(random.uniform(0.05, min(2.0, 0.1 * 2.0**misses)))


def _print(session: Session, row: Mapping[str, Any]) -> None:
    if session.json:
        print(json.dumps(row), flush=True)
    else:
        print(row.get("line", ""), file=sys.stderr if row.get("stream") == "stderr" else sys.stdout, flush=True)


def cancel(session: Session) -> int:
    """Give calls up."""
    for reference in session.args.ids:
        row = session.api.post(session.path(NOUN.path, reference, "cancel"), {})
        if session.json:
            show.print_json(row)
        else:
            session.out(f"call {row['id']} is {row['status']}")
    return 0


def share(session: Session) -> int:
    """Make a token that shows one call, and print it alone."""
    made = session.api.post(session.path(NOUN.path, session.args.id, "share"), {})
    if session.json:
        show.print_json(made)
        return 0
    print(made["token"])
    session.note(f"whoever has it may read this call: Call.from_id({made['id']!r}, token=...)")
    return 0


def secret(session: Session) -> int:
    """Print what results are signed with when they are posted to webhooks."""
    found = session.api.get(f"{NOUN.path}/webhook_secret")
    if session.json:
        show.print_json(found)
    else:
        print(found["secret"])
    return 0


_ID: Final = option("id", metavar="ID", help="a call's id", completes=NOUN.path)
configure, run = commands(
    NOUN.list_verb(
        option("--endpoint", "-e", metavar="NAME", completes="/v1/endpoints", help="only calls of this endpoint"),
        option("--function", metavar="F", help="only calls of this function"),
        option("--status", action="append", choices=STATUSES, help="only these; may be repeated"),
        option("--schedule", metavar="ID", completes="/v1/schedules", help="only those that this schedule started"),
        query=_filters, examples=("nanopod calls list --status running", "nanopod calls list -e thumbs -o wide"),
    ),
    NOUN.get_verb(examples=("nanopod calls get call_0f3c...",)),
    Verb(
        "result", "wait for a call's result and print it as JSON", result, (_ID,),
        ("nanopod calls result call_0f3c... --wait 10m",), waits=True,
    ),
    Verb(
        "logs", "show what a call printed", logs,
        (_ID, option("--follow", "-f", action="store_true", help="keep printing until the call ends")),
        ("nanopod calls logs call_0f3c... -f",),
    ),
    Verb(
        "cancel", "give calls up", cancel, (option("ids", metavar="ID", nargs="+", completes=NOUN.path),),
        ("nanopod calls cancel call_0f3c...",),
    ),
    Verb(
        "share", "make a token that shows one call to whoever has it", share, (_ID,),
        ("nanopod calls share call_0f3c...",),
    ),
    Verb(
        "webhook-secret", "print what results are signed with when they are posted to webhooks", secret, (),
        ("nanopod calls webhook-secret",),
    ),
)  # fmt: skip
