"""What HTTP requests and websockets below `/web/` have in common: waiting, dispatch, the body, limits, the end.

```
parked -> opened -> answering -> done
   ^--------+                       handed back by the worker, or lost before it was whole: nobody has seen anything
```
The body is sent as the worker gives credit, and the caller is read only as fast as that. What was sent is kept (up to
1 MiB) until the worker has begun to answer, so that a request that was handed back can go elsewhere.
"""

from __future__ import annotations

import random
import time
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanopod.gateway import breaker, heads
from nanopod.gateway.asked import wait_limit_s
from nanopod.gateway.forwarding import forwarded, scheme_of
from nanopod.gateway.heads import Failed, Head, Problem
from nanopod.gateway.jobs import TAG_HEADER, Job
from nanopod.gateway.links import CREDIT_BYTES, WINDOW_BYTES, WorkerLink
from nanopod.gateway.pool import Pool
from nanopod.gateway.webroutes import Target
from nanopod.model import frames
from nanopod.model.endpoint import CALL_TIMEOUT_S, STOPPED
from nanopod.model.wire import KeyRow, MeterRecord

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

BODY_BYTES_MAX: Final = 64 << 20
HELD_BYTES_MAX: Final = 1 << 20
"""Of a body, while no worker has it."""
QUEUED_BYTES_MAX: Final = 256 << 10
"""Of a body, while its worker does not take it as fast as it comes."""
PIECE_BYTES_MAX: Final = 256 << 10
HEAD_BYTES_MAX: Final = 65_000
GRACE_S: Final = 5.0
"""A worker ends a function that is out of time by itself; after so long the gateway does."""
TRIES_MAX: Final = 5
WORKLOAD: Final = 100.0
PARKED, OPENED, ANSWERING, DONE = "parked", "opened", "answering", "done"

_json: Final = msgspec.json.Encoder().encode
_U32: Final = Struct(">I")


class WebHead(msgspec.Struct, frozen=True):
    """Payload of HEAD."""

    status: int
    headers: list[tuple[str, str]] = []
    subprotocol: str = ""


class WebEnd(msgspec.Struct, frozen=True):
    """Payload of END."""

    run_us: int = 0


decode_head: Final = msgspec.json.Decoder(WebHead).decode
_decode_end: Final = msgspec.json.Decoder(WebEnd).decode


class WebJob(Job):
    """A request on its way; subclasses know what its answer is. Also the `Exchange` of its connection."""

    __slots__ = (
        "_body_bytes", "_compute_us", "_credit", "_deadline", "_ended", "_gw", "_has_key", "_head", "_instance_id",
        "_kept", "_key", "_last_at", "_owed", "_paused_caller", "_pending", "_pending_bytes", "_rest", "_revision_id",
        "_root", "_sent_end", "_state", "_status", "_submitted", "_target", "_tries", "_wait_deadline", "arrival",
        "connection", "first_at", "record_id", "shown_id",
    )  # fmt: skip

    is_websocket = False
    call_id: bytes = b""
    """Of a function that runs: what calls of its own name as their parent, for which its slot is lent."""

    def __init__(
        self, gateway: Gateway, connection: HttpConnection, head: Head, pool: Pool, target: Target, key: KeyRow | None,
        root: str, rest: str,
    ) -> None:  # fmt: skip
        priority = target.function.priority if target.function is not None else 0
        super().__init__(pool, target.name, target.concurrency, priority)
        self._gw = gateway
        self.connection: HttpConnection | None = connection
        self._head = head
        self._target = target
        self._key = key
        self._has_key = bool(head.authorization) and gateway.tables.authenticate(head.authorization) is not None
        """It carries a key of this cloud, which the worker's code must not see. Other credentials are its own."""
        self._root, self._rest = root, rest
        self.arrival = time.time()
        self.first_at = 0.0
        self.record_id = gateway.request_id()
        self.shown_id = heads.request_id_of(head) or self.record_id
        self.bytes_held = HELD_BYTES_MAX if head.chunked else min(head.length, HELD_BYTES_MAX)
        self._state = PARKED
        self._status = 0
        self._submitted = False
        self._tries = 0
        self._compute_us = 0
        self._instance_id = ""
        self._revision_id = pool.route.revision_id
        self._last_at = gateway.now
        self._deadline = 0.0
        self._owed = 0
        function = target.function
        if function is not None:
            self.queue_s_max = function.max_queue_time_s
        patience = function.queue_timeout_s if function is not None else pool.route.wait_s_max
        self._wait_deadline = gateway.now + wait_limit_s(head, patience)
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._kept: list[bytes] | None = []
        """What was sent of the body; None once it cannot be sent again."""
        self._body_bytes = 0
        self._ended = False
        """The caller's body is whole."""
        self._sent_end = False
        self._credit = 0
        self._paused_caller = False

    @property
    def workspace_id(self) -> str:
        """Whose endpoint it is."""
        return self.pool.route.workspace_id

    @property
    def state(self) -> str:
        """As of a call: DONE when it is over."""
        return self._state

    # --- the caller ---

    def body_piece(self, data: bytes, end: bool) -> None:
        """More of the request's body."""
        self._last_at = self._gw.now
        if data:
            self._pending.append(data)
            self._pending_bytes += len(data)
            self._body_bytes += len(data)
        self._ended = self._ended or end
        if self._state == DONE:
            return
        if not self._submitted:
            # A function runs with its whole body: it takes no slot while a slow caller is still sending.
            if self._ended or self._target.mount is not None or self._pending_bytes >= HELD_BYTES_MAX // 2:
                self._submitted = True
                self.pool.enter(WORKLOAD)
                self.pool.draw(self, self.record_id.encode(), self._head.headers.get(TAG_HEADER, ""))
                self._submit()
        elif self.link is not None:
            self._send_body()
        self._hold_caller()

    def _hold_caller(self) -> None:
        """Read the caller only as fast as the body leaves."""
        connection = self.connection
        if connection is None:
            return
        limit = QUEUED_BYTES_MAX if self.link is not None else HELD_BYTES_MAX
        if self._paused_caller:
            if self._pending_bytes <= limit // 4:
                self._paused_caller = False
                connection.pause_body(False)
        elif self._pending_bytes > limit and not self._ended:
            self._paused_caller = True
            connection.pause_body(True)

    def caller_gone(self) -> None:
        """The caller left: the worker hears it, the slot is free."""
        self.connection = None
        if self._state == DONE:
            return
        link = self.link
        if self.waiting:
            self.pool.withdraw(self)
        if self._instance_id:
            self._meter(499)
        self._close()
        if link is not None:
            link.reset(self, frames.CANCELLED, "the caller left")

    def caller_resumed(self) -> None:
        """The caller's socket takes bytes again: so may the worker."""
        self._last_at = self._gw.now
        self._give_credit(0)

    # --- to a worker ---

    def _submit(self) -> None:
        if not self.pool.submit(self) and self._state != DONE:
            self._gw.wheel.by(self, min(self._wait_deadline, self._gw.now + 1.0))

    def dispatch(self, link: WorkerLink) -> None:
        """OPEN on a worker's link, with the beginning of the body."""
        now = self._gw.now
        self.epoch += 1
        self._state = OPENED
        self._instance_id, self._revision_id = link.instance_id, link.revision_id
        self._last_at = now
        self._owed = 0
        self._credit = WINDOW_BYTES
        self._sent_end = False
        self._deadline = 0.0
        self.nested = 0
        if self._target.function is not None:
            self.call_id = self.call_id or random.randbytes(16)
            self._gw.web_calls[self.call_id] = self
        whole = self._ended and not self._pending
        link.open(self, self._open_head(), b"", end=whole)
        if whole:
            self._body_sent()
        self._send_body()
        self._gw.wheel.by(self, self._deadline or self._quiet_until())

    def _body_sent(self) -> None:
        """The worker has the whole body: a function's time begins."""
        self._sent_end = True
        function = self._target.function
        if function is not None:
            self._deadline = self._gw.now + function.timeout_s + GRACE_S
            self._gw.wheel.by(self, self._deadline)

    def _send_body(self) -> None:
        """DATA, as far as there is credit."""
        link, pending = self.link, self._pending
        if link is None:
            return
        while pending and self._credit > 0:
            piece = pending.popleft()
            # A websocket's pieces are small, and each has its first byte: they are not cut.
            limit = PIECE_BYTES_MAX if self.is_websocket else min(PIECE_BYTES_MAX, self._credit)
            if len(piece) > limit:
                pending.appendleft(piece[limit:])
                piece = piece[:limit]
            self._pending_bytes -= len(piece)
            self._credit -= len(piece)
            if self._kept is not None:
                self._kept.append(piece)
                if self._body_bytes - self._pending_bytes > HELD_BYTES_MAX:
                    self._kept = None
            last = self._ended and not pending
            link.data(self.stream, piece, end=last)
            if last:
                self._body_sent()
        if self._ended and not pending and not self._sent_end:
            link.data(self.stream, b"", end=True)
            self._body_sent()
        if self._paused_caller:
            self._hold_caller()

    def _open_head(self) -> bytes:
        head, target, connection = self._head, self._target, self.connection
        peer = connection.peer if connection is not None else ("", 0)
        function = target.function
        limit = function.timeout_s if function is not None else 0.0
        opened: dict[str, Any] = {
            "k": "web",
            "id": self.record_id,
            "method": head.method,
            "path": self._rest,
            "root": self._root,
            "query": head.target.partition("?")[2],
            "headers": forwarded(head, peer[0], self._root, self.shown_id, hide_key=self._has_key),
            "client": list(peer),
            "scheme": scheme_of(head, peer[0]),
            "mount": target.mount.name if target.mount is not None else "",
            "function": function.name if function is not None else "",
            "params": target.params,
            "timeout_s": limit,
            "ws": self.is_websocket,
            "call": self.call_id.hex(),
        }
        return bytes(_json(opened))

    # --- from the worker ---

    def on_frame(self, kind: int, flags: int, epoch: int, payload: bytes) -> None:
        """HEAD, DATA, WINDOW, END or RESET."""
        self._last_at = self._gw.now
        if kind == frames.DATA:
            self._on_data(payload)
            self._give_credit(len(payload))
        elif kind == frames.HEAD:
            head = decode_head(payload)
            self._state, self._kept = ANSWERING, None
            self.first_at = time.time()
            self._on_head(head)
        elif kind == frames.WINDOW:
            self._credit += _U32.unpack(payload)[0]
            self._send_body()
        elif kind == frames.END:
            link = self.link
            assert link is not None, "frames come by a link"
            self._compute_us = _decode_end(payload).run_us if payload else 0
            link.close_stream(self)
            self._on_end()
        elif kind == frames.RESET:
            self._on_reset(*frames.unpack_reset(payload))
        elif not flags & frames.FLAG_OPTIONAL:
            raise frames.ProtocolError(f"frame {kind} does not belong on a web stream")

    def _give_credit(self, taken: int) -> None:
        self._owed += taken
        link = self.link
        if link is None or self._owed < CREDIT_BYTES:
            return
        if self._caller_takes():
            link.window(self.stream, self._owed)
            self._owed = 0
        elif self._owed > WINDOW_BYTES + frames.FRAME_BYTES_MAX:
            link.reset(self, frames.FENCED, "the worker sent more than it was allowed")
            self._broken("the worker sent more than it was allowed")

    def _on_reset(self, code: int, text: str) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        link.close_stream(self)
        if self._state == DONE:
            return
        if code == frames.REFUSED and self._state == OPENED:
            link.refused()
            self._again(text)
        elif code == frames.TOO_LARGE:
            self.fail(Problem(413, "request_too_large", text or "too large for the worker"))
        elif code == frames.DEADLINE:
            self.fail(self._timeout())
        else:
            self._lost(text or frames.RESET_NAMES.get(code, "reset by the worker"))

    def on_link_lost(self, link: WorkerLink, reason: str) -> None:
        """The worker is gone, and the stream with it."""
        if self._state != DONE:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        """The worker will not answer: another one may, if nothing can have started or the author said so."""
        function = self._target.function
        if self._state == OPENED and function is not None and (not self._sent_end or function.idempotent):
            self._again(reason)
            return
        self._broken(f"its worker was lost: {reason}")

    def _again(self, reason: str) -> None:
        """Another worker, from the beginning; nothing was answered."""
        self._tries += 1
        kept = self._kept
        if self._tries >= TRIES_MAX or kept is None:
            self.fail(Problem(503, "overloaded", f"no worker took the request: {reason}", extra="retry-after: 1\r\n"))
            return
        self._pending.extendleft(reversed(kept))
        self._pending_bytes += sum(map(len, kept))
        self._kept = []
        self._state = PARKED
        self._submit()

    def on_route_failed(self) -> None:
        """No worker of the endpoint can start; say what the last one said."""
        failure = self.pool.route.failure
        self.pool.withdraw(self)
        if failure is not None and failure.type_name == STOPPED:
            self.fail(Problem(503, "stopped", failure.message))
            return
        where = f" while it was at `{failure.stage}`" if failure else ""
        text = f"no worker can start: the last one failed{where}: {failure.message if failure else 'unknown'}"
        self.fail(Problem(502, "deployment_failed", text))

    # --- time ---

    def on_timer(self, now: float) -> None:
        """The wait limit, the function's time limit, a silent application."""
        if self._state == DONE:
            return
        if self.link is None:
            if now >= self._wait_deadline:
                phase = " ".join(self.pool.route.phase_text.split())
                self.pool.withdraw(self)
                text = f"no worker took the request in time{f' ({phase})' if phase else ''}"
                extra = breaker.retry_after(self.pool.eta_s())
                self.fail(Problem(503 if self.pool.strict else 504, "queue_timeout", text, extra=extra))
                return
            self.pool.poke()
            if self.waiting:
                self._gw.wheel.by(self, min(self._wait_deadline, now + 1.0))
            return
        due = self._deadline or self._quiet_until()
        if now >= due:
            self.link.reset(self, frames.DEADLINE, "the request ran out of time")
            self.fail(self._timeout())
            return
        self._gw.wheel.by(self, due)

    def _quiet_until(self) -> float:
        """When an application that neither says nor takes anything is given up."""
        if not self._caller_takes():
            return self._gw.now + 5.0
        return self._last_at + max(CALL_TIMEOUT_S, self.pool.route.timeout_s)

    def _timeout(self) -> Problem:
        function = self._target.function
        if function is not None:
            return Problem(504, "call_timeout", f"the function ran longer than its timeout of {function.timeout_s:g} s")
        limit = max(CALL_TIMEOUT_S, self.pool.route.timeout_s)
        return Problem(504, "timeout", f"the application was silent for longer than the limit of {limit:g} s")

    def stopping(self) -> None:
        """The process ends before a worker came."""
        self.pool.withdraw(self)
        self.fail(Problem(503, "overloaded", "the gateway is restarting; send the request again"))

    # --- what subclasses know ---

    def _caller_takes(self) -> bool:
        connection = self.connection
        return connection is None or not connection.paused

    def _on_head(self, head: WebHead) -> None:
        raise AssertionError("a web job knows its answer")

    def _on_data(self, payload: bytes) -> None:
        raise AssertionError("a web job knows its answer")

    def _on_end(self) -> None:
        raise AssertionError("a web job knows its answer")

    def _broken(self, reason: str) -> None:
        raise AssertionError("a web job knows how to break off")

    # --- the end ---

    def fail(self, failed: Failed) -> None:
        """End it with an error of the gateway's own, in whatever shape is still possible."""
        if self._state == DONE:
            return
        link, connection, answering = self.link, self.connection, self._state == ANSWERING
        if link is not None:
            link.reset(self, frames.CANCELLED, failed.code)
        if answering:
            self._broken(failed.message)
            return
        if self._instance_id:
            self._meter(failed.status)
        self._close()
        if connection is not None:
            self.connection = None
            connection.pause_body(False)
            connection.fail(failed, extra=f"x-request-id: {self.shown_id}\r\n")

    def _close(self) -> None:
        if self._state == DONE:
            return
        self._state = DONE
        self._gw.web_calls.pop(self.call_id, None)
        self._gw.wheel.clear(self)
        self._pending.clear()
        self._kept = None
        if self._submitted:
            self.pool.leave()

    def _meter(self, status: int) -> None:
        """The record of this request; on file before the last bytes of its answer leave."""
        key, route = self._key, self.pool.route
        if status != 499:
            if status >= 400 or self.is_websocket:
                self.pool.ends.ended(self._revision_id, status >= 500)
            else:
                self.pool.ends.served(self._revision_id, self.workload, self._gw.now - self.opened_at)
        self._gw.meter.pending.append(
            MeterRecord(
                self.record_id, self.shown_id, route.workspace_id, key.key_id if key is not None else "",
                route.endpoint_id, self._revision_id, self._instance_id, "web", status, 0, 0, self._compute_us,
                self.arrival, self.first_at, time.time(), 0, self.function,
            )
        )  # fmt: skip
