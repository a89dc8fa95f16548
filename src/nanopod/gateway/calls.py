"""One remote call: queued, dispatched, started, done; started once and no more, whatever dies.

```
QUEUED -dispatch-> DISPATCHED -HEAD-> STARTED -END-> DONE
DISPATCHED -handed back-> QUEUED                                  (known not started: nobody notices)
DISPATCHED | STARTED -link lost-> HELD -reported again-> as before
HELD -5 s over-> idempotent ? QUEUED : retries left ? BACKOFF : DONE (WorkerLost)
STARTED -an error that its retries list-> BACKOFF -its time is over-> QUEUED
```
Frames of the worker are passed on byte for byte. A finished call keeps its last frames until the client acknowledges
them, so a client that was away hears the same answer again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from nanopod.gateway import retrying
from nanopod.gateway.called import (
    BACKOFF,
    CANCEL_S_MAX,
    DISPATCHED,
    DONE,
    HELD,
    ITEMS_KEPT_MAX,
    QUEUED,
    RESUME_S_INTERNAL,
    STARTED,
    UPLOADING,
    Called,
)  # fmt: skip
from nanopod.gateway.callframes import CallEnd, decode_end, error_frame, tag_of
from nanopod.gateway.journal import Dispatch
from nanopod.gateway.links import CREDIT_BYTES, WINDOW_BYTES, WorkerLink
from nanopod.model import calls, frames
from nanopod.model.endpoint import STOPPED
from nanopod.model.errors import (
    CallTimeout,
    Cancelled,
    DeploymentFailed,
    Invalid,
    NoCapacity,
    SessionLost,
    WorkerLost,
)  # fmt: skip

LEASE_S: Final = 5.0
"""A lost worker has so long to dial again and report its calls."""
ATTEMPTS_MAX: Final = 5
"""Tries of an idempotent call whose workers are lost."""
_HEAD: Final = b'{"k":"call"}'


class CallJob(Called):
    """A call as its workers see it: dispatch, their frames, and what becomes of it when they are lost."""

    __slots__ = ()

    # --- to the worker ---

    def dispatch(self, link: WorkerLink) -> None:
        """OPEN on a worker's link, after a line in the journal."""
        gw = self._gw
        now = gw.now
        if self.start_by and now >= self.start_by:
            self.pool.in_flight -= 1
            self.fail(self._too_late(), started=False)
            return
        self.epoch += 1
        self.state = DISPATCHED
        self.instance_id = link.instance_id
        self.revision_id = link.revision_id
        self.deadline = now + self.timeout_s
        self._owed = 0
        if self.nested:
            self.nested = 0
        gw.journal.dispatched(
            Dispatch(
                self.id, link.instance_id, link.epoch, self.workspace_id, self.key_id, self.pool.route.endpoint_id,
                link.revision_id, self.function, self.idempotent, self.arrival, self.timeout_s, self.attempt,
            )
        )  # fmt: skip
        parts = self._frames
        last = len(parts) - 1
        head = _HEAD if self.attempt == 1 else b'{"k":"call","attempt":%d}' % self.attempt
        stream = link.open(self, head, parts[0], end=not last)
        for index in range(1, last + 1):
            link.data(stream, parts[index], end=index == last)
        if self._taken:
            # A generator begins anew. The client drops what it has already, and gives no credit for it again.
            link.data(stream, calls.encode(calls.Credit(self.id, self._taken)))
        gw.wheel.by(self, self.deadline)

    def adopt(self, link: WorkerLink, started: bool) -> None:
        """The worker still has this call: bind it to a stream of its new link."""
        self.enter()
        self.held_until = 0.0
        self.started = self.started or started
        self.state = STARTED if self.started else DISPATCHED
        self._final = []
        self._owed = 0
        if not self.deadline:
            self.deadline = self._gw.now + max(1.0, self.arrival + self.timeout_s - time.time())
        self.pool.in_flight += 1
        link.open(self, b'{"k":"adopt","id":"' + self.id.hex().encode() + b'"}', b"")
        if self.nested:
            link.lend(self)
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
            if self.resume_s == RESUME_S_INTERNAL:
                self.tell_started()  # the server keeps who ran a call, however short it was
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
                if self._items is None:
                    self._items = deque(maxlen=ITEMS_KEPT_MAX)
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

    def _on_end(self, end: CallEnd) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        if self._parent is not None:
            self._give_back()
        link.close_stream(self)
        if end.workload is not None:
            self.pool.learn(self.function, end.workload)
        if self.answered:
            self._settle(200 if end.ok else 500, end.run_us)
            link.release(self.id)
        elif not self._final:
            self.fail(WorkerLost("the worker ended the call without a result", started=self.started))
        elif end.ok or not self._on_failure(link, end.run_us):
            if not self._cancelled:
                if end.ok:
                    self.pool.ends.served(self.revision_id, self.workload, self._gw.now - self.opened_at)
                else:
                    self.pool.ends.ended(self.revision_id, True)
            self._settle(200 if end.ok else 500, end.run_us)
            self._returned(end.run_us)

    def _on_failure(self, link: WorkerLink, run_us: int) -> bool:
        """The worker answered with an error: True when the call is tried again instead."""
        if self._cancelled or (self.retries is None and not self.idempotent):
            return False
        header = calls.decode(self._final[0])[0]
        if not isinstance(header, calls.Error):
            return False
        revision_id = self.revision_id
        if header.code == WorkerLost.code and self.idempotent and self._rerun():
            pass  # the worker was taken away, and gave the call up in time
        elif not self.retry(retrying.names_of_answer(header.code, header.types), header.message):
            return False
        self._spent_us += run_us
        self.pool.ends.ended(revision_id, True)
        link.release_now(self.id)
        if self.state == QUEUED:
            self.send_off("requeued")
        return True

    def _on_reset(self, code: int, text: str) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        if self._parent is not None:
            self._give_back()
        link.close_stream(self)
        if self.answered:
            self._settle(499, 0)
        elif code == frames.REFUSED and not self.started:
            link.refused()
            self._gw.journal.finished(self.id)
            if self._cancelled:
                self.fail(Cancelled("cancelled before it started"), started=False)
            elif self.session is not None and not link.usable:
                self.fail(SessionLost("the worker of this session ends; open a new session", started=False))
            else:
                self._borrow()
                self.send_off("requeued")
        elif code == frames.DEADLINE:
            error = CallTimeout(text or f"the call ran longer than {self.timeout_s:g} s")
            if not self.retry(retrying.names_of(CallTimeout), error.message):
                self.fail(error)
        elif code == frames.CANCELLED:
            self.fail(Cancelled(text or "cancelled"))
        elif code == frames.TOO_LARGE:
            self.fail(Invalid(text or "the call or its result is too large"))
        else:
            self._lost(text or frames.RESET_NAMES.get(code, "reset"), preempted=link.leaving)

    # --- trouble ---

    def on_link_lost(self, link: WorkerLink, reason: str) -> None:
        """The worker's link is gone: it has a moment to come back with this call."""
        if self.state == DONE:
            return
        if self.answered:
            self._settle(499, 0)
            return
        self.state = HELD
        self._doomed = link.leaving
        self.held_until = self._gw.now + LEASE_S
        self._gw.recall.hold(link.instance_id, self)
        self._gw.wheel.by(self, self.held_until)

    @property
    def moves_off(self) -> bool:
        """True when its author wants it to leave a worker that is going to be taken away (`on_preempt="retry"`)."""
        spec = self.pool.route.functions.get(self.function)
        return self.idempotent and spec is not None and spec.on_preempt == "retry"

    def move_off(self) -> None:
        """Its worker is going to be taken away in seconds: run it again elsewhere, which its author allows."""
        link = self.link
        if link is not None and self.state in (DISPATCHED, STARTED) and not self.answered and not self._cancelled:
            link.reset(self, frames.CANCELLED, "the worker is going to be taken away")
            self._lost("it was preempted", preempted=True)

    def _rerun(self) -> bool:
        """Become the next try of an idempotent call, at once; False when it had enough of them."""
        if not self.idempotent or self.session_id or self.attempt >= ATTEMPTS_MAX or self._cancelled:
            return False
        self.again()
        return True

    def _lost(self, reason: str, *, preempted: bool = False) -> None:
        """The worker is gone for good, with this call: run it again where that is harmless, or wished."""
        gw = self._gw
        gw.recall.drop(self)
        if not self._cancelled and not preempted and self._entered:
            self.pool.ends.ended(self.revision_id, True)
        known = "after it had started this call" if self.started else "and may have started this call"
        started = True if self.started else None
        gone = "preempted" if preempted else "lost"
        if self.session_id:
            text = f"the worker of this call's session was {gone} {known} ({reason}); open a new session"
            self.fail(SessionLost(text, started=started, preempted=preempted))
        elif self.idempotent and not self._frames and self.client is None:
            # Known from the journal only, and harmless to run again: whoever sends it again starts it anew.
            gw.journal.finished(self.id)
            gw.calls.pop(self.id, None)
            self._settle(502, 0, record=False)
        elif self._rerun():
            if self.state == QUEUED:
                self.send_off("requeued")
        elif not self.retry(retrying.names_of(WorkerLost), f"the worker was {gone} ({reason})"):
            advice = "it is not run again by itself (mark it idempotent for that)"
            if self.attempt > 1:
                advice = f"no try is left after {self.attempt}"
            self.fail(
                WorkerLost(f"the worker was {gone} {known} ({reason}); {advice}", started=started, preempted=preempted)
            )

    def worker_forgot(self) -> None:
        """The worker came back without this call."""
        self._lost("it came back without it")

    def on_route_failed(self) -> None:
        """No worker of the endpoint can start."""
        failure = self.pool.route.failure
        if failure is None:
            return
        if failure.type_name in (NoCapacity.__name__, STOPPED):
            self.fail(NoCapacity(failure.message, retry_after_s=5.0), started=False)
            return
        text = f"{failure.type_name}: {failure.message}" if failure.type_name else failure.message
        error = DeploymentFailed(f"no worker can start: {text}", stage=failure.stage, log_tail=failure.log_tail)
        self.fail(error, started=False)

    def on_timer(self, now: float) -> None:
        """Whatever is due of: the client's return, the queue limit, the next try, its worker's return, its limit."""
        if self.state == DONE:
            return
        if self.resume_until and now >= self.resume_until:
            self.resume_until = 0.0
            self.cancel("the client left and did not come back")
        if self.state == QUEUED:
            if self.late_in_queue(now):
                return
        elif self.state == BACKOFF:
            if now >= self.retry_at:
                self.send_off("requeued")
        elif self.state == HELD:
            if self.held_until and now >= self.held_until:
                self._lost("its link closed and it did not come back", preempted=self._doomed)
        elif self.link is not None and now >= self.deadline:
            self._out_of_time()
        self._rearm(now)

    def _rearm(self, now: float) -> None:
        state = self.state
        if state == DONE or (state == UPLOADING and not self.resume_until):
            return
        if state == QUEUED:
            due = min(self.queue_deadline, self.start_by) if self.start_by else self.queue_deadline
        elif state == HELD:
            due = self.held_until
        else:
            due = self.retry_at if state == BACKOFF else self.deadline
        if self.resume_until:
            due = min(due, self.resume_until)
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
        self.pool.ends.ended(self.revision_id, True)
        error = CallTimeout(f"the call ran longer than {self.timeout_s:g} s")
        if self.retries is not None and self.retry(retrying.names_of(CallTimeout), error.message):
            link.reset(self, frames.CANCELLED, "timeout")
            return
        self._cancelled = True
        link.data(self.stream, calls.encode(calls.Cancel(self.id, "timeout")))
        self.deadline = self._gw.now + CANCEL_S_MAX
        self._give(error_frame(self.id, error, self.started, self.attempt))
