"""Posts the results of spawned calls to the webhooks that they were made with: signed, again and again for a day."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nanopod.model.errors import NanopodError, NotFound
from nanopod.model.ids import base62
from nanopod.model.money import Money
from nanopod.server.api.tenants import OPERATOR_WORKSPACE
from nanopod.server.calls import plain
from nanopod.server.calls.payloads import Payloads
from nanopod.server.webhooks import GIVE_UP_S, back_off_s, deliver
from nanopod.store.calls import StoredCall
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

log = logging.getLogger(__name__)

SECRET_PREFIX: Final = "whsec_"
SECRET_CHARACTERS: Final = 32
VALUE_BYTES_MAX: Final = 1 << 20
"""Larger results are not posted: the receiver fetches them."""
AT_ONCE_MAX: Final = 16
BATCH: Final = 64
PERIOD_S: Final = 5.0
_encode: Final = msgspec.json.Encoder().encode


class HookState(msgspec.Struct, frozen=True):
    """How a delivery stands, as the call's row keeps it. `since`: when it was tried first, Unix seconds."""

    state: str = "waiting"
    attempts: int = 0
    message: str = ""
    since: float = 0.0


def hook_secret(pepper: bytes, workspace_id: str) -> str:
    """What results of a workspace's calls are signed with. Derived: the same after a restart, and nowhere stored."""
    return SECRET_PREFIX + base62(
        hmac.digest(pepper, f"call hooks {workspace_id}".encode(), "sha256"), SECRET_CHARACTERS
    )


@dataclass(frozen=True, slots=True)
class _Told:
    found: StoredCall
    frames: bytes | None
    blob: str
    endpoint: str
    anywhere: bool


def body_of(found: StoredCall, endpoint: str, frames: bytes) -> bytes:
    """What is posted about a call that ended. `data.value` (or `items`) is null when JSON cannot hold it, or when it
    has more than 1 MiB: `data.complete` is false then, and `GET /v1/calls/{id}/result` has it."""
    value: Any = None
    items: list[Any] | None = None
    complete = len(frames) <= VALUE_BYTES_MAX
    if complete:
        try:
            value, items = plain.result_of(frames)
        except ValueError:
            complete = False
    error = None
    if found.error_code:
        kind = found.error_type or found.error_code
        error = {"type": kind, "code": found.error_code, "message": found.error_message}
    data = {
        "endpoint_id": found.endpoint_id, "endpoint": endpoint, "function": found.function, "status": found.status,
        "attempt": found.attempt, "created_at": found.created_at, "started_at": found.started_at,
        "ended_at": found.ended_at, "run_us": found.run_us, "cost": str(Money(found.cost_micro)), "error": error,
        "value": value, "items": items, "complete": complete,
    }  # fmt: skip
    return _encode(
        {
            "id": found.call_id, "type": f"call.{found.status}", "created_at": int(found.ended_at or found.created_at),
            "object_id": found.call_id, "workspace_id": found.workspace_id, "data": data,
        }
    )  # fmt: skip


class HookSender:
    """Delivers what is due, at most `AT_ONCE_MAX` at a time."""

    def __init__(self, store: GroupStore, payloads: Payloads, pepper: bytes, wall: Callable[[], float]) -> None:
        self._store = store
        self._payloads = payloads
        self._pepper = pepper
        self._wall = wall
        self._wake = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)

    def wake(self) -> None:
        """Some calls ended."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                self._wake.clear()
                wait_s = PERIOD_S
                try:
                    wait_s = await self._start_due()
                except NanopodError as error:
                    log.warning("calls=webhooks wait reason=%s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _start_due(self) -> float:
        """Start what is due; how long until something may be due again."""
        now = self._wall()
        due, next_at = await self._store.read(
            lambda read: (read.hooks_due(now, BATCH + len(self._busy)), read.next_hook_at())
        )
        for found in due:
            if found.call_id not in self._busy:
                task = asyncio.create_task(self._serve(found.call_id), name="call-webhook")
                self._busy[found.call_id] = task
                task.add_done_callback(lambda _, call_id=found.call_id: self._done(call_id))  # type: ignore[misc]
        return PERIOD_S if next_at is None or due else max(0.05, min(PERIOD_S, next_at - now))

    def _done(self, call_id: str) -> None:
        self._busy.pop(call_id, None)
        self._wake.set()

    async def _serve(self, call_id: str) -> None:
        async with self._slots:
            try:
                await self._deliver(call_id)
            except Exception:
                log.exception("call=%s webhook failed", call_id)
                await asyncio.sleep(back_off_s(3, random.random()))  # it counts as busy while it rests

    async def _deliver(self, call_id: str) -> None:
        told = await self._store.read(lambda read: _look(read, call_id))
        if told is None:
            return
        found = told.found
        try:
            frames = await self._payloads.load(told.frames, told.blob)
        except NotFound:
            frames = b""
        body = await asyncio.to_thread(body_of, found, told.endpoint, frames)
        secret = hook_secret(self._pepper, found.workspace_id)
        now = self._wall()
        problem = await deliver(found.webhook, secret, call_id, body, now, anywhere=told.anywhere)
        before = msgspec.json.decode(found.webhook_state, type=HookState) if found.webhook_state else HookState()
        since, attempts = before.since or now, before.attempts + 1
        next_at: float | None = None
        state = "delivered"
        if problem:
            state = "given_up" if now - since >= GIVE_UP_S else "retrying"
            next_at = now + back_off_s(attempts, random.random()) if state == "retrying" else None
            log.info("call=%s webhook=%s attempts=%d", call_id, state, attempts)
        text = _encode(HookState(state, attempts, problem, since)).decode()
        await self._store.write(lambda write: write.hook_tried(call_id, text, next_at))


def _look(read: Transaction, call_id: str) -> _Told | None:
    found = read.call(call_id)
    if found is None or found.webhook_at is None or found.status == "expired":
        return None
    place = read.workspace(found.workspace_id)
    endpoint = read.endpoint(found.endpoint_id)
    frames, blob = read.call_result(call_id)
    anywhere = place is not None and place.name == OPERATOR_WORKSPACE
    return _Told(found, frames, blob, endpoint.full_name if endpoint is not None else "", anywhere)
