"""The caller's side of a remote call: its frames, where it stands, its tries, its answer until it is acknowledged."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from nanopod.gateway import caching, retrying
from nanopod.gateway.callframes import completed, error_frame
from nanopod.gateway.jobs import Job
from nanopod.gateway.links import CREDIT_BYTES
from nanopod.gateway.pool import Pool
from nanopod.gateway.preferring import Preference
from nanopod.model import calls
from nanopod.model.endpoint import DEFAULT_WORKLOAD, FunctionSpec, RetrySpec
from nanopod.model.errors import CallTimeout, Cancelled, Invalid, NanopodError, NoCapacity, QueueTimeout, WorkerLost
from nanopod.model.wire import KeyRow, MeterRecord

if TYPE_CHECKING:
    from nanopod.gateway.callers import ClientLink
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.sessions import Session
    from nanopod.gateway.webjob import WebJob

RESUME_S: Final = 10.0
"""An absent client has so long to come back before its unfinished calls are cancelled."""
RESUME_S_INTERNAL: Final = 24 * 3600.0
"""The same for the server, whose calls have callers that never were here: they go on however long it is away."""
CANCEL_S_MAX: Final = 10.0
"""A worker has so long to end a call it was told to cancel."""
ITEMS_KEPT_MAX: Final = 4 * calls.ITEM_WINDOW
QUEUE_S_MAX: Final = FunctionSpec("").max_queue_time_s

UPLOADING, QUEUED, BACKOFF, DISPATCHED = "uploading", "queued", "backoff", "dispatched"
STARTED, HELD, DONE = "started", "held", "done"


class Called(Job):
    """A call as its caller sees it; outlives the links on both sides."""

    __slots__ = (
        "_entered", "_final", "_frames", "_gw", "_items", "_owed", "_untold", "answered", "arrival", "attempt",
        "client", "deadline", "finished_frames", "got", "id", "idempotent", "instance_id", "key_id", "queue_deadline",
        "queue_timeout_s", "revision_id", "size", "started", "state", "timeout_s", "workspace_id",
    )  # fmt: skip

    # As in `Job`: what few calls have.
    _borrows: bool = False
    _cache_key: caching.Key | None = None
    _cache_name: str = ""
    _cached_s: float = 0.0
    _cancelled: bool = False
    _doomed: bool = False
    """Its worker was going to be taken away when it was lost."""
    _parent: Called | WebJob | None = None
    """The call that makes this one."""
    _parent_epoch: int = 0
    _retried: int = 0
    _spent_us: int = 0
    """What earlier tries ran."""
    _taken: int = 0
    """Items of a generator that the client took."""
    held_until: float = 0.0
    orphan: bool = False
    """Nobody waits for its answer."""
    queue_s_max: float = QUEUE_S_MAX
    resume_s: float = RESUME_S
    resume_until: float = 0.0
    retries: RetrySpec | None = None
    retry_at: float = 0.0
    session: Session | None = None
    session_id: str = ""
    start_by: float = 0.0
    """It must start before, by the clock of the loop; 0: whenever."""

    def __init__(self, gateway: Gateway, call: calls.Call, pool: Pool, spec: FunctionSpec | None, key: KeyRow) -> None:
        super().__init__(pool, call.function, spec.concurrency if spec else 1 << 30)
        self._gw = gateway
        self.id = call.id
        self.workspace_id = key.workspace_id
        self.key_id = key.key_id
        if "internal" in key.scopes:
            self.key_id = call.on_behalf or key.key_id
            self.resume_s = RESUME_S_INTERNAL
        self.client: ClientLink | None = None
        self.arrival = time.time()
        self.got = 0
        self._frames: list[bytes] = []
        """The call as the client sent it."""
        self._final: list[bytes] = []
        self._items: deque[bytes] | None = None
        self._untold = False
        """It started, and the client was not told yet (it need not be when the result follows at once)."""
        self._entered = False
        """It counts as load of its endpoint."""
        self._owed = 0
        self.finished_frames: list[bytes] = []
        self.answered = False
        """The client has its error; only the worker's slot is still to be freed."""
        self.state = UPLOADING
        self.attempt = 1
        self.started = False
        self.instance_id = ""
        self.revision_id = pool.route.revision_id
        self.deadline = 0.0
        self._wish(call, spec)

    def _wish(self, call: calls.Call, spec: FunctionSpec | None) -> None:
        """What the client wants of this call."""
        now = self._gw.now
        self.idempotent = call.idempotent
        self.priority = call.priority
        retries = call.retries
        if spec is not None:
            self.idempotent = self.idempotent or spec.idempotent
            self.priority = self.priority or spec.priority
            if spec.max_queue_time_s != QUEUE_S_MAX:
                self.queue_s_max = spec.max_queue_time_s
            retries = retries or spec.retries
            if spec.cache_ttl_s and self.idempotent and not call.session and spec.kind in ("async", "sync"):
                self._cached_s = spec.cache_ttl_s
                self._cache_name = f"{call.function}\0{call.codec}"
        self.workload = call.workload
        if self.pool.usual and call.workload == DEFAULT_WORKLOAD:
            self.workload = self.pool.usual.get(call.function, DEFAULT_WORKLOAD)
        self.timeout_s = call.timeout_s
        self.queue_timeout_s = call.queue_timeout_s
        self.size = call.size
        self.queue_deadline = now + call.queue_timeout_s
        if retries is not None:
            self.retries = retries
        if call.depth:
            self.depth = call.depth
        if call.route_key:
            self.route_key = call.route_key
        if call.gpus or call.region:
            self.preference = Preference(call.gpus, call.region)
        if call.session:
            self.session_id = call.session
        if call.deadline_at:
            self.start_by = now + (call.deadline_at - time.time())

    # --- from the client ---

    def add_frame(self, frame: bytes, payload_bytes: int) -> None:
        """The call itself or a part of it; the last one sends the call on its way."""
        self.got += payload_bytes
        self._frames.append(frame)
        self.bytes_held += len(frame)
        if self.state == HELD:
            return
        if self.got > max(self.size, payload_bytes):
            self.fail(Invalid("the call's payload is longer than its size says", field="size"), started=False)
        elif self.got >= self.size:
            self.submit()
        elif self.client is not None:
            self.client.uploads.add(self)

    def submit(self) -> None:
        """The call is whole: answer it from the cache, send it to a worker, or queue it."""
        self.uploaded()
        if self.pool.route.traffic and not self.pin:
            self.pool.draw(self, self.id)
        if self._cached_s and self._answer_known():
            return
        self.send_off("queued")

    def enter(self) -> None:
        """Count as load of the endpoint from now on."""
        if not self._entered:
            self._entered = True
            self.pool.enter(self.workload)

    def uploaded(self) -> None:
        """Its payload does not come any more."""
        self.state = QUEUED
        if self.client is not None and self.client.uploads:
            self.client.uploads.discard(self)

    def send_off(self, state: str) -> None:
        """To a worker with room, or into the queue: there is always a place in it for a call that was away before."""
        gw = self._gw
        self.enter()
        self.state = QUEUED
        error: NanopodError | None = None
        if self.start_by and gw.now >= self.start_by:
            self.fail(self._too_late(), started=False)
            return
        if self.instance_id:
            pass
        elif self.pool.full(self.bytes_held):
            error = NoCapacity("too many calls wait for this endpoint", retry_after_s=5.0)
        elif gw.meter.full or gw.journal.failed:
            error = NoCapacity("calls cannot be recorded now (the gateway's disk)", retry_after_s=5.0)
        if error is not None:
            if not self.retry(retrying.names_of(NoCapacity), error.message):
                self.fail(error, started=False)
        elif not self.pool.submit(self) and self.state == QUEUED:
            due = self.queue_deadline
            gw.wheel.by(self, min(due, self.start_by) if self.start_by else due)
            self.tell(state)

    def _too_late(self) -> CallTimeout:
        return CallTimeout("the call did not start before its deadline; it was dropped from the queue")

    def tell(self, state: str = "", why: str = "") -> None:
        """Tell the client where its call is."""
        client = self.client
        if client is None or self.answered:
            return
        reason = why
        if self.state == QUEUED:
            if not any(link.usable for link in self.pool.links):
                state = "waking" if state in ("queued", "") else state
                reason = self.pool.route.phase_text or "waiting for a worker"
            state = state or "queued"
        elif self.state == STARTED:
            state = "started"
        elif self.state == HELD:
            state, reason = state or "queued", "waiting for its worker to come back"
        else:
            state = state or "queued"
        worker = self.instance_id if self.state == STARTED else ""
        client.send(calls.encode(calls.State(self.id, state, reason, self.attempt, worker)))

    @property
    def wants_frames(self) -> bool:
        """True while frames of the call itself are to be kept: it is being sent, or a restart left it without them."""
        return self.state == UPLOADING or (self.state == HELD and (not self._frames or self.got < self.size))

    def tell_started(self) -> None:
        """Tell the client that its call runs, once, unless it ended in the same pass."""
        if self._untold:
            self._untold = False
            if self.state == STARTED:
                self.tell()

    def found_again(self, client: ClientLink, call: calls.Call | None = None) -> None:
        """The client sent this call's id again: answer with its result or its state."""
        previous = self.client
        if previous is not None and previous is not client:
            previous.jobs.discard(self)
            previous.uploads.discard(self)
        self.client = client
        self.resume_until = 0.0
        if self.state == DONE:
            for frame in self.finished_frames:
                client.send(frame)
            return
        client.jobs.add(self)
        if self.wants_frames:
            # Its parts come again, from the first. What it wished is known by the journal's few words only.
            self.got = self.bytes_held = 0
            self._frames = []
            if call is not None:
                self._wish(call, self.pool.route.functions.get(call.function))
        for frame in self._items or ():
            client.send(frame)
        self.tell()

    def client_frame(self, header: calls.Credit | calls.Cancel, frame: bytes) -> None:
        """Credit or Cancel of the client."""
        if isinstance(header, calls.Credit):
            self._taken += header.items
            items = self._items
            if items is not None:
                for _ in range(min(header.items, len(items))):
                    items.popleft()
            if self.link is not None:
                self.link.data(self.stream, frame)
            return
        self.cancel(header.reason or "cancelled by the caller")

    def resumed(self) -> None:
        """The client takes bytes again: so may the worker."""
        if self._owed >= CREDIT_BYTES and self.link is not None:
            self.link.window(self.stream, self._owed)
            self._owed = 0

    def cancel(self, reason: str) -> None:
        """Give the call up: at once when it waits, by the worker's word when it runs."""
        link = self.link
        if self.state in (UPLOADING, QUEUED, BACKOFF, HELD):
            self.fail(Cancelled(reason), started=self.started)
        elif link is not None and not self._cancelled:
            self._cancelled = True
            link.data(self.stream, calls.encode(calls.Cancel(self.id, reason)))
            self.deadline = self._gw.now + CANCEL_S_MAX
            self._gw.wheel.by(self, self.deadline)

    def client_lost(self) -> None:
        """The client's link is gone; it may come back."""
        self.client = None
        if self.state == UPLOADING and self.attempt == 1:
            self.drop()
        elif self.state != DONE:
            self.resume_until = self._gw.now + self.resume_s
            self._gw.wheel.by(self, self.resume_until)

    def drop(self) -> None:
        """Forget a call that nobody has seen: if it comes again it is a new one."""
        gw = self._gw
        self._settle(499, 0, record=False)
        if gw.calls.get(self.id) is self:
            del gw.calls[self.id]
        gw.journal.finished(self.id)

    # --- calls that this one makes ---

    def nest_in(self, parent: Called | WebJob) -> None:
        """`parent` makes this call, and lends its slot as long as it takes."""
        self._parent, self._parent_epoch = parent, parent.epoch
        self.depth = max(self.depth, parent.depth + 1)
        self._borrow()

    def _borrow(self) -> None:
        """The caller inside a worker waits for this call."""
        parent = self._parent
        if parent is None or self._borrows or parent.epoch != self._parent_epoch or parent.state == DONE:
            return
        self._borrows = True
        parent.nested += 1
        if parent.link is not None:
            parent.link.lend(parent)

    def _give_back(self) -> None:
        """It waits no more. To be done before a slot is freed, or another call gets the slot that it needs."""
        parent = self._parent
        if parent is None or not self._borrows:
            return
        self._borrows = False
        if parent.epoch != self._parent_epoch:
            return
        parent.nested -= 1
        if not parent.nested and parent.link is not None:
            parent.link.take_back(parent)

    # --- tries ---

    def retry(self, names: list[str], why: str) -> bool:
        """Plan another try after a failure that has these class names; False when there is none to be had.

        The frames of the call are still here, or come again from its client after a restart of the gateway.
        """
        policy = self.retries
        if policy is None or self._retried >= policy.max or self._cancelled or self.answered:
            return False
        if not retrying.matches(policy.on, names):
            return False
        now = self._gw.now
        delay_s = retrying.delay_s(policy, self._retried, random.random())
        if (self.start_by and now + delay_s >= self.start_by) or not self.pool.budget.take(now, self.pool.requests):
            return False
        if self.waiting:
            self.pool.withdraw(self)
        self._retried += 1
        self.again()
        if self.state != UPLOADING:
            self.state = BACKOFF
            self.retry_at = now + delay_s
            self.queue_deadline = self.retry_at + self.queue_timeout_s
            self._gw.wheel.clear(self)
            self._gw.wheel.at(self, min(self.retry_at, self.resume_until or self.retry_at))
            self.tell("requeued", f"try {self.attempt} in {delay_s:.1f} s: {why}")
        return True

    def again(self) -> None:
        """Become the next try: queued, or waiting for its frames when a restart lost them."""
        self.attempt += 1
        self.started = self._untold = False
        self._final = []
        self._items = None
        self.state = QUEUED
        self._borrow()
        if not self._frames or self.got < self.size:
            self._leave()
            self.state = UPLOADING

    # --- ends ---

    def fail(self, error: NanopodError, started: bool | None = None) -> None:
        """End the call with an error of the gateway's own."""
        if self.state == DONE:
            return
        if self.waiting:
            self.pool.withdraw(self)
        if self.state == UPLOADING:
            self.uploaded()
        dispatched = bool(self.instance_id)
        self._settle(error.status, 0, record=dispatched and (self.started or self._spent_us > 0))
        if started is None:
            started = error.started if isinstance(error, WorkerLost) else self.started
        self._answer([error_frame(self.id, error, started, self.attempt)])

    def late_in_queue(self, now: float) -> bool:
        """Drop the call when it waited too long; True when it does not wait any more."""
        if self.start_by and now >= self.start_by:
            self.fail(self._too_late(), started=False)
        elif now >= self.queue_deadline:
            error = QueueTimeout(f"no worker took the call within {self.queue_timeout_s:g} s")
            if not self.retry(retrying.names_of(QueueTimeout), error.message):
                self.fail(error, started=False)
        return self.state != QUEUED

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self.pool.leave()

    def _settle(self, status: int, run_us: int, *, record: bool = True) -> None:
        """The call needs no worker any more: out of the books, into the meter."""
        if self.state == DONE:
            return
        gw = self._gw
        self.state = DONE
        gw.wheel.clear(self)
        gw.recall.drop(self)
        self._leave()
        self._frames = []
        self._items = None
        if self._parent is not None:
            self._give_back()
        if self.session is not None:
            self.session.left(self)
        if record:
            route = self.pool.route
            gw.meter.pending.append(
                MeterRecord(
                    self.id.hex(), self.id.hex(), self.workspace_id, self.key_id, route.endpoint_id, self.revision_id,
                    self.instance_id, "call", status, 0, 0, self._spent_us + run_us, self.arrival, 0.0, time.time(),
                    self.attempt - 1, self.function,
                )
            )  # fmt: skip

    def _answer_known(self) -> bool:
        """Answer with a result that is kept for these arguments, if there is one."""
        gw = self._gw
        revision_id = self.wanted or self.pool.route.revision_id
        self._cache_key = (revision_id, self._cache_name, caching.digest(self._frames))
        payload = gw.results.find(self._cache_key, gw.now)
        if payload is None:
            return False
        self.revision_id = revision_id
        self._settle(200, 0)
        self._answer(calls.split(calls.Result(self.id, len(payload), calls.Usage()), payload))
        return True

    def _returned(self, run_us: int) -> None:
        """The worker answered for good."""
        final = self._final
        price = self.pool.route.price_micro_per_s
        if self._cache_key is not None and self._cache_key[0] == self.revision_id:
            self._gw.results.keep(self._cache_key, final, self._gw.now + self._cached_s)
        if price > 0 or self.attempt > 1:
            final[0] = completed(final[0], self.attempt, round(price * self._share(run_us) / 1e6))
        self._answer(final)

    def _share(self, run_us: int) -> float:
        """Microseconds of a whole worker that the call stands for: its slot's part of what its tries ran."""
        link = self._gw.links.get(self.instance_id)
        return (self._spent_us + run_us) / max(1, min(self.concurrency, link.slots if link is not None else 1))

    def _give(self, frame: bytes) -> None:
        """The client's answer comes before the worker's end."""
        self.answered = True
        self.finished_frames = [frame]
        self._gw.kept.add(self)
        self._give_back()
        if self.client is not None:
            self.client.jobs.discard(self)
            self.client.send(frame)

    def _answer(self, final: list[bytes]) -> None:
        client = self.client
        if client is not None:
            client.jobs.discard(self)
            if not self.answered:
                for frame in final:
                    client.send(frame)
        if not self.answered:
            self.answered = True
            self.finished_frames = final
            self._gw.kept.add(self)
        if self.orphan:
            self._gw.kept.acked(self.id, self.workspace_id)
