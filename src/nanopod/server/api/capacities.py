"""Capacities: time on nodes that a workspace holds."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.capacity import Capacity
from nanopod.model.chain import Key
from nanopod.model.errors import NotFound
from nanopod.model.schedule import Schedule
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.context import Context, Operation
from nanopod.store.transaction import Transaction


def show_schedule(schedule: Schedule) -> list[dict[str, Any]]:
    """A schedule as a list of entries."""
    return [
        {"start_at": e.window.start_at, "end_at": e.window.end_at, "node_count": e.node_count} for e in schedule.entries
    ]


def _show(capacity: Capacity, deployments: dict[str, list[str]], now: float) -> dict[str, Any]:
    return {
        "id": capacity.capacity_id,
        "object": "capacity",
        "name": capacity.name,
        "kind": capacity.kind,
        "workspace_id": capacity.workspace_id,
        "nodes_now": capacity.total().nodes_at(now),
        "allocation_schedule": {
            "total": show_schedule(capacity.total()),
            "by_instance_sku": {sku_id: show_schedule(s) for sku_id, s in capacity.by_sku.items()},
        },
        "procurements": [],
        "deployments": deployments.get(capacity.capacity_id, []),
    }


def _read(read: Transaction, workspace_id: str) -> tuple[list[Capacity], dict[str, list[str]]]:
    by_capacity: dict[str, list[str]] = {}
    for deployment in read.deployments(workspace_id):
        by_capacity.setdefault(deployment.capacity_id, []).append(deployment.deployment_id)
    return read.capacities(workspace_id), by_capacity


async def list_capacities(context: Context, request: Request, key: Key) -> Response:
    """Every capacity of the workspace with its schedules."""
    found, deployments = await context.store.read(lambda read: _read(read, key.workspace_id))
    now = context.clock()
    return whole_list(request, found, lambda capacity: _show(capacity, deployments, now))


async def get_capacity(context: Context, request: Request, key: Key) -> Response:
    """One capacity by id or name."""
    reference = request.path_params["id"]
    found, deployments = await context.store.read(lambda read: _read(read, key.workspace_id))
    for capacity in found:
        if reference in (capacity.capacity_id, capacity.name):
            return answer(_show(capacity, deployments, context.clock()))
    raise NotFound(f"there is no capacity {reference!r} in this workspace")


OPERATIONS: Final = (
    Operation("GET", "/v1/capacities", list_capacities, "List capacities", scope="read"),
    Operation("GET", "/v1/capacities/{id}", get_capacity, "One capacity", scope="read"),
)
