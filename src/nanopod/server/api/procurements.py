"""Procurements: standing wishes that keep a capacity supplied."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal, TypedDict

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nanopod.market.terms import NODES_MAX, parse_rate
from nanopod.model.capacity import Capacity, Sku
from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.model.money import Rate
from nanopod.model.procurement import WINDOW_MINUTES_MAX, Procurement
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import Price, flag_of, given
from nanopod.server.api.lifecycle import tell_deprecated, usable_sku
from nanopod.server.api.orders import WORKSPACE, Shown
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.references import (
    Scope,
    capacity_reference,
    check_name,
    find_capacity,
    find_procurement,
    find_sku,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.showing import Changeable, Owners, Summary, changeable, price
from nanopod.store.transaction import Transaction

Target = int | Literal["node_count"]
MAX_BUY: Final = "max_buy_price_dollars_per_node_hour"
MIN_SELL: Final = "min_sell_price_dollars_per_node_hour"


class NewProcurement(msgspec.Struct, frozen=True):
    """Keep `target` nodes in a capacity for a rolling window. `target` "node_count" follows the live instances;
    `min_sell_price` is one price step unless given; `pool` is read as `capacity`."""

    instance_sku: str
    max_buy_price_dollars_per_node_hour: Price
    capacity: str | None = None
    pool: str | None = None
    name: str | None = None
    target: Target = "node_count"
    min_sell_price_dollars_per_node_hour: Price | None = None
    managed_window_minutes: int = 60
    enabled: bool = True
    protect_manual: bool = True
    extend_quantum_minutes: int = 1
    workspace: str | None = None


class ProcurementChange(msgspec.Struct, frozen=True):
    """What to change of a procurement; fields left out stay. Its capacity and kind of node cannot be changed."""

    name: str | UnsetType = UNSET
    target: Target | UnsetType = UNSET
    max_buy_price_dollars_per_node_hour: Price | UnsetType = UNSET
    min_sell_price_dollars_per_node_hour: Price | UnsetType = UNSET
    managed_window_minutes: int | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    protect_manual: bool | UnsetType = UNSET
    extend_quantum_minutes: int | UnsetType = UNSET
    capacity: str | UnsetType = UNSET
    pool: str | UnsetType = UNSET
    instance_sku: str | UnsetType = UNSET


class StatusAnswer(TypedDict):
    """What an automation says of itself; `message` starts with a stable code."""

    state: Literal["info", "warning", "error"]
    message: str


class ProcurementAnswer(Changeable):
    """A procurement; `deployment` is the spot deployment that it is a part of."""

    capacity: Summary
    pool: Summary
    instance_sku: Summary
    target: int | Literal["node_count"]
    max_buy_price_dollars_per_node_hour: str
    min_sell_price_dollars_per_node_hour: str
    managed_window_minutes: int
    enabled: bool
    protect_manual: bool
    extend_quantum_minutes: int
    deployment: str | None
    status: StatusAnswer


class Shower:
    """Makes answers of procurements inside one transaction."""

    def __init__(self, read: Transaction, block_s: int) -> None:
        self._shown = Shown(read, block_s)
        self._owners = Owners(read)
        self._block_s = block_s

    def one(self, found: Procurement) -> ProcurementAnswer:
        """One procurement."""
        capacity = self._shown.capacity(found.capacity_id)
        status: StatusAnswer = {"state": "info", "message": "running: was not looked at yet"}
        if found.status is not None:
            status = {"state": found.status.state, "message": found.status.message}
        return {
            **changeable(
                self._owners, "procurement", found.procurement_id, found.workspace_id, found.name, found.created_at,
                found.updated_at,
            ),
            "capacity": capacity,
            "pool": capacity,
            "instance_sku": self._shown.sku(found.sku_id),
            "target": found.target,
            "max_buy_price_dollars_per_node_hour": price(found.max_buy, self._block_s),
            "min_sell_price_dollars_per_node_hour": price(found.min_sell, self._block_s),
            "managed_window_minutes": found.managed_window_minutes,
            "enabled": found.enabled,
            "protect_manual": found.protect_manual,
            "extend_quantum_minutes": found.extend_quantum_minutes,
            "deployment": found.deployment_id or None,
            "status": status,
        }  # fmt: skip


def check_target(target: Target) -> Target:
    """Raises `Invalid` for a number of nodes out of range."""
    if isinstance(target, int) and not 0 <= target <= NODES_MAX:
        raise Invalid(f'target: {target} must be from 0 to {NODES_MAX}, or "node_count"', field="target")
    return target


def check_minutes(name: str, minutes: int, most: int = WINDOW_MINUTES_MAX) -> int:
    """Raises `Invalid` for minutes out of range."""
    if not 1 <= minutes <= most:
        raise Invalid(f"{name}: {minutes} must be from 1 to {most} minutes", field=name)
    return minutes


def _rates(max_buy: str | None, min_sell: str | None, block_s: int) -> tuple[Rate | None, Rate | None]:
    return (
        parse_rate(max_buy, "buy", block_s=block_s, field=MAX_BUY) if max_buy is not None else None,
        parse_rate(min_sell, "sell", block_s=block_s, field=MIN_SELL) if min_sell is not None else None,
    )


def _check_whole(found: Procurement) -> None:
    """Raises `Invalid` when its parts do not fit together."""
    if found.extend_quantum_minutes > found.managed_window_minutes:
        raise Invalid(
            f"extend_quantum_minutes: {found.extend_quantum_minutes} is more than managed_window_minutes "
            f"{found.managed_window_minutes}; the window would never be extended",
            field="extend_quantum_minutes",
        )


def _free_pair(read: Transaction, capacity: Capacity, sku: Sku) -> None:
    other = read.procurement_of_pair(capacity.capacity_id, sku.sku_id)
    if other is not None:
        raise Conflict(
            f"capacity: procurement {other.name!r} ({other.procurement_id}) manages {sku.alias!r} in {capacity.name!r} "
            "already; change that one",
            field="capacity",
        )


def _free_name(read: Transaction, workspace_id: str, name: str) -> None:
    if read.procurement_named(workspace_id, name) is not None:
        raise BadRequest(f"name: a procurement {name!r} exists in this workspace; choose another name", field="name")


def _named(read: Transaction, procurement_id: str) -> Procurement:
    found = read.procurement(procurement_id)
    if found is None:
        raise NotFound(f"there is no procurement {procurement_id!r}")
    return found


def procurement_of(wish: NewProcurement, block_s: int) -> Procurement:
    """A wish as a procurement that belongs to nobody yet. Raises `Invalid`."""
    max_buy, min_sell = _rates(
        wish.max_buy_price_dollars_per_node_hour, wish.min_sell_price_dollars_per_node_hour, block_s
    )
    assert max_buy is not None, "a price was given"
    if wish.name is not None:
        check_name(wish.name)
    made = Procurement(
        "", "", "", check_target(wish.target), max_buy, min_sell if min_sell is not None else Rate(1),
        check_minutes("managed_window_minutes", wish.managed_window_minutes), wish.enabled, wish.protect_manual,
        check_minutes("extend_quantum_minutes", wish.extend_quantum_minutes), name=wish.name or "",
    )  # fmt: skip
    _check_whole(made)
    return made


async def create_procurement(context: Context, request: Request, key: Key) -> Response:
    """Make a procurement; it places its first orders at once."""
    wish = await body_as(request, NewProcurement)
    reference = capacity_reference(wish.capacity, wish.pool)
    place = workspace_reference(request, wish.workspace)
    block_s, now = context.block_s, context.clock()
    draft = procurement_of(wish, block_s)
    procurement_id = context.new_id("procurement")

    def write(write: Transaction) -> ProcurementAnswer:
        scope = scope_of(write, key, place)
        capacity = find_capacity(write, scope, reference, "capacity" if wish.capacity else "pool")
        sku = usable_sku(write, wish.instance_sku)
        if capacity.kind != "market":
            raise Invalid(
                f"capacity: {capacity.name!r} is of kind {capacity.kind}; a procurement needs kind market",
                field="capacity",
            )
        _free_pair(write, capacity, sku)
        name = draft.name or f"{capacity.name}-{sku.alias}"
        _free_name(write, capacity.workspace_id, name)
        made = dataclasses.replace(
            draft, procurement_id=procurement_id, capacity_id=capacity.capacity_id, sku_id=sku.sku_id,
            workspace_id=capacity.workspace_id, name=name, created_at=now, updated_at=now,
        )  # fmt: skip
        with context.desk.session(write, now) as market:
            write.add_procurement(made)
            write.add_notice(now, capacity.workspace_id, "procurement.created", procurement_id, {"name": name})
            tell_deprecated(write, now, capacity.workspace_id, sku.sku_id, procurement_id)
            market.changed(capacity.capacity_id)
        return Shower(write, block_s).one(_named(write, procurement_id))

    return answer(await context.store.write(write), 201)


async def list_procurements(context: Context, request: Request, key: Key) -> Response:
    """Procurements, newest first."""
    page = page_of(request, "proc_")
    enabled = flag_of(request, "enabled")
    query = request.query_params

    def read(read: Transaction) -> list[ProcurementAnswer]:
        scope = scope_of(read, key, query.get("workspace"))
        capacity, sku = query.get("capacity") or query.get("pool"), query.get("instance_sku")
        capacity_id = find_capacity(read, scope, capacity).capacity_id if capacity else None
        sku_id = find_sku(read, sku).sku_id if sku else None
        rows = [
            found
            for found in reversed(read.procurements(scope.listed))
            if capacity_id in (None, found.capacity_id)
            and sku_id in (None, found.sku_id)
            and enabled in (None, found.enabled)
        ]
        shower = Shower(read, context.block_s)
        return [shower.one(row) for row in cut(page, rows, lambda row: row.procurement_id)]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


async def get_procurement(context: Context, request: Request, key: Key) -> Response:
    """One procurement with its status."""

    def read(read: Transaction) -> ProcurementAnswer:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return Shower(read, context.block_s).one(find_procurement(read, scope, request.path_params["id"], None))

    return answer(await context.store.read(read))


def _changes(body: ProcurementChange, block_s: int) -> dict[str, Any]:
    """A PATCH as columns. Raises `Invalid`, also for what cannot be changed."""
    change = given(body)
    for fixed in ("capacity", "pool", "instance_sku"):
        if fixed in change:
            raise Invalid(f"{fixed}: cannot be changed; delete this procurement and make another one", field=fixed)
    if "name" in change:
        check_name(change["name"])
    if "target" in change:
        check_target(change["target"])
    for name in ("managed_window_minutes", "extend_quantum_minutes"):
        if name in change:
            check_minutes(name, change[name])
    max_buy, min_sell = _rates(change.pop(MAX_BUY, None), change.pop(MIN_SELL, None), block_s)
    if max_buy is not None:
        change["max_buy"] = max_buy
    if min_sell is not None:
        change["min_sell"] = min_sell
    return change


def _own(read: Transaction, scope: Scope, reference: str) -> Procurement:
    """A procurement that may be changed by itself. Raises `Conflict` for one inside a spot deployment."""
    seen = find_procurement(read, scope, reference, None)
    if seen.deployment_id:
        raise Conflict(
            f"id: procurement {seen.name!r} is a part of spot deployment {seen.deployment_id}; change that one",
            field="id",
        )
    return seen


async def change_procurement(context: Context, request: Request, key: Key) -> Response:
    """Change a procurement; its orders follow at once."""
    change = _changes(await body_as(request, ProcurementChange), context.block_s)
    now = context.clock()

    def write(write: Transaction) -> ProcurementAnswer:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = _own(write, scope, request.path_params["id"])
        _check_whole(dataclasses.replace(seen, **change))
        if change.get("name", seen.name) != seen.name:
            _free_name(write, seen.workspace_id, change["name"])
        if change:
            with context.desk.session(write, now) as market:
                write.set_procurement(seen, **change, updated_at=now)
                write.add_notice(
                    now, seen.workspace_id, "procurement.updated", seen.procurement_id, {"fields": sorted(change)}
                )
                market.changed(seen.capacity_id)
        return Shower(write, context.block_s).one(_named(write, seen.procurement_id))

    return answer(await context.store.write(write))


async def delete_procurement(context: Context, request: Request, key: Key) -> Response:
    """Delete a procurement; its open orders are cancelled, what it bought stays."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = _own(write, scope, request.path_params["id"])
        with context.desk.session(write, now) as market:
            open_orders = list(market.exchange(seen.sku_id).of_capacity.get(seen.capacity_id, {}).values())
            for order in open_orders:
                if order.owner == seen.procurement_id:
                    market.cancel(order.order_id, "automation")
            write.delete_procurement(seen.procurement_id)
            write.add_notice(now, seen.workspace_id, "procurement.deleted", seen.procurement_id, {"name": seen.name})
            market.changed(seen.capacity_id)
        return {"object": "procurement", "id": seen.procurement_id, "deleted": True}

    return answer(await context.store.write(write))


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/procurements", create_procurement, "Make a procurement", body=NewProcurement,
        answer=ProcurementAnswer, status=201, errors=(409,), query=(WORKSPACE,),
    ),
    Operation(
        "GET", "/v1/procurements", list_procurements, "List procurements", scope="read", answer=ProcurementAnswer,
        listed=True,
        query=(
            WORKSPACE,
            Query("capacity", "Only procurements of this capacity."),
            Query("pool", "The same as `capacity`."),
            Query("instance_sku", "Only procurements of this kind of node."),
            Query("enabled", "Only those that are enabled, or disabled.", "boolean"),
            *PAGING,
        ),
    ),
    Operation(
        "GET", "/v1/procurements/{id}", get_procurement, "One procurement", scope="read", answer=ProcurementAnswer,
        query=(WORKSPACE,),
    ),
    Operation(
        "PATCH", "/v1/procurements/{id}", change_procurement, "Change a procurement", body=ProcurementChange,
        answer=ProcurementAnswer, errors=(409,), query=(WORKSPACE,),
    ),
    Operation(
        "DELETE", "/v1/procurements/{id}", delete_procurement, "Delete a procurement", answer=Deleted, errors=(409,),
        query=(WORKSPACE,),
    ),
)  # fmt: skip
