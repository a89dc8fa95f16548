"""`nanopod queues`: queues that programs and workers share by name; see `nanopod.Queue`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.api import segment
from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session


def _partitions(_session: Session, row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name or '(none)'}: {count}" for name, count in (row.get("partitions") or {}).items())


NOUN: Final = Noun(
    "queue", "queues", "/v1/queues",
    columns=[("NAME", field_of("name")), ("ID", field_of("id")), ("CREATED", moment_of("created_at"))],
    facts=[
        ("NAME", field_of("name")), ("ID", field_of("id")), ("ITEMS", field_of("items")), ("PARTITIONS", _partitions),
        ("CREATED", moment_of("created_at")),
    ],
    empty="no queues; one is made when a program first uses it: nanopod.Queue.from_name(NAME)",
)  # fmt: skip


def clear(session: Session) -> int:
    """Throw everything in it away."""
    for reference in session.args.ids:
        found = session.api.delete(f"{NOUN.path}/{segment(reference)}/items", **session.scope)
        if session.json:
            show.print_json(found)
        else:
            session.out(f"queue {reference}: {found['count']} items thrown away")
    return 0


configure, run = commands(
    NOUN.list_verb(),
    NOUN.get_verb(examples=("nanopod queues get NAME",)),
    Verb(
        "clear", "throw everything in it away", clear, (option("ids", metavar="ID", nargs="+", completes=NOUN.path),),
        ("nanopod queues clear NAME",),
    ),
    NOUN.delete_verb(examples=("nanopod queues delete NAME",)),
)  # fmt: skip
