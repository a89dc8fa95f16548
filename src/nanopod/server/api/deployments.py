"""Deployments: what keeps a number of instances running, and (kind spot) buys the time that they need."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NotRequired, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.market.names import DEFAULT as DEFAULT_TEMPLATE
from nanopod.control.market.names import check_name_template
from nanopod.control.views import deployment_view
from nanopod.market.terms import parse_rate
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Deployment, Endpoint, Instance, Key
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.money import Rate
from nanopod.model.procurement import WINDOW_MINUTES_MAX, Procurement
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import TAG_QUERIES, Price, check_tags, flag_of, given, tag_filter, words_of
from nanopod.server.api.instance_changes import chosen_sku, market_capacity, stop
from nanopod.server.api.lifecycle import tell_deprecated
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.references import (
    Scope,
    capacity_reference,
    check_name,
    find_capacity,
    find_deployment,
    find_template,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.showing import Changeable, Owners, Summary, changeable, price, sku_summary, summary_of
from nanopod.store.transaction import Transaction

TARGET_MAX: Final = 10_000
KINDS: Final = ("generic", "spot")
WINDOW_MINUTES: Final = 60
SPOT_FIELDS: Final = ("max_buy_price_dollars_per_node_hour", "managed_window_minutes", "protect_manual")
_MAX_BUY: Final = SPOT_FIELDS[0]


class DeploymentWish(msgspec.Struct, frozen=True):
    """A deployment to be made. `spot` ones buy what they need, at no more than their price, in the same step."""

    name: str
    target_instance_count: int
    instance_template: str
    kind: Literal["generic", "spot"] = "generic"
    capacity: str | None = None
    pool: str | None = None
    instance_sku: str | None = None
    instance_name_template: str = DEFAULT_TEMPLATE
    enabled: bool = True
    tags: dict[str, str] = {}
    max_buy_price_dollars_per_node_hour: Price | None = None
    managed_window_minutes: int | None = None
    protect_manual: bool | None = None
    workspace: str | None = None


class DeploymentChange(msgspec.Struct, frozen=True):
    """What to change of a deployment."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    target_instance_count: int | msgspec.UnsetType = msgspec.UNSET
    instance_template: str | msgspec.UnsetType = msgspec.UNSET
    instance_name_template: str | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET
    tags: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    max_buy_price_dollars_per_node_hour: Price | msgspec.UnsetType = msgspec.UNSET
    managed_window_minutes: int | msgspec.UnsetType = msgspec.UNSET
    protect_manual: bool | msgspec.UnsetType = msgspec.UNSET


class DeploymentStatus(TypedDict):
    """What a deployment says of itself; `message` begins with `code`."""

    state: Literal["info", "warning", "error"]
    code: str
    message: str


class DeploymentAnswer(Changeable):
    """A deployment; a spot one has a price, a window and a procurement besides. `reasons` say why it has as many
    instances as it has."""

    kind: Literal["generic", "spot"]
    capacity: Summary
    pool: Summary
    capacity_id: str
    instance_sku: Summary | None
    instance_sku_id: str | None
    instance_template: Summary | None
    instance_template_id: str | None
    instance_name_template: str | None
    target_instance_count: int
    instance_count: int
    running_instance_count: int
    ready_instance_count: int
    instances: list[str]
    enabled: bool
    status: DeploymentStatus
    reasons: list[str]
    endpoint_id: str | None
    endpoint: str | None
    revision_id: str | None
    tags: dict[str, str]
    max_buy_price_dollars_per_node_hour: NotRequired[str | None]
    managed_window_minutes: NotRequired[int | None]
    protect_manual: NotRequired[bool | None]
    procurement: NotRequired[Summary | None]


@dataclass(frozen=True, slots=True)
class Known:
    """What a deployment's answer shows, read in one transaction."""

    deployment: Deployment
    endpoint: Endpoint | None
    instances: list[Instance]
    fields: Mapping[str, Any]


def look(read: Transaction, owners: Owners, found: Deployment, block_s: int) -> Known:
    """Everything that is shown of a deployment and stands in the store."""
    capacity: Capacity | None = read.capacity(found.capacity_id)
    place = summary_of(capacity, found.capacity_id)
    template = read.template(found.template_id) if found.template_id else None
    endpoint = read.endpoint(found.endpoint_id) if found.endpoint_id else None
    instances = read.instances_of_deployment(found.deployment_id)
    fields: dict[str, Any] = {
        **changeable(
            owners, "spot_deployment" if found.kind == "spot" else "deployment", found.deployment_id,
            found.workspace_id, found.name, found.created_at, found.updated_at,
        ),
        "capacity": place,
        "pool": place,
        "instance_sku": sku_summary(read.sku(found.sku_id), found.sku_id) if found.sku_id else None,
        "instance_template": {"id": template.template_id, "name": template.name} if template else None,
    }  # fmt: skip
    if found.kind == "spot":
        fields |= _spot_fields(read, found, block_s)
    image = read.image(template.image_id) if template and template.image_id else None
    if image is not None and image.upload_status == "revoked" and found.enabled:
        words = f"image_revoked: nothing new is made from image {image.name} until it is reinstated"
        fields["status"] = {"state": "warning", "code": "image_revoked", "message": words}
    return Known(found, endpoint, instances, fields)


def _spot_fields(read: Transaction, found: Deployment, block_s: int) -> dict[str, Any]:
    bought = read.procurement(found.procurement_id)
    if bought is None:
        return dict.fromkeys((*SPOT_FIELDS, "procurement"))
    shown = {
        _MAX_BUY: price(bought.max_buy, block_s),
        "managed_window_minutes": bought.managed_window_minutes,
        "protect_manual": bought.protect_manual,
        "procurement": {"id": bought.procurement_id, "name": bought.name},
    }
    status = bought.status
    if status is not None and status.state != "info":
        shown["status"] = {"state": status.state, "code": status.code, "message": status.message}
    return shown


def show(context: Context, known: Known) -> dict[str, Any]:
    """A deployment as the API shows it."""
    view = deployment_view(known.deployment, known.endpoint, known.instances, context.live)
    return {**view, **known.fields}


# --- reading ---


async def list_deployments(context: Context, request: Request, key: Key) -> Response:
    """Deployments, newest first; those behind endpoints as well."""
    page = page_of(request, "")
    query = request.query_params
    kinds, ids = words_of(request, "kind", KINDS), words_of(request, "id")
    fits, enabled = tag_filter(request), flag_of(request, "enabled")

    def read(read: Transaction) -> list[Known]:
        scope = scope_of(read, key, workspace_reference(request))
        place = query.get("capacity") or query.get("pool")
        capacity_id = find_capacity(read, scope, place).capacity_id if place else None
        wanted = {find_deployment(read, scope, one, "id").deployment_id for one in ids}
        rows = [
            d
            for d in read.deployments(scope.listed)
            if capacity_id in (None, d.capacity_id)
            and (not kinds or d.kind in kinds)
            and (not wanted or d.deployment_id in wanted)
            and (enabled is None or enabled == d.enabled)
            and fits(d.tags)
        ]
        rows.sort(key=lambda d: (d.created_at, d.deployment_id), reverse=True)
        owners = Owners(read)
        return [look(read, owners, d, context.block_s) for d in cut(page, rows, lambda d: d.deployment_id)]

    rows = await context.store.read(read)
    return page_answer(page, rows, lambda row: show(context, row), lambda row: row.deployment.deployment_id)


def _find(read: Transaction, scope: Scope, reference: str) -> Deployment:
    """A deployment by id, name or path, or by the id or name of the endpoint it serves. Raises `NotFound`."""
    endpoint = read.endpoint_named(scope.workspace.workspace_id, reference)
    named = read.deployment_named(scope.workspace.workspace_id, reference)
    if named is None and endpoint is not None:
        behind = read.deployment_of(endpoint.endpoint_id)
        if behind is not None:
            return behind
    return find_deployment(read, scope, reference, None)


async def get_deployment(context: Context, request: Request, key: Key) -> Response:
    """One deployment."""

    def read(read: Transaction) -> Known:
        scope = scope_of(read, key, workspace_reference(request))
        found = _find(read, scope, request.path_params["id"])
        return look(read, Owners(read), found, context.block_s)

    return answer(show(context, await context.store.read(read)))


# --- making ---


def _target(count: int) -> int:
    if not 0 <= count <= TARGET_MAX:
        raise Invalid(f"target_instance_count: {count} must be from 0 to {TARGET_MAX}", field="target_instance_count")
    return count


def _window(minutes: int) -> int:
    if not 1 <= minutes <= WINDOW_MINUTES_MAX:
        raise Invalid(
            f"managed_window_minutes: {minutes} must be from 1 to {WINDOW_MINUTES_MAX} (90 days)",
            field="managed_window_minutes",
        )
    return minutes


def _max_buy(text: str, block_s: int) -> Rate:
    """The most that a spot deployment pays. Raises `Invalid`."""
    return parse_rate(text, "buy", block_s=block_s, field=_MAX_BUY)


def _spot_part(context: Context, wish: DeploymentWish) -> Procurement | None:
    """The procurement inside a spot deployment, its capacity and kind of node still to be filled in."""
    if wish.kind == "generic":
        for name in SPOT_FIELDS:
            if getattr(wish, name) is not None:
                raise Invalid(f'{name}: only a spot deployment has this; send kind "spot" with it', field=name)
        return None
    if wish.max_buy_price_dollars_per_node_hour is None:
        raise Invalid(f"{_MAX_BUY}: is missing; a spot deployment names the most it pays", field=_MAX_BUY)
    window = WINDOW_MINUTES if wish.managed_window_minutes is None else wish.managed_window_minutes
    return Procurement(
        context.new_id("procurement"), "", "", "node_count",
        max_buy=_max_buy(wish.max_buy_price_dollars_per_node_hour, context.block_s),
        min_sell=Rate(1),
        managed_window_minutes=_window(window),
        enabled=wish.enabled,
        protect_manual=True if wish.protect_manual is None else wish.protect_manual,
        name=wish.name,
    )  # fmt: skip


async def create_deployment(context: Context, request: Request, key: Key) -> Response:
    """Make a deployment; its instances exist, and its orders are placed, when this is answered."""
    wish = await body_as(request, DeploymentWish)
    check_name(wish.name)
    place = capacity_reference(wish.capacity, wish.pool)
    target, names = _target(wish.target_instance_count), check_name_template(wish.instance_name_template)
    tags, spot = check_tags(wish.tags), _spot_part(context, wish)
    deployment_id, now = context.new_id("spot" if spot else "deployment"), context.clock()

    def write(write: Transaction) -> Known:
        scope = scope_of(write, key, workspace_reference(request, wish.workspace))
        capacity = market_capacity(write, scope, place)
        workspace_id = capacity.workspace_id
        _free(write, workspace_id, wish.name)
        template = find_template(write, scope, wish.instance_template)
        if template.endpoint_id:
            raise Conflict(
                f"instance_template: {template.name} belongs to an endpoint; make a template of your own",
                field="instance_template",
            )
        made = Deployment(
            deployment_id, "", workspace_id, capacity.capacity_id, "", target, 0, (), 0, 0.0, now, now,
            name=wish.name, kind=wish.kind, sku_id=chosen_sku(write, wish.instance_sku),
            template_id=template.template_id, instance_name_template=names, enabled=wish.enabled,
            procurement_id=spot.procurement_id if spot else "", tags=tags,
        )  # fmt: skip
        with context.desk.session(write, now) as market:
            if spot is not None:
                write.add_procurement(_bought(write, spot, made, capacity, now))
            write.add_deployment(made)
            notice = {"name": made.name, "kind": made.kind, "target_instance_count": target}
            write.add_notice(now, workspace_id, "deployment.created", deployment_id, notice)
            tell_deprecated(write, now, workspace_id, made.sku_id, deployment_id)
            market.changed(capacity.capacity_id)
        return look(write, Owners(write), _again(write, deployment_id), context.block_s)

    return answer(show(context, await context.store.write(write)), 201)


def _again(read: Transaction, deployment_id: str) -> Deployment:
    found = read.deployment(deployment_id)
    assert found is not None, "just written"
    return found


def _free(write: Transaction, workspace_id: str, name: str) -> None:
    if write.deployment_named(workspace_id, name) is not None:
        raise BadRequest(f"name: a deployment {name!r} exists already; choose another name", field="name")


def _bought(write: Transaction, spot: Procurement, made: Deployment, capacity: Capacity, now: float) -> Procurement:
    """The procurement of a spot deployment. Raises `Conflict` for a second automation, `Invalid` without a SKU."""
    if not made.sku_id:
        there = ", ".join(sku.alias for sku in write.skus()) or "none yet"
        raise Invalid(
            f"instance_sku: is missing; a spot deployment buys time on one kind of node (there are: {there})",
            field="instance_sku",
        )
    other = write.procurement_of_pair(capacity.capacity_id, made.sku_id)
    if other is not None:
        raise Conflict(
            f"procurement {other.name} manages this SKU in capacity {capacity.name} already; delete it, or take "
            "another capacity",
            field="capacity",
        )
    name = spot.name
    if any(p.name == name for p in write.procurements(made.workspace_id)):
        name = made.deployment_id
    return replace(
        spot, capacity_id=capacity.capacity_id, sku_id=made.sku_id, workspace_id=made.workspace_id, name=name,
        deployment_id=made.deployment_id, created_at=now, updated_at=now,
    )  # fmt: skip


# --- changing ---


def _own(found: Deployment) -> Deployment:
    """Raises `Conflict` for a deployment that an endpoint decides about."""
    if found.endpoint_id:
        raise Conflict(
            f"deployment {found.name} belongs to an endpoint, which decides about it; change the endpoint's scale or "
            f"code (POST /v1/endpoints, nanopod deploy), or delete it (DELETE /v1/endpoints/{found.endpoint_id})"
        )
    return found


def _changed_columns(write: Transaction, scope: Scope, found: Deployment, sent: Mapping[str, Any]) -> dict[str, Any]:
    """What a change writes into the deployment's row. Raises `Invalid`."""
    values: dict[str, Any] = {}
    if sent.get("name", found.name) != found.name:
        _free(write, found.workspace_id, check_name(sent["name"]))
        values["name"] = sent["name"]
    if "target_instance_count" in sent:
        values["target_instance_count"] = _target(sent["target_instance_count"])
    if "instance_template" in sent:
        template = find_template(write, scope, sent["instance_template"])
        if template.endpoint_id:
            raise Conflict(
                f"instance_template: {template.name} belongs to an endpoint; make one of your own",
                field="instance_template",
            )
        values["template_id"] = template.template_id
    if "instance_name_template" in sent:
        values["instance_name_template"] = check_name_template(sent["instance_name_template"])
    if "enabled" in sent:
        values["enabled"] = sent["enabled"]
    if "tags" in sent:
        values["tags"] = check_tags(sent["tags"])
    return values


def _changed_spot(found: Deployment, sent: Mapping[str, Any], block_s: int) -> dict[str, Any]:
    """What a change writes into the procurement's row. Raises `Invalid`."""
    values: dict[str, Any] = {}
    for name in SPOT_FIELDS:
        if name in sent and found.kind != "spot":
            raise Invalid(f"{name}: {found.name} is a generic deployment; only a spot one has this", field=name)
    if _MAX_BUY in sent:
        values["max_buy"] = _max_buy(sent[_MAX_BUY], block_s)
    if "managed_window_minutes" in sent:
        values["managed_window_minutes"] = _window(sent["managed_window_minutes"])
    if "protect_manual" in sent:
        values["protect_manual"] = sent["protect_manual"]
    if "enabled" in sent and found.kind == "spot":
        values["enabled"] = sent["enabled"]
    return values


async def change_deployment(context: Context, request: Request, key: Key) -> Response:
    """Change a deployment; what is left out stays. What follows from it is done when this is answered."""
    wish = await body_as(request, DeploymentChange)
    now = context.clock()

    def write(write: Transaction) -> Known:
        scope = scope_of(write, key, workspace_reference(request))
        found = _own(_find(write, scope, request.path_params["id"]))
        sent = given(wish)
        columns = _changed_columns(write, scope, found, sent)
        bought = _changed_spot(found, sent, context.block_s)
        if columns or bought:
            with context.desk.session(write, now) as market:
                write.set_deployment(found, **columns, updated_at=now)
                part = write.procurement(found.procurement_id) if bought and found.procurement_id else None
                if part is not None:
                    write.set_procurement(part, **bought, updated_at=now)
                notice = {"name": columns.get("name", found.name), "changed": sorted({*columns, *bought})}
                write.add_notice(now, found.workspace_id, "deployment.updated", found.deployment_id, notice)
                market.changed(found.capacity_id)
        return look(write, Owners(write), _again(write, found.deployment_id), context.block_s)

    return answer(show(context, await context.store.write(write)))


async def delete_deployment(context: Context, request: Request, key: Key) -> Response:
    """Delete a deployment. Its instances stay, unmanaged; with `?cascade=true` they end."""
    cascade = flag_of(request, "cascade") or False
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        scope = scope_of(write, key, workspace_reference(request))
        found = _own(_find(write, scope, request.path_params["id"]))
        with context.desk.session(write, now) as market:
            for instance in write.instances_of_deployment(found.deployment_id):
                if cascade and instance.intent == "run":
                    stop(write, instance, f"deployment {found.name} was deleted", now)
                elif not cascade:
                    write.set_instance(instance, deployment_id="")
                    write.signal("instance", instance.instance_id, time.time())
            part = write.procurement(found.procurement_id) if found.procurement_id else None
            if part is not None:
                _end_procurement(write, market, part)
            write.delete_deployment(found.deployment_id)
            notice = {"name": found.name, "cascade": cascade}
            write.add_notice(now, found.workspace_id, "deployment.deleted", found.deployment_id, notice)
            market.changed(found.capacity_id)
        return {"object": "deployment", "id": found.deployment_id, "deleted": True}

    return answer(await context.store.write(write))


def _end_procurement(write: Transaction, market: Any, part: Procurement) -> None:
    """Take back the standing orders of a procurement, then forget it."""
    for order in list(market.exchange(part.sku_id).of_capacity.get(part.capacity_id, {}).values()):
        if order.owner == part.procurement_id:
            market.cancel(order.order_id, "automation")
    write.delete_procurement(part.procurement_id)


_WORKSPACE: Final = Query("workspace", "Another workspace; for the operator.")
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/deployments", create_deployment, "Make a deployment", body=DeploymentWish, query=(_WORKSPACE,),
        answer=DeploymentAnswer, status=201, errors=(400, 402, 404, 409),
    ),
    Operation(
        "GET", "/v1/deployments", list_deployments, "List deployments", scope="read",
        query=(
            _WORKSPACE, Query("id", "Only these.", repeated=True), Query("capacity", "Only those of this capacity."),
            Query("pool", "The same as `capacity`."), Query("kind", "Only this kind.", values=KINDS, repeated=True),
            Query("enabled", "Only those that are, or are not.", "boolean"), *TAG_QUERIES, *PAGING,
        ),
        answer=DeploymentAnswer, listed=True,
    ),
    Operation(
        "GET", "/v1/deployments/{id}", get_deployment, "One deployment", scope="read", query=(_WORKSPACE,),
        answer=DeploymentAnswer, errors=(404,),
    ),
    Operation(
        "PATCH", "/v1/deployments/{id}", change_deployment, "Change a deployment", body=DeploymentChange,
        query=(_WORKSPACE,), answer=DeploymentAnswer, errors=(400, 402, 404, 409),
    ),
    Operation(
        "DELETE", "/v1/deployments/{id}", delete_deployment, "Delete a deployment",
        query=(_WORKSPACE, Query("cascade", "True: its instances end, too.", "boolean", default=False)),
        answer=Deleted, errors=(404, 409),
    ),
)  # fmt: skip
