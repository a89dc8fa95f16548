"""`nanopod schedules`: functions that start by themselves, as their code says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session


def _target(_session: Session, row: Mapping[str, Any]) -> str:
    name = str(row.get("endpoint") or row.get("endpoint_id") or "").removesuffix(":default")
    return f"{name}.{row.get('function')}"


def _when(_session: Session, row: Mapping[str, Any]) -> str:
    if row.get("cron"):
        return f"{row['cron']} ({row.get('tz') or 'UTC'})"
    return f"every {row.get('period_s'):g} s"


def _next(session: Session, row: Mapping[str, Any]) -> str:
    return "paused" if row.get("paused") else session.when(row.get("next_at"))


NOUN: Final = Noun(
    "schedule", "schedules", "/v1/schedules",
    columns=[
        ("FUNCTION", _target), ("WHEN", _when), ("NEXT", _next), ("LAST", moment_of("last_at")), ("ID", field_of("id")),
    ],
    wide=[
        ("CATCH UP", field_of("catch_up")), ("LAST CALL", field_of("last_call_id")),
        ("CREATED", moment_of("created_at")),
    ],
    empty='no schedules; a function has one with @app.remote(schedule=Cron("0 * * * *")), once it is deployed',
)  # fmt: skip


def _set(session: Session, paused: bool) -> int:
    for reference in session.args.ids:
        row = session.api.patch(session.path(NOUN.path, reference), {"paused": paused})
        if session.json:
            show.print_json(row)
        else:
            session.out(f"schedule {_target(session, row)}: {_next(session, row)}")
    return 0


def pause(session: Session) -> int:
    """Start nothing until it is resumed."""
    return _set(session, True)


def resume(session: Session) -> int:
    """Go on with the next tick."""
    return _set(session, False)


def run_now(session: Session) -> int:
    """Start it once, now, and print the id of its call."""
    row = session.api.post(session.path(NOUN.path, session.args.id, "run"), {}, retry=False)
    if session.json:
        show.print_json(row)
    else:
        print(row["id"])
    return 0


_IDS: Final = option("ids", metavar="ID", nargs="+", completes=NOUN.path, help="ids, functions or endpoint.function")
configure, run = commands(
    NOUN.list_verb(
        option("--endpoint", "-e", metavar="NAME", completes="/v1/endpoints", help="only those of this endpoint"),
        query=lambda session: {"endpoint": session.args.endpoint}, examples=("nanopod schedules list",),
    ),
    NOUN.get_verb(examples=("nanopod schedules get report.nightly",)),
    Verb("pause", "start nothing until it is resumed", pause, (_IDS,), ("nanopod schedules pause report.nightly",)),
    Verb("resume", "go on with the next tick", resume, (_IDS,), ("nanopod schedules resume report.nightly",)),
    Verb(
        "run", "start one now, and print the id of its call", run_now, (NOUN.reference(),),
        ("nanopod schedules run report.nightly",),
    ),
)  # fmt: skip
