"""Makes spawned calls: takes them from the store, sends each under its own id, keeps what it answers.

```
POST ─► row (queued) ─claim─► sent_at ─► gateway ─State─► running ─Result─► row (succeeded ...) ─► Ack to the gateway
                                │                                                │
             a restarted server sends it again under the same id                 └─► waiters, webhook, 24 h
```
A call id is on the disk before it is sent for the first time, and the gateway starts an id once; so neither a killed
server nor a killed gateway starts a call twice. The gateway may forget a result only after the row holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from nanopod.control.tables import internal_key
from nanopod.model import calls
from nanopod.model.errors import NanopodError, WorkerLost
from nanopod.server.calls import wire
from nanopod.server.calls.channel import Channel
from nanopod.server.calls.costs import Prices
from nanopod.server.calls.flights import CREDIT_STEP, RETRIED, Flight
from nanopod.server.calls.link import WorkspaceLink
from nanopod.server.calls.payloads import Payloads
from nanopod.server.calls.tail import Tail, lines_of
from nanopod.store.calls import Ended, Outgoing
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

log = logging.getLogger(__name__)

ENDPOINT_FLIGHTS_MAX: Final = 1024
"""Calls of one endpoint that the gateway holds; the others wait in the store."""
CLAIM_MAX: Final = 64
WRITE_MAX: Final = 256
GATHER_S: Final = 0.004
"""Answers within so short a time are committed together."""
SAVE_LOGS_S: Final = 1.0
KEEP_S: Final = 24 * 3600.0
KEEP_SETTING: Final = "call_results_kept_s"
"""The setting that says how long results are kept after a call's end, seconds."""
EXPIRED_KEPT_S: Final = 7 * 24 * 3600.0
"""How long a call that expired is still listed."""
LINKED_SETTING: Final = "calls_linked_at"
LINKED_EACH_S: Final = 30.0
AWAY_S_MAX: Final = 480.0
"""A gateway keeps results for 600 s: after a longer absence of the server nobody can tell what became of a call."""
PATIENCE_S: Final = 10.0
"""How long a gateway may not have heard of an endpoint yet."""
RETRY_S: Final = (0.2, 5.0)
SWEEP_EACH_S: Final = 60.0
SWEEP_MAX: Final = 1000
PERIOD_S: Final = 5.0
Clock = Callable[[], float]


class Dispatcher:
    """All spawned calls of a server. Lives on its event loop."""

    def __init__(self, store: GroupStore, payloads: Payloads, pepper: bytes, socket: Path, wall: Clock) -> None:
        self._store = store
        self._payloads = payloads
        self._pepper = pepper
        self._socket = socket
        self._wall = wall
        self._flights: dict[bytes, Flight] = {}
        self._per_endpoint: Counter[str] = Counter()
        self._per_workspace: Counter[str] = Counter()
        self._channels: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._backlog: dict[str, str] = {}
        """{endpoint: workspace} that may have calls which were never sent."""
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._ended: deque[Flight] = deque()
        self._started: dict[bytes, Flight] = {}
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self.closing = False
        """The server stops: nobody is to wait any longer."""
        self.on_ended: Callable[[], None] = lambda: None
        """Called after answers were committed: webhooks may be due."""

    # --- for the API ---

    def added(self, endpoints: Iterable[tuple[str, str]]) -> None:
        """Calls of these (workspace, endpoint) pairs were committed."""
        for workspace_id, endpoint_id in endpoints:
            self._backlog[endpoint_id] = workspace_id
        self._wake.set()

    def withdraw(self, call_id: str) -> None:
        """A call is to be given up; it ends when the gateway says so."""
        flight = self._flights.get(wire.bytes_of(call_id))
        if flight is not None and not flight.withdrawn:
            flight.withdrawn = True
            if (channel := self._channels.get(flight.workspace_id)) is not None:
                channel.cancel(flight.id)

    def ended(self, call_id: str) -> None:
        """A call got its answer by another way; wake who waits for it."""
        for event in self._waiters.get(call_id, ()):
            event.set()

    def close(self) -> None:
        """The server stops: wake everybody who waits."""
        self.closing = True
        for call_id in list(self._waiters):
            self.ended(call_id)
        for flight in self._flights.values():
            flight.tail.tell()

    @contextlib.contextmanager
    def waiting(self, call_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the call's answer is in the store."""
        event = asyncio.Event()
        self._waiters.setdefault(call_id, set()).add(event)
        try:
            yield event
        finally:
            left = self._waiters[call_id]
            left.discard(event)
            if not left:
                del self._waiters[call_id]

    def tail(self, call_id: str) -> Tail | None:
        """What a call that runs has printed; None when it is not on its way."""
        flight = self._flights.get(wire.bytes_of(call_id))
        return flight.tail if flight is not None else None

    @property
    def in_flight(self) -> int:
        """Calls that the gateway has and that have no answer in the store."""
        return len(self._flights)

    @property
    def endpoints(self) -> set[str]:
        """Endpoints with open calls."""
        return {*self._backlog, *self._per_endpoint}

    # --- its loops ---

    async def run(self) -> None:
        """Make calls until cancelled."""
        await self._patiently("recover", self._recover)
        writer = asyncio.create_task(self._write_loop(), name="calls-write")
        sweeper = asyncio.create_task(self._sweep_loop(), name="calls-sweep")
        try:
            while True:
                self._wake.clear()
                await self._patiently("claim", self._claim_all)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._wake.wait()
        finally:
            for task in (writer, sweeper, *self._tasks):
                task.cancel()
            await asyncio.gather(writer, sweeper, *self._tasks, return_exceptions=True)

    async def _patiently(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do it again, later and later, while the store takes nothing."""
        wait_s = 0.2
        while True:
            try:
                await work()
                return
            except NanopodError as error:
                log.warning("calls=%s waits reason=%s", what, error)
                await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
                wait_s = min(5.0, wait_s * 2)

    async def _recover(self) -> None:
        """After a start: what a server before this one had sent is sent again, or given up as lost."""

        def look(read: Transaction) -> tuple[list[Outgoing], dict[str, str], list[tuple[str, str]], str | None]:
            sent = read.calls_sent()
            logs = {one.call_id: read.call_logs(one.call_id) for one in sent if one.started_at is not None}
            return sent, logs, read.calls_waiting(), read.setting(LINKED_SETTING)

        sent, logs, waiting, text = await self._store.read(look)
        now = self._wall()
        # It was here when it noted that, and when it sent the newest of them.
        alive = [float(text) if text else 0.0, *(one.sent_at for one in sent if one.sent_at is not None)]
        away_s = now - max(alive) if sent else 0.0
        self.added(waiting)
        for one in sent:
            flight = self._board(one, Tail.of(lines_of(logs.get(one.call_id, ""))))
            flight.only_asked = away_s > AWAY_S_MAX and not _is_idempotent(one.header)
            self._channel(flight.workspace_id).put(flight.id)
        if sent:
            log.info("calls=recovered count=%d away_s=%.1f", len(sent), away_s)

    # --- sending ---

    async def _claim_all(self) -> None:
        for endpoint_id, workspace_id in list(self._backlog.items()):
            while True:
                room = min(CLAIM_MAX, ENDPOINT_FLIGHTS_MAX - self._per_endpoint[endpoint_id])
                channel = self._channels.get(workspace_id)
                if room <= 0 or (channel is not None and channel.waiting > 2 * CLAIM_MAX):
                    break  # looked at again when an answer, or the channel, makes room
                # A new call may come while this looks: it puts its endpoint in again.
                self._backlog.pop(endpoint_id, None)
                try:
                    claimed = await self._claim(endpoint_id, room)
                except NanopodError:
                    self._backlog[endpoint_id] = workspace_id
                    raise
                for one in claimed:
                    self._board(one, Tail())
                    self._channel(workspace_id).put(one)
                if len(claimed) < room:
                    break
                self._backlog[endpoint_id] = workspace_id

    async def _claim(self, endpoint_id: str, limit: int) -> list[Outgoing]:
        now = self._wall()
        # A crash of the machine may forget that they were sent: then the gateway's memory of them is gone as well.
        return await self._store.write(lambda write: write.claim_calls(endpoint_id, limit, now), durable=False)

    def _board(self, one: Outgoing, tail: Tail) -> Flight:
        call_id = wire.bytes_of(one.call_id)
        flight = Flight(
            call_id, one.workspace_id, one.endpoint_id, tail, one.started_at, withdrawn=one.cancelled_at is not None
        )
        flight.patient_until = asyncio.get_running_loop().time() + PATIENCE_S
        self._flights[call_id] = flight
        self._per_endpoint[one.endpoint_id] += 1
        self._per_workspace[one.workspace_id] += 1
        return flight

    def _channel(self, workspace_id: str) -> Channel:
        found = self._channels.get(workspace_id)
        if found is None:
            key = internal_key(self._pepper, workspace_id)

            def link(on_open: Callable[[], None]) -> WorkspaceLink:
                return WorkspaceLink(self._socket, key, on_open, self._on_frame)

            found = self._channels[workspace_id] = Channel(workspace_id, self, link)
            task = asyncio.create_task(self._serve(found), name=f"calls-{workspace_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return found

    async def _serve(self, channel: Channel) -> None:
        try:
            await channel.run()
        except Exception:
            log.exception("calls=channel failed workspace=%s", channel.workspace_id)
            await asyncio.sleep(RETRY_S[0])
        finally:
            del self._channels[channel.workspace_id]
        left = self.flights_of(channel.workspace_id)
        for flight in left:
            self._channel(channel.workspace_id).put(flight.id)

    # --- for channels ---

    def flight(self, call_id: bytes) -> Flight | None:
        """A call that the gateway has or is to have."""
        return self._flights.get(call_id)

    def flights_of(self, workspace_id: str) -> Sequence[Flight]:
        """The calls of a workspace that have no answer yet."""
        return [one for one in self._flights.values() if one.workspace_id == workspace_id and one.answer is None]

    async def outgoing(self, call_ids: Sequence[bytes]) -> list[Outgoing]:
        """What is sent for calls, read from the store."""
        texts = [wire.text_of(call_id) for call_id in call_ids]
        return await self._store.read(lambda read: read.calls_to_send(texts))

    async def payload(self, one: Outgoing) -> bytes:
        """The payload of a call. Raises `NotFound`."""
        return await self._payloads.load(one.payload, one.payload_blob)

    def failed(self, flight: Flight, error: NanopodError) -> None:
        """A call cannot be sent."""
        flight.fail(error, False)
        self._finish(flight)

    def room(self) -> None:
        """More calls may be claimed."""
        if self._backlog:
            self._wake.set()

    # --- what the gateway says ---

    def _on_frame(self, header: calls.Header, payload: bytes) -> None:
        flight = self._flights.get(header.id)
        if flight is None or flight.answer is not None:
            return
        if isinstance(header, calls.Log):
            flight.tail.add(self._wall(), header.stream, header.line)
            return
        if isinstance(header, calls.State):
            self._on_state(flight, header)
            return
        if flight.only_asked and isinstance(header, calls.Error) and header.started is False:
            flight.fail(
                WorkerLost(
                    "the server was away for longer than gateways keep results, and this one does not know the call; "
                    "whether it ran is not known, and it is not run again by itself (mark it idempotent for that)"
                )
            )
            self._finish(flight)
            return
        if isinstance(header, calls.Error) and header.size <= len(payload) and self._is_retried(flight, header):
            return
        done = flight.take(header, payload)
        if flight.answer is not None:
            self._finish(flight)
        elif isinstance(done, calls.Item) and flight.items % CREDIT_STEP == 0:
            self._channel(flight.workspace_id).link.send(calls.encode(calls.Credit(flight.id, items=CREDIT_STEP)))

    def _on_state(self, flight: Flight, state: calls.State) -> None:
        flight.attempt = max(flight.attempt, state.attempt)
        if state.state == "started":
            flight.started_at = flight.started_at or self._wall()
            flight.worker = state.worker or flight.worker
            self._started[flight.id] = flight
            self._written.set()

    def _is_retried(self, flight: Flight, error: calls.Error) -> bool:
        """Is a refusal only for the moment? Then the call is sent again later."""
        if error.started is not False or flight.withdrawn:
            return False
        loop = asyncio.get_running_loop()
        unknown = error.code == "not_found" and loop.time() < flight.patient_until
        if not unknown and error.code not in RETRIED:
            return False
        flight.refusals += 1
        longest_s = min(RETRY_S[1], RETRY_S[0] * 2.0 ** min(flight.refusals, 10))
        loop.call_later(random.uniform(longest_s / 2, longest_s), self._again, flight)
        return True

    def _again(self, flight: Flight) -> None:
        if self._flights.get(flight.id) is not flight or flight.answer is not None:
            return
        channel = self._channel(flight.workspace_id)
        # A refusal is kept as an answer to the call's id until it is acknowledged.
        channel.acknowledge([flight.id])
        channel.put(flight.id)

    def _finish(self, flight: Flight) -> None:
        self._started.pop(flight.id, None)
        self._ended.append(flight)
        self._written.set()

    # --- what is written ---

    async def _write_loop(self) -> None:
        saved_at = linked_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_LOGS_S):
                    await self._written.wait()
            await asyncio.sleep(GATHER_S)
            self._written.clear()
            if self._ended or self._started:
                await self._patiently("keep", self._write)
            now = loop.time()
            if self._flights and now - saved_at >= SAVE_LOGS_S:
                saved_at = now
                await self._patiently("keep logs", self._save_logs)
            if (
                self._flights
                and now - linked_at >= LINKED_EACH_S
                and any(c.link.is_open for c in self._channels.values())
            ):
                linked_at = now
                text = str(self._wall())
                await self._patiently("note", lambda text=text: self._note(text))  # type: ignore[misc]

    async def _note(self, text: str) -> None:
        await self._store.write(lambda write: write.put_setting(LINKED_SETTING, text), durable=False)

    async def _write(self) -> None:
        """Commit answers and starts; then the gateway may forget the answers."""
        batch = [self._ended[at] for at in range(min(WRITE_MAX, len(self._ended)))]
        started = [(f.started_at or self._wall(), f.worker, f.attempt, f.text) for f in self._started.values()]
        begun = list(self._started)
        kept = [(flight, *await self._kept(flight)) for flight in batch]
        now = self._wall()

        def write(write: Transaction) -> None:
            keep_s = float(write.setting(KEEP_SETTING) or KEEP_S)
            prices = Prices(write)
            write.start_calls(started)
            write.end_calls([_ended(flight, inline, blob, now, keep_s, prices) for flight, inline, blob in kept])

        await self._store.write(write, durable=bool(batch))
        for call_id in begun:
            self._started.pop(call_id, None)
        for _ in batch:
            self._ended.popleft()
        if self._ended:
            self._written.set()
        self._landed(batch)

    async def _kept(self, flight: Flight) -> tuple[bytes | None, str]:
        assert flight.answer is not None, "it ended"
        return await self._payloads.keep(wire.prefixed(flight.answer.frames))

    def _landed(self, batch: Sequence[Flight]) -> None:
        """The answers are in the store."""
        acks: dict[str, list[bytes]] = {}
        for flight in batch:
            self._flights.pop(flight.id, None)
            for counter, key in ((self._per_endpoint, flight.endpoint_id), (self._per_workspace, flight.workspace_id)):
                counter[key] -= 1
                if counter[key] <= 0:
                    del counter[key]
            flight.tail.end()
            acks.setdefault(flight.workspace_id, []).append(flight.id)
            self.ended(flight.text)
        now = asyncio.get_running_loop().time()
        for workspace_id, ids in acks.items():
            if (channel := self._channels.get(workspace_id)) is not None:
                channel.acknowledge(ids)
                if not self._per_workspace[workspace_id]:
                    channel.link.idle_since = now
        if batch:
            self.room()
            self.on_ended()

    async def _save_logs(self) -> None:
        unsaved = [flight.tail for flight in self._flights.values() if flight.tail.unsaved]
        if not unsaved:
            return
        rows = [(flight.tail.text(), flight.text) for flight in self._flights.values() if flight.tail.unsaved]
        for tail in unsaved:
            tail.unsaved = False
        await self._store.write(lambda write: write.keep_logs(rows), durable=False)

    async def _sweep_loop(self) -> None:
        """Drop what expired, and the files that nobody refers to."""
        rounds = 0
        while True:
            await self._patiently("sweep", lambda: self._sweep())
            if rounds % 60 == 0:
                used = await self._store.read(lambda read: read.call_blobs())
                await asyncio.to_thread(self._payloads.sweep, used)
            rounds += 1
            await asyncio.sleep(random.uniform(SWEEP_EACH_S / 2, SWEEP_EACH_S))

    async def _sweep(self) -> None:
        more = True
        while more:
            now = self._wall()
            count = await self._store.write(
                lambda write, at=now: write.expire_calls(at, at + EXPIRED_KEPT_S, SWEEP_MAX),  # type: ignore[misc]
                durable=False,
            )
            more = count == SWEEP_MAX


def _is_idempotent(header: bytes) -> bool:
    found = calls.decode(header)[0]
    return isinstance(found, calls.Call) and found.idempotent


def never_sent(write: Transaction, call_id: str, error: NanopodError, now: float) -> Ended:
    """The end of a call that no gateway has heard of."""
    flight = Flight(wire.bytes_of(call_id), "", "", Tail())
    flight.fail(error, False)
    assert flight.answer is not None
    frames = wire.prefixed(flight.answer.frames)
    return _ended(flight, frames, "", now, float(write.setting(KEEP_SETTING) or KEEP_S), Prices(write))


def _ended(flight: Flight, inline: bytes | None, blob: str, now: float, keep_s: float, prices: Prices) -> Ended:
    answer = flight.answer
    assert answer is not None, "it ended"
    cost = answer.cost_micro
    if answer.status == "succeeded" and not cost:
        cost = prices.of(flight.workspace_id, flight.worker, answer.run_us)
    return Ended(
        call_id=flight.text, status=answer.status, ended_at=now, expires_at=now + keep_s, attempt=answer.attempt,
        result=inline, result_blob=blob, error_type=answer.error_type, error_code=answer.error_code,
        error_message=answer.error_message, worker=flight.worker, run_us=answer.run_us, cost_micro=cost,
        logs=flight.tail.text() or None, started_at=flight.started_at,
    )  # fmt: skip
