"""`nanopod status`: what runs on this machine, and is it well."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

from nanopod.model.layout import Layout
from nanopod.server import cloud
from nanopod.server.up import get_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod status`."""
    parser.add_argument("--data-dir", metavar="DIR", help="of the cloud to look at (default: as for `nanopod up`)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the state; exit status 0 when everything answers, 1 when not."""
    layout = Layout(cloud.data_directory(args.data_dir))
    facts = collect(layout)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print(describe(facts, layout))
    return 0 if facts["status"] == "ok" else 1


def collect(layout: Layout) -> dict[str, Any]:
    """Everything known: `status` is `ok`, `degraded` or `down`."""
    state = cloud.read_state(layout)
    if state is None or not cloud.is_locked(layout):
        return {"status": "down", "data_dir": str(layout.data)}
    parts = urlsplit(state["url"])
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        key = layout.admin_key.read_text().strip()
    except OSError:
        key = None
    health = get_json(host, port, "/healthz")
    api = get_json(host, port, "/v1/status", key)
    for process in state["processes"].values():
        process["alive"] = process["pid"] is not None and os.path.exists(f"/proc/{process['pid']}")
    well = bool(health) and bool(api) and all(process["alive"] for process in state["processes"].values())
    return {**state, "status": "ok" if well else "degraded", "gateway": health, "api": api}


def describe(facts: dict[str, Any], layout: Layout) -> str:
    """The same for people."""
    if facts["status"] == "down":
        return f"no cloud runs in {layout.data}; start one with: nanopod up"
    lines = [
        f"nanopod is {facts['status']}   {facts['url']}   up {_span(time.time() - facts['started_at'])}",
        f"  data       {facts['data_dir']}",
    ]
    for name, process in facts["processes"].items():
        life = f"pid {process['pid']}" if process["alive"] else "restarting"
        crashes = f"   ({process['restarts']} crashes lately)" if process["restarts"] else ""
        lines.append(f"  {name:<10} {life}{crashes}")
    gateway = facts.get("gateway") or {}
    if gateway:
        lines.append(
            f"  requests   {gateway.get('in_flight', 0)} in flight, {gateway.get('workers', 0)} workers linked"
        )
    if not facts.get("api"):
        lines.append("  the API does not answer; see: nanopod logs server")
    return "\n".join(lines)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
