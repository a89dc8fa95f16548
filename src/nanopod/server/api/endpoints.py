"""Endpoints: create or update from a specification, look, keep alive, delete."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.choosing import choose_sku, free_name, name_of, retire_template, template_of
from nanopod.control.update import Update, check, compare, fingerprinted
from nanopod.control.views import endpoint_view
from nanopod.model.chain import Deployment, Endpoint, Instance, Key, Revision
from nanopod.model.endpoint import EndpointSpec
from nanopod.model.errors import Conflict, NotFound
from nanopod.server.api.answers import answer, page, whole_list
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.endpoint_answers import DeletedEndpoint, EndpointAnswer, HeartbeatAnswer, PutAnswer, StoryLine
from nanopod.server.api.errors import CodedError
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

Whole = tuple[Endpoint, Deployment, Revision, list[Instance]]
CAPACITY: Final = "default"


@dataclass(frozen=True, slots=True)
class _Moment:
    """`wall`: what signals, heartbeats and back-off go by; `at`: the cluster's time, which rows show."""

    wall: float
    at: float


def _moment(context: Context) -> _Moment:
    return _Moment(time.time(), context.clock())


def _whole(read: Transaction, endpoint: Endpoint) -> Whole:
    """An endpoint with everything its view shows."""
    deployment = read.deployment_of(endpoint.endpoint_id)
    revision = read.revision(endpoint.revision_id)
    assert deployment is not None and revision is not None, "written together with the endpoint"
    return endpoint, deployment, revision, read.instances_of(endpoint.endpoint_id)


def _find(read: Transaction, key: Key, reference: str) -> Endpoint:
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
    if request.query_params.get("dry_run") in ("1", "true"):
        found, update = await context.store.read(lambda read: _compare(read, key, spec))
        shown = await context.store.read(lambda read: _whole(read, found)) if found else None
        return answer(_result(context, shown, update))
    have_bundle = not spec.bundle or context.blobs.has(spec.bundle)
    now = _moment(context)
    ids = [context.new_id(kind) for kind in ("endpoint", "revision", "deployment", "template")]

    def write(write: Transaction) -> tuple[Whole, Update]:
        found, update = _compare(write, key, spec)
        if update.tier >= 2 and not have_bundle:
            conflict = Conflict(
                f"bundle: blob {spec.bundle} was not uploaded; PUT /v1/blobs/{spec.bundle} first", field="bundle"
            )
            raise CodedError(conflict, "blob_missing")
        if found is None:
            return _whole(write, _create(context, write, key, spec, ids, now)), update
        return _whole(write, _apply(write, found, spec, update, ids[1], now)), update

    whole, update = await context.store.write(write)
    log.info(
        "endpoint=%s action=%s tier=%d key=%s reason=%s",
        *(whole[0].full_name, update.action, update.tier, key.key_id, "; ".join(update.reasons)),
    )
    if update.tier:
        await context.tables.settle()
    return answer(_result(context, whole, update), 201 if update.action == "created" else 200)


def _result(context: Context, whole: Whole | None, update: Update) -> dict[str, Any]:
    return {
        "endpoint": endpoint_view(*whole, context.live) if whole else None,
        "action": update.action,
        "tier": update.tier,
        "changed": update.changed,
        "reasons": update.reasons,
    }


def _compare(read: Transaction, key: Key, spec: EndpointSpec) -> tuple[Endpoint | None, Update]:
    """The endpoint with this identity, and what the specification changes. Raises `Conflict`."""
    found = read.endpoint_named(key.workspace_id, f"{spec.name}:{spec.tag}")
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
    revision = read.revision(found.revision_id) if found else None
    return found, compare(found, revision, spec)


def _create(
    context: Context, write: Transaction, key: Key, spec: EndpointSpec, ids: list[str], now: _Moment
) -> Endpoint:  # fmt: skip
    """The endpoint with its first revision, a template and a deployment of the same name on the default capacity."""
    endpoint_id, revision_id, deployment_id, template_id = ids
    workspace_id = key.workspace_id
    capacity = write.capacity_named(workspace_id, CAPACITY)
    assert capacity is not None, "every workspace has its default capacity"
    write.add_endpoint(endpoint_id, workspace_id, spec, revision_id, now.at)
    write.heartbeat(endpoint_id, now.wall)
    write.add_revision(revision_id, endpoint_id, spec, now.at)
    base = name_of(spec.name, spec.tag)
    name = free_name(base, lambda one: write.deployment_named(workspace_id, one) is not None)
    template = template_of(write, workspace_id, name, endpoint_id, template_id, now.at)
    write.add_template(template)
    with context.desk.session(write, now.at) as market:
        choice = choose_sku(market, write, spec)
        write.add_deployment(
            Deployment(
                *(deployment_id, endpoint_id, workspace_id, capacity.capacity_id, revision_id, 0, 0, (), 0, 0.0),
                *(now.at, now.at),
                name=name,
                sku_id=choice.sku_id,
                template_id=template_id,
            )
        )
        if choice.sku_id:
            market.ensure_procurement(capacity.capacity_id, choice.sku_id)
    _announce(write, endpoint_id, "created", now)
    if choice.sku_id:
        write.tell("deployment", deployment_id, endpoint_id, f"runs on {'; '.join(choice.reasons)}", now.wall)
    _notify(write, workspace_id, endpoint_id, spec, "created", now)
    made = write.endpoint(endpoint_id)
    assert made is not None
    return made


def _apply(
    write: Transaction, found: Endpoint, spec: EndpointSpec, update: Update, revision_id: str, now: _Moment
) -> Endpoint:
    """Bring an endpoint to a specification. Asking for it again after a failure is asking to try again."""
    values: dict[str, Any] = {"heartbeat_at": now.wall}
    if spec.version_label != found.version_label:
        values["version_label"] = spec.version_label
    if "scale" in update.changed:
        values |= {"scale": spec.scale, "scale_fingerprint": spec.fingerprints.scale, "ttl_s": spec.ttl_s}
    revision = write.revision(found.revision_id)
    again = found.failure is not None or (revision is not None and revision.failures > 0)
    if update.tier >= 2:
        write.add_revision(revision_id, found.endpoint_id, spec, now.at)
        values["revision_id"] = revision_id
    elif again:
        write.set_revision(found.revision_id, failures=0, failure=None)
    if update.tier or again:
        values |= {"updated_at": now.at, "failure": None}
        if found.target == 0 and (update.tier >= 2 or again):
            # It may have been stopped, or asleep: decide as for a new endpoint, which starts a worker to try it.
            values |= {"target": -1, "scale_state": b""}
    write.set_endpoint(found, **values)
    if update.tier >= 2 or again:
        runs = values.get("revision_id", found.revision_id)
        asks_otherwise = revision is not None and revision.spec.image.query != spec.image.query
        _renew_deployment(write, found.endpoint_id, runs, update.tier >= 2, asks_otherwise, now)
    if update.tier or again:
        words = "; ".join(update.reasons) if update.tier else "asked for again after a failure"
        _announce(write, found.endpoint_id, f"{update.action}: {words}", now)
        _notify(write, found.workspace_id, found.endpoint_id, spec, "updated", now)
    made = write.endpoint(found.endpoint_id)
    assert made is not None
    return made


def _renew_deployment(
    write: Transaction, endpoint_id: str, revision_id: str, new_code: bool, asks_otherwise: bool, now: _Moment
) -> None:
    """Have a deployment run another revision, or the same one anew; on other hardware if that asks for it."""
    deployment = write.deployment_of(endpoint_id)
    assert deployment is not None, "written together with the endpoint"
    values: dict[str, Any] = {"revision_id": revision_id, "fails": 0, "not_before": 0.0}
    if asks_otherwise:
        values["sku_id"] = ""  # its reconciler chooses anew
    write.set_deployment(deployment, **values)
    if new_code and deployment.template_id:
        write.set_template(deployment.template_id, updated_at=now.at)
    write.signal("deployment", deployment.deployment_id, now.wall)


def _announce(write: Transaction, endpoint_id: str, message: str, now: _Moment) -> None:
    write.tell("endpoint", endpoint_id, endpoint_id, message, now.at)
    write.signal("endpoint", endpoint_id, now.wall)
    write.hint("tables")


def _notify(
    write: Transaction, workspace_id: str, endpoint_id: str, spec: EndpointSpec, what: str, now: _Moment
) -> None:  # fmt: skip
    data = {"name": spec.name, "tag": spec.tag, "kind": spec.kind}
    write.add_notice(now.at, workspace_id, f"endpoint.{what}", endpoint_id, data)


async def list_endpoints(context: Context, request: Request, key: Key) -> Response:
    """Every endpoint of the workspace, oldest first."""
    found = await context.store.read(
        lambda read: [_whole(read, endpoint) for endpoint in read.endpoints(key.workspace_id)]
    )
    return whole_list(request, found, lambda whole: endpoint_view(*whole, context.live))


async def get_endpoint(context: Context, request: Request, key: Key) -> Response:
    """One endpoint by id, `name` or `name:tag`. A key that may only call sees what it may call."""
    reference = request.path_params["id"]
    whole = await context.store.read(lambda read: _whole(read, _find(read, key, reference)))
    if key.endpoints is not None and not {"admin", "read"} & set(key.scopes):
        found = whole[0]
        if not {found.name, found.full_name} & set(key.endpoints):
            raise NotFound(f"this key may call {', '.join(key.endpoints)} only, not {reference!r}")
    return answer(endpoint_view(*whole, context.live))


async def delete_endpoint(context: Context, request: Request, key: Key) -> Response:
    """Delete an endpoint: no new requests from now on, running ones finish, then its workers end."""
    reference = request.path_params["id"]
    now = _moment(context)

    def delete(write: Transaction) -> Endpoint:
        found = _find(write, key, reference)
        write.set_endpoint(found, deleted_at=now.at, updated_at=now.at)
        deployment = write.deployment_of(found.endpoint_id)
        if deployment is not None:
            retire_template(write, deployment)
        _announce(write, found.endpoint_id, "deleted by request", now)
        data = {"name": found.name, "tag": found.tag, "kind": found.kind}
        write.add_notice(now.at, found.workspace_id, "endpoint.deleted", found.endpoint_id, data)
        return replace(found, deleted_at=now.at)

    gone = await context.store.write(delete)
    await context.tables.settle()
    log.info("endpoint=%s action=deleted key=%s", gone.full_name, key.key_id)
    return answer({"id": gone.endpoint_id, "object": "endpoint", "name": gone.name, "tag": gone.tag, "deleted": True})


async def heartbeat(context: Context, request: Request, key: Key) -> Response:
    """A client of this endpoint is alive; what a ttl counts from."""
    reference = request.path_params["id"]
    now = time.time()

    def beat(write: Transaction) -> Endpoint:
        found = _find(write, key, reference)
        write.heartbeat(found.endpoint_id, now)
        return found

    found = await context.store.write(beat)
    return answer({"id": found.endpoint_id, "object": "endpoint", "ttl_s": found.ttl_s, "heartbeat_at": int(now)})


async def list_events(context: Context, request: Request, key: Key) -> Response:
    """The story of an endpoint and its instances: the last decisions with their reasons, newest first."""
    reference = request.path_params["id"]
    story = await context.store.read(lambda read: read.story(_find(read, key, reference).endpoint_id, 200))
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
