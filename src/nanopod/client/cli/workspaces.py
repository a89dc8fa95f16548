"""`nanopod workspaces`: projects, each with its own objects and balance."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli.nouns import Noun, commands, field_of, given, moment_of, name_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session

NOUN: Final = Noun(
    "workspace", "workspaces", "/v1/workspaces",
    columns=[("NAME", field_of("name")), ("ACCOUNT", name_of("account")), ("CREATED", moment_of("created_at")),
             ("ID", field_of("id"))],
    empty="no workspaces",
)  # fmt: skip


def create(session: Session) -> int:
    """Make a workspace."""
    NOUN.card(session, session.api.post(NOUN.path, given(session.args, "name", "account"), retry=False))
    return 0


def change(session: Session) -> int:
    """Rename it."""
    NOUN.card(session, session.api.patch(session.path(NOUN.path, session.args.id), {"name": session.args.name}))
    return 0


_NAME: Final = option("--name", "-n", metavar="NAME", required=True)
configure, run = commands(
    Verb("create", "make a workspace", create,
         (_NAME, option("--account", metavar="A", help="of an account there is (default: a new one)")),
         ("nanopod workspaces create --name research",)),
    NOUN.list_verb(),
    NOUN.get_verb(examples=("nanopod workspaces get default",)),
    Verb("set", "rename a workspace", change, (NOUN.reference(), _NAME),
         ("nanopod workspaces set research --name lab",), aliases=("update",)),
    NOUN.delete_verb(examples=("nanopod workspaces delete research",)),
)  # fmt: skip
