"""`nanopod dicts`: dictionaries that programs and workers share by name; see `nanopod.Dict`."""

from __future__ import annotations

from typing import Final

from nanopod.client.api import segment
from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session

NOUN: Final = Noun(
    "dict", "dicts", "/v1/dicts",
    columns=[("NAME", field_of("name")), ("ID", field_of("id")), ("CREATED", moment_of("created_at"))],
    facts=[
        ("NAME", field_of("name")), ("ID", field_of("id")), ("ENTRIES", field_of("entries")),
        ("CREATED", moment_of("created_at")),
    ],
    empty="no dicts; one is made when a program first uses it: nanopod.Dict.from_name(NAME)",
)  # fmt: skip


def clear(session: Session) -> int:
    """Throw everything in it away."""
    for reference in session.args.ids:
        found = session.api.delete(f"{NOUN.path}/{segment(reference)}/entries", **session.scope)
        if session.json:
            show.print_json(found)
        else:
            session.out(f"dict {reference}: {found['count']} entries thrown away")
    return 0


configure, run = commands(
    NOUN.list_verb(),
    NOUN.get_verb(examples=("nanopod dicts get NAME",)),
    Verb(
        "clear", "throw everything in it away", clear, (option("ids", metavar="ID", nargs="+", completes=NOUN.path),),
        ("nanopod dicts clear NAME",),
    ),
    NOUN.delete_verb(examples=("nanopod dicts delete NAME",)),
)  # fmt: skip
