"""What is done to instances: made, changed, ended, replaced, forgotten."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.choosing import retired
from nanopod.control.market.names import names
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Instance, Key, Priority
from nanopod.model.errors import Conflict, Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import check_tags, given
from nanopod.server.api.instances import WORKSPACE, InstanceAnswer, Known, look, show
from nanopod.server.api.lifecycle import tell_deprecated, usable_sku
from nanopod.server.api.once import REPLAYED, key_of, remember, replayed
from nanopod.server.api.references import (
    Scope,
    capacity_reference,
    check_name,
    find_capacity,
    find_instance,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.showing import Owners
from nanopod.server.api.templates import HOST, check_cloud_init, usable_image
from nanopod.store.transaction import Transaction

BATCH_MAX: Final = 1_000


class InstanceWish(msgspec.Struct, frozen=True):
    """An instance to be made. Without `instance_sku` it runs on whichever kind of node has a place first."""

    name: str | None = None
    capacity: str | None = None
    pool: str | None = None
    image: str = HOST
    instance_sku: str | None = None
    cloud_init_user_data: str | None = None
    enable_public_ipv4: bool = False
    firewall: str | None = None
    tags: dict[str, str] = {}
    priority_level: Priority = "normal"
    workspace: str | None = None


class InstanceChange(msgspec.Struct, frozen=True):
    """What to change of an instance."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    tags: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    priority_level: Priority | msgspec.UnsetType = msgspec.UNSET


class PriorityChange(msgspec.Struct, frozen=True):
    """The new priority of one instance."""

    id: str
    priority_level: Priority


class PriorityChanges(msgspec.Struct, frozen=True):
    """New priorities: all are set, or none. Of an instance named twice, the last one counts."""

    data: list[PriorityChange]
    workspace: str | None = None


class ReplaceWish(msgspec.Struct, frozen=True):
    """A new instance in place of one. Everything is inherited but the start-up script."""

    name: str | None = None
    image: str | None = None
    cloud_init_user_data: str | None = None


def market_capacity(read: Transaction, scope: Scope, reference: str) -> Capacity:
    """A capacity that instances may run in. Raises `NotFound` or `Invalid`."""
    found = find_capacity(read, scope, reference)
    if found.kind != "market":
        raise Invalid(
            f"capacity: {found.name} is {found.kind}; instances run in market capacities (nanopod capacities create)",
            field="capacity",
        )
    return found


def chosen_sku(read: Transaction, wanted: str | None) -> str:
    """The kind of node of a new instance or deployment: the one that is named, the only one, or "" for any."""
    if wanted:
        return usable_sku(read, wanted).sku_id
    over = retired(read)
    skus = [sku.sku_id for sku in read.skus() if sku.sku_id not in over]
    return skus[0] if len(skus) == 1 else ""


def add(write: Transaction, instance: Instance, now: float) -> None:
    """Put a new instance into its row, and say so."""
    write.add_instance(instance)
    write.add_notice(
        now, instance.workspace_id, "instance.created", instance.instance_id,
        {"name": instance.name, "capacity": instance.capacity_id},
    )  # fmt: skip
    # The driver lives by the machine's clock, whatever the cluster's shows.
    write.signal("instance", instance.instance_id, time.time())
    write.hint("tables")


def free_name(write: Transaction, workspace_id: str, name: str) -> str:
    """A name that no live instance has. Raises `BadRequest` or `Invalid`."""
    check_name(name)
    if write.instance_named(workspace_id, name) is not None:
        raise BadRequest(f"name: a live instance {name!r} exists already; choose another name", field="name")
    return name


async def create_instance(context: Context, request: Request, key: Key) -> Response:
    """Make an instance; it runs as soon as its capacity has time for it."""
    wish = await body_as(request, InstanceWish)
    place = capacity_reference(wish.capacity, wish.pool)
    cloud_init, tags = check_cloud_init(wish.cloud_init_user_data), check_tags(wish.tags)
    if wish.enable_public_ipv4:
        raise Invalid(
            "enable_public_ipv4: no node here can have a public address; leave it out and use exec or SSH",
            field="enable_public_ipv4",
        )
    if wish.firewall:
        raise Invalid("firewall: there are no firewalls in this cluster; leave it out", field="firewall")
    instance_id, now = context.new_id("instance"), context.clock()

    def write(write: Transaction) -> Known:
        scope = scope_of(write, key, workspace_reference(request, wish.workspace))
        capacity = market_capacity(write, scope, place)
        image = usable_image(write, scope, wish.image)
        workspace_id = capacity.workspace_id
        name = free_name(write, workspace_id, wish.name) if wish.name is not None else next(names("", instance_id))
        sku_id = chosen_sku(write, wish.instance_sku)
        with context.desk.session(write, now) as market:
            made = fresh_instance(
                write, instance_id, workspace_id, capacity.capacity_id, now, name=name, sku_id=sku_id,
                image_id=image.image_id, cloud_init=cloud_init, priority=wish.priority_level, tags=tags,
            )  # fmt: skip
            add(write, made, now)
            tell_deprecated(write, now, workspace_id, sku_id, instance_id)
            market.changed(capacity.capacity_id)
        return look(write, Owners(write), _again(write, instance_id))

    return answer(show(context, await context.store.write(write)), 201)


def fresh_instance(
    write: Transaction, instance_id: str, workspace_id: str, capacity_id: str, now: float, **more: Any
) -> Instance:
    """A new instance, queued and neither granted nor placed; the youngest of all."""
    return Instance(
        instance_id, more.pop("deployment_id", ""), "", workspace_id, "", capacity_id, None, 1, 0, "run", "queued", 1,
        None, None, "", None, 0, 0.0, None, now, None, seq=write.next_number("instance"), **more,
    )  # fmt: skip


def _again(read: Transaction, instance_id: str) -> Instance:
    found = read.instance(instance_id)
    assert found is not None, "just written"
    return found


async def change_instance(context: Context, request: Request, key: Key) -> Response:
    """Change name, tags or priority of an instance; what is left out stays."""
    wish = await body_as(request, InstanceChange)
    now = context.clock()

    def write(write: Transaction) -> Known:
        scope = scope_of(write, key, workspace_reference(request))
        found = find_instance(write, scope, request.path_params["id"], None)
        values = given(wish)
        if "tags" in values:
            values["tags"] = check_tags(values["tags"])
        if values.get("name", found.name) != found.name:
            free_name(write, found.workspace_id, values["name"])
        if "priority_level" in values:
            values["priority"] = values.pop("priority_level")
        if values:
            with context.desk.session(write, now) as market:
                write.set_instance(found, **values)
                market.changed(found.capacity_id)
        return look(write, Owners(write), _again(write, found.instance_id))

    return answer(show(context, await context.store.write(write)))


async def change_priorities(context: Context, request: Request, key: Key) -> Response:
    """Set the priority of several instances of one workspace: all of them, or none."""
    wish = await body_as(request, PriorityChanges)
    if not 1 <= len(wish.data) <= BATCH_MAX:
        raise Invalid(f"data: {len(wish.data)} changes; send 1 to {BATCH_MAX}", field="data")
    now = context.clock()

    def write(write: Transaction) -> list[Known]:
        scope = scope_of(write, key, workspace_reference(request, wish.workspace))
        wanted: dict[str, tuple[Instance, str]] = {}
        for index, change in enumerate(wish.data):
            found = find_instance(write, scope, change.id, f"data[{index}].id")
            wanted[found.instance_id] = found, change.priority_level
        places = {found.workspace_id for found, _ in wanted.values()}
        if len(places) > 1:
            raise Invalid("data: the instances are of several workspaces; send one request for each", field="data")
        with context.desk.session(write, now) as market:
            for found, priority in wanted.values():
                if found.priority != priority:
                    write.set_instance(found, priority=priority)
            for capacity_id in {found.capacity_id for found, _ in wanted.values()}:
                market.changed(capacity_id)
        owners = Owners(write)
        return [look(write, owners, _again(write, instance_id)) for instance_id in wanted]

    rows = await context.store.write(write)
    return answer({"object": "list", "cursor": None, "has_more": False, "data": [show(context, row) for row in rows]})


def stop(write: Transaction, found: Instance, reason: str, now: float) -> None:
    """End an instance for good: at once where nothing of it is on a node, else whoever runs it drains it first."""
    if found.node_id is None:
        write.set_instance(found, intent="stop", phase="ended", reason=reason, ended_at=now)
        notice = {"name": found.name, "reason": reason}
        write.add_notice(now, found.workspace_id, "instance.terminated", found.instance_id, notice)
    else:
        write.set_instance(found, intent="stop", reason=reason)
    write.signal("instance", found.instance_id, time.time())
    if found.deployment_id:
        write.signal("deployment", found.deployment_id, time.time())
    write.hint("wanted")
    write.hint("tables")


async def terminate_instance(context: Context, request: Request, key: Key) -> Response:
    """End an instance for good. One that a deployment keeps is replaced by it."""
    now = context.clock()

    def write(write: Transaction) -> Known:
        scope = scope_of(write, key, workspace_reference(request))
        found = find_instance(write, scope, request.path_params["id"], None)
        if found.ended_at is None and found.intent != "stop":
            with context.desk.session(write, now) as market:
                stop(write, found, "terminated by request", now)
                market.changed(found.capacity_id)
        return look(write, Owners(write), _again(write, found.instance_id))

    return answer(show(context, await context.store.write(write)))


async def replace_instance(context: Context, request: Request, key: Key) -> Response:
    """End an instance and make a new one in its place, both or neither. With an Idempotency-Key, only once."""
    wish = await body_as(request, ReplaceWish) if request.headers.get("content-length", "0") != "0" else ReplaceWish()
    cloud_init = check_cloud_init(wish.cloud_init_user_data)
    once = key_of(request)
    instance_id, now = context.new_id("instance"), context.clock()

    def write(write: Transaction) -> tuple[Known, bool]:
        scope = scope_of(write, key, workspace_reference(request))
        workspace_id = scope.workspace.workspace_id
        earlier = replayed(write, workspace_id, "instance.replace", once)
        if earlier is not None:
            return look(write, Owners(write), find_instance(write, scope, earlier, None)), True
        found = find_instance(write, scope, request.path_params["id"], None)
        if found.endpoint_id:
            raise Conflict(
                f"instance {found.name or found.instance_id} is a worker of an endpoint; terminate it, and the "
                "endpoint starts another"
            )
        image_id = usable_image(write, scope, wish.image or found.image_id or HOST).image_id
        name = wish.name or found.name
        if name != found.name:
            free_name(write, found.workspace_id, name)
        with context.desk.session(write, now) as market:
            if found.ended_at is None and found.intent == "run":
                stop(write, found, f"replaced by {instance_id}", now)
            made = fresh_instance(
                write, instance_id, found.workspace_id, found.capacity_id, now, name=name, sku_id=found.sku_id,
                image_id=image_id, cloud_init=cloud_init, priority=found.priority, tags=dict(found.tags),
                deployment_id=found.deployment_id, template_id=found.template_id,
            )  # fmt: skip
            add(write, made, now)
            market.changed(found.capacity_id)
        remember(write, workspace_id, "instance.replace", once, instance_id, now)
        return look(write, Owners(write), _again(write, instance_id)), False

    known, again = await context.store.write(write)
    return answer(show(context, known), 200 if again else 201, REPLAYED if again else {})


async def delete_instance(context: Context, request: Request, key: Key) -> Response:
    """Forget an instance that is terminated or failed."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        scope = scope_of(write, key, workspace_reference(request))
        found = find_instance(write, scope, request.path_params["id"], None)
        name = found.name or found.instance_id
        if found.ended_at is None:
            raise Conflict(f"instance {name} is live; terminate it first: POST /v1/instances/{name}/terminate")
        write.delete_instance(found.instance_id)
        write.add_notice(now, found.workspace_id, "instance.deleted", found.instance_id, {"name": found.name})
        return {"object": "instance", "id": found.instance_id, "deleted": True}

    return answer(await context.store.write(write))


_ONE: Final[dict[str, Any]] = {"answer": InstanceAnswer, "errors": (404, 409)}
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/instances", create_instance, "Make an instance", body=InstanceWish, query=(WORKSPACE,),
        answer=InstanceAnswer, status=201, errors=(400, 404, 409),
    ),
    Operation(
        "PATCH", "/v1/instances", change_priorities, "Set priorities, all or none", body=PriorityChanges,
        query=(WORKSPACE,), answer=InstanceAnswer, listed=True, errors=(404, 409),
    ),
    Operation(
        "PATCH", "/v1/instances/{id}", change_instance, "Change an instance", body=InstanceChange,
        query=(WORKSPACE,), **_ONE,
    ),
    Operation(
        "POST", "/v1/instances/{id}/terminate", terminate_instance, "End an instance", query=(WORKSPACE,), **_ONE
    ),
    Operation(
        "POST", "/v1/instances/{id}/replace", replace_instance, "Replace an instance", body=ReplaceWish,
        query=(WORKSPACE,), status=201, once=True, **_ONE,
    ),
    Operation(
        "DELETE", "/v1/instances/{id}", delete_instance, "Forget an instance that is gone", query=(WORKSPACE,),
        answer=Deleted, errors=(404, 409),
    ),
)  # fmt: skip
