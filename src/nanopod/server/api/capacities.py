"""Capacities: time on nodes that a workspace holds. The same objects are `pool`s under `/v1/pools`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, Literal, TypedDict

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.capacity import Capacity
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.schedule import Entry, Schedule
from nanopod.model.schedule import Window as Span
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import TAG_QUERIES, check_tags, given, tag_filter, whole_of, words_of
from nanopod.server.api.orders import WORKSPACE
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.references import canonical, check_name, find_capacity, scope_of, workspace_reference
from nanopod.server.api.showing import (
    Changeable,
    Owners,
    ScheduleEntry,
    Summary,
    changeable,
    clipped,
    entries_of,
    total_of,
)
from nanopod.store.transaction import Transaction

HISTORY_MINUTES_MAX: Final = 1440


class NewCapacity(msgspec.Struct, frozen=True):
    """A capacity for users; it is empty at first."""

    name: str
    tags: dict[str, str] = {}
    workspace: str | None = None


class CapacityChange(msgspec.Struct, frozen=True):
    """What to change of a capacity; fields left out stay. `tags` replaces all of them."""

    name: str | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET


class Allocation(TypedDict):
    """Nodes over time: all together, and by id of the kind of node."""

    total: list[ScheduleEntry]
    by_instance_sku: dict[str, list[ScheduleEntry]]


class CapacityAnswer(Changeable):
    """A capacity. `nodes_now` are the nodes of the present block."""

    kind: Literal["market", "originating", "read_only"]
    allocation_schedule: Allocation
    nodes_now: int
    procurements: list[Summary]
    deployments: list[Summary]
    tags: dict[str, str]


class Deleted(TypedDict):
    """An object that is gone."""

    object: str
    id: str
    deleted: bool


class Holdings:
    """Makes answers of capacities inside one transaction and the event loop's books."""

    def __init__(self, context: Context, read: Transaction, *, now: float, history_minutes: int, shown_as: str) -> None:
        self._context = context
        self._read = read
        self._now = now
        self._shown_as = shown_as
        self._owners = Owners(read)
        block_s = context.block_s
        self._block = int(now // block_s)
        self._from = self._block - history_minutes * 60 // block_s

    def of(self, capacity: Capacity, schedules: Mapping[str, Schedule]) -> CapacityAnswer:
        """One capacity with what it owns (and owned)."""
        block_s, capacity_id = self._context.block_s, capacity.capacity_id
        by_sku = {sku: clipped(schedule, self._block * block_s) for sku, schedule in schedules.items()}
        if self._from < self._block:
            for sku, past in self._history(capacity_id).items():
                by_sku[sku] = past.plus(by_sku.get(sku, Schedule()))
        by_sku = {sku: schedule for sku, schedule in by_sku.items() if schedule.entries}
        whole = total_of(by_sku.values())
        return {
            **changeable(
                self._owners, "capacity", capacity_id, capacity.workspace_id, capacity.name, capacity.created_at,
                capacity.updated_at, shown_as=self._shown_as,
            ),
            "kind": capacity.kind,
            "allocation_schedule": {
                "total": entries_of(whole),
                "by_instance_sku": {sku: entries_of(schedule) for sku, schedule in sorted(by_sku.items())},
            },
            "nodes_now": whole.nodes_at(self._now),
            "procurements": [
                {"id": found.procurement_id, "name": found.name} for found in self._read.procurements_of(capacity_id)
            ],
            "deployments": [
                {"id": found.deployment_id, "name": found.name} for found in self._read.deployments_on(capacity_id)
            ],
            "tags": dict(capacity.tags),
        }  # fmt: skip

    def _history(self, capacity_id: str) -> dict[str, Schedule]:
        """What it owned from `_from` until the present block."""
        found: dict[str, list[tuple[int, int]]] = {}
        for sku_id, block, nodes in self._read.allocations(capacity_id, self._from):
            found.setdefault(sku_id, []).append((block, nodes))
        return {sku: self._steps(steps) for sku, steps in found.items()}

    def _steps(self, steps: Iterable[tuple[int, int]]) -> Schedule:
        block_s = self._context.block_s
        ordered = [*sorted(steps), (self._block, 0)]
        entries = []
        for (block, nodes), (following, _) in pairwise(ordered):
            start, end = max(block, self._from), min(following, self._block)
            if start < end:
                entries.append(Entry(Span(start * block_s, end * block_s), nodes))
        return Schedule.of(entries)


def _shown_as(request: Request) -> str:
    return "pool" if request.url.path.startswith("/v1/pools") else "capacity"


def _history_of(request: Request) -> int:
    return whole_of(request, "schedule_history_minutes", default=0, most=HISTORY_MINUTES_MAX) or 0


async def _show(context: Context, request: Request, found: list[Capacity]) -> list[CapacityAnswer]:
    """Answers for capacities whose books are as new as everything that was committed before."""
    now, minutes, shown_as = context.clock(), _history_of(request), _shown_as(request)
    schedules = {capacity.capacity_id: context.books.schedule(capacity.capacity_id) for capacity in found}

    def read(read: Transaction) -> list[CapacityAnswer]:
        holdings = Holdings(context, read, now=now, history_minutes=minutes, shown_as=shown_as)
        return [holdings.of(capacity, schedules[capacity.capacity_id]) for capacity in found]

    return await context.store.read(read)


async def list_capacities(context: Context, request: Request, key: Key) -> Response:
    """Capacities with their schedules, newest first."""
    page = page_of(request, "cap_")
    _history_of(request)
    fits = tag_filter(request)
    ids = {canonical(text) for text in words_of(request, "id")}

    def read(read: Transaction) -> list[Capacity]:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return [
            capacity
            for capacity in sorted(read.capacities(scope.listed), key=_age, reverse=True)
            if fits(capacity.tags) and (not ids or capacity.capacity_id in ids or capacity.name in ids)
        ]

    rows = cut(page, await context.store.read(read), lambda row: row.capacity_id)
    return page_answer(page, await _show(context, request, rows), lambda row: row, lambda row: row["id"])


def _age(capacity: Capacity) -> tuple[float, str]:
    return capacity.created_at, capacity.capacity_id


async def get_capacity(context: Context, request: Request, key: Key) -> Response:
    """One capacity by id, name or resource path."""

    def read(read: Transaction) -> Capacity:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return find_capacity(read, scope, request.path_params["id"], None)

    return answer((await _show(context, request, [await context.store.read(read)]))[0])


async def create_capacity(context: Context, request: Request, key: Key) -> Response:
    """Make an empty capacity."""
    wish = await body_as(request, NewCapacity)
    check_name(wish.name)
    tags = check_tags(wish.tags)
    place = workspace_reference(request, wish.workspace)
    capacity_id, now = context.new_id("capacity"), context.clock()

    def write(write: Transaction) -> Capacity:
        owner = scope_of(write, key, place).workspace
        _free_name(write, owner.workspace_id, wish.name)
        made = Capacity(
            capacity_id, owner.workspace_id, wish.name, "market", account_id=owner.account_id, tags=tags,
            created_at=now, updated_at=now,
        )  # fmt: skip
        write.add_capacity(made, now)
        write.add_notice(now, owner.workspace_id, "capacity.created", capacity_id, {"name": wish.name})
        return made

    return answer((await _show(context, request, [await context.store.write(write)]))[0], 201)


def _free_name(read: Transaction, workspace_id: str, name: str) -> None:
    if read.capacity_named(workspace_id, name) is not None:
        raise BadRequest(f"name: a capacity {name!r} exists in this workspace; choose another name", field="name")


async def change_capacity(context: Context, request: Request, key: Key) -> Response:
    """Rename a capacity, or replace its tags."""
    change = given(await body_as(request, CapacityChange))
    if "name" in change:
        check_name(change["name"])
    if "tags" in change:
        change["tags"] = check_tags(change["tags"])
    now = context.clock()

    def write(write: Transaction) -> Capacity:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = find_capacity(write, scope, request.path_params["id"], None)
        if change.get("name", seen.name) != seen.name:
            _free_name(write, seen.workspace_id, change["name"])
        if change:
            write.set_capacity(seen, **change, updated_at=now)
            write.add_notice(now, seen.workspace_id, "capacity.updated", seen.capacity_id, {"fields": sorted(change)})
        found = write.capacity(seen.capacity_id)
        assert found is not None, "it was there a moment ago in the same transaction"
        return found

    return answer((await _show(context, request, [await context.store.write(write)]))[0])


async def delete_capacity(context: Context, request: Request, key: Key) -> Response:
    """Delete a capacity that nothing uses; 422 says what does."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = find_capacity(write, scope, request.path_params["id"], None)
        if seen.kind != "market":
            raise Invalid(f"id: capacity {seen.name!r} is of kind {seen.kind} and cannot be deleted", field="id")
        with context.desk.session(write, now) as market:
            market.delete_check(seen.capacity_id)
        write.delete_capacity(seen.capacity_id)
        write.add_notice(now, seen.workspace_id, "capacity.deleted", seen.capacity_id, {"name": seen.name})
        return {"object": _shown_as(request), "id": seen.capacity_id, "deleted": True}

    return answer(await context.store.write(write))


_HISTORY: Final = Query(
    "schedule_history_minutes", "Minutes of the past that schedules begin with.", "integer", least=0,
    most=HISTORY_MINUTES_MAX, default=0,
)  # fmt: skip


def _operations(base: str, word: str) -> tuple[Operation, ...]:
    one = f"{base}/{{id}}"
    shared = (WORKSPACE, _HISTORY)
    return (
        Operation(
            "GET", base, list_capacities, f"List {word}s", scope="read", answer=CapacityAnswer, listed=True,
            query=(*shared, Query("id", "Only these, by id or name.", repeated=True), *TAG_QUERIES, *PAGING),
        ),
        Operation(
            "POST", base, create_capacity, f"Make a {word}", body=NewCapacity, answer=CapacityAnswer, status=201,
            query=shared,
        ),
        Operation("GET", one, get_capacity, f"One {word}", scope="read", answer=CapacityAnswer, query=shared),
        Operation(
            "PATCH", one, change_capacity, f"Change a {word}", body=CapacityChange, answer=CapacityAnswer,
            errors=(409,), query=shared,
        ),
        Operation("DELETE", one, delete_capacity, f"Delete a {word}", answer=Deleted, query=(WORKSPACE,)),
    )  # fmt: skip


OPERATIONS: Final = (*_operations("/v1/capacities", "capacity"), *_operations("/v1/pools", "pool"))
