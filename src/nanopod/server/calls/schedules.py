"""Starts functions that have a schedule: one call per tick, whoever else looks at the same time, linked callers or not.

Rows follow the endpoints: whatever was deployed, updated, rolled back or deleted, they are brought to what the newest
revision says. The call of a tick has an id that is derived from schedule and tick, and is kept in the transaction that
moves the schedule on: so a tick is started once, or (when nothing ran at its time) once later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from datetime import tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nanopod.model import calls, codec
from nanopod.model.chain import Endpoint, Key
from nanopod.model.endpoint import EndpointSpec, ScheduleSpec
from nanopod.model.errors import Invalid, NanopodError, NotFound
from nanopod.scheduler.calendar.ticks import check, next_tick
from nanopod.server.calls import wire
from nanopod.server.calls.dispatcher import Dispatcher
from nanopod.server.calls.making import Draft, Maker, derived_id
from nanopod.store.calls import NewCall
from nanopod.store.schedules import StoredSchedule
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

log = logging.getLogger(__name__)

LATE_S: Final = 60.0
"""A tick that starts so much later was missed: without `catch_up` it is skipped."""
DUE_MAX: Final = 200
PERIOD_S: Final = 5.0
FAR_S: Final = 365 * 86_400.0
"""Where no tick is in sight it is looked for again after so long."""
BEATS_PER_TTL: Final = 4
NewId = Callable[[str], str]
Clock = Callable[[], float]


def zone_of(name: str) -> tzinfo:
    """The IANA time zone of a name. Raises `Invalid`."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(
            f"tz: there is no time zone {name!r}; write an IANA name such as Europe/Berlin or UTC", field="tz"
        ) from None


def check_schedules(spec: EndpointSpec) -> None:
    """Raise `Invalid`, naming function and field, for a schedule that cannot be."""
    for function in spec.functions:
        if function.schedule is None:
            continue
        try:
            check(function.schedule)
            zone_of(function.schedule.tz)
        except Invalid as error:
            where = f"functions.{function.name}.schedule"
            raise Invalid(f"{where}: {error.message}", field=f"{where}.{error.field}") from None


def following(spec: ScheduleSpec, after: float) -> float:
    """The next tick after a moment; a time far away when none is in sight."""
    try:
        found = next_tick(spec, after, zone_of(spec.tz))
    except Invalid:
        found = None  # kept by an earlier version that knew this zone
    return found if found is not None else after + FAR_S


def sync(write: Transaction, endpoint: Endpoint, new_id: NewId, now: float) -> None:
    """Bring the schedules of an endpoint to what its newest revision says. One whose spec stays keeps its rhythm."""
    revision = write.revision(endpoint.revision_id) if endpoint.deleted_at is None else None
    functions = revision.spec.functions if revision is not None else ()
    wanted = {one.name: one.schedule for one in functions if one.schedule is not None}
    for known in write.schedules(endpoint_id=endpoint.endpoint_id):
        spec = wanted.pop(known.function, None)
        if spec is None:
            write.delete_schedule(known.schedule_id)
        elif spec != known.spec:
            write.set_schedule(known.schedule_id, spec=spec, next_at=following(spec, now), updated_at=now)
    for function, spec in wanted.items():
        write.add_schedule(
            StoredSchedule(
                new_id("schedule"), endpoint.workspace_id, endpoint.endpoint_id, function, spec, False,
                following(spec, now), None, "", now, now,
            )
        )  # fmt: skip


def start(write: Transaction, found: StoredSchedule, call_id: bytes, now: float) -> NewCall:
    """Keep a call of a scheduled function, made without arguments. Raises `NotFound` when the function is gone."""
    payload = codec.encode(((), {}))
    header = calls.Call(call_id, found.endpoint_id, found.function, timeout_s=-1.0, queue_timeout_s=-1.0)
    who = Key(found.schedule_id, found.workspace_id, "schedule", "", ("call",), None, now, None, None, None)
    maker = Maker(write, who, "schedule", now, found.schedule_id)
    return maker.make([Draft(header, len(payload), payload, "")])[0]


class Scheduler:
    """Ticks, and rows that follow the endpoints. One per server; several on one database do no harm."""

    def __init__(self, store: GroupStore, dispatcher: Dispatcher, new_id: NewId, wall: Clock) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._new_id = new_id
        self._wall = wall
        self._wake = asyncio.Event()
        self._changed = True
        self._seen: dict[str, tuple[int, str]] = {}
        """{endpoint: (generation, newest revision)} whose schedules are right."""
        self._beaten: dict[str, float] = {}

    def endpoints_changed(self) -> None:
        """Some endpoint may have been made, changed or deleted."""
        self._changed = True
        self._wake.set()

    def wake(self) -> None:
        """A schedule was changed."""
        self._wake.set()

    async def run(self) -> None:
        """Start what is due until cancelled."""
        wait_s, rounds = 0.0, 0
        while True:
            self._wake.clear()
            try:
                if self._changed or rounds % 12 == 0:
                    self._changed = False
                    await self._sync_all()
                await self._start_due()
                await self._beat()
                wait_s = await self._pause_s()
            except NanopodError as error:
                self._changed = True
                wait_s = random.uniform(0.5, PERIOD_S)
                log.warning("schedules=wait reason=%s", error)
            rounds += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _pause_s(self) -> float:
        next_at = await self._store.read(lambda read: read.next_schedule_at())
        return PERIOD_S if next_at is None else max(0.001, min(PERIOD_S, next_at - self._wall()))

    # --- rows that follow the endpoints ---

    async def _sync_all(self) -> None:
        def look(read: Transaction) -> tuple[list[str], dict[str, tuple[int, str]]]:
            generations = {row[0]: row[1] for row in read.endpoint_generations()}
            stale = [one for one, number in generations.items() if self._seen.get(one, (-1, ""))[0] != number]
            now: dict[str, tuple[int, str]] = {}
            changed: list[str] = []
            for endpoint_id, number in generations.items():
                known = self._seen.get(endpoint_id)
                if endpoint_id not in stale and known is not None:
                    now[endpoint_id] = known
                    continue
                endpoint = read.endpoint(endpoint_id)
                if endpoint is not None:
                    now[endpoint_id] = (number, endpoint.revision_id)
                    if known is None or known[1] != endpoint.revision_id:
                        changed.append(endpoint_id)
            kept = {row.endpoint_id for row in read.schedules()}
            return changed + [one for one in kept if one not in generations], now

        changed, now = await self._store.read(look)
        if changed:
            await self._store.write(lambda write: self._bring(write, changed))
        self._seen = now

    def _bring(self, write: Transaction, endpoint_ids: list[str]) -> None:
        for endpoint_id in endpoint_ids:
            endpoint = write.endpoint(endpoint_id)
            if endpoint is not None:
                sync(write, endpoint, self._new_id, self._wall())
            else:
                for row in write.schedules(endpoint_id=endpoint_id):
                    write.delete_schedule(row.schedule_id)

    # --- ticks ---

    async def _start_due(self) -> None:
        while True:
            now = self._wall()
            if not await self._store.read(lambda read, at=now: bool(read.schedules_due(at, 1))):  # type: ignore[misc]
                return
            made, count = await self._store.write(lambda write: self._start(write))
            self._dispatcher.added({(one.workspace_id, one.endpoint_id) for one in made})
            if count < DUE_MAX:
                return

    def _start(self, write: Transaction) -> tuple[list[NewCall], int]:
        now = self._wall()
        due = write.schedules_due(now, DUE_MAX)
        made: list[NewCall] = []
        for found in due:
            tick = found.next_at
            values: dict[str, Any] = {"next_at": following(found.spec, now)}
            if now - tick <= LATE_S or found.spec.catch_up:
                call_id = derived_id("tick", found.schedule_id, repr(tick))
                try:
                    made.append(start(write, found, call_id, now))
                except NotFound as error:
                    log.info("schedule=%s not started reason=%s", found.schedule_id, error)
                else:
                    values |= {"last_at": tick, "last_call_id": wire.text_of(call_id)}
            write.set_schedule(found.schedule_id, **values)
        return made, len(due)

    # --- a schedule is a client ---

    async def _beat(self) -> None:
        """Endpoints with a ttl live as long as they have a schedule that runs, or spawned calls without an answer."""
        now = self._wall()
        busy = self._dispatcher.endpoints

        def look(read: Transaction) -> list[str]:
            wanted = busy | {row.endpoint_id for row in read.schedules() if not row.paused}
            found = [read.endpoint(one) for one in wanted]
            return [
                one.endpoint_id
                for one in found
                if one is not None
                and one.ttl_s is not None
                and one.deleted_at is None
                and now - self._beaten.get(one.endpoint_id, 0.0) >= one.ttl_s / BEATS_PER_TTL
            ]

        if not busy and not self._seen:
            return
        due = await self._store.read(look)
        if due:
            self._beaten = {one: at for one, at in self._beaten.items() if now - at < 86_400.0}
            self._beaten.update((one, now) for one in due)

            def beat(write: Transaction) -> None:
                for one in due:
                    write.heartbeat(one, now)

            await self._store.write(beat, durable=False)
