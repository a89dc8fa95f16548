"""`nanopod ps`: deployments, their workers, and the calls that run or wait."""

from __future__ import annotations

import argparse
from typing import Any, Final

from nanopod.client.api import Api
from nanopod.client.cli import show
from nanopod.client.cli.parser import Parser
from nanopod.model.errors import Denied, NotFound

CALLS_MAX: Final = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod ps`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this deployment").completes = "/v1/endpoints"  # type: ignore[attr-defined]
    parser.add_argument("--all", "-a", action="store_true", help="also workers and calls that ended")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.show_examples(("nanopod ps", "nanopod ps square --json"))


def run(args: argparse.Namespace) -> int:
    """Print them."""
    facts = collect(show.api_of(args), args.name, ended=args.all)
    if args.json:
        show.print_json(facts)
        return 0
    show.print_rows(facts["deployments"], DEPLOYMENTS, empty="no deployments; make one with: nanopod deploy FILE")
    if facts["workers"]:
        print()
        show.print_rows(facts["workers"], WORKERS, empty="")
    if facts["calls"]:
        print()
        show.print_rows(facts["calls"], CALLS, empty="")
    return 0


def collect(api: Api, name: str | None = None, *, ended: bool = False) -> dict[str, Any]:
    """`{deployments, workers, calls}` as the API answers them. Raises `NotFound` for an unknown name."""
    found = list(api.items("/v1/endpoints"))
    if name is not None:
        wanted = [row for row in found if name in (row.get("id"), row.get("name"), full_name(row))]
        if not wanted:
            known = ", ".join(full_name(row) for row in found) or "none yet"
            raise NotFound(f"there is no deployment {name!r} (there are: {known})", field="name")
        found = wanted
    workers = []
    for row in found:
        row_workers = row.pop("instances", None) or []
        workers += [
            {**worker, "deployment": full_name(row)}
            for worker in row_workers
            if ended or worker.get("ended_at") is None
        ]
    return {
        "deployments": found,
        "workers": workers,
        "calls": _calls(api, {str(row["id"]) for row in found}, name, ended),
    }


def _calls(api: Api, endpoints: set[str], name: str | None, ended: bool) -> list[dict[str, Any]]:
    """Spawned calls, newest first; none from a server, or for a key, that has none to show."""
    query: dict[str, Any] = {"limit": CALLS_MAX}
    if not ended:
        query["status"] = ["queued", "running"]
    try:
        rows = list(api.get("/v1/calls", **query).get("data") or ())
    except (NotFound, Denied):
        return []
    return [row for row in rows if name is None or row.get("endpoint_id") in endpoints]


def full_name(row: dict[str, Any]) -> str:
    """`name`, or `name:tag` for a tag other than the default one."""
    name = str(row.get("name"))
    return name if row.get("tag") in (None, "default") else f"{name}:{row.get('tag')}"


DEPLOYMENTS: Final[list[show.Column]] = [
    ("DEPLOYMENT", lambda row: full_name(dict(row))),
    ("STATUS", show.field("status")),
    ("READY", lambda row: f"{row.get('ready_instance_count', 0)}/{row.get('target_instance_count', 0)}"),
    ("VERSION", show.field("revision_number")),
    ("FUNCTIONS", lambda row: [f.get("name") if isinstance(f, dict) else f for f in row.get("functions") or ()]),
    ("UPDATED", show.moment("updated_at")),
]
WORKERS: Final[list[show.Column]] = [
    ("WORKER", show.field("id")),
    ("DEPLOYMENT", show.field("deployment")),
    ("PHASE", show.field("phase")),
    ("BUSY", lambda row: f"{row.get('in_flight', 0)}/{row.get('slots', 0)}"),
    ("PERF", show.field("perf")),
    ("NODE", show.field("node_id")),
    ("PID", show.field("pid")),
    ("READY SINCE", show.moment("ready_at")),
]
CALLS: Final[list[show.Column]] = [
    ("CALL", show.field("id")),
    ("FUNCTION", lambda row: f"{row.get('endpoint')}::{row.get('function')}"),
    ("STATUS", show.field("status")),
    ("ATTEMPT", show.field("attempt")),
    ("WORKER", show.field("worker")),
    ("CREATED", show.moment("created_at")),
]
