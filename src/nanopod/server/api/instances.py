"""Instances: what runs, ran, or waits for time in a capacity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NotRequired, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.views import instance_view
from nanopod.model.capacity import Capacity, Sku
from nanopod.model.chain import Deployment, Instance, Key, Priority
from nanopod.model.errors import Conflict, NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import TAG_QUERIES, flag_of, tag_filter, time_of, words_of
from nanopod.server.api.pages import PAGING, Page, page_answer, page_of
from nanopod.server.api.references import (
    Scope,
    find_capacity,
    find_deployment,
    find_sku,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.references import find_instance as find_in_scope
from nanopod.server.api.showing import Changeable, Owners, Summary, changeable, sku_summary, summary_of
from nanopod.server.api.templates import INCLUDE, INCLUDED, wants_cloud_init
from nanopod.store.transaction import Transaction

STATUSES: Final = ("awaiting_allocation", "running", "hibernated", "terminated", "failed")
USE_EXEC: Final = "use exec instead: POST /v1/instances/{}/exec, or nanopod instances ssh {}"


class Manager(Summary):
    """What made an instance and keeps it."""

    object: str


class FailureAnswer(TypedDict):
    """Why a start failed, in the worker's own words."""

    stage: str
    message: str
    type_name: str
    traceback: str
    log_tail: str
    user_fault: bool


class InstanceAnswer(Changeable):
    """An instance. New values of `status` and `phase` may come; `expected_*` are foreseen and may change.

    `market_phase` is the phase in the market's words, null while it awaits allocation and once it is gone.
    """

    status: Literal["awaiting_allocation", "running", "hibernated", "terminated", "failed"]
    status_reason: str | None
    phase: str
    market_phase: str | None
    capacity: Summary
    pool: Summary
    capacity_id: str
    instance_sku: Summary | None
    instance_sku_id: str | None
    image: Summary | None
    instance_template: Summary | None
    cloud_init_user_data: NotRequired[str | None]
    managed_by: Manager | None
    deployment_id: str | None
    endpoint_id: str | None
    endpoint: str | None
    revision_id: str | None
    node_id: str | None
    priority_level: Priority
    tags: dict[str, str]
    public_ip: str | None
    enable_public_ipv4: bool
    expected_start_at: int | None
    expected_shutdown_at: int | None
    early_start: bool
    ready: bool
    linked: bool
    in_flight: int
    perf: float | None
    slots: int
    epoch: int
    intent: str
    pid: int | None
    exit_code: int | None
    reason: str
    failure: FailureAnswer | None
    ready_at: int | None
    ended_at: int | None


@dataclass(frozen=True, slots=True)
class Known:
    """What an instance's answer names beside itself, read in one transaction."""

    instance: Instance
    fields: Mapping[str, Any]
    endpoint: str | None
    cloud_init: bool = False


def look(read: Transaction, owners: Owners, instance: Instance, *, cloud_init: bool = False) -> Known:
    """Everything that is shown of an instance and stands in the store."""
    capacity: Capacity | None = read.capacity(instance.capacity_id)
    sku: Sku | None = read.sku(instance.sku_id) if instance.sku_id else None
    image = read.image(instance.image_id) if instance.image_id else None
    template = read.template(instance.template_id) if instance.template_id else None
    endpoint = read.endpoint(instance.endpoint_id) if instance.endpoint_id else None
    place = summary_of(capacity, instance.capacity_id)
    manager = read.deployment(instance.deployment_id) if instance.deployment_id else None
    fields = {
        **changeable(
            owners, "instance", instance.instance_id, instance.workspace_id, instance.name or None,
            instance.created_at, instance.ended_at or instance.created_at,
        ),
        "capacity": place,
        "pool": place,
        "instance_sku": sku_summary(sku, instance.sku_id) if instance.sku_id else None,
        "image": {"id": image.image_id, "name": image.name} if image else None,
        "instance_template": {"id": template.template_id, "name": template.name} if template else None,
        "managed_by": _manager(manager),
        "public_ip": None,
        "enable_public_ipv4": False,
        "early_start": instance.early_until is not None and instance.granted_at is not None,
    }  # fmt: skip
    return Known(instance, fields, endpoint.full_name if endpoint else None, cloud_init)


def _manager(found: Deployment | None) -> Manager | None:
    if found is None:
        return None
    kind = "spot_deployment" if found.kind == "spot" else "deployment"
    return {"object": kind, "id": found.deployment_id, "name": found.name}


def show(context: Context, known: Known) -> dict[str, Any]:
    """An instance as the API shows it; in the event loop, where the books and the links are."""
    instance = known.instance
    start_at, shutdown_at = context.books.expected(instance)
    shown = {
        **instance_view(instance, context.live),
        **known.fields,
        "endpoint": known.endpoint,
        "expected_start_at": start_at,
        "expected_shutdown_at": shutdown_at,
    }
    if known.cloud_init:
        shown[INCLUDED] = instance.cloud_init or None
    return shown


def instance_path(read: Transaction, key: Key, request: Request) -> Instance:
    """The instance in the path, by id, name or path. Raises `NotFound` for one that the key may not see."""
    scope = scope_of(read, key, workspace_reference(request))
    return find_in_scope(read, scope, request.path_params["id"], None)


def machine_of(read: Transaction, instance: Instance, *, ended: bool = False) -> str:
    """The machine that an instance runs (or ran) on. Raises `Conflict` when it has none."""
    name = instance.name or instance.instance_id
    if instance.ended_at is not None and not ended:
        raise Conflict(f"instance {name} is gone ({instance.reason or instance.phase})")
    found = next((node for node in read.nodes() if node.node_id == instance.node_id), None)
    if found is None:
        if instance.phase == "hibernated":
            raise Conflict(f"instance {name} is hibernated: it is on no machine until it is woken by a request")
        raise Conflict(f"instance {name} is on no machine yet; it waits for time in its capacity")
    return found.machine_id


# --- lists ---


async def list_instances(context: Context, request: Request, key: Key) -> Response:
    """Instances, newest first."""
    page = page_of(request, "inst_")
    query = request.query_params
    statuses = words_of(request, "status", STATUSES)
    ids = words_of(request, "id")
    fits, include = tag_filter(request), wants_cloud_init(request)
    after_at, before_at = time_of(request, "created_after"), time_of(request, "created_before")
    live = flag_of(request, "live")

    def read(read: Transaction) -> list[Known]:
        scope = scope_of(read, key, workspace_reference(request))
        wanted = [find_in_scope(read, scope, one, "id").instance_id for one in ids]
        filters: dict[str, Any] = {
            "created_after": after_at, "created_before": before_at, "statuses": statuses, "ids": wanted,
        }  # fmt: skip
        if capacity := query.get("capacity") or query.get("pool"):
            filters["capacity_id"] = find_capacity(read, scope, capacity).capacity_id
        if sku := query.get("instance_sku"):
            filters["sku_id"] = find_sku(read, sku).sku_id
        if deployment := query.get("deployment"):
            filters["deployment_id"] = find_deployment(read, scope, deployment).deployment_id
        if endpoint := query.get("endpoint"):
            found = read.endpoint_named(scope.workspace.workspace_id, endpoint)
            if found is None:
                raise NotFound(f"endpoint: there is no endpoint {endpoint!r} in this workspace", field="endpoint")
            filters["endpoint_id"] = found.endpoint_id

        def matches(instance: Instance) -> bool:
            return fits(instance.tags) and (live is None or live == (instance.ended_at is None))

        owners = Owners(read)
        rows = _matching(read, scope, page, filters, matches)
        return [look(read, owners, row, cloud_init=include) for row in rows]

    rows = await context.store.read(read)
    return page_answer(page, rows, lambda row: show(context, row), lambda row: row.instance.instance_id)


def _matching(
    read: Transaction, scope: Scope, page: Page, filters: Mapping[str, Any], matches: Callable[[Instance], bool]
) -> list[Instance]:
    """A page of instances that match; more are fetched as long as too few do."""
    found: list[Instance] = []
    after, before = page.after, page.before
    while True:
        rows = read.instances_page(scope.listed, limit=page.fetch, after=after, before=before, **filters)
        some = [row for row in rows if matches(row)]
        found = [*some, *found] if before else [*found, *some]
        if len(rows) < page.fetch or len(found) >= page.fetch:
            return found[-page.fetch :] if before else found[: page.fetch]
        after, before = (None, rows[0].instance_id) if before else (rows[-1].instance_id, None)


async def get_instance(context: Context, request: Request, key: Key) -> Response:
    """One instance."""
    include = wants_cloud_init(request)

    def read(read: Transaction) -> Known:
        return look(read, Owners(read), instance_path(read, key, request), cloud_init=include)

    return answer(show(context, await context.store.read(read)))


class SshAnswer(msgspec.Struct, frozen=True):
    """How to reach an instance by SSH."""

    object: str
    id: str
    hostname: str
    port: int
    username: str
    host_keys: tuple[dict[str, str], ...]


def _front(facts: Sequence[Any], instance: Instance) -> Mapping[str, Any] | None:
    """The SSH front of an instance's machine, where its agent has one."""
    for known in facts:
        if known.node.node_id == instance.node_id:
            front = known.inventory.get("ssh")
            return front if isinstance(front, Mapping) and front.get("hostname") else None
    return None


async def get_ssh(context: Context, request: Request, key: Key) -> Response:
    """Where to reach an instance by SSH, with the host keys to expect."""

    def read(read: Transaction) -> SshAnswer:
        found = instance_path(read, key, request)
        machine_of(read, found)
        name = found.name or found.instance_id
        front = _front(read.node_facts(), found)
        if front is None:
            raise Conflict(f"the machine of instance {name} has no SSH front; {USE_EXEC.format(name, name)}")
        keys = tuple({"key_type": str(k.get("key_type")), "key": str(k.get("key"))} for k in front.get("host_keys", ()))
        return SshAnswer("instance_ssh", found.instance_id, str(front["hostname"]), int(front["port"]), name, keys)

    return answer(await context.store.read(read))


WORKSPACE: Final = Query("workspace", "Another workspace; for the operator.")
_FILTERS: Final = (
    Query("id", "Only these.", repeated=True),
    Query("capacity", "Only those in this capacity."),
    Query("pool", "The same as `capacity`."),
    Query("status", "Only those in one of these states.", values=STATUSES, repeated=True),
    Query("created_after", "Unix seconds.", "integer"),
    Query("created_before", "Unix seconds.", "integer"),
    Query("instance_sku", "Only those on this kind of node."),
    Query("deployment", "Only those of this deployment."),
    Query("endpoint", "Only the workers of this endpoint."),
    Query("live", "True: only those that are not gone; false: only those that are.", "boolean"),
)
OPERATIONS: Final = (
    Operation(
        "GET", "/v1/instances", list_instances, "List instances", scope="read",
        query=(WORKSPACE, INCLUDE, *_FILTERS, *TAG_QUERIES, *PAGING), answer=InstanceAnswer, listed=True,
    ),
    Operation(
        "GET", "/v1/instances/{id}", get_instance, "One instance", scope="read", query=(WORKSPACE, INCLUDE),
        answer=InstanceAnswer, errors=(404,),
    ),
    Operation(
        "GET", "/v1/instances/{id}/ssh", get_ssh, "How to reach an instance by SSH", scope="read",
        query=(WORKSPACE,), answer=SshAnswer,
        errors=(404, 409),
    ),
)  # fmt: skip
