"""Events: what happened to the objects of a workspace, as a list and as a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from nanopod.model.chain import Event, Key
from nanopod.model.errors import Invalid, QuotaExceeded
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import words_of
from nanopod.server.api.orders import WORKSPACE
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.references import scope_of
from nanopod.server.feed import Listener
from nanopod.store.transaction import Transaction

PREFIX: Final = "evnt_"
HEARTBEAT_S: Final = 15.0
BATCH: Final = 500
TYPES_MAX: Final = 100
VERBS: Final = (
    "created", "updated", "deleted", "filled", "partially_filled", "cancelled", "rejected", "executed",
    "status_changed", "granted", "running", "failed", "terminated", "shutdown_expected", "shutdown_cleared",
    "hibernated", "topped_up", "refunded", "finalized", "voided", "revoked", "completed", "reinstated", "renamed",
    "lost",
)  # fmt: skip
"""What may happen to objects: the second word of a type."""
_encode: Final = msgspec.json.Encoder().encode


class EventAnswer(TypedDict):
    """Something that happened; `data` depends on the type. Ids rise with time."""

    object: Literal["event"]
    id: str
    type: str
    object_id: str
    workspace_id: str
    created_at: int
    data: dict[str, Any]


def show(event: Event) -> EventAnswer:
    """An event as the API shows it."""
    return {
        "object": "event",
        "id": f"{PREFIX}{event.seq}",
        "type": event.type,
        "object_id": event.object_id,
        "workspace_id": event.workspace_id,
        "created_at": int(event.at),
        "data": dict(event.data),
    }


def _number(text: str | None, field: str) -> int | None:
    """The number in an event's id. Raises `Invalid`."""
    if not text:
        return None
    digits = text.removeprefix(PREFIX)
    if not digits.isdigit() or len(digits) > 18:
        raise Invalid(f"{field}: {text!r} is not the id of an event (they look like {PREFIX}123)", field=field)
    return int(digits)


def _types(request: Request) -> tuple[str, ...]:
    """`?type=`, repeatable: `order.filled`, or `order` for all of them. Raises `Invalid`."""
    found = words_of(request, "type")
    if len(found) > TYPES_MAX:
        raise Invalid(f"type: {len(found)} of them; at most {TYPES_MAX}", field="type")
    return found


def _exact(types: tuple[str, ...]) -> tuple[str, ...]:
    """Types as the store looks for them: a bare noun means everything that may happen to it."""
    return tuple(one for kind in types for one in ([kind] if "." in kind else [f"{kind}.{verb}" for verb in VERBS]))


def _wanted(event: Event, types: tuple[str, ...], object_id: str | None) -> bool:
    if object_id and event.object_id != object_id:
        return False
    return not types or any(event.type == kind or event.type.startswith(kind + ".") for kind in types)


async def list_events(context: Context, request: Request, key: Key) -> Response:
    """Events, newest first; with `Accept: text/event-stream` or `?stream=true` a stream of new ones, oldest first."""
    streams = request.query_params.get("stream", "").lower() in ("1", "true")
    if streams or "text/event-stream" in request.headers.get("accept", ""):
        return await _stream(context, request, key)
    page = page_of(request, PREFIX)
    types, object_id = _types(request), request.query_params.get("object_id")
    after, before = _number(page.after, "starting_after"), _number(page.before, "ending_before")

    def read(read: Transaction) -> list[Event]:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return read.notices_page(
            scope.listed, limit=page.fetch, after=after, before=before, types=_exact(types), object_id=object_id
        )

    return page_answer(page, await context.store.read(read), show, lambda event: f"{PREFIX}{event.seq}")


async def _stream(context: Context, request: Request, key: Key) -> Response:
    since = _number(request.headers.get("last-event-id") or request.query_params.get("starting_after"), "Last-Event-ID")
    types, object_id = _types(request), request.query_params.get("object_id")
    if context.news.full:
        raise QuotaExceeded("too many listeners; close one, or ask again later", retry_after_s=5.0)
    scope = await context.store.read(lambda read: scope_of(read, key, request.query_params.get("workspace")))
    if since is None:
        newest = await context.store.read(lambda read: read.notices_page(scope.listed, limit=1))
        since = newest[0].seq if newest else 0
    stream = _events(context, key, scope.listed, since, types, object_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _may_listen(context: Context, key: Key) -> bool:
    """False once the key of a stream is revoked or has expired."""
    known = await context.store.read(lambda read: read.key(key.key_id))
    if known is None or known.revoked_at is not None:
        return False
    return known.expires_at is None or known.expires_at > context.clock()


async def _events(
    context: Context, key: Key, workspace_id: str | None, since: int, types: tuple[str, ...], object_id: str | None
) -> AsyncIterator[bytes]:
    """First what the store has after `since`, then what is committed, without a gap and without a repeat."""
    yield b": connected\n\n"
    with context.news.listen(workspace_id) as listener:
        catch_up = True
        while not listener.closed:
            if catch_up:
                async for event in _stored(context, workspace_id, since):
                    since = event.seq
                    if _wanted(event, types, object_id):
                        yield _frame(event)
            found, catch_up = await _next(listener)
            if not await _may_listen(context, key):
                return
            if not found and not catch_up:
                yield b": alive\n\n"
            for event in found:
                if event.seq > since:
                    since = event.seq
                    if _wanted(event, types, object_id):
                        yield _frame(event)


async def _stored(context: Context, workspace_id: str | None, since: int) -> AsyncIterator[Event]:
    while True:
        last = since
        rows = await context.store.read(lambda read, last=last: read.notices_after(workspace_id, last, BATCH))  # type: ignore[misc]
        for event in rows:
            since = event.seq
            yield event
        if len(rows) < BATCH:
            return


async def _next(listener: Listener) -> tuple[list[Event], bool]:
    return listener.take() if await listener.wait(HEARTBEAT_S) else ([], False)


def _frame(event: Event) -> bytes:
    body: Mapping[str, Any] = show(event)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(body["id"]).encode(), event.type.encode(), _encode(body))


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/events", list_events, "List events, or listen to them", scope="read", answer=EventAnswer,
        listed=True, errors=(429,), headers={"Last-Event-ID": "For a stream: the id of the last event that was seen."},
        query=(
            WORKSPACE,
            Query("type", "Only events of this type; `order` means every `order.*`.", repeated=True),
            Query("object_id", "Only events of this object."),
            Query("stream", "Answer with a stream of server-sent events.", "boolean", default=False),
            *PAGING,
        ),
        text="With `Accept: text/event-stream` the answer is a stream: `id`, `event` and `data` (an event), and a "
        "comment as a sign of life at least every 15 s. It begins after `Last-Event-ID`, else with what happens next.",
    ),
)  # fmt: skip
