"""Endpoints and groups of workers made by hand, in Vast's shape: served by workers of Vast's own make.

Each endpoint has one group, under the endpoint's own number. Those that come with a deployment can be changed here but
are deleted with it.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.server.api.context import Context
from nanopod.server.vast import deployments
from nanopod.server.vast.answers import fields_of, keyholder, number_of
from nanopod.server.vast.spec import SCALE, Wish, wish_of
from nanopod.server.vast.state import Vast
from nanopod.store.transaction import Transaction
from nanopod.store.vast import VastDeployment

STATES = ("active", "suspended", "stopped")


def _scale(body: dict[str, Any]) -> dict[str, Any]:
    """The autoscaling settings of a body. Raises `Invalid` for one that is no number."""
    given = {name: body[name] for name in SCALE if body.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid(f"{name}: {value!r} is no number", field=name)
    return given


async def create(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /endptjobs/ with `endpoint_name` and settings."""
    body = await fields_of(request)
    key = await keyholder(context, request, body)
    name = body.get("endpoint_name")
    if not isinstance(name, str) or not 0 < len(name) <= 255:
        raise Invalid("endpoint_name: say how the endpoint is called", field="endpoint_name")
    wish = Wish(name=name, **_scale(body))
    wish.check_settings()

    def write(write: Transaction) -> VastDeployment:
        if write.vast_deployment_named(key.workspace_id, name, wish.tag) is not None:
            raise Conflict(f"endpoint_name: there is an endpoint {name} already; choose another", field="endpoint_name")
        return write.add_vast_deployment(key.workspace_id, name, wish.tag, wish.kept(), context.clock())

    made = await context.store.write(write)
    return JSONResponse({"success": True, "result": made.number})


async def change(context: Context, _vast: Vast, request: Request) -> Response:
    """PUT /endptjobs/{id}/ with the settings that are to be others, and `endpoint_state`."""
    body = await fields_of(request)
    key, found = await _found(context, request, body)
    state = body.get("endpoint_state", found.state)
    if state not in STATES:
        raise Invalid(f"endpoint_state: {state!r} is none of {', '.join(STATES)}", field="endpoint_state")
    await _keep(context, key, found, replace(wish_of(found.config), **_scale(body)), state)
    return JSONResponse({"success": True, "result": found.number})


async def delete(context: Context, vast: Vast, request: Request) -> Response:
    """DELETE /endptjobs/{id}/."""
    key, found = await _found(context, request, {})
    if found.config.get("file_hash"):
        raise Conflict(f"endpoint {found.number} belongs to deployment {found.name}; delete the deployment")
    await deployments.remove(context, vast, key, found)
    return JSONResponse({"success": True})


async def create_group(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /workergroups/ for an endpoint, by `endpoint_id` or `endpoint_name`: what its workers are to run on."""
    body = await fields_of(request)
    key = await keyholder(context, request, body)
    name = body.get("endpoint_name")
    if body.get("endpoint_id") is not None:
        found = await deployments.find(context, key, number_of(body["endpoint_id"], "endpoint_id"))
    else:
        named = await context.store.read(
            lambda read: read.vast_deployment_named(key.workspace_id, str(name), "default")
        )
        if named is None:
            raise NotFound(f"endpoint_name: there is no endpoint {name!r}; name it, or give endpoint_id")
        found = named
    return await _set_group(context, key, found, body)


async def change_group(context: Context, _vast: Vast, request: Request) -> Response:
    """PUT /workergroups/{id}/."""
    body = await fields_of(request)
    key, found = await _found(context, request, body)
    return await _set_group(context, key, found, body)


async def delete_group(context: Context, vast: Vast, request: Request) -> Response:
    """DELETE /workergroups/{id}/: its workers get no more calls until they report again."""
    _, found = await _found(context, request, {})
    if found.config.get("file_hash"):
        raise Conflict(f"group {found.number} belongs to deployment {found.name}; delete the deployment")
    vast.forget(found.number)
    return JSONResponse({"success": True})


async def _set_group(context: Context, key: Key, found: VastDeployment, body: dict[str, Any]) -> Response:
    wish = wish_of(found.config)
    query = body.get("search_params", wish.search_params)
    if not isinstance(query, str):
        raise Invalid("search_params: is text, such as gpu_ram>=24", field="search_params")
    await _keep(context, key, found, replace(wish, search_params=query, **_scale(body)), found.state)
    return JSONResponse({"success": True, "id": found.number})


async def _found(context: Context, request: Request, body: dict[str, Any]) -> tuple[Key, VastDeployment]:
    key = await keyholder(context, request, body)
    return key, await deployments.find(context, key, number_of(request.path_params["id"], "id"))


async def _keep(context: Context, key: Key, found: VastDeployment, wish: Wish, state: str) -> None:
    wish.check_settings()

    def write(write: Transaction) -> VastDeployment:
        write.set_vast_deployment(found.number, config=wish.kept(), state=state, updated_at=context.clock())
        kept = write.vast_deployment(found.number)
        if kept is None:
            raise NotFound(f"endpoint {found.number} was deleted meanwhile")
        return kept

    kept = await context.store.write(write)
    if kept.blob:
        await deployments.apply(context, key, kept)
