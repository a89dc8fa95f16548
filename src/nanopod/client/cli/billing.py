"""`nanopod billing usage`."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from typing import Any

from nanopod.client.cli import show
from nanopod.model.errors import Invalid

GROUPS = ("endpoint", "key", "day", "kind")


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod billing`."""
    usage = show.add_verbs(parser, {"usage": "requests, tokens and compute time, with totals"})["usage"]
    usage.add_argument("--by", choices=GROUPS, default="endpoint", help="rows (default: endpoint)")
    usage.add_argument("--start", metavar="TIME", help="from this ISO time or date on")
    usage.add_argument("--end", metavar="TIME", help="before this ISO time or date")


def run(args: argparse.Namespace) -> int:
    """Print the usage."""
    query = {"group_by": args.by, "start": _seconds("start", args.start), "end": _seconds("end", args.end)}
    found = show.api_of(args).get("/v1/usage", **query)
    if args.json:
        show.print_json(found)
        return 0
    rows = [*found.get("data", []), {**found.get("total", {}), "_total": True}]
    show.print_rows(rows, columns(args.by), empty="nothing was used")
    return 0


def columns(group: str) -> list[show.Column]:
    """The table's columns; the last row is the total."""

    def name(row: Mapping[str, Any]) -> Any:
        if row.get("_total"):
            return "TOTAL"
        return row.get(f"{group}_name") or row.get(group)

    return [
        (group.upper(), name),
        ("REQUESTS", lambda row: row.get("requests", 0)),
        ("PROMPT TOKENS", lambda row: row.get("prompt_tokens", 0)),
        ("COMPLETION TOKENS", lambda row: row.get("completion_tokens", 0)),
        ("COMPUTE", lambda row: f"{row.get('compute_us', 0) / 1e6:.3f} s"),
    ]


def _seconds(field: str, text: str | None) -> float | None:
    """Unix seconds of an ISO time; local time where no zone is named."""
    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Invalid(f"--{field} {text!r} is no time; write 2026-01-31 or 2026-01-31T12:00:00Z", field=field) from None
