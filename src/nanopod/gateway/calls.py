"""One remote call: queued, dispatched, started, done; started once and no more, whatever dies.

```
QUEUED -dispatch-> DISPATCHED -HEAD-> STARTED -END-> DONE
DISPATCHED -handed back-> QUEUED                                  (known not started: nobody notices)
DISPATCHED | STARTED -link lost-> HELD -reported again-> as before
HELD -5 s over-> idempotent ? QUEUED : DONE (WorkerLost)
```
Frames of the worker are passed on byte for byte. A finished call keeps its last frames until the client acknowledges
them, so a client that was away hears the same answer again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from nanopod.gateway.callframes import CallEnd, decode_end, error_frame, tag_of
from nanopod.gateway.journal import Dispatch
from nanopod.gateway.links import CREDIT_BYTES, WINDOW_BYTES, WorkerLink
from nanopod.gateway.pool import Job, Pool
from nanopod.model import calls, frames
from nanopod.model.endpoint import FunctionSpec
from nanopod.model.errors import (
    CallTimeout,
    Cancelled,
    DeploymentFailed,
    Invalid,
    NanopodError,
    NoCapacity,
    QueueTimeout,
    WorkerLost,
)  # fmt: skip
from nanopod.model.wire import KeyRow, MeterRecord

if TYPE_CHECKING:
    from nanopod.gateway.callers import ClientLink
    from nanopod.gateway.process import Gateway

LEASE_S: Final = 5.0
"""A lost worker has so long to dial again and report its calls."""
RESUME_S: Final = 10.0
"""An absent client has so long to come back before its unfinished calls are cancelled."""
CANCEL_S_MAX: Final = 10.0
"""A worker has so long to end a call it was told to cancel."""
ATTEMPTS_MAX: Final = 5
ITEMS_KEPT_MAX: Final = 4 * calls.ITEM_WINDOW

UPLOADING, QUEUED, DISPATCHED, STARTED, HELD, DONE = "uploading", "queued", "dispatched", "started", "held", "done"
_HEAD: Final = b'{"k":"call"}'


class CallJob(Job):
    """A call on its way; outlives the links on both sides."""

    __slots__ = (
        "_cancelled", "_final", "_frames", "_gw", "_items", "_owed", "_untold", "answered", "arrival",
        "attempt", "client", "deadline", "finished_frames", "got", "held_until", "id", "idempotent",
        "instance_id", "key_id", "queue_deadline", "queue_timeout_s", "resume_until", "revision_id",
        "size",         "started", "state", "timeout_s", "workload", "workspace_id",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, call: calls.Call, pool: Pool, spec: FunctionSpec | None, key: KeyRow) -> None:
        super().__init__(pool, call.function, spec.concurrency if spec else 1 << 30, call.priority)
        self._gw = gateway
        self.id = call.id
        self.workspace_id = key.workspace_id
        self.key_id = key.key_id
        self.client: ClientLink | None = None
        self.idempotent = call.idempotent or (spec is not None and spec.idempotent)
        self.workload = call.workload
        self.timeout_s = call.timeout_s
        self.queue_timeout_s = call.queue_timeout_s
        self.size = call.size
        self.got = 0
        self._frames: list[bytes] = []
        """The call as the client sent it."""
        self._final: list[bytes] = []
        self._items: deque[bytes] = deque()
        self._untold = False
        """It started, and the client was not told yet (it need not be when the result follows at once)."""
        self._cancelled = False
        self._owed = 0
        self.finished_frames: list[bytes] = []
        self.answered = False
        """The client has its error; only the worker's slot is still to be freed."""
        self.state = UPLOADING
        self.attempt = 1
        self.started = False
        self.instance_id = ""
        self.revision_id = pool.route.revision_id
        self.arrival = time.time()
        self.queue_deadline = gateway.now + call.queue_timeout_s
        self.deadline = 0.0
        self.held_until = 0.0
        self.resume_until = 0.0

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

    def submit(self) -> None:
        """The call is whole: send it to a worker or queue it."""
        gw = self._gw
        if self.pool.full(self.bytes_held):
            self.fail(NoCapacity("too many calls wait for this endpoint", retry_after_s=5.0), started=False)
            return
        if gw.meter.full or gw.journal.failed:
            self.fail(NoCapacity("calls cannot be recorded now (the gateway's disk)", retry_after_s=5.0), started=False)
            return
        self.state = QUEUED
        self.pool.enter(self.workload)
        self._queue("queued")

    def _queue(self, state: str) -> None:
        if self.pool.submit(self) or self.state != QUEUED:
            return
        self._gw.wheel.by(self, self.queue_deadline)
        self.tell(state)

    def tell(self, state: str = "") -> None:
        """Tell the client where its call is."""
        client = self.client
        if client is None or self.answered:
            return
        reason = ""
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

    def found_again(self, client: ClientLink) -> None:
        """The client sent this call's id again: answer with its result or its state."""
        previous = self.client
        if previous is not None and previous is not client:
            previous.jobs.discard(self)
        self.client = client
        self.resume_until = 0.0
        if self.state == DONE:
            for frame in self.finished_frames:
                client.send(frame)
            return
        client.jobs.add(self)
        if self.wants_frames:
            # Its parts come again, from the first.
            self.got = self.bytes_held = 0
            self._frames = []
        for frame in self._items:
            client.send(frame)
        self.tell()

    def client_frame(self, header: calls.Credit | calls.Cancel, frame: bytes) -> None:
        """Credit or Cancel of the client."""
        if isinstance(header, calls.Credit):
            for _ in range(min(header.items, len(self._items))):
                self._items.popleft()
            if self.link is not None:
                self.link.data(self.stream, frame)
            return
        self.cancel(header.reason or "cancelled by the caller")

    def cancel(self, reason: str) -> None:
        """Give the call up: at once when it waits, by the worker's word when it runs."""
        link = self.link
        if self.state in (UPLOADING, QUEUED, HELD):
            self.fail(Cancelled(reason), started=self.started)
        elif link is not None and not self._cancelled:
            self._cancelled = True
            link.data(self.stream, calls.encode(calls.Cancel(self.id, reason)))
            self.deadline = self._gw.now + CANCEL_S_MAX
            self._gw.wheel.by(self, self.deadline)

    def client_lost(self) -> None:
        """The client's link is gone; it may come back."""
        self.client = None
        if self.state == UPLOADING:
            self.fail(Cancelled("the client left"), started=False)
        elif self.state != DONE:
            self.resume_until = self._gw.now + RESUME_S
            self._gw.wheel.by(self, self.resume_until)

    # --- to the worker ---

    def dispatch(self, link: WorkerLink) -> None:
        """OPEN on a worker's link, after a line in the journal."""
        gw = self._gw
        now = gw.now
        self.epoch += 1
        self.state = DISPATCHED
        self.instance_id = link.instance_id
        self.revision_id = link.revision_id
        self.deadline = now + self.timeout_s
        self._owed = 0
        gw.journal.dispatched(
            Dispatch(
                self.id, link.instance_id, link.epoch, self.workspace_id, self.key_id, self.pool.route.endpoint_id,
                link.revision_id, self.function, self.idempotent, self.arrival, self.timeout_s, self.attempt,
            )
        )  # fmt: skip
        parts = self._frames
        last = len(parts) - 1
        stream = link.open(self, _HEAD, parts[0], end=not last)
        for index in range(1, last + 1):
            link.data(stream, parts[index], end=index == last)
        gw.wheel.by(self, self.deadline)

    def adopt(self, link: WorkerLink, started: bool) -> None:
        """The worker still has this call: bind it to a stream of its new link."""
        self.held_until = 0.0
        self.started = self.started or started
        self.state = STARTED if self.started else DISPATCHED
        self._final = []
        self._owed = 0
        if not self.deadline:
            self.deadline = self._gw.now + max(1.0, self.arrival + self.timeout_s - time.time())
        self.pool.in_flight += 1
        link.open(self, b'{"k":"adopt","id":"' + self.id.hex().encode() + b'"}', b"")
        self._gw.wheel.by(self, self.deadline)

    def on_frame(self, kind: int, flags: int, epoch: int, payload: bytes) -> None:
        """HEAD, DATA, END or RESET of the worker."""
        if kind == frames.DATA:
            self._on_data(payload)
        elif kind == frames.HEAD:
            if not self.started:
                self.started = self._untold = True
                self._gw.just_started.append(self)
            self.state = STARTED
        elif kind == frames.END:
            self._on_end(decode_end(payload) if payload else CallEnd())
        elif kind == frames.RESET:
            self._on_reset(*frames.unpack_reset(payload))
        elif not flags & frames.FLAG_OPTIONAL:
            raise frames.ProtocolError(f"frame {kind} does not belong on a call's stream")

    def _on_data(self, frame: bytes) -> None:
        self._owed += len(frame)
        tag = tag_of(frame)
        client = self.client
        if tag in ("result", "error", "end"):
            self._final = [frame]
        elif tag == "part" and self._final:
            self._final.append(frame)
        elif not self.answered:
            self.tell_started()
            if tag in ("item", "part"):
                if len(self._items) >= ITEMS_KEPT_MAX:
                    self._items.popleft()
                self._items.append(frame)
            if client is not None:
                client.send(frame)
        if self._owed >= CREDIT_BYTES and self.link is not None:
            if self._final or client is None or not client.paused:
                self.link.window(self.stream, self._owed)
                self._owed = 0
            elif self._owed > WINDOW_BYTES + frames.FRAME_BYTES_MAX:
                self.link.reset(self, frames.FENCED, "the worker sent more than it was allowed")
                self._lost("it sent more than it was allowed")

    def resumed(self) -> None:
        """The client takes bytes again: so may the worker."""
        if self._owed >= CREDIT_BYTES and self.link is not None:
            self.link.window(self.stream, self._owed)
            self._owed = 0

    def _on_end(self, end: CallEnd) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        link.close_stream(self)
        link_instance = link
        if self.answered:
            self._settle(200 if end.ok else 500, end.run_us)
            link_instance.release(self.id)
            return
        if not self._final:
            self.fail(WorkerLost("the worker ended the call without a result", started=self.started))
            return
        self._settle(200 if end.ok else 500, end.run_us)
        self._answer(self._final)

    def _on_reset(self, code: int, text: str) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        link.close_stream(self)
        if self.answered:
            self._settle(499, 0)
        elif code == frames.REFUSED and not self.started:
            link.refused()
            self._gw.journal.finished(self.id)
            if self._cancelled:
                self.fail(Cancelled("cancelled before it started"), started=False)
                return
            self.state = QUEUED
            self._queue("requeued")
        elif code == frames.DEADLINE:
            self.fail(CallTimeout(text or f"the call ran longer than {self.timeout_s:g} s"))
        elif code == frames.CANCELLED:
            self.fail(Cancelled(text or "cancelled"))
        elif code == frames.TOO_LARGE:
            self.fail(Invalid(text or "the call or its result is too large"))
        else:
            self._lost(text or frames.RESET_NAMES.get(code, "reset"))

    # --- trouble ---

    def on_link_lost(self, link: WorkerLink, reason: str) -> None:
        """The worker's link is gone: it has a moment to come back with this call."""
        if self.state == DONE:
            return
        if self.answered:
            self._settle(499, 0)
            return
        self.state = HELD
        self.held_until = self._gw.now + LEASE_S
        self._gw.recall.hold(link.instance_id, self)
        self._gw.wheel.by(self, self.held_until)

    def _lost(self, reason: str) -> None:
        """The worker is gone for good, with this call: run it again where that is harmless."""
        self._gw.recall.drop(self)
        if self.idempotent and self.attempt < ATTEMPTS_MAX and not self._cancelled:
            self._gw.journal.finished(self.id)
            if not self._frames and self.client is None:
                # Known from the journal only, and harmless to run again: whoever sends it again starts it anew.
                self._gw.calls.pop(self.id, None)
                self._settle(502, 0, record=False)
                return
            self.attempt += 1
            self.started = False
            self._items.clear()
            if self.got < self.size:
                self.pool.leave()
                self.state = UPLOADING
                return
            self.state = QUEUED
            self._queue("requeued")
            return
        known = "after it had started this call" if self.started else "and may have started this call"
        text = f"the worker was lost {known} ({reason}); it is not run again by itself (mark it idempotent for that)"
        self.fail(WorkerLost(text, started=True if self.started else None))

    def worker_forgot(self) -> None:
        """The worker came back without this call."""
        self._lost("it came back without it")

    def on_route_failed(self) -> None:
        """No worker of the endpoint can start."""
        failure = self.pool.route.failure
        if failure is None:
            return
        text = f"{failure.type_name}: {failure.message}" if failure.type_name else failure.message
        error = DeploymentFailed(f"no worker can start: {text}", stage=failure.stage, log_tail=failure.log_tail)
        self.fail(error, started=False)

    def on_timer(self, now: float) -> None:
        """Whatever is due of: the client's return, the queue limit, the worker's return, the call's own limit."""
        if self.state == DONE:
            return
        if self.resume_until and now >= self.resume_until:
            self.resume_until = 0.0
            self.cancel("the client left and did not come back")
        if self.state == QUEUED:
            if now >= self.queue_deadline:
                self.fail(QueueTimeout(f"no worker took the call within {self.queue_timeout_s:g} s"), started=False)
                return
            self.pool.poke()
        elif self.state == HELD:
            if self.held_until and now >= self.held_until:
                self._lost("its link closed and it did not come back")
        elif self.link is not None and now >= self.deadline:
            self._out_of_time()
        self._rearm(now)

    def _rearm(self, now: float) -> None:
        if self.state == DONE:
            return
        due = self.queue_deadline if self.state == QUEUED else self.held_until if self.state == HELD else self.deadline
        if self.resume_until:
            due = min(due, self.resume_until)
        if self.state == QUEUED:
            due = min(due, now + 1.0)
        self._gw.wheel.by(self, max(due, now))

    def _out_of_time(self) -> None:
        """The call's time is over, or the worker did not end what it was told to cancel."""
        link = self.link
        if link is None:
            return
        if self._cancelled:
            link.reset(self, frames.CANCELLED, "cancelled")
            if self.answered:
                self._settle(499, 0)
            else:
                self.fail(Cancelled("cancelled; the worker did not answer in time"))
            return
        self._cancelled = True
        link.data(self.stream, calls.encode(calls.Cancel(self.id, "timeout")))
        self.deadline = self._gw.now + CANCEL_S_MAX
        error = CallTimeout(f"the call ran longer than {self.timeout_s:g} s")
        self._give(error_frame(self.id, error, self.started, self.attempt))

    # --- ends ---

    def fail(self, error: NanopodError, started: bool | None = None) -> None:
        """End the call with an error of the gateway's own."""
        if self.state == DONE:
            return
        if self.waiting:
            self.pool.withdraw(self)
        dispatched = bool(self.instance_id)
        if self.state == UPLOADING:
            self.state = DONE
            self._gw.wheel.clear(self)
        else:
            self._settle(error.status, 0, record=dispatched and self.started)
        known = error.started if isinstance(error, WorkerLost) else self.started if started is None else started
        self._answer([error_frame(self.id, error, known, self.attempt)])

    def _settle(self, status: int, run_us: int, *, record: bool = True) -> None:
        """The call needs no worker any more: out of the books, into the meter."""
        if self.state == DONE:
            return
        gw = self._gw
        self.state = DONE
        gw.wheel.clear(self)
        gw.recall.drop(self)
        self.pool.leave()
        self._frames = []
        self._items.clear()
        if record:
            route = self.pool.route
            gw.meter.pending.append(
                MeterRecord(
                    self.id.hex(), self.id.hex(), self.workspace_id, self.key_id, route.endpoint_id, self.revision_id,
                    self.instance_id, "call", status, 0, 0, run_us, self.arrival, 0.0, time.time(), self.attempt - 1,
                    self.function,
                )
            )  # fmt: skip

    def _give(self, frame: bytes) -> None:
        """The client's answer comes before the worker's end."""
        self.answered = True
        self.finished_frames = [frame]
        self._gw.kept.add(self)
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
