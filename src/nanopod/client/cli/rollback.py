"""`nanopod versions`, `rollback` and `promote`: the revisions of a deployment."""

from __future__ import annotations

import argparse
from typing import Any

from nanopod.client.api import segment
from nanopod.client.cli import show
from nanopod.client.cli.parser import Parser, option

NAME = option("name", metavar="NAME", help="a deployment: name, name:tag or id", completes="/v1/endpoints")
EXAMPLES = {
    "versions": ("nanopod versions square",),
    "rollback": ("nanopod rollback square", "nanopod rollback square square-00003"),
    "promote": ("nanopod promote square",),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the three verbs; which one it is, is known by the parser's name."""
    verb = parser.prog.rpartition(" ")[2]
    NAME.add_to(parser)
    if verb == "rollback":
        parser.add_argument("version", nargs="?", help="name, number or id (default: the previous healthy one)")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.show_examples(EXAMPLES.get(verb, ()))


def run(args: argparse.Namespace) -> int:
    """List the versions, go back to one, or give the canary all calls."""
    api = show.api_of(args)
    path = f"/v1/endpoints/{segment(args.name)}"
    if args.verb == "versions":
        rows = list(api.items(f"{path}/revisions"))
        if args.json:
            show.print_page(rows)
        else:
            show.print_rows(rows, COLUMNS, empty="no versions")
        return 0
    if args.verb == "rollback":
        body = {"revision": args.version} if args.version else {}
        found = api.post(f"{path}/rollback", body)
    else:
        found = api.post(f"{path}/promote", {})
    if args.json:
        show.print_json(found)
    else:
        print(f"{found.get('name')}:{found.get('tag')} {_said(args.verb)} revision {_number(found)}")
    return 0


def _said(verb: str) -> str:
    return "goes back to" if verb == "rollback" else "runs for all calls"


def _number(found: dict[str, Any]) -> str:
    return str(found.get("revision_number") or found.get("revision_id"))


COLUMNS: list[show.Column] = [
    ("VERSION", show.field("number")),
    ("STATE", show.field("state")),
    ("LABEL", show.field("version_label")),
    ("HEALTHY", show.moment("healthy_at")),
    ("CREATED", show.moment("created_at")),
    ("FAILURE", lambda row: (row.get("failure") or {}).get("message")),
    ("NAME", show.field("name")),
    ("ID", show.field("id")),
]
