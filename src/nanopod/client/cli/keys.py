"""`nanopod keys` (alias `tokens`): keys of the API; each is shown once, when it is made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from nanopod.client import times
from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

ROLES: Final = ("admin", "call", "read")


def _endpoints(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("endpoints") or "all"


NOUN: Final = Noun(
    "key", "keys", "/v1/keys",
    columns=[
        ("ID", field_of("id")), ("NAME", field_of("name")), ("SCOPES", field_of("scopes")), ("ENDPOINTS", _endpoints),
        ("CREATED", moment_of("created_at")), ("LAST USED", moment_of("last_used_at")),
        ("EXPIRES", moment_of("expires_at")), ("REVOKED", moment_of("revoked_at")),
    ],
    wide=[("WORKSPACE", field_of("workspace_id"))],
    empty="no keys; make one with: nanopod keys create NAME",
)  # fmt: skip
TOKENS: Final = replace(
    NOUN,
    columns=[
        ("NAME", field_of("name")), ("SUFFIX", field_of("id")), ("CREATED", moment_of("created_at")),
        ("LAST USED", moment_of("last_used_at")), ("EXPIRES", moment_of("expires_at")),
    ],
    wide=NOUN.columns[2:4],
)  # fmt: skip
"""The same for those who call them tokens."""


def listing(session: Session) -> int:
    """All keys, revoked ones as well."""
    return (TOKENS if session.args.verb == "tokens" else NOUN).listing(session)


def _expires_in_s(session: Session) -> float | None:
    args = session.args
    if args.no_expire and (args.expires is not None or args.expires_in is not None):
        raise Invalid("give --expires or --no-expire, not both", field="expires")
    if args.expires is not None:
        return float(times.parse_duration(args.expires, field="expires"))
    return None if args.expires_in is None else float(args.expires_in)


def create(session: Session) -> int:
    """Make a key and print it: the key alone on standard output, so that it can be captured."""
    args = session.args
    name = args.name or args.name_option
    if not name or (args.name and args.name_option):
        raise Invalid("name the key, once: nanopod keys create NAME", field="name")
    body: dict[str, Any] = {"name": name}
    scopes = [*(args.scope or ()), *(args.role or ())]
    body |= {"scopes": scopes} if scopes else {}
    body |= {"endpoints": args.endpoint} if args.endpoint else {}
    expires = _expires_in_s(session)
    body |= {"expires_in_s": expires} if expires is not None else {}
    made = session.api.post(NOUN.path, {**session.scope, **body}, retry=False)
    if session.json:
        show.print_json(made)
        return 0
    print(made["key"])
    print("Keep it: it is not shown again.", file=sys.stderr)
    return 0


def revoke(session: Session) -> int:
    """Revoke keys; they are refused at once."""
    for reference in session.args.ids:
        answer = session.api.delete(session.path(NOUN.path, reference), **session.scope)
        if session.json:
            show.print_json(answer or {"revoked": True})
        else:
            session.out(f"{reference} is revoked")
    return 0


configure, run = commands(
    Verb(
        "create", "make a key; it is shown once", create,
        (
            option("name", metavar="NAME", nargs="?", help="what it is called"),
            option("--name", "-n", dest="name_option", metavar="NAME", help="the same"),
            option("--scope", action="append", choices=ROLES, help="default: admin; may be repeated"),
            option("--role", action="append", choices=ROLES, help="the same as --scope"),
            option("--endpoint", action="append", metavar="NAME", completes="/v1/endpoints",
                   help="may call only this one; may be repeated"),
            option("--expires", metavar="D", help="ends by itself after this time, such as 90d"),
            option("--expires-in", type=float, metavar="S", help="the same in seconds"),
            option("--no-expire", action="store_true", help="never ends by itself (default)"),
        ),
        ("nanopod keys create laptop", "nanopod tokens create --name ci --scope call --expires 90d"),
    ),
    replace(NOUN.list_verb(examples=("nanopod keys list",)), run=listing),
    Verb(
        "revoke", "revoke keys; they are refused at once", revoke,
        (option("ids", metavar="ID", nargs="+", completes=NOUN.path),), ("nanopod keys revoke laptop",),
        aliases=("delete", "rm"),
    ),
)  # fmt: skip
