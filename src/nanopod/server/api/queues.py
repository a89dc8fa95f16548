"""Shared queues. Items are bytes (the SDK encodes values of any kind) and travel as msgpack; whoever waits for one
sleeps in the server. An item that nobody takes within seven days is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from dataclasses import dataclass, field
from typing import Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid, NotFound, QuotaExceeded
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.dicts import (
    BATCH_BYTES_MAX,
    OCTETS,
    UNUSED_S_MAX,
    CountAnswer,
    DeletedObject,
    check_value,
    unpacked,
)
from nanopod.server.api.objects import check_name, content_key, octets, room_for
from nanopod.server.api.tenants import workspace_of
from nanopod.store.queues import SharedQueue, Taken
from nanopod.store.transaction import Transaction

ITEMS_MAX: Final = 100_000
TAKE_MAX: Final = 1000
WAIT_S_MAX: Final = 50.0
LEASE_S_MAX: Final = 12 * 3600.0
PARTITION_CHARACTERS_MAX: Final = 255
RETRY_S: Final = 1.0
_values: Final = msgspec.msgpack.Decoder(list[bytes]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class NewQueue:
    """A queue to be made."""

    name: str


@dataclass(frozen=True, slots=True)
class TakeBody:
    """What to take: at most `count` items of a partition, waiting `wait_s` seconds for the first one.

    With `lease_s` they come back after so many seconds unless they are acknowledged; 0: they are gone at once.
    """

    partition: str = ""
    count: int = 1
    wait_s: float = 0.0
    lease_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SettleBody:
    """Leased items, [number, lease] each: done, or to be handed out `again` at once."""

    items: list[tuple[int, str]] = field(default_factory=list)
    again: bool = False


class QueueAnswer(TypedDict):
    """A queue."""

    id: str
    object: str
    name: str
    created_at: int


class QueueCard(QueueAnswer):
    """One queue, with the number of its items (leased ones as well) by partition."""

    items: int
    partitions: dict[str, int]


def show(found: SharedQueue) -> QueueAnswer:
    """A queue as the API shows it."""
    return {"id": found.queue_id, "object": "queue", "name": found.name, "created_at": int(found.created_at)}


def _find(read: Transaction, key: Key, request: Request) -> SharedQueue:
    reference = request.path_params["id"]
    place = workspace_of(read, key, request.query_params.get("workspace")).workspace_id
    found = read.shared_queue(place, reference)
    if found is None:
        known = ", ".join(one.name for one in read.shared_queues(place)[:20]) or "none yet"
        raise NotFound(f"there is no queue {reference!r} in this workspace (there are: {known})")
    return found


def _partition(text: str) -> str:
    if len(text) > PARTITION_CHARACTERS_MAX or "\0" in text:
        raise Invalid(
            f"partition: give at most {PARTITION_CHARACTERS_MAX} characters, none of them zero", field="partition"
        )
    return text


# --- queues ---


async def create_queue(context: Context, request: Request, key: Key) -> Response:
    """Make a queue: 201; 200 with the one that is there when its name is taken."""
    wanted = await body_as(request, NewQueue)
    content_key(key)
    check_name(wanted.name)
    queue_id, now = context.new_id("queue"), context.clock()
    workspace = request.query_params.get("workspace")

    def create(write: Transaction) -> tuple[SharedQueue, bool]:
        place = workspace_of(write, key, workspace).workspace_id
        found = write.shared_queue(place, wanted.name)
        if found is not None:
            return found, False
        room_for(len(write.shared_queues(place)), "queues")
        fresh = SharedQueue(queue_id, place, wanted.name, now)
        write.add_shared_queue(fresh)
        return fresh, True

    found, fresh = await context.store.write(create)
    return answer(show(found), 201 if fresh else 200)


async def list_queues(context: Context, request: Request, key: Key) -> Response:
    """Every queue of the workspace, by name."""
    workspace = request.query_params.get("workspace")
    found = await context.store.read(lambda read: read.shared_queues(workspace_of(read, key, workspace).workspace_id))
    return whole_list(request, found, show)


async def get_queue(context: Context, request: Request, key: Key) -> Response:
    """One queue by name or id."""
    now = time.time()

    def read(read: Transaction) -> QueueCard:
        found = _find(read, key, request)
        counts = read.queue_counts(found.queue_id, now)
        return {**show(found), "items": sum(counts.values()), "partitions": counts}

    return answer(await context.store.read(read))


async def delete_queue(context: Context, request: Request, key: Key) -> Response:
    """Delete a queue and everything in it."""

    def delete(write: Transaction) -> SharedQueue:
        found = _find(write, key, request)
        write.delete_shared_queue(found.queue_id)
        return found

    gone = await context.store.write(delete)
    deleted: DeletedObject = {"id": gone.queue_id, "object": "queue", "name": gone.name, "deleted": True}
    return answer(deleted)


# --- items ---


async def put_items(context: Context, request: Request, key: Key) -> Response:
    """Append items, msgpack `[value, ...]`, all or none."""
    content_key(key)
    partition = _partition(request.query_params.get("partition", ""))
    values = unpacked(await octets(request, BATCH_BYTES_MAX), _values, "msgpack [value, ...]")
    for value in values:
        check_value(value, "value")
    now = time.time()

    def put(write: Transaction) -> str:
        found = _find(write, key, request)
        if write.queue_count(found.queue_id, now) + len(values) > ITEMS_MAX:
            raise QuotaExceeded(
                f"queue {found.name!r} is full ({ITEMS_MAX} items): take some out first", retry_after_s=RETRY_S
            )
        if values:
            write.queue_put(found.queue_id, partition, values, now + UNUSED_S_MAX)
        return found.queue_id

    queue_id = await context.store.write(put)
    context.waits.woken((queue_id, partition), len(values))
    stored: CountAnswer = {"object": "queue.items", "count": len(values)}
    return answer(stored)


async def take_items(context: Context, request: Request, key: Key) -> Response:
    """Take the oldest items, waiting for the first one: msgpack `[[number, value, deliveries, lease], ...]`."""
    wanted = await body_as(request, TakeBody)
    content_key(key)
    _partition(wanted.partition)
    if not 1 <= wanted.count <= TAKE_MAX:
        raise Invalid(f"count: {wanted.count} must be from 1 to {TAKE_MAX}", field="count")
    if not 0 <= wanted.lease_s <= LEASE_S_MAX:
        raise Invalid(f"lease_s: {wanted.lease_s} must be from 0 to {LEASE_S_MAX:.0f} seconds", field="lease_s")
    if not 0 <= wanted.wait_s < math.inf:
        raise Invalid(f"wait_s: {wanted.wait_s} must be a number of seconds, 0 or more", field="wait_s")
    queue_id = (await context.store.read(lambda read: _find(read, key, request))).queue_id
    taking = asyncio.ensure_future(_take(context, queue_id, wanted))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((taking, gone), return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            return Response(status_code=499)  # nobody is there to get an item
        found = taking.result()
    finally:
        for task in (taking, gone):
            task.cancel()
    rows = [(one.seq, one.value, one.deliveries, one.lease) for one in found]
    return Response(_encode(rows), media_type=OCTETS)


async def _disconnected(request: Request) -> None:
    """Returns when the caller is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _take(context: Context, queue_id: str, wanted: TakeBody) -> list[Taken]:
    until = time.monotonic() + min(wanted.wait_s, WAIT_S_MAX)
    place = (queue_id, wanted.partition)
    token = context.random_bytes(12).hex() if wanted.lease_s else ""

    def take(write: Transaction) -> list[Taken]:
        now = time.time()
        if token:
            return write.queue_lease(queue_id, wanted.partition, wanted.count, now, token, now + wanted.lease_s)
        return write.queue_take(queue_id, wanted.partition, wanted.count, now)

    while True:
        # Once begun it is not given up half-way: what was taken would be nobody's.
        found: list[Taken] = await asyncio.shield(asyncio.ensure_future(context.store.write(take)))
        left_s = until - time.monotonic()
        if found or left_s <= 0:
            return found
        now = time.time()
        back_at = await context.store.read(functools.partial(_back_at, place, now))
        if back_at is not None:
            left_s = min(left_s, max(0.0, back_at - now) + 0.001)
        with contextlib.suppress(TimeoutError):
            await context.waits.wait(place, left_s)


def _back_at(place: tuple[str, str], now: float, read: Transaction) -> float | None:
    return read.queue_back_at(*place, now)


async def settle_items(context: Context, request: Request, key: Key) -> Response:
    """Acknowledge leased items, or give them back; how many of them were still leased."""
    wanted = await body_as(request, SettleBody)
    content_key(key)

    def settle(write: Transaction) -> tuple[str, int, list[str]]:
        queue_id = _find(write, key, request).queue_id
        count, back = 0, []
        for seq, lease in wanted.items[:TAKE_MAX]:
            partition = write.queue_partition_of(queue_id, seq) if wanted.again else None
            done = write.queue_return(queue_id, seq, lease) if wanted.again else write.queue_done(queue_id, seq, lease)
            count += done
            if done and partition is not None:
                back.append(partition)
        return queue_id, count, back

    queue_id, count, back = await context.store.write(settle)
    for partition in back:
        context.waits.woken((queue_id, partition))
    settled: CountAnswer = {"object": "queue.items", "count": count}
    return answer(settled)


async def clear_items(context: Context, request: Request, key: Key) -> Response:
    """Throw the items of a partition away, or all of them when none is named."""
    content_key(key)
    partition = request.query_params.get("partition")
    count = await context.store.write(
        lambda write: write.queue_clear(_find(write, key, request).queue_id, partition)
    )  # fmt: skip
    cleared: CountAnswer = {"object": "queue.items", "count": count}
    return answer(cleared)


_W: Final = ("workspace",)
_PARTITION: Final = Query("partition", "Which part of the queue.")
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/queues", create_queue, "Make a shared queue", scope="call", body=NewQueue, answer=QueueAnswer,
        status=201, also=(200,), query=_W,
    ),
    Operation(
        "GET", "/v1/queues", list_queues, "List shared queues", scope="call", answer=QueueAnswer, listed=True,
        query=("workspace", "limit", "starting_after"),
    ),
    Operation(
        "GET", "/v1/queues/{id}", get_queue, "One queue", scope="call", answer=QueueCard, query=_W,
        errors=(404,),
    ),
    Operation(
        "DELETE", "/v1/queues/{id}", delete_queue, "Delete a queue", answer=DeletedObject, query=_W,
        errors=(404,),
    ),
    Operation(
        "POST", "/v1/queues/{id}/items", put_items, "Append items", scope="call", answer=CountAnswer,
        query=("workspace", _PARTITION), errors=(404, 413, 429),
    ),
    Operation(
        "DELETE", "/v1/queues/{id}/items", clear_items, "Throw items away", scope="call", answer=CountAnswer,
        query=("workspace", _PARTITION), errors=(404,),
    ),
    Operation(
        "POST", "/v1/queues/{id}/take", take_items, "Take items, waiting for the first", scope="call", body=TakeBody,
        query=_W, errors=(404,), media=OCTETS,
    ),
    Operation(
        "POST", "/v1/queues/{id}/settle", settle_items, "Acknowledge leased items, or give them back", scope="call",
        body=SettleBody, answer=CountAnswer, query=_W, errors=(404,),
    ),
)  # fmt: skip
