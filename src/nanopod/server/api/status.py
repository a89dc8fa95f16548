"""The state of the server as a whole."""

from __future__ import annotations

import os
import time
from typing import Any, Final, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod import __version__
from nanopod.model.chain import Key
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation
from nanopod.store.transaction import Transaction


class Count(TypedDict):
    """How many nodes there are, and how many of them are up."""

    total: int
    up: int


class Ready(TypedDict):
    """How many instances there are, and how many of them take work."""

    total: int
    ready: int


class Process(TypedDict):
    """A process of the cloud."""

    pid: int


class Processes(TypedDict):
    """The server, and who is linked to it."""

    server: Process
    gateways: list[str]
    machines: list[str]


class StatusAnswer(TypedDict):
    """The state of the server; `degraded` while no gateway or no machine is linked."""

    object: Literal["status"]
    status: Literal["ok", "degraded"]
    version: str
    cluster_id: str
    uptime_s: float
    processes: Processes
    table_version: int
    nodes: Count
    endpoints: int
    instances: Ready


async def get_status(context: Context, _request: Request, _key: Key) -> Response:
    """Is it well, since when, and how much of everything there is."""

    def read(read: Transaction) -> dict[str, Any]:
        live = read.instances_live()
        nodes = read.nodes()
        return {
            "nodes": {"total": len(nodes), "up": sum(1 for node in nodes if node.state == "up")},
            "endpoints": len(read.endpoints()),
            "instances": {
                "total": len(live),
                "ready": sum(1 for i in live if context.live.ready(i.instance_id, i.epoch)),
            },
        }

    counts = await context.store.read(read)
    return answer(
        {
            "object": "status",
            "status": "ok" if context.live.gateways and context.live.machines else "degraded",
            "version": __version__,
            "cluster_id": context.cluster_id,
            "uptime_s": round(time.time() - context.started_at, 3),
            "processes": {
                "server": {"pid": os.getpid()},
                "gateways": sorted(context.live.gateways),
                "machines": sorted(context.live.machines),
            },
            "table_version": context.tables.version,
            **counts,
        }
    )


OPERATIONS: Final = (
    Operation("GET", "/v1/status", get_status, "The state of the server", scope="read", answer=StatusAnswer),
)
