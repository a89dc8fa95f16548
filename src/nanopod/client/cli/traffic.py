"""`nanopod traffic`: how the calls of a deployment are divided among its revisions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from nanopod.client.api import segment
from nanopod.client.cli import show
from nanopod.client.cli.parser import Parser, option
from nanopod.model.errors import Invalid

NAME: Final = option("name", metavar="NAME", help="a deployment: name, name:tag or id", completes="/v1/endpoints")
EXAMPLES: Final = (
    "nanopod traffic square",
    "nanopod traffic square square-00001=90 latest=10",
    "nanopod traffic square 1=100 --tag latest=next",
    "nanopod traffic square --clear",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    NAME.add_to(parser)
    parser.add_argument(
        "shares", nargs="*", metavar="REV=PERCENT",
        help="share of a revision (name, number, id, or `latest`); together 100",
    )  # fmt: skip
    parser.add_argument(
        "--tag", action="append", default=[], metavar="REV=TAG",
        help="a revision answers to this tag, whatever its share (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--clear", action="store_true", help="the newest revision has all calls, by its rollout")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.show_examples(EXAMPLES)


def run(args: argparse.Namespace) -> int:
    """Show the shares, or state them."""
    api = show.api_of(args)
    path = f"/v1/endpoints/{segment(args.name)}/traffic"
    if args.clear and (args.shares or args.tag):
        raise Invalid("--clear: it takes back what was stated; leave out shares and tags", field="clear")
    if args.clear:
        found = api.put(path, {"traffic": []})
    elif args.shares or args.tag:
        rows = parsed(args.shares, args.tag) if args.shares else tagged(api.get(path)["stated"], args.tag)
        found = api.put(path, {"traffic": rows})
    else:
        found = api.get(path)
    if args.json:
        show.print_json(found)
    else:
        show.print_rows(found["traffic"], COLUMNS, empty="no traffic")
    return 0


def parsed(shares: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `REV=PERCENT` and `REV=TAG`. Raises `Invalid` for one that is neither."""
    rows: list[dict[str, Any]] = []
    for text in shares:
        revision, equals, percent = text.rpartition("=")
        if not equals or not revision or not percent.rstrip("%").isdigit():
            raise Invalid(f"shares: {text!r} must be REVISION=PERCENT, such as latest=10", field="shares")
        rows.append({"revision": _newest(revision), "percent": int(percent.rstrip("%")), "tag": ""})
    return _with_tags(rows, tags)


def tagged(stated: Sequence[dict[str, Any]], tags: Sequence[str]) -> list[dict[str, Any]]:
    """What is stated already (nothing: all to the newest) with further tags."""
    rows = [
        {"revision": row["revision_id"] or "", "percent": row["percent"], "tag": row["tag"] or ""} for row in stated
    ] or [{"revision": "", "percent": 100, "tag": ""}]
    return _with_tags(rows, tags)


def _with_tags(rows: list[dict[str, Any]], tags: Sequence[str]) -> list[dict[str, Any]]:
    for text in tags:
        revision, equals, tag = text.rpartition("=")
        if not equals or not revision or not tag:
            raise Invalid(f"--tag: {text!r} must be REVISION=TAG, such as latest=next", field="tag")
        free = [row for row in rows if row["revision"] == _newest(revision) and not row["tag"]]
        if free:
            free[0]["tag"] = tag
        else:
            rows.append({"revision": _newest(revision), "percent": 0, "tag": tag})
    return rows


def _newest(revision: str) -> str:
    return "" if revision == "latest" else revision


COLUMNS: list[show.Column] = [
    ("REVISION", show.field("revision")),
    ("PERCENT", show.field("percent")),
    ("TAG", show.field("tag")),
    ("NEWEST", lambda row: "yes" if row.get("latest") else ""),
    ("ID", show.field("revision_id")),
]
