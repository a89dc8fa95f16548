"""Instances: workers that run, ran, or wait for room."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.views import instance_view
from nanopod.model.chain import Instance, Key
from nanopod.model.errors import NotFound
from nanopod.server.api.answers import after_of, answer, limit_of, page
from nanopod.server.api.context import Context, Operation
from nanopod.store.transaction import Transaction


def _show(context: Context, instance: Instance, endpoint: str | None) -> dict[str, Any]:
    return {**instance_view(instance, context.live), "endpoint": endpoint}


async def list_instances(context: Context, request: Request, key: Key) -> Response:
    """Instances, newest first; `?endpoint=` narrows to one endpoint, `?live=1` to those that are not gone."""
    limit, after = limit_of(request), after_of(request)
    wanted = request.query_params.get("endpoint")
    live_only = request.query_params.get("live") in ("1", "true")

    def read(read: Transaction) -> tuple[list[Instance], dict[str, str]]:
        names = {e.endpoint_id: e.full_name for e in read.endpoints(key.workspace_id, deleted=True)}
        endpoint_id = None
        if wanted is not None:
            found = read.endpoint_named(key.workspace_id, wanted)
            if found is None:
                raise NotFound(f"there is no endpoint {wanted!r} in this workspace")
            endpoint_id = found.endpoint_id
        if live_only:
            rows = [
                i
                for i in reversed(read.instances_live())
                if i.workspace_id == key.workspace_id and endpoint_id in (None, i.endpoint_id)
            ]
            ids = [i.instance_id for i in rows]
            start = ids.index(after) + 1 if after in ids else 0
            return rows[start : start + limit + 1], names
        return read.instances_page(key.workspace_id, limit + 1, after, endpoint_id), names

    rows, names = await context.store.read(read)
    data = [_show(context, instance, names.get(instance.endpoint_id)) for instance in rows[:limit]]
    more = len(rows) > limit
    return page(data, has_more=more, cursor=data[-1]["id"] if more else None)


async def get_instance(context: Context, request: Request, key: Key) -> Response:
    """One instance by its id."""
    reference = request.path_params["id"]

    def read(read: Transaction) -> tuple[Instance, str | None]:
        found = read.instance(reference)
        if found is None or found.workspace_id != key.workspace_id:
            raise NotFound(f"there is no instance {reference!r} in this workspace")
        endpoint = read.endpoint(found.endpoint_id)
        return found, endpoint.full_name if endpoint else None

    return answer(_show(context, *await context.store.read(read)))


OPERATIONS: Final = (
    Operation(
        "GET",
        "/v1/instances",
        list_instances,
        "List instances",
        scope="read",
        query=("limit", "starting_after", "endpoint", "live"),
    ),
    Operation("GET", "/v1/instances/{id}", get_instance, "One instance", scope="read"),
)
