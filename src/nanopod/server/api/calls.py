"""Spawned calls: made here, finished without their caller, looked at, followed, shared and given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from nanopod.model.chain import Key
from nanopod.model.errors import Cancelled, Invalid, NotFound
from nanopod.model.money import Money
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import TooLarge, body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import flag_of, words_of
from nanopod.server.api.once import HEADER as ONCE
from nanopod.server.api.once import key_of
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.webhooks import check_address, check_url
from nanopod.server.calls import plain, sharing, wire
from nanopod.server.calls.dispatcher import never_sent
from nanopod.server.calls.hooks import hook_secret
from nanopod.server.calls.making import CallWish, Maker, arguments, derived_id, draft, header_of
from nanopod.server.calls.tail import Line, lines_of
from nanopod.store.calls import STATUSES, NewCall, StoredCall
from nanopod.store.transaction import Transaction

OCTETS: Final = "application/octet-stream"
WAIT_S_MAX: Final = 60.0
"""How long one request may wait for a result."""
CANCEL_S_MAX: Final = 5.0
"""How long a cancellation waits for its outcome."""
HEARTBEAT_S: Final = 15.0
_encode: Final = msgspec.json.Encoder().encode


class CallError(TypedDict):
    """Why a call failed: the exception's class, a code of the API, and its message."""

    type: str
    code: str
    message: str


class CallHook(TypedDict):
    """How the delivery of a call's result to its webhook stands."""

    url: str
    state: Literal["waiting", "retrying", "delivered", "given_up"]
    attempts: int
    message: str


class CallAnswer(TypedDict):
    """A spawned call. Times are Unix seconds with fractions; `cost` is dollars; its result is there until `expires_at`.

    `status` expired: it ended, and its result was kept long enough.
    """

    object: Literal["call"]
    id: str
    endpoint_id: str
    endpoint: str
    function: str
    origin: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    attempt: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    run_us: int
    cost: str
    error: CallError | None
    worker: str
    expires_at: float | None
    schedule_id: str | None
    webhook: CallHook | None


class ResultAnswer(TypedDict):
    """What a call answered, as JSON: `value` of a function, `items` of a generator, `error` when it failed."""

    object: Literal["call_result"]
    id: str
    status: str
    value: Any
    items: list[Any] | None
    error: CallError | None


class LogLine(TypedDict):
    """A line that a call printed; `seq` counts from 1."""

    seq: int
    at: float
    stream: str
    line: str


class ShareAnswer(TypedDict):
    """A token that shows one call to whoever has it, until its result expires or another token is made."""

    object: Literal["call_share"]
    id: str
    token: str


class SecretAnswer(TypedDict):
    """What results that are posted to webhooks of calls are signed with."""

    object: Literal["call_webhook_secret"]
    secret: str


# --- showing ---


def _at(moment: float | None) -> float | None:
    return round(moment, 3) if moment is not None else None


def _hook(found: StoredCall) -> CallHook | None:
    if not found.webhook:
        return None
    state: dict[str, Any] = msgspec.json.decode(found.webhook_state) if found.webhook_state else {}
    return {
        "url": found.webhook, "state": state.get("state", "waiting"), "attempts": state.get("attempts", 0),
        "message": state.get("message", ""),
    }  # fmt: skip


def show(found: StoredCall, names: Mapping[str, str]) -> CallAnswer:
    """A call as the API shows it; `names` has `name:tag` by endpoint."""
    failed = found.error_code or found.error_message
    return {
        "object": "call",
        "id": found.call_id,
        "endpoint_id": found.endpoint_id,
        "endpoint": names.get(found.endpoint_id, ""),
        "function": found.function,
        "origin": found.origin,
        "status": found.status,
        "attempt": found.attempt,
        "created_at": round(found.created_at, 3),
        "started_at": _at(found.started_at),
        "ended_at": _at(found.ended_at),
        "run_us": found.run_us,
        "cost": str(Money(found.cost_micro)),
        "error": _error(found) if failed else None,
        "worker": found.worker,
        "expires_at": _at(found.expires_at),
        "schedule_id": found.schedule_id or None,
        "webhook": _hook(found),
    }


def _error(found: StoredCall) -> CallError:
    return {"type": found.error_type or found.error_code, "code": found.error_code, "message": found.error_message}


def names_of(read: Transaction, endpoint_ids: set[str]) -> dict[str, str]:
    """`name:tag` of endpoints, deleted ones as long as there is a trace of them."""
    found = {one: read.endpoint(one) for one in endpoint_ids}
    return {one: known.full_name for one, known in found.items() if known is not None}


def _shown(read: Transaction, found: StoredCall) -> CallAnswer:
    return show(found, names_of(read, {found.endpoint_id}))


def find_call(read: Transaction, key: Key, reference: str) -> StoredCall:
    """A call that the key may see. Raises `NotFound`."""
    call_id = wire.check_id(reference)
    found = read.call(call_id)
    if found is not None and found.workspace_id == key.workspace_id:
        if key.endpoints is None:
            return found
        target = read.endpoint(found.endpoint_id)
        if target is not None and {target.name, target.full_name} & set(key.endpoints):
            return found
    raise NotFound(
        f"there is no call {reference!r} that this key may see; results are kept for a time after a call's end"
    )


# --- making ---


async def _body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > wire.REQUEST_BYTES_MAX:
            raise TooLarge(f"the body is larger than {wire.REQUEST_BYTES_MAX >> 20} MiB; send the calls in parts")
        chunks.append(chunk)
    return b"".join(chunks)


async def create_calls(context: Context, request: Request, key: Key) -> Response:
    """Keep calls: all of a request, or none. They are made whether or not the caller stays."""
    binary = request.headers.get("content-type", "").startswith(OCTETS)
    now, webhook = context.calls.wall(), request.query_params.get("webhook", "")
    payloads = context.calls.payloads
    if binary:
        read = await _body(request)
        parsed = await asyncio.to_thread(wire.parsed, read)
        drafts = [await draft(payloads, header, payload) for header, payload in parsed]
    else:
        wish = await body_as(request, CallWish)
        webhook = wish.options.webhook or webhook
        once = key_of(request)
        call_id = derived_id("once", key.workspace_id, once) if once else context.random_bytes(wire.ID_BYTES)
        drafts = [await draft(payloads, header_of(wish, call_id, now), arguments(wish))]
    if webhook:
        check_url(webhook)
        place = await context.store.read(lambda read: read.workspace(key.workspace_id))
        await check_address(webhook, place.name if place is not None else "")
    origin = "spawn" if binary else "api"

    def write(write: Transaction) -> tuple[list[NewCall], list[CallAnswer]]:
        made = Maker(write, key, origin, now).make(drafts, webhook)
        return made, _answers(write, made)

    made, shown = await context.store.write(write)
    context.calls.dispatcher.added({(one.workspace_id, one.endpoint_id) for one in made})
    if binary:
        return answer({"object": "list", "data": shown, "has_more": False, "cursor": None}, 201)
    return answer(shown[0], 201)


def _answers(read: Transaction, made: list[NewCall]) -> list[CallAnswer]:
    names = names_of(read, {one.endpoint_id for one in made})
    found = read.calls_among([one.call_id for one in made])
    return [show(found[one.call_id], names) for one in made]


# --- looking ---


async def list_calls(context: Context, request: Request, key: Key) -> Response:
    """Calls of the workspace, newest first."""
    page = page_of(request, wire.PREFIX)
    statuses = words_of(request, "status", STATUSES)
    query = request.query_params

    def read(read: Transaction) -> tuple[list[StoredCall], dict[str, str]]:
        endpoints: list[str] | None = None
        if key.endpoints is not None:
            own = [read.endpoint_named(key.workspace_id, one) for one in key.endpoints]
            endpoints = [one.endpoint_id for one in own if one is not None]
        if reference := query.get("endpoint"):
            named = read.endpoint_named(key.workspace_id, reference)
            wanted = named.endpoint_id if named is not None else reference
            endpoints = [wanted] if endpoints is None or wanted in endpoints else []
        rows = read.calls_page(
            key.workspace_id, limit=page.fetch, after=page.after, before=page.before, endpoint_ids=endpoints,
            function=query.get("function"), statuses=statuses, schedule_id=query.get("schedule"),
        )  # fmt: skip
        return rows, names_of(read, {row.endpoint_id for row in rows})

    rows, names = await context.store.read(read)
    return page_answer(page, rows, lambda row: show(row, names), lambda row: row.call_id)


async def get_call(context: Context, request: Request, key: Key) -> Response:
    """One call."""
    reference = request.path_params["id"]
    return answer(await context.store.read(lambda read: _shown(read, find_call(read, key, reference))))


async def get_result(context: Context, request: Request, key: Key) -> Response:
    """What a call answered, as frames or as JSON; 202 with the call while it has no answer."""
    reference, wait_s = request.path_params["id"], _wait_s(request)
    call_id = wire.check_id(reference)

    def read(read: Transaction) -> tuple[StoredCall, CallAnswer, bytes | None, str]:
        found = find_call(read, key, reference)
        inline, blob = read.call_result(call_id) if not found.is_open else (None, "")
        return found, _shown(read, found), inline, blob

    with context.calls.dispatcher.waiting(call_id) as ended:
        found, shown, inline, blob = await context.store.read(read)
        if found.is_open and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await ended.wait()
            except TimeoutError:
                pass
            found, shown, inline, blob = await context.store.read(read)
    if found.is_open:
        return answer(shown, 202)
    if found.status == "expired":
        raise NotFound(f"the result of {call_id} expired; results are kept for a time after a call's end")
    frames = await context.calls.payloads.load(inline, blob)
    if OCTETS in request.headers.get("accept", ""):
        return Response(frames, media_type=OCTETS)
    return answer(await asyncio.to_thread(_as_json, shown, frames))


def _as_json(shown: CallAnswer, frames: bytes) -> ResultAnswer:
    try:
        value, items = plain.result_of(frames)
    except ValueError as error:
        raise Invalid(f"{error}; ask for it with Accept: {OCTETS}") from None
    return {
        "object": "call_result", "id": shown["id"], "status": shown["status"], "value": value, "items": items,
        "error": shown["error"],
    }  # fmt: skip


def _wait_s(request: Request) -> float:
    text = request.query_params.get("wait_s", "0") or "0"
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.0 <= found < 1e9:
        raise Invalid(f"wait_s: {text!r} is not a number of seconds from 0", field="wait_s")
    return min(found, WAIT_S_MAX)


# --- following ---


async def get_logs(context: Context, request: Request, key: Key) -> Response:
    """What a call printed, its last 256 KiB; with `follow` what it prints until it ends, as server-sent events."""
    reference = request.path_params["id"]
    found = await context.store.read(lambda read: find_call(read, key, reference))
    after = _seq(request.headers.get("last-event-id") or request.query_params.get("after") or "0")
    if flag_of(request, "follow") or "text/event-stream" in request.headers.get("accept", ""):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_follow(context, found.call_id, after), 200, headers, "text/event-stream")
    rows = [_line(line) for line in await _lines(context, found.call_id) if line.seq > after]
    return answer({"object": "list", "data": rows, "has_more": False, "cursor": None})


def _seq(text: str) -> int:
    if not text.isdigit() or len(text) > 15:
        raise Invalid(f"after: {text!r} is not the number of a line", field="after")
    return int(text)


def _line(line: Line) -> LogLine:
    return {"seq": line.seq, "at": round(line.at, 3), "stream": line.stream, "line": line.line}


async def _lines(context: Context, call_id: str) -> list[Line]:
    tail = context.calls.dispatcher.tail(call_id)
    if tail is not None:
        return list(tail.lines)
    return lines_of(await context.store.read(lambda read: read.call_logs(call_id)))


async def _follow(context: Context, call_id: str, after: int) -> AsyncIterator[bytes]:
    yield b": connected\n\n"
    dispatcher = context.calls.dispatcher
    while not dispatcher.closing:
        tail = dispatcher.tail(call_id)
        with dispatcher.waiting(call_id) as ended:
            found = await context.store.read(lambda read: read.call(call_id))
            if tail is None and found is not None and found.is_open:
                # It waits in the store: look again when it may be on its way.
                try:
                    async with asyncio.timeout(1.0):
                        await ended.wait()
                except TimeoutError:
                    yield b": alive\n\n"
                continue
        over = tail is None or tail.ended
        lines = tail.after(after) if tail is not None else [
            line for line in await _lines(context, call_id) if line.seq > after
        ]  # fmt: skip
        for line in lines:
            after = line.seq
            yield b"id: %d\nevent: line\ndata: %s\n\n" % (line.seq, _encode(_line(line)))
        if over:
            return
        assert tail is not None
        await tail.wait(after, HEARTBEAT_S)
        if tail.last <= after and not tail.ended:
            yield b": alive\n\n"


# --- changing ---


async def cancel_call(context: Context, request: Request, key: Key) -> Response:
    """Give a call up: at once while it waits, by its worker's word when it runs. One that ended stays as it is."""
    reference = request.path_params["id"]
    now = context.calls.wall()
    call_id = wire.check_id(reference)
    with context.calls.dispatcher.waiting(call_id) as ended:

        def write(write: Transaction) -> StoredCall:
            found = find_call(write, key, reference)
            if found.is_open and found.sent_at is None:
                write.end_calls([never_sent(write, found.call_id, Cancelled("cancelled before it was sent"), now)])
            elif found.is_open:
                write.withdraw_call(found.call_id, now)
            return found

        found = await context.store.write(write)
        if found.is_open and found.sent_at is None:
            context.calls.dispatcher.ended(found.call_id)
            context.calls.dispatcher.on_ended()
        elif found.is_open:
            context.calls.dispatcher.withdraw(found.call_id)
            try:
                async with asyncio.timeout(CANCEL_S_MAX):
                    await ended.wait()
            except TimeoutError:
                pass
    return answer(await context.store.read(lambda read: _shown(read, find_call(read, key, reference))))


async def share_call(context: Context, request: Request, key: Key) -> Response:
    """Make a token that shows this one call; an earlier one is worth nothing from now on."""
    reference = request.path_params["id"]
    token = sharing.new_token(context.random_bytes(sharing.TOKEN_CHARACTERS))

    def write(write: Transaction) -> ShareAnswer:
        found = find_call(write, key, reference)
        if found.status == "expired":
            raise NotFound(f"the result of {found.call_id} expired: there is nothing to share")
        write.share_call(found.call_id, sharing.digest_of(token))
        return {"object": "call_share", "id": found.call_id, "token": token}

    return answer(await context.store.write(write))


async def get_hook_secret(context: Context, request: Request, key: Key) -> Response:
    """The secret that results are signed with when they are posted to webhooks of calls of this workspace."""
    secret = hook_secret(context.secrets.pepper, key.workspace_id)
    return answer({"object": "call_webhook_secret", "secret": secret})


_FRAMES: Final = "Frames, each behind its length (u32 big-endian), with `Accept: application/octet-stream`."
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/calls", create_calls, "Spawn calls", scope="call", body=CallWish, answer=CallAnswer, status=201,
        errors=(400, 404, 409, 413), headers={ONCE: "Makes a repeat of a JSON request answer with the first call."},
        query=(Query("webhook", "Where the results are posted."),),
        text="JSON makes one call. `application/octet-stream` makes many: for each a u32 big-endian length and an "
        "encoded call frame with its whole payload, whose id makes a repeat harmless; the answer is a list then.",
    ),
    Operation(
        "GET", "/v1/calls", list_calls, "List spawned calls", scope="call", answer=CallAnswer, listed=True,
        query=(
            Query("endpoint", "Only calls of this endpoint."), Query("function", "Only calls of this function."),
            Query("status", "Only calls with this status.", values=STATUSES, repeated=True),
            Query("schedule", "Only calls that this schedule started."), *PAGING,
        ),
    ),
    Operation(
        "GET", "/v1/calls/webhook_secret", get_hook_secret, "What results are signed with", answer=SecretAnswer,
    ),
    Operation(
        "GET", "/v1/calls/{id}", get_call, "One spawned call", scope="call", answer=CallAnswer, errors=(404,),
        shared=True,
    ),
    Operation(
        "GET", "/v1/calls/{id}/result", get_result, "The result of a call", scope="call", answer=ResultAnswer,
        errors=(404,), query=(Query("wait_s", "How long to wait for it, at most 60 s.", "number", default=0),),
        text=f"{_FRAMES} 202 with the call while there is none.", shared=True,
    ),
    Operation(
        "GET", "/v1/calls/{id}/logs", get_logs, "What a call printed", scope="call", answer=LogLine, listed=True,
        errors=(404,), headers={"Last-Event-ID": "The last line that was seen."}, shared=True,
        query=(
            Query("follow", "Answer with a stream of server-sent events until the call ends.", "boolean"),
            Query("after", "Only lines numbered above this.", "integer", least=0),
        ),
    ),
    Operation(
        "POST", "/v1/calls/{id}/cancel", cancel_call, "Give a call up", scope="call", answer=CallAnswer, errors=(404,),
    ),
    Operation(
        "POST", "/v1/calls/{id}/share", share_call, "Let others see a call", scope="call", answer=ShareAnswer,
        errors=(404,),
    ),
)  # fmt: skip
