"""Commands that only list and show rows of one kind: `list`, and `get` where single rows have an address."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanopod.client.api import segment
from nanopod.client.cli import show


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of row: what it is called, where it is, how it is shown."""

    name: str
    path: str
    columns: Sequence[show.Column]
    empty: str
    has_get: bool = True

    def configure(self, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
        """Add the verbs; the parser of each."""
        verbs = {"list": f"list all {self.name}s"} | ({"get": f"show one {self.name}"} if self.has_get else {})
        made = show.add_verbs(parser, verbs)
        if self.has_get:
            made["get"].add_argument("id", metavar="ID", help="an id or a name")
        return made

    def run(self, args: argparse.Namespace, **query: object) -> int:
        """List (as `query` narrows it) or show."""
        api = show.api_of(args)
        if args.action == "list":
            rows = list(api.items(self.path, **query))
            if args.json:
                show.print_json(rows)
            else:
                show.print_rows(rows, self.columns, empty=self.empty)
            return 0
        found = api.get(f"{self.path}/{segment(args.id)}")
        if args.json:
            show.print_json(found)
        else:
            show.print_facts([(name, _plain(name, value)) for name, value in found.items() if name != "object"])
        return 0


def _plain(name: str, value: Any) -> Any:
    if name.endswith("_at") or name == "since":
        return show.when(value)
    if isinstance(value, dict):
        return "\n".join(f"{key}: {show.text(part)}" for key, part in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join("  ".join(f"{key}={show.text(part)}" for key, part in row.items()) for row in value)
    return value
