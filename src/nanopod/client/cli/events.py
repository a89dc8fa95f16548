"""`nanopod events`: what happened, and with -f what happens, as it happens."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, field_of
from nanopod.client.cli.parser import PAGING, Verb, fill, option
from nanopod.client.cli.session import Session
from nanopod.client.prices import nodes_text
from nanopod.model.errors import NoCapacity

PATH: Final = "/v1/events"
RECONNECT_S: Final = (0.2, 10.0)
"""First and longest pause before a broken stream is taken up again."""


def _at(session: Session, row: Mapping[str, Any]) -> str:
    return session.when(row.get("at") or row.get("created_at"))


def _object(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("object_id") or row.get("subject") or row.get("id")


def _data(session: Session, row: Mapping[str, Any]) -> str:
    data = row.get("data") or {}
    return " ".join(f"{name}={_value(session, name, value)}" for name, value in data.items() if value not in (None, []))


def _value(session: Session, name: str, value: Any) -> str:
    """Times and schedules as people read them, anything else as it is."""
    if name == "at" or name.endswith("_at"):
        return session.when(value)
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "node_count" in value[0]:
        return ", ".join(
            f"{nodes_text(entry['node_count'])} {session.period(entry['start_at'], entry.get('end_at'))}"
            for entry in value
        )
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)


NOUN: Final = Noun(
    "event", "events", PATH,
    columns=[("AT", _at), ("TYPE", field_of("type")), ("OBJECT", _object), ("DATA", _data)],
    wide=[("ID", field_of("id"))],
    empty="nothing happened yet",
)  # fmt: skip


def events(session: Session) -> int:
    """List the latest events, or follow them."""
    types = {"type": session.args.type} if session.args.type else {}
    if not session.args.follow:
        if not session.json and session.args.limit is None:
            session.args.limit = 50
        return NOUN.listing(session, **types)
    _follow(session, types)
    return 0


def _follow(session: Session, types: Mapping[str, Any]) -> None:
    last, pause_s = str(session.args.since_id or ""), RECONNECT_S[0]
    while True:
        try:
            for number, event in session.api.subscribe(PATH, last_event_id=last, **session.scope, **types):
                last, pause_s = number, RECONNECT_S[0]
                if event is not None:
                    _print(session, event)
        except NoCapacity as error:
            print(f"{error.message}; taking it up again", file=sys.stderr, flush=True)
        time.sleep(random.uniform(0.5, 1.0) * pause_s)
        pause_s = min(RECONNECT_S[1], pause_s * 2)


def _print(session: Session, event: Mapping[str, Any]) -> None:
    if session.json:
        print(json.dumps(event), flush=True)
    else:
        session.out("  ".join(show.text(cell(session, event)) for _, cell in NOUN.columns))


def configure(parser: Any) -> None:
    """Options of `nanopod events`."""
    fill(parser, Verb(
        "events", "what happened", events,
        (
            option("--follow", "-f", action="store_true", help="keep printing what happens, until Ctrl-C"),
            option("--type", action="append", metavar="TYPE", help="such as order.filled; may be repeated"),
            option("--since-id", metavar="ID", help="with -f: begin after this event"),
            *PAGING,
        ),
        ("nanopod events", "nanopod events -f --type instance.shutdown_expected"),
    ))  # fmt: skip


def run(args: Any) -> int:
    """List or follow."""
    return events(Session(args))
