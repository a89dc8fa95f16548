"""`nanopod instances list|get`."""

from __future__ import annotations

import argparse
from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("ENDPOINT", lambda row: row.get("endpoint") or row.get("endpoint_id")),
    ("PHASE", show.field("phase")),
    ("IN FLIGHT", show.field("in_flight")),
    ("NODE", show.field("node_id")),
    ("EPOCH", show.field("epoch")),
    ("CREATED", show.moment("created_at")),
    ("WHY", show.field("reason")),
]
NOUN: Final = rows.Noun("instance", "/v1/instances", COLUMNS, "nothing runs; --all shows what did")


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod instances`."""
    listing = NOUN.configure(parser)["list"]
    listing.add_argument("--all", action="store_true", help="also those that ended")
    listing.add_argument("--endpoint", metavar="NAME", help="only those of this endpoint")


def run(args: argparse.Namespace) -> int:
    """List or show."""
    if args.action == "get":
        return NOUN.run(args)
    return NOUN.run(args, live=None if args.all else 1, endpoint=args.endpoint)
