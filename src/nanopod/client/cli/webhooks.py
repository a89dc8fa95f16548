"""`nanopod webhooks`: have events sent to a program of yours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli.nouns import Noun, commands, field_of, given, message_of, moment_of, state_of
from nanopod.client.cli.parser import Option, Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid


def _types(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("types") or "all"


NOUN: Final = Noun(
    "webhook", "webhooks", "/v1/webhooks",
    columns=[
        ("NAME", field_of("name")), ("STATE", state_of), ("URL", field_of("url")), ("TYPES", _types),
        ("LAST DELIVERED", moment_of("last_delivered_at")), ("ID", field_of("id")),
    ],
    wide=[("FAILURES", field_of("failures")), ("MESSAGE", message_of), ("CREATED", moment_of("created_at"))],
    empty="no webhooks; make one with: nanopod webhooks create --name ops --to https://example.com/hook",
)  # fmt: skip


def create(session: Session) -> int:
    """Make a webhook, and show its secret this once."""
    body = given(session.args, "name", url="to", types="type")
    if session.args.disabled:
        body["enabled"] = False
    row = NOUN.create(session, body)
    NOUN.card(session, row, ("SECRET", row["secret"]))
    session.note("keep the secret: it is not shown again")
    return 0


def change(session: Session) -> int:
    """Change it."""
    args = session.args
    body = given(args, "name", url="to", types="type")
    if args.all_types:
        if args.type:
            raise Invalid("give --type or --all-types, not both", field="type")
        body["types"] = []
    if args.enable and args.disable:
        raise Invalid("give --enable or --disable, not both", field="enable")
    if args.enable or args.disable:
        body["enabled"] = bool(args.enable)
    NOUN.card(session, NOUN.change(session, body))
    return 0


def _fields(*, required: bool) -> tuple[Option, ...]:
    return (
        option("--name", "-n", metavar="NAME", required=required),
        option("--to", metavar="URL", required=required, help="http:// or https://; events are POSTed there"),
        option("--type", action="append", metavar="T", help="only these events, such as instance.*; may be repeated"),
    )


configure, run = commands(
    Verb(
        "create", "make a webhook; its secret is shown once", create,
        (*_fields(required=True), option("--disabled", action="store_true", help="send nothing yet")),
        ("nanopod webhooks create --name ops --to https://example.com/hook --type instance.shutdown_expected",),
    ),
    NOUN.list_verb(),
    NOUN.get_verb(examples=("nanopod webhooks get ops",)),
    Verb(
        "set", "change a webhook", change,
        (
            NOUN.reference(), *_fields(required=False), option("--all-types", action="store_true", help="all events"),
            option("--enable", action="store_true", help="send what happens from now on"),
            option("--disable", action="store_true", help="send nothing"),
        ),
        ("nanopod webhooks set ops --type 'instance.*'",), aliases=("update",),
    ),
    NOUN.delete_verb(examples=("nanopod webhooks delete ops",)),
)  # fmt: skip
