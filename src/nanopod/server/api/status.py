"""The state of the server as a whole."""

from __future__ import annotations

import os
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod import __version__
from nanopod.model.chain import Key
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation
from nanopod.store.transaction import Transaction


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
            "uptime_s": round(context.clock() - context.started_at, 3),
            "processes": {
                "server": {"pid": os.getpid()},
                "gateways": sorted(context.live.gateways),
                "machines": sorted(context.live.machines),
            },
            "table_version": context.tables.version,
            **counts,
        }
    )


OPERATIONS: Final = (Operation("GET", "/v1/status", get_status, "The state of the server", scope="read"),)
