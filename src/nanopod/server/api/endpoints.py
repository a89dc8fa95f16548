"""Endpoints: create or update from a specification, look, keep alive, delete."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.control import rollouts
from nanopod.control.choosing import fitting_kinds, retire_template
from nanopod.control.update import Update, check, compare, fingerprinted, workers_affected
from nanopod.control.views import endpoint_view
from nanopod.model.chain import Deployment, Endpoint, Instance, Key, Revision
from nanopod.model.endpoint import EndpointSpec
from nanopod.model.errors import Conflict, NotFound
from nanopod.server.api.answers import answer, page, whole_list
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.endpoint_answers import DeletedEndpoint, EndpointAnswer, HeartbeatAnswer, PutAnswer, StoryLine
from nanopod.server.api.endpoint_changes import (
    announce,
    apply,
    base_of,
    create,
    moment,
    notify,
    quiet,
    remodelled,
    reprice,
)
from nanopod.server.api.errors import CodedError
from nanopod.server.api.objects import furnish
from nanopod.server.calls.schedules import check_schedules
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

Whole = tuple[Endpoint, Deployment, Revision, list[Instance]]


def whole_endpoint(read: Transaction, endpoint: Endpoint) -> Whole:
    """An endpoint with everything its view shows."""
    deployment = read.deployment_of(endpoint.endpoint_id)
    revision = read.revision(endpoint.revision_id)
    assert deployment is not None and revision is not None, "written together with the endpoint"
    return endpoint, deployment, revision, read.instances_of(endpoint.endpoint_id)


def find_endpoint(read: Transaction, key: Key, reference: str) -> Endpoint:
    """A living endpoint of the key's workspace by id, `name` or `name:tag`. Raises `NotFound`."""
    found = read.endpoint_named(key.workspace_id, reference)
    if found is None:
        known = ", ".join(e.full_name for e in read.endpoints(key.workspace_id)[:20]) or "none yet"
        raise NotFound(f"there is no endpoint {reference!r} in this workspace (there are: {known})")
    return found


async def put_endpoint(context: Context, request: Request, key: Key) -> Response:
    """Create an endpoint, or bring the one with this name and tag to the specification. `?dry_run=1` only plans."""
    spec = fingerprinted(await body_as(request, EndpointSpec))
    check(spec)
    check_schedules(spec)
    if request.query_params.get("dry_run") in ("1", "true"):
        asked = await furnish(context, key, spec, write=False)
        return answer(await context.store.read(lambda read: _planned(context, read, key, asked)))
    whole, update = await put_spec(context, key, spec)
    return answer(_result(context, whole, update, (), None), 201 if update.action == "created" else 200)


async def put_spec(context: Context, key: Key, spec: EndpointSpec) -> tuple[Whole, Update]:
    """Create an endpoint, or bring it to a specification that was checked and has its fingerprints.

    Returns when linked gateways serve by it. Raises `Conflict`, also while the bundle is not uploaded.
    """
    spec = await furnish(context, key, spec, write=True)
    seen = await context.store.read(lambda read: _unchanged(read, key, spec))
    if seen is not None:
        # Nothing is to be written but, where a ttl counts, that somebody is there.
        if seen[0].ttl_s is not None:
            beat = time.time()
            await context.store.write(lambda write: write.heartbeat(seen[0].endpoint_id, beat))
        return seen, Update("exists", 0, (), ("nothing differs",))
    have_bundle = not spec.bundle or context.blobs.has(spec.bundle)
    now = moment(context)
    ids = [context.new_id(kind) for kind in ("endpoint", "revision", "deployment", "template")]

    def write(write: Transaction) -> tuple[Whole, Update]:
        found, update = _compare(write, key, spec)
        if update.tier >= 2 and not have_bundle:
            conflict = Conflict(
                f"bundle: blob {spec.bundle} was not uploaded; PUT /v1/blobs/{spec.bundle} first", field="bundle"
            )
            raise CodedError(conflict, "blob_missing")
        if found is None:
            return whole_endpoint(write, create(context, write, key, spec, ids, now)), update
        return whole_endpoint(write, apply(context, write, found, spec, update, ids[1], now)), update

    whole, update = await context.store.write(write)
    log.info(
        "endpoint=%s action=%s tier=%d key=%s reason=%s",
        *(whole[0].full_name, update.action, update.tier, key.key_id, "; ".join(update.reasons)),
    )
    if update.tier:
        await context.tables.settle()
    return whole, update


def _planned(context: Context, read: Transaction, key: Key, spec: EndpointSpec) -> dict[str, Any]:
    """What putting a specification would do, and to which workers."""
    found, update = _compare(read, key, spec)
    if found is None:
        return _result(context, None, update, (), None)
    whole = whole_endpoint(read, found)
    fits = fitting_kinds(read, spec, {sku.sku_id for sku in read.skus()}).good
    touched = [] if remodelled(found, update) else workers_affected(update, whole[3], fits)
    same = None
    if update.tier in (2, 3):
        prints = (spec.fingerprints.code, spec.fingerprints.image)
        known = [r for r in read.revisions_of(found.endpoint_id) if r.revision_id != found.revision_id]
        earlier = [r for r in known if (r.spec.fingerprints.code, r.spec.fingerprints.image) == prints]
        same = earlier[-1].number if earlier else None
    return _result(context, whole, update, touched, same)


def _result(
    context: Context, whole: Whole | None, update: Update, touched: Sequence[str], earlier: int | None
) -> dict[str, Any]:  # fmt: skip
    return {
        "endpoint": endpoint_view(*whole, context.live) if whole else None,
        "action": update.action,
        "tier": update.tier,
        "changed": update.changed,
        "reasons": update.reasons,
        "files": update.files,
        "workers_affected": len(touched),
        "workers": list(touched),
        "earlier_revision": earlier,
    }


def _compare(read: Transaction, key: Key, spec: EndpointSpec) -> tuple[Endpoint | None, Update]:
    """The endpoint with this identity, and what the specification changes. Raises `Conflict`."""
    found = read.endpoint_named(key.workspace_id, f"{spec.name}:{spec.tag}")
    if found is not None and spec.traffic:
        spec = rollouts.settled(found, read.revisions_of(found.endpoint_id), spec)
    if found is not None and found.kind != spec.kind:
        raise Conflict(
            f"kind: {found.full_name} is a {found.kind} endpoint; delete it first, or choose another name or tag",
            field="kind",
        )
    if spec.model is not None:
        owner = read.model_owner(key.workspace_id, spec.model.model_id)
        if owner is not None and (found is None or owner.endpoint_id != found.endpoint_id):
            raise Conflict(
                f"model.model_id: {spec.model.model_id!r} is served by endpoint {owner.full_name} already; "
                "choose another model_id or delete that endpoint",
                field="model.model_id",
            )
    return found, compare(found, base_of(read, found), spec)


def _unchanged(read: Transaction, key: Key, spec: EndpointSpec) -> Whole | None:
    """The endpoint, when it is exactly as the specification asks for."""
    found, update = _compare(read, key, spec)
    if found is None:
        return None
    newest = read.revision(found.revision_id)
    return whole_endpoint(read, found) if quiet(found, base_of(read, found), newest, spec, update) else None


async def list_endpoints(context: Context, request: Request, key: Key) -> Response:
    """Every endpoint of the workspace, oldest first."""
    found = await context.store.read(
        lambda read: [whole_endpoint(read, endpoint) for endpoint in read.endpoints(key.workspace_id)]
    )
    return whole_list(request, found, lambda whole: endpoint_view(*whole, context.live))


async def get_endpoint(context: Context, request: Request, key: Key) -> Response:
    """One endpoint by id, `name` or `name:tag`. A key that may only call sees what it may call."""
    reference = request.path_params["id"]
    whole = await context.store.read(lambda read: whole_endpoint(read, find_endpoint(read, key, reference)))
    if key.endpoints is not None and not {"admin", "read"} & set(key.scopes):
        found = whole[0]
        if not {found.name, found.full_name} & set(key.endpoints):
            raise NotFound(f"this key may call {', '.join(key.endpoints)} only, not {reference!r}")
    return answer(endpoint_view(*whole, context.live))


async def delete_endpoint(context: Context, request: Request, key: Key) -> Response:
    """Delete an endpoint: no new requests from now on, running ones finish, then its workers end."""
    gone = await remove_endpoint(context, key, request.path_params["id"])
    return answer({"id": gone.endpoint_id, "object": "endpoint", "name": gone.name, "tag": gone.tag, "deleted": True})


async def remove_endpoint(context: Context, key: Key, reference: str) -> Endpoint:
    """Delete an endpoint of the key's workspace; as it was. Raises `NotFound`."""
    now = moment(context)

    def delete(write: Transaction) -> Endpoint:
        found = find_endpoint(write, key, reference)
        write.set_endpoint(found, deleted_at=now.at, updated_at=now.at)
        deployment = write.deployment_of(found.endpoint_id)
        if deployment is not None:
            retire_template(write, deployment)
            reprice(context, write, found, now)
        announce(write, found.endpoint_id, "deleted by request", now)
        notify(write, found.workspace_id, found.endpoint_id, found.name, found.tag, found.kind, "deleted", now)
        return replace(found, deleted_at=now.at)

    gone = await context.store.write(delete)
    await context.tables.settle()
    log.info("endpoint=%s action=deleted key=%s", gone.full_name, key.key_id)
    return gone


async def heartbeat(context: Context, request: Request, key: Key) -> Response:
    """A client of this endpoint is alive; what a ttl counts from."""
    reference = request.path_params["id"]
    now = time.time()

    def beat(write: Transaction) -> Endpoint:
        found = find_endpoint(write, key, reference)
        write.heartbeat(found.endpoint_id, now)
        return found

    found = await context.store.write(beat)
    return answer({"id": found.endpoint_id, "object": "endpoint", "ttl_s": found.ttl_s, "heartbeat_at": int(now)})


async def list_events(context: Context, request: Request, key: Key) -> Response:
    """The story of an endpoint and its instances: the last decisions with their reasons, newest first."""
    reference = request.path_params["id"]
    story = await context.store.read(lambda read: read.story(find_endpoint(read, key, reference).endpoint_id, 200))
    data = [{"at": at, "kind": kind, "id": id_, "message": message} for at, kind, id_, message in story]
    return page(data)


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/endpoints", put_endpoint, "Create or update an endpoint", body=EndpointSpec, answer=PutAnswer,
        also=(201,), errors=(409,), query=(Query("dry_run", "Only say what would be done.", "boolean", default=False),),
        text="201 when it is new, 200 when it was there.",
    ),
    Operation(
        "GET", "/v1/endpoints", list_endpoints, "List endpoints", scope="read", query=("limit", "starting_after"),
        answer=EndpointAnswer, listed=True,
    ),
    Operation("GET", "/v1/endpoints/{id}", get_endpoint, "One endpoint", scope="call", answer=EndpointAnswer),
    Operation("DELETE", "/v1/endpoints/{id}", delete_endpoint, "Delete an endpoint", answer=DeletedEndpoint),
    Operation(
        "POST", "/v1/endpoints/{id}/heartbeat", heartbeat, "Keep an endpoint with a ttl alive", answer=HeartbeatAnswer,
    ),
    Operation(
        "GET", "/v1/endpoints/{id}/events", list_events, "Why it is as it is", scope="read", answer=StoryLine,
        listed=True,
    ),
)  # fmt: skip
