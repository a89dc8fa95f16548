"""Schedules: functions that start by themselves, as their code says; looked at, paused, started by hand."""

from __future__ import annotations

from typing import Final, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid, NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.calls import CallAnswer, names_of
from nanopod.server.api.calls import show as show_call
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.calls.schedules import following, start
from nanopod.server.calls.wire import ID_BYTES
from nanopod.store.schedules import StoredSchedule
from nanopod.store.transaction import Transaction

PREFIX: Final = "schd_"


class ScheduleAnswer(TypedDict):
    """A function that starts by itself. Times are Unix seconds; `next_at` null: it is paused."""

    object: Literal["schedule"]
    id: str
    endpoint_id: str
    endpoint: str
    function: str
    cron: str
    tz: str
    period_s: float
    catch_up: bool
    paused: bool
    next_at: float | None
    last_at: float | None
    last_call_id: str | None
    created_at: float
    updated_at: float


class ScheduleChange(msgspec.Struct, frozen=True):
    """What to change of a schedule; when it starts is said by the code."""

    paused: bool | msgspec.UnsetType = msgspec.UNSET


def show(read: Transaction, found: StoredSchedule) -> ScheduleAnswer:
    """A schedule as the API shows it."""
    return {
        "object": "schedule",
        "id": found.schedule_id,
        "endpoint_id": found.endpoint_id,
        "endpoint": names_of(read, {found.endpoint_id}).get(found.endpoint_id, ""),
        "function": found.function,
        "cron": found.spec.cron,
        "tz": found.spec.tz,
        "period_s": found.spec.period_s,
        "catch_up": found.spec.catch_up,
        "paused": found.paused,
        "next_at": None if found.paused else round(found.next_at, 3),
        "last_at": round(found.last_at, 3) if found.last_at is not None else None,
        "last_call_id": found.last_call_id or None,
        "created_at": round(found.created_at, 3),
        "updated_at": round(found.updated_at, 3),
    }


def find_schedule(read: Transaction, key: Key, reference: str) -> StoredSchedule:
    """A schedule of the key's workspace by id, by `endpoint.function`, or by its function's name where that is the only
    one. Raises `NotFound`, or `Invalid` for a name that several have."""
    found = read.schedule(reference) if reference.startswith(PREFIX) else None
    if found is not None and found.workspace_id == key.workspace_id:
        return found
    rows = read.schedules(key.workspace_id)
    names = names_of(read, {row.endpoint_id for row in rows})
    where, _, function = reference.rpartition(".")
    fitting = [row for row in rows if row.function == reference]
    if where:
        fitting += [
            row for row in rows
            if row.function == function and where in (names.get(row.endpoint_id, ""), row.endpoint_id,
                                                      names.get(row.endpoint_id, "").removesuffix(":default"))
        ]  # fmt: skip
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        text = ", ".join(f"{names.get(row.endpoint_id, row.endpoint_id)}.{row.function}" for row in fitting[:10])
        raise Invalid(f"several schedules have this name ({text}); name the endpoint, or the id", field="id")
    raise NotFound(f"there is no schedule {reference!r} that this key may see")


async def list_schedules(context: Context, request: Request, key: Key) -> Response:
    """Schedules of the workspace, newest first."""
    page = page_of(request, PREFIX)

    def read(read: Transaction) -> list[ScheduleAnswer]:
        endpoint_id: str | None = None
        if reference := request.query_params.get("endpoint"):
            named = read.endpoint_named(key.workspace_id, reference)
            endpoint_id = named.endpoint_id if named is not None else reference
        rows = read.schedules(key.workspace_id, endpoint_id)
        return [show(read, row) for row in cut(page, rows, lambda row: row.schedule_id)]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: str(row["id"]))


async def get_schedule(context: Context, request: Request, key: Key) -> Response:
    """One schedule."""
    reference = request.path_params["id"]
    return answer(await context.store.read(lambda read: show(read, find_schedule(read, key, reference))))


async def change_schedule(context: Context, request: Request, key: Key) -> Response:
    """Pause a schedule, or let it go on with the next tick from now."""
    reference, wish = request.path_params["id"], await body_as(request, ScheduleChange)
    now = context.calls.wall()

    def write(write: Transaction) -> ScheduleAnswer:
        found = find_schedule(write, key, reference)
        if wish.paused is not msgspec.UNSET and wish.paused != found.paused:
            next_at = found.next_at if wish.paused else following(found.spec, now)
            write.set_schedule(found.schedule_id, paused=wish.paused, next_at=next_at, updated_at=now)
        again = write.schedule(found.schedule_id)
        assert again is not None
        return show(write, again)

    shown = await context.store.write(write)
    context.calls.scheduler.wake()
    return answer(shown)


async def run_schedule(context: Context, request: Request, key: Key) -> Response:
    """Start a scheduled function once, now, paused or not; its rhythm stays."""
    reference = request.path_params["id"]
    now, call_id = context.calls.wall(), context.random_bytes(ID_BYTES)

    def write(write: Transaction) -> tuple[str, CallAnswer]:
        found = find_schedule(write, key, reference)
        made = start(write, found, call_id, now)
        stored = write.call(made.call_id)
        assert stored is not None
        return found.endpoint_id, show_call(stored, names_of(write, {found.endpoint_id}))

    endpoint_id, shown = await context.store.write(write)
    context.calls.dispatcher.added([(key.workspace_id, endpoint_id)])
    return answer(shown, 201)


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/schedules", list_schedules, "List schedules", scope="read", answer=ScheduleAnswer, listed=True,
        query=(Query("endpoint", "Only schedules of this endpoint."), *PAGING),
    ),
    Operation(
        "GET", "/v1/schedules/{id}", get_schedule, "One schedule", scope="read", answer=ScheduleAnswer, errors=(404,),
    ),
    Operation(
        "PATCH", "/v1/schedules/{id}", change_schedule, "Pause or resume a schedule", body=ScheduleChange,
        answer=ScheduleAnswer, errors=(400, 404),
    ),
    Operation(
        "POST", "/v1/schedules/{id}/run", run_schedule, "Start a scheduled function now", answer=CallAnswer, status=201,
        errors=(404,),
    ),
)  # fmt: skip
