"""`nanopod get KIND [NAME]`: applied objects and their status."""

from __future__ import annotations

import argparse
from typing import Any

from nanopod.client.api import segment
from nanopod.client.cli import show
from nanopod.client.cli.apply import yaml_text


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod get`."""
    parser.add_argument(
        "kind", metavar="KIND", help="all, or a kind such as inferenceservice (isvc), service (ksvc), secret, pvc, job"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of them")
    parser.add_argument("--url", metavar="URL", help="the server (default: NANOPOD_URL, else the cloud running here)")
    parser.add_argument("--api-key", metavar="KEY", help="default: NANOPOD_API_KEY, else that cloud's admin key")
    parser.add_argument("--json", action="store_true", help="print exactly what the API answered")
    parser.add_argument(
        "-o", "--output", choices=("wide", "json", "yaml", "kserve"),
        help="wide: all columns; json, yaml: the object as applied, with its status; kserve: as yaml",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print one object, or the table of a kind."""
    api = show.api_of(args)
    if args.name:
        found = api.get(f"/v1/manifests/{segment(args.kind)}/{segment(args.name)}")
        if args.json:
            show.print_json(found)
        else:
            print_objects([found], args.output)
        return 0
    query = {} if args.kind.lower() == "all" else {"kind": args.kind}
    rows = list(api.items("/v1/manifests", **query))
    if args.json:
        show.print_page(rows)
    elif args.output in ("json", "yaml", "kserve"):
        print_objects(rows, args.output, several=True)
    else:
        columns = COLUMNS + (WIDE if args.output == "wide" else [])
        show.print_rows(rows, columns, empty="nothing was applied; begin with: nanopod apply -f FILE")
    return 0


def print_objects(rows: list[dict[str, Any]], output: str | None, *, several: bool = False) -> None:
    """Objects as they were applied, with their status; a table row for people."""
    objects = [row["manifest"] for row in rows]
    value = {"apiVersion": "v1", "kind": "List", "items": objects} if several else objects[0]
    if output == "json":
        show.print_json(value)
    elif output in ("yaml", "kserve"):
        print(yaml_text(value))
    else:
        show.print_rows(rows, COLUMNS + (WIDE if output == "wide" else []), empty="")


def _traffic(row: Any) -> str:
    status = row["manifest"].get("status") or {}
    rows = (status.get("components") or {}).get("predictor", {}).get("traffic") or status.get("traffic") or ()
    return " ".join(f"{one.get('revisionName')}={one.get('percent')}%" for one in rows)


COLUMNS: list[show.Column] = [
    ("KIND", show.field("kind")),
    ("NAME", show.field("name")),
    ("READY", show.field("ready")),
    ("REASON", show.field("reason")),
    ("URL", show.field("url")),
    ("TRAFFIC", _traffic),
    ("UPDATED", show.moment("updated_at")),
]
WIDE: list[show.Column] = [
    ("GENERATION", show.field("generation")),
    ("API VERSION", show.field("api_version")),
    ("NATIVE", show.field("native")),
    ("ID", show.field("id")),
]
