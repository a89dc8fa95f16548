"""Deployments: what keeps an endpoint's instances at their number."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.views import deployment_view
from nanopod.model.chain import Deployment, Endpoint, Instance, Key
from nanopod.model.errors import NotFound
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.context import Context, Operation
from nanopod.store.transaction import Transaction

Whole = tuple[Deployment, Endpoint | None, list[Instance]]


def _read(read: Transaction, key: Key) -> list[Whole]:
    return [
        (d, read.endpoint(d.endpoint_id), read.instances_of(d.endpoint_id)) for d in read.deployments(key.workspace_id)
    ]


async def list_deployments(context: Context, request: Request, key: Key) -> Response:
    """Every deployment of the workspace, oldest first."""
    found = await context.store.read(lambda read: _read(read, key))
    return whole_list(request, found, lambda whole: deployment_view(*whole, context.live))


async def get_deployment(context: Context, request: Request, key: Key) -> Response:
    """One deployment by its id, or by its endpoint's id or name."""
    reference = request.path_params["id"]

    def read(read: Transaction) -> dict[str, Any]:
        endpoint = read.endpoint_named(key.workspace_id, reference)
        found = read.deployment_of(endpoint.endpoint_id) if endpoint else read.deployment(reference)
        if found is None or found.workspace_id != key.workspace_id:
            raise NotFound(f"there is no deployment {reference!r} in this workspace")
        owner = read.endpoint(found.endpoint_id)
        return deployment_view(found, owner, read.instances_of(found.endpoint_id), context.live)

    return answer(await context.store.read(read))


OPERATIONS: Final = (
    Operation("GET", "/v1/deployments", list_deployments, "List deployments", scope="read"),
    Operation("GET", "/v1/deployments/{id}", get_deployment, "One deployment", scope="read"),
)
