"""The caller's side of an inference request: waiting for a worker, comments, limits, errors, and its meter record."""

from __future__ import annotations

import random
import time
from array import array
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanopod.gateway import breaker, estimates, heads
from nanopod.gateway.foreign import Events
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.jobs import TAG_HEADER, Job
from nanopod.gateway.pool import Pool
from nanopod.gateway.prefixes import chunks_of
from nanopod.model import frames
from nanopod.model.endpoint import STOPPED
from nanopod.model.wire import KeyRow, MeterRecord

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

COMMENT_S: Final = 15.0
WAIT_S_MAX: Final = 600.0
PARKED, OPENED, STREAMING, MOVING, DONE = "parked", "opened", "streaming", "moving", "done"


class Wishes(msgspec.Struct, frozen=True):
    """What the request's body asks of its way."""

    stream: bool = False
    seed: int | None = None
    include_usage: bool = False
    most_tokens: Any = None
    """What it allows for its output, as it was given; None: it does not say."""


class Usage(msgspec.Struct, frozen=True):
    """Of END."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


def wait_limit_s(head: Head, route_s: float) -> float:
    """How long a request may wait for a worker: the endpoint's limit, lowered by what the caller says it can wait."""
    limit = head.wait_s
    if limit is None:
        limit = WAIT_S_MAX
        asked = _seconds(head.headers.get("x-nanopod-wait-s"))
        if asked is not None:
            limit = min(limit, asked)
        patience = _seconds(head.headers.get("x-stainless-read-timeout"))
        if patience is not None:
            # Answer before the client gives up by itself, so that it hears why.
            limit = min(limit, patience - min(10.0, patience / 2))
        head.wait_s = limit
    return limit if limit < route_s else route_s


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text else -1.0
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None


class Asked(Job):
    """A request as its caller sees it: the connection's exchange and the pool's job at once."""

    __slots__ = (
        "_began", "_body", "_body_parts", "_body_size", "_comment_at", "_compute_us", "_deadline", "_delivered",
        "_fingerprint", "_first_at", "_generation", "_gw", "_head", "_held", "_instance_id", "_key", "_kind",
        "_last_at", "_outputs", "_owed", "_parked_s", "_parked_since", "_progress_at", "_prompt_ids", "_revision_id",
        "_seed", "_sse", "_state", "_status", "_wait_deadline", "_wishes", "_worker_headers", "arrival", "connection",
        "record_id", "shown_id",
    )  # fmt: skip

    # What few requests have; see `Job`.
    _chunks: tuple[int, ...] | None = None
    """Of the prompt that is to be continued."""
    _tries: int = 0
    _moves: int = 0
    _failures: int = 0
    _data_seen: frozenset[bytes] = frozenset()
    """What stands for no tokens and was delivered."""
    _events: Events | None = None

    def __init__(
        self, gateway: Gateway, connection: HttpConnection, head: Head, body: bytes, key: KeyRow, pool: Pool, kind: str,
        wishes: Wishes, generation: bool,
    ) -> None:  # fmt: skip
        super().__init__(pool)
        self._gw = gateway
        self.connection: HttpConnection | None = connection
        self._head = head
        self._body = body
        self._key = key
        self._kind = kind
        self._wishes = wishes
        self._generation = generation
        self.bytes_held = len(body)
        self.arrival = time.time()
        self.record_id = gateway.request_id()
        self.shown_id = heads.request_id_of(head) or self.record_id
        self._state = PARKED
        self._sse = wishes.stream and generation
        """The caller reads server-sent events."""
        self._began = False
        """The head of the answer went out."""
        self._delivered = False
        """Bytes of the answer itself went out: another worker can only continue, not start anew."""
        self._status = 0
        self._worker_headers: dict[str, str] = {}
        self._prompt_ids: bytes = b""
        self._outputs: list[array[int]] = []
        self._held: list[bytes] = []
        self._body_parts: list[bytes] = []
        self._body_size = 0
        self._owed = 0
        self._compute_us = 0
        self._first_at = 0.0
        self._last_at = gateway.now
        self._progress_at = 0.0
        self._instance_id = ""
        self._revision_id = pool.route.revision_id
        self._seed = wishes.seed if wishes.seed is not None else random.getrandbits(63)
        self._fingerprint = "fp_" + pool.route.revision_id[-12:]
        self._parked_since = gateway.now
        self._parked_s = 0.0
        self._comment_at = gateway.now + COMMENT_S
        self._wait_deadline = gateway.now + wait_limit_s(head, pool.wait_s_max)
        self._deadline = 0.0

    def start(self) -> None:
        """Send it off, or park it."""
        connection = self.connection
        assert connection is not None, "a request starts with its caller present"
        pool = self.pool
        if pool.full(self.bytes_held):
            raise heads.overloaded("too many requests wait for this model; try again in a few seconds")
        if pool.route.traffic:
            pool.draw(self, self.record_id.encode(), self._head.headers.get(TAG_HEADER, ""))
        if pool.waiting or pool.slowest:
            refused = breaker.check(pool, self.wanted)
            if refused is not None:
                raise refused
        connection.exchange = self
        if self._generation or self._kind == "embedding":
            median = pool.ends.outputs.value
            self.workload = estimates.load_of(self._body, self._generation, self._wishes.most_tokens, median)
        pool.enter(self.workload)
        self._submit()

    def chunks(self) -> tuple[int, ...]:
        """Of the prompt that is to be continued."""
        found = self._chunks
        if found is None:
            found = self._chunks = chunks_of(self._body, self._key.workspace_id) if self._generation else ()
        return found

    def _submit(self) -> None:
        if not self.pool.submit(self) and self._state != DONE:
            now = self._parked_since = self._gw.now
            if self.epoch:
                self._comment_at = max(self._comment_at, now + COMMENT_S)  # it had a worker in the meantime
            self._gw.wheel.by(self, min(self._comment_at, self._wait_deadline))

    def on_route_failed(self) -> None:
        """No worker can start; say what the last one said."""
        failure = self.pool.route.failure
        self.pool.withdraw(self)
        if failure is not None and failure.type_name == "NoCapacity":
            self._fail(Failed(503, "service_unavailable", "no_capacity", failure.message, extra="retry-after: 5\r\n"))
            return
        if failure is not None and failure.type_name == STOPPED:
            text = failure.message
            self._fail(Failed(503, "service_unavailable", "stopped", text, extra="x-should-retry: false\r\n"))
            return
        where = f" while it was at `{failure.stage}`" if failure else ""
        text = f"the model cannot start: its worker failed{where}: {failure.message if failure else 'unknown'}"
        self._fail(Failed(502, "server_error", "deployment_failed", text, extra="x-should-retry: false\r\n"))

    @property
    def _sse_wanted(self) -> bool:
        return self._wishes.stream and self._generation

    def _begin_stream(self, content_type: str, continuation: str | None) -> None:
        connection = self.connection
        if connection is None:
            return
        self._began = True
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
            f"{self._extra(continuation)}"
        )
        connection.start_stream(head.encode("latin-1"), chunked=True)

    def _extra(self, continuation: str | None) -> str:
        lines = f"x-request-id: {self.shown_id}\r\nx-nanopod-revision: {self._revision_id}\r\n"
        if continuation:
            lines += f"x-nanopod-continuation: {continuation}\r\n"
        if self._parked_s >= 0.001:
            lines += f"x-nanopod-queue-ms: {round(self._parked_s * 1000)}\r\n"
        return lines

    def _comment(self) -> None:
        """Keep a waiting stream alive; the first comment sends the head."""
        if not self._began:
            self._status = 200
            self._begin_stream("text/event-stream; charset=utf-8", None)
        if self.connection is not None:
            self.connection.piece(f": {breaker.awaited(self.pool)}\n\n".encode())

    def _on_wait_timer(self, now: float) -> None:
        """While it waits: the wait limit, then comments."""
        if now >= self._wait_deadline:
            self.pool.withdraw(self)
            self._fail(breaker.waited_out(self.pool, now - self._parked_since))
            return
        if now >= self._comment_at:
            self._comment_at = max(self._comment_at + COMMENT_S, now + 1.0)
            if self._sse_wanted:
                self._comment()
        self.pool.poke()
        if self.waiting:
            self._gw.wheel.by(self, min(self._comment_at, self._wait_deadline, now + 1.0))

    def stopping(self) -> None:
        """The process ends before a worker came."""
        self.pool.withdraw(self)
        self._fail(heads.overloaded("the gateway is restarting; send the request again", retry_s=1))

    def caller_gone(self) -> None:
        """The caller left: free the slot, bill what was delivered."""
        self.connection = None
        if self._state == DONE:
            return
        if self.waiting:
            self.pool.withdraw(self)
        usage = self._counted()
        link = self.link
        if self._delivered:
            self._gw.meter.pending.append(self._record(499, usage))
        self._close()
        if link is not None:
            link.reset(self, frames.CANCELLED, "the caller left")

    def caller_resumed(self) -> None:
        """The caller's socket takes bytes again: so may the worker."""
        if self._owed:
            self._give_credit()

    def _give_credit(self) -> None:
        connection, link = self.connection, self.link
        if link is not None and connection is not None and not connection.paused:
            link.window(self.stream, self._owed)
            self._owed = 0

    def body_piece(self, data: bytes, end: bool) -> None:
        """Not used: inference bodies are read whole."""

    def _fail(self, failed: Failed) -> None:
        """Tell the caller, in whatever shape is still possible."""
        connection = self.connection
        if self._state == DONE:
            return
        if connection is None:
            self._close()
        elif not self._began:
            self._close()
            connection.exchange = None
            connection.fail(failed, extra=self._extra(None))
        elif self._sse_wanted or self._sse:
            self._end_with_event(failed.event())
        else:
            self._close()
            connection.exchange = None
            connection.abort()

    def _end_with_event(self, event: bytes) -> None:
        connection = self.connection
        self._close()
        if connection is not None:
            connection.piece(event)
            connection.close_after = True
            connection.finish()

    def _close(self) -> None:
        if self._state != DONE:
            self._state = DONE
            self._gw.wheel.clear(self)
            self.pool.leave()

    def _counted(self) -> Usage:
        """Units by what was delivered so far."""
        prompt = self._prompt_ids.count(b",") + 1 if len(self._prompt_ids) > 2 else 0
        tokens = sum(map(len, self._outputs))
        if self._events is not None:
            tokens = self._events.count
        return Usage(prompt, tokens)

    def _record(self, status: int, usage: Usage) -> MeterRecord:
        key, route = self._key, self.pool.route
        return MeterRecord(
            self.record_id, self.shown_id, key.workspace_id, key.key_id, route.endpoint_id, self._revision_id,
            self._instance_id, self._kind, status, usage.prompt_tokens, usage.completion_tokens, self._compute_us,
            self.arrival, self._first_at, time.time(), self._moves,
        )  # fmt: skip
