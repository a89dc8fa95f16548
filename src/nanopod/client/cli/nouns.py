"""A kind of object of the API: how it is listed, shown, made, changed and deleted. Nouns differ by data alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanopod.client.cli import show
from nanopod.client.cli.parser import PAGING, Option, Verb, add_verb_parsers, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

Cell = Callable[["Session", Mapping[str, Any]], Any]
"""How a cell is made of a row; it may show times in the session's zone."""
Title = tuple[str, Cell]


def field_of(name: str) -> Cell:
    """The value of a field."""
    return lambda _session, row: row.get(name)


def name_of(name: str) -> Cell:
    """The name (else id) of an object that a field summarises."""
    return lambda _session, row: named(row.get(name))


def moment_of(name: str) -> Cell:
    """A field with Unix seconds, as a time with its zone."""
    return lambda session, row: session.when(row.get(name))


def named(value: Any) -> Any:
    """The name, else the id, of a summary `{id, name}`; other values as they are."""
    if isinstance(value, Mapping):
        return value.get("name") or value.get("alias") or value.get("id")
    return value


def message_of(_session: Session, row: Mapping[str, Any]) -> Any:
    """The message of a `{state, message}` status."""
    status = row.get("status")
    return status.get("message") if isinstance(status, Mapping) else None


def state_of(_session: Session, row: Mapping[str, Any]) -> Any:
    """The state of a `{state, message}` status, or a plain status."""
    status = row.get("status")
    return status.get("state") if isinstance(status, Mapping) else status


def tags_of(_session: Session, row: Mapping[str, Any]) -> str:
    """Tags as they are typed."""
    return " ".join(f"{key}={value}" for key, value in (row.get("tags") or {}).items())


@dataclass(frozen=True, slots=True)
class Noun:
    """One kind of object. `columns` and `wide` make its table, `facts` its card (default: columns and wide)."""

    name: str
    plural: str
    path: str
    columns: Sequence[Title]
    empty: str
    wide: Sequence[Title] = ()
    facts: Sequence[Title] = field(default=())

    # --- showing ---

    def card(self, session: Session, row: dict[str, Any], *more: tuple[str, Any]) -> None:
        """One object: JSON as it came, or a card."""
        if session.json:
            show.print_json(row)
            return
        titles = self.facts or (*self.columns, *self.wide)
        show.print_card([*((title, cell(session, row)) for title, cell in titles), *more])

    def table(self, session: Session, rows: Sequence[Mapping[str, Any]], *, empty: str | None = None) -> None:
        """Many objects, for people."""
        titles = (*self.columns, *(self.wide if session.wide else ()))
        columns: list[show.Column] = [(title, _bound(cell, session)) for title, cell in titles]
        show.print_rows(rows, columns, empty=self.empty if empty is None else empty)

    def listing(self, session: Session, **query: Any) -> int:
        """Answer `list`: the page as it came for programs, all rows (or the page asked for) for people."""
        args = session.args
        paging = {name: getattr(args, name, None) for name in ("limit", "starting_after", "ending_before")}
        if session.json:
            show.print_json(session.api.get(self.path, **session.scope, **query, **paging))
            return 0
        if all(value is None for value in paging.values()):
            self.table(session, session.rows(self.path, **query))
            return 0
        page = session.api.get(self.path, **session.scope, **query, **paging)
        self.table(session, page.get("data", []))
        if page.get("has_more"):
            session.note(f"there are more: --starting-after {page.get('cursor')}")
        return 0

    # --- verbs ---

    def reference(self) -> Option:
        """The positional id or name."""
        return option("id", metavar="ID", help="an id, a name or a resource path", completes=self.path)

    def list_verb(
        self, *options: Option, query: Callable[[Session], Mapping[str, Any]] | None = None,
        examples: Sequence[str] = (),
    ) -> Verb:  # fmt: skip
        """`list`; `query` makes the filters of the options."""

        def run(session: Session) -> int:
            return self.listing(session, **(query(session) if query else {}))

        words = examples or (f"nanopod {self.plural} list",)
        return Verb("list", f"list {self.plural.replace('-', ' ')}", run, (*options, *PAGING), words, aliases=("ls",))

    def get_verb(self, *options: Option, examples: Sequence[str] = (), **query: Any) -> Verb:
        """`get`."""

        def run(session: Session) -> int:
            self.card(session, session.api.get(session.path(self.path, session.args.id), **session.scope, **query))
            return 0

        return Verb("get", f"show one {self.name}", run, (self.reference(), *options), examples, aliases=("show",))

    def delete_verb(self, *options: Option, examples: Sequence[str] = (), query: Sequence[str] = ()) -> Verb:
        """`delete`, of one or several; `query` names options that are sent when they are set."""

        def run(session: Session) -> int:
            words = {name: "true" for name in query if getattr(session.args, name, False)}
            for reference in session.args.ids:
                answer = session.api.delete(session.path(self.path, reference), **session.scope, **words)
                if session.json:
                    show.print_json(answer or {"deleted": True})
                else:
                    session.out(f"{self.name} {reference} is deleted")
            return 0

        ids = option("ids", metavar="ID", nargs="+", help="ids or names", completes=self.path)
        return Verb("delete", f"delete {self.plural}", run, (ids, *options), examples, aliases=("rm",))

    def create(self, session: Session, body: Mapping[str, Any], *, once: bool = False) -> dict[str, Any]:
        """POST, in the workspace that was named."""
        return session.api.post(self.path, {**session.scope, **body}, once=once, retry=once)

    def change(self, session: Session, body: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH. Raises `Invalid` when there is nothing to change."""
        if not body:
            raise Invalid(f"nothing to change: name at least one option (see nanopod {self.plural} set --help)")
        return session.api.patch(session.path(self.path, session.args.id), body, **session.scope)


def _bound(cell: Cell, session: Session) -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: cell(session, row)


def given(args: argparse.Namespace, *names: str, **renamed: str) -> dict[str, Any]:
    """The options that were given, as a body: by their own names, or `field=option`."""
    words = {name: name for name in names} | renamed
    return {key: value for key, name in words.items() if (value := getattr(args, name, None)) is not None}


def tags_in(words: Sequence[str] | None, flag: str = "tag") -> dict[str, str] | None:
    """`k=v` words as tags; None when there are none. Raises `Invalid`."""
    if not words:
        return None
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise Invalid(f"--{flag} {word!r} is no tag; write key=value", field=flag)
        found[key] = value
    return found


def tag_filter(args: argparse.Namespace) -> dict[str, Any]:
    """The list filters of `--tag` and `--tag-key`; a `=` inside a value is escaped."""
    found: dict[str, Any] = {}
    if tags := tags_in(getattr(args, "tag", None)):
        found["tag"] = [f"{key}={value.replace('%', '%25').replace('=', '%3D')}" for key, value in tags.items()]
    if getattr(args, "tag_key", None):
        found["tag_key"] = args.tag_key
    return found


TAG = option("--tag", action="append", metavar="K=V", help="a tag; may be repeated")
TAG_FILTERS = (
    option("--tag", action="append", metavar="K=V", help="only those with this tag; may be repeated"),
    option("--tag-key", action="append", metavar="K", help="only those that have this tag; may be repeated"),
)


def commands(*verbs: Verb) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]:
    """`configure` and `run` of a module that consists of these verbs."""

    def configure(parser: argparse.ArgumentParser) -> None:
        add_verb_parsers(parser, verbs)

    def run(args: argparse.Namespace) -> int:
        handler: Callable[[Session], int] = args.handler
        return handler(Session(args))

    return configure, run
