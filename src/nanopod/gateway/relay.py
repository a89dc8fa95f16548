"""One inference request: to a worker, back to the caller, and on to another worker when the first one dies.

```
reading -> parked -> opened -> streaming -> done | failed | cancelled
             ^---------+-- moving <--+            (moving: as parked, but the answer has begun)
```
Output ids are kept per choice. When a worker is lost in mid-stream and engines promise `exact`, the next worker is given
the prompt's ids and the output so far, and the caller's response goes on with the very next byte.
"""

from __future__ import annotations

import random
import sys
import time
from array import array
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanopod.gateway import heads
from nanopod.gateway.foreign import Events, with_usage
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.links import CREDIT_BYTES, WorkerLink
from nanopod.gateway.pool import Job, Pool
from nanopod.model import frames
from nanopod.model.wire import KeyRow, MeterRecord

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

COMMENT_S: Final = 15.0
WAIT_S_MAX: Final = 600.0
TRIES_MAX: Final = 3
MOVES_MAX: Final = 3
TOKEN_GAP_S_MAX: Final = 15.0
FIRST_TOKEN_S_MAX: Final = 60.0
PROGRESS_S: Final = 0.2
DOOMED_S: Final = 3.0
BODY_BYTES_MAX: Final = 32 << 20
_OPEN_BODY_BYTES: Final = frames.FRAME_BYTES_MAX - 65_536 - 2
_WORKLOAD: Final = 100.0

PARKED, OPENED, STREAMING, MOVING, DONE = "parked", "opened", "streaming", "moving", "done"
_TOKENS: Final = Struct(">BIH").unpack_from
_json: Final = msgspec.json.Encoder().encode


class Wishes(msgspec.Struct, frozen=True):
    """What the request's body asks of its way."""

    stream: bool = False
    seed: int | None = None
    include_usage: bool = False


class WorkerHead(msgspec.Struct, frozen=True):
    """Payload of HEAD."""

    status: int = 200
    headers: dict[str, str] = {}
    prompt_ids: msgspec.Raw = msgspec.Raw()


class Usage(msgspec.Struct, frozen=True):
    """Of END."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Of END, microseconds."""

    compute_us: int = 0
    first_token_us: int = 0


class WorkerEnd(msgspec.Struct, frozen=True):
    """Payload of END."""

    usage: Usage = Usage()
    timings: Timings = Timings()


_decode_head: Final = msgspec.json.Decoder(WorkerHead).decode
_decode_end: Final = msgspec.json.Decoder(WorkerEnd).decode


def wait_limit_s(head: Head, route_s: float) -> float:
    """How long a request may wait for a worker: the endpoint's limit, lowered by what the caller says it can wait."""
    limit = min(WAIT_S_MAX, route_s)
    asked = _seconds(head.headers.get("x-nanopod-wait-s"))
    if asked is not None:
        limit = min(limit, asked)
    patience = _seconds(head.headers.get("x-stainless-read-timeout"))
    if patience is not None:
        # Answer before the client gives up by itself, so that it hears why.
        limit = min(limit, patience - min(10.0, patience / 2))
    return limit


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text else -1.0
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None


class Request(Job):
    """A request on its way. The connection's exchange and the pool's job at once."""

    __slots__ = (
        "_began", "_body", "_body_parts", "_body_size", "_comment_at", "_compute_us", "_created", "_data_seen", "_deadline",
        "_delivered", "_events", "_failures", "_fingerprint", "_first_at", "_generation", "_gw", "_head", "_held",
        "_instance_id", "_key", "_kind", "_last_at", "_moves", "_outputs", "_owed", "_parked_s", "_parked_since",
        "_progress_at", "_prompt_ids", "_response_id", "_revision_id", "_seed", "_sse", "_state", "_status",
        "_tries", "_wait_deadline", "_wishes", "_worker_headers", "arrival", "connection", "record_id", "shown_id",
    )  # fmt: skip

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
        self._tries = 0
        self._moves = 0
        self._failures = 0
        self._status = 0
        self._worker_headers: dict[str, str] = {}
        self._prompt_ids: bytes = b""
        self._outputs: list[array[int]] = []
        self._held: list[bytes] = []
        self._data_seen: set[bytes] = set()
        self._body_parts: list[bytes] = []
        self._body_size = 0
        self._owed = 0
        self._compute_us = 0
        self._events: Events | None = None
        self._first_at = 0.0
        self._last_at = gateway.now
        self._progress_at = 0.0
        self._instance_id = ""
        self._revision_id = pool.route.revision_id
        self._seed = wishes.seed if wishes.seed is not None else random.getrandbits(63)
        self._response_id = ("cmpl-" if kind == "completion" else "chatcmpl-") + self.record_id[4:]
        self._created = int(self.arrival)
        self._fingerprint = "fp_" + pool.route.revision_id[-12:]
        self._parked_since = gateway.now
        self._parked_s = 0.0
        self._comment_at = gateway.now + COMMENT_S
        self._wait_deadline = gateway.now + wait_limit_s(head, pool.route.wait_s_max)
        self._deadline = 0.0

    # --- on the way to a worker ---

    def start(self) -> None:
        """Send it off, or park it."""
        connection = self.connection
        assert connection is not None, "a request starts with its caller present"
        if self.pool.full(self.bytes_held):
            raise heads.overloaded("too many requests wait for this model; try again in a few seconds")
        connection.exchange = self
        self.pool.enter(_WORKLOAD)
        self._submit()

    def _submit(self) -> None:
        if not self.pool.submit(self) and self._state != DONE:
            self._parked_since = self._gw.now
            self._gw.wheel.by(self, min(self._comment_at, self._wait_deadline))

    def fits(self, link: WorkerLink) -> bool:
        """A started answer continues on the same revision and an exact engine only."""
        if self._delivered:
            return link.continuation == "exact" and link.revision_id == self._revision_id
        return True

    def dispatch(self, link: WorkerLink) -> None:
        """OPEN on a worker's link."""
        now = self._gw.now
        if self.epoch == 0:
            if not self._deadline:
                self._deadline = now + self.pool.route.timeout_s
            self._parked_s = now - self._parked_since
        self.epoch += 1
        self._state = OPENED
        self._last_at = self._progress_at = now
        if not self._delivered and (
            self._sse_wanted or link.continuation != "exact" or link.revision_id != self._revision_id
        ):
            # Nothing of an earlier try was seen by anyone: this worker starts from the beginning. Of an answer that is
            # not streamed the ids so far are kept, which saves making them again.
            self._outputs, self._prompt_ids = [], b""
        self._instance_id = link.instance_id
        self._revision_id = link.revision_id
        self._held, self._body_parts, self._body_size = [], [], 0
        self._owed = 0
        require = self._head.headers.get("x-nanopod-require-continuation")
        if require == "exact" and self._sse and link.continuation != "exact":
            self.pool.in_flight -= 1
            self._fail(heads.invalid("invalid_value", "this model's engine cannot continue streams exactly", status=422))
            return
        body = self._body
        if link.engine == "command" and self._sse:
            self._events = Events(drop_usage=not self._wishes.include_usage)
            if not self._wishes.include_usage:
                body = with_usage(body)
        head = self._open_head()
        if len(body) <= _OPEN_BODY_BYTES:
            link.open(self, head, body)
        else:
            stream = link.open(self, head, body[:_OPEN_BODY_BYTES], end=False)
            step = frames.FRAME_BYTES_MAX
            for at in range(_OPEN_BODY_BYTES, len(body), step):
                link.data(stream, body[at : at + step], end=at + step >= len(body))
        self._gw.wheel.by(self, min(self._deadline, now + TOKEN_GAP_S_MAX))

    def _open_head(self) -> bytes:
        given = self._head.headers
        attempt: dict[str, Any] = {
            "request_id": self.record_id,
            "epoch": self.epoch,
            "response_id": self._response_id,
            "created": self._created,
            "system_fingerprint": self._fingerprint,
            "seed": self._seed,
        }
        if self._prompt_ids:
            attempt["prompt_ids"] = msgspec.Raw(self._prompt_ids)
        if any(self._outputs):
            attempt["choices"] = [ids.tolist() for ids in self._outputs]
        headers = {
            "content-type": given.get("content-type", "application/json"),
            "x-request-id": self.shown_id,
            "x-nanopod-account": self._key.workspace_id,
        }
        if "accept" in given:
            headers["accept"] = given["accept"]
        timeout_s = max(0.1, self._deadline - self._gw.now)
        return _json(
            {"k": "http", "method": "POST", "path": self._head.path, "headers": headers, "timeout_s": timeout_s,
             "attempt": attempt}
        )  # fmt: skip

    # --- frames of the worker ---

    def on_frame(self, kind: int, flags: int, epoch: int, payload: bytes) -> None:
        """HEAD, TOKENS, DATA, END or RESET of the present attempt."""
        gw = self._gw
        self._last_at = gw.now
        if kind == frames.TOKENS:
            self._on_tokens(epoch, payload)
        elif kind == frames.DATA:
            self._owed += len(payload)
            self._on_data(payload)
        elif kind == frames.HEAD:
            self._on_head(flags, payload)
        elif kind == frames.END:
            self._on_end(payload)
            return
        elif kind == frames.RESET:
            self._on_reset(*frames.unpack_reset(payload))
            return
        elif not flags & frames.FLAG_OPTIONAL:
            raise frames.ProtocolError(f"frame {kind} does not belong on a stream")
        if self._owed >= CREDIT_BYTES:
            self._give_credit()

    def _give_credit(self) -> None:
        connection, link = self.connection, self.link
        if link is not None and connection is not None and not connection.paused:
            link.window(self.stream, self._owed)
            self._owed = 0

    def _on_head(self, flags: int, payload: bytes) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        head = _decode_head(payload)
        status = head.status
        if status >= 500 and not self._delivered and self._generation and not self._failures:
            self._failures += 1
            link.reset(self, frames.CANCELLED, "the worker failed; another one is tried")
            self._again()
            return
        self._state = STREAMING
        prompt_ids = bytes(head.prompt_ids)
        if prompt_ids and prompt_ids != b"null":
            self._prompt_ids = prompt_ids
        if self._began:
            # Comments (or an earlier attempt) have sent the head already.
            if status >= 400 or not flags & frames.FLAG_END:
                self._sse_error_pending(status)
            return
        self._status = status
        self._worker_headers = head.headers
        if not flags & frames.FLAG_END or not 200 <= status < 300:
            self._sse = False
            return
        self._sse = True
        self._begin_stream(head.headers.get("content-type", "text/event-stream; charset=utf-8"), link.continuation)

    def _sse_error_pending(self, status: int) -> None:
        """A whole body comes where a stream has begun: it will be told as an event."""
        self._status = status
        self._sse = False

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

    def _on_tokens(self, epoch: int, payload: bytes) -> None:
        gw = self._gw
        if len(payload) < 7:
            raise frames.ProtocolError("TOKENS is too short")
        choice, first, count = _TOKENS(payload)
        end = 7 + 4 * count
        if end > len(payload) or choice >= 128:
            raise frames.ProtocolError("TOKENS holds fewer ids than it says")
        self._owed += len(payload)
        outputs = self._outputs
        while choice >= len(outputs):
            outputs.append(array("I"))
        ids = outputs[choice]
        if epoch != self.epoch & 0xFFFF or first < len(ids):
            gw.counters["tokens_fenced"] += 1
            return
        if first > len(ids):
            self._lost("the worker skipped tokens", reset=True)
            return
        sse = payload[end:]
        if not count and sse:
            self._on_data(sse)
            return
        if sys.byteorder == "little":
            ids.frombytes(payload[7:end])
        else:
            ids.extend(frames.unpack_tokens(payload)[2])
        if not self._first_at:
            self._first_at = time.time()
        if sse and self._sse:
            if self._held:
                self._deliver_held()
            self._delivered = True
            connection = self.connection
            if connection is not None:
                connection.piece(sse)
        if self._sse and gw.now - self._progress_at >= PROGRESS_S:
            self._progress_at = gw.now
            gw.meter.pending.append(self._record(0, self._counted()))

    def _on_data(self, payload: bytes) -> None:
        """Body bytes that stand for no tokens."""
        if not self._sse:
            self._body_size += len(payload)
            if self._body_size > BODY_BYTES_MAX:
                self._lost_for_good(Failed(502, "server_error", "internal_error", "the worker's answer is too large"))
                return
            self._body_parts.append(payload)
            return
        if self._events is not None:
            for event in self._events.feed(payload):
                if event.startswith(b"data: [DONE]"):
                    self._held.append(event)
                else:
                    self._deliver(event)
        elif self._prompt_ids or self._outputs:
            # An exact engine: what stands for no tokens goes out with what follows it, and only once, even when the
            # next worker says it again.
            if payload not in self._data_seen:
                self._held.append(payload)
        elif b"[DONE]" in payload:
            self._held.append(payload)
        else:
            self._deliver(payload)

    def _deliver(self, data: bytes) -> None:
        self._delivered = True
        if not self._first_at:
            self._first_at = time.time()
        if self.connection is not None:
            self.connection.piece(data)

    def _deliver_held(self) -> None:
        held, self._held = self._held, []
        for data in held:
            self._data_seen.add(data)
            if self.connection is not None:
                self.connection.piece(data)
        self._delivered = True

    def _on_end(self, payload: bytes) -> None:
        end = _decode_end(payload)
        link = self.link
        assert link is not None, "frames come by a link"
        link.close_stream(self)
        usage = end.usage
        if self._events is not None and not usage.completion_tokens and not usage.prompt_tokens:
            usage = Usage(*self._events.usage)
        self._compute_us += end.timings.compute_us
        connection = self.connection
        if connection is None:
            return
        if not self._sse and self._began:
            self._end_as_event(b"".join(self._body_parts))
            return
        if not self._status:
            self._lost_for_good(Failed(502, "server_error", "internal_error", "the worker ended without an answer"))
            return
        self._gw.meter.pending.append(self._record(self._status, usage))
        self._close()
        if self._sse:
            if self._events is not None:
                rest = self._events.rest()
                if rest:
                    connection.piece(rest)
            self._deliver_held()
            connection.finish()
            return
        headers = self._worker_headers
        extra = self._extra(link.continuation)
        for name in ("retry-after", "x-should-retry"):
            if name in headers:
                extra += f"{name}: {headers[name]}\r\n"
        body = b"".join(self._body_parts) if len(self._body_parts) != 1 else self._body_parts[0]
        connection.respond(self._status, body, content_type=headers.get("content-type", "application/json"), extra=extra)

    def _end_as_event(self, body: bytes) -> None:
        """A worker's error for a caller whose stream has begun: the same body, as an event."""
        try:
            message = msgspec.json.decode(body)["error"]
            event = b"data: " + _json({"error": message}) + b"\n\n"
        except (msgspec.DecodeError, KeyError, TypeError):
            text = f"the worker answered {self._status}"
            event = Failed(502, "server_error", "internal_error", text).event()
        self._gw.meter.pending.append(self._record(self._status or 502, self._counted()))
        self._end_with_event(event)

    def _on_reset(self, code: int, text: str) -> None:
        link = self.link
        assert link is not None, "frames come by a link"
        link.close_stream(self)
        if self._state == DONE:
            return
        if code == frames.REFUSED:
            link.refused()
            self._state = MOVING if self._delivered else PARKED
            self._submit()
        elif code == frames.TOO_LARGE:
            self._lost_for_good(heads.invalid("request_too_large", text or "too large for the worker", status=413))
        elif code == frames.DEADLINE:
            self._lost_for_good(_timeout(self.pool.route.timeout_s))
        elif code == frames.INTERNAL and not self._delivered:
            self._failures += 1
            if self._failures > 1:
                self._lost_for_good(Failed(500, "server_error", "internal_error", text or "the worker failed"))
            else:
                self._again()
        else:
            self._lost(text or frames.RESET_NAMES.get(code, "reset by the worker"))

    # --- moving on ---

    def on_link_lost(self, link: WorkerLink, reason: str) -> None:
        """The worker is gone."""
        if self._state != DONE:
            self._lost(reason)

    def _again(self) -> None:
        """Another worker, from the beginning; nothing of this answer was delivered."""
        self._state = PARKED
        self._submit()

    def _lost(self, reason: str, *, reset: bool = False) -> None:
        """The attempt is over without its end: go on elsewhere, or say so."""
        link = self.link
        exact = bool(self._prompt_ids) or bool(self._outputs)
        if link is not None:
            link.reset(self, frames.FENCED if reset else frames.CANCELLED, reason)
        if not self._delivered:
            self._tries += 1
            if self._tries > TRIES_MAX:
                self._lost_for_good(_interrupted(f"its worker was lost {self._tries} times: {reason}"))
                return
            self._again()
            return
        if not exact or self._events is not None or self._moves >= MOVES_MAX:
            why = "moved too often" if self._moves >= MOVES_MAX and exact else "its engine cannot continue elsewhere"
            self._lost_for_good(_interrupted(f"the stream was interrupted ({reason}); {why}"))
            return
        self._moves += 1
        self._gw.counters["moves"] += 1
        self._state = MOVING
        self._wait_deadline = self._gw.now + min(WAIT_S_MAX, self.pool.route.wait_s_max)
        self._comment_at = self._gw.now + COMMENT_S
        self._submit()

    def move_off(self, reason: str) -> None:
        """The worker will be gone in seconds: continue elsewhere now, if somebody can."""
        link = self.link
        if link is None or self._state != STREAMING or not (self._prompt_ids or self._outputs):
            return
        others = [other for other in self.pool.ready() if other is not link and other.doomed_at is None]
        if any(self.fits(other) and other.has_room(self, self._gw.now) for other in others):
            self._lost(reason)

    def on_route_failed(self) -> None:
        """No worker can start; say what the last one said."""
        failure = self.pool.route.failure
        self.pool.withdraw(self)
        where = f" while it was at `{failure.stage}`" if failure else ""
        text = f"the model cannot start: its worker failed{where}: {failure.message if failure else 'unknown'}"
        self._fail(Failed(502, "server_error", "deployment_failed", text, extra="x-should-retry: false\r\n"))

    def on_timer(self, now: float) -> None:
        """Whatever is due of: comments, the wait limit, the time limit, a silent worker."""
        state = self._state
        if state == DONE:
            return
        if self.link is None:
            if now >= self._wait_deadline:
                self.pool.withdraw(self)
                self._fail(self._wake_timeout())
                return
            if now >= self._comment_at:
                self._comment_at = now + COMMENT_S
                if self._sse_wanted:
                    self._comment()
            self.pool.poke()
            if self.waiting:
                self._gw.wheel.by(self, min(self._comment_at, self._wait_deadline, now + 1.0))
            return
        if now >= self._deadline:
            self.link.reset(self, frames.DEADLINE, "the request ran out of time")
            self._lost_for_good(_timeout(self.pool.route.timeout_s))
            return
        limit = self._silence_s_max()
        quiet = now - self._last_at
        if limit and quiet > limit and not (self.connection and self.connection.paused):
            self._lost(f"no token for {quiet:.0f} s", reset=True)
            return
        due = min(self._deadline, max(self._last_at + limit, now + 1.0) if limit else self._deadline)
        self._gw.wheel.by(self, due)

    def _silence_s_max(self) -> float:
        """How long the worker may say nothing; 0: as long as the request may take."""
        if not self._generation or (self.link is not None and self.link.continuation != "exact"):
            return 0.0
        if self._outputs:
            return TOKEN_GAP_S_MAX
        return FIRST_TOKEN_S_MAX + len(self._body) / 4000

    @property
    def _sse_wanted(self) -> bool:
        return self._wishes.stream and self._generation

    def _comment(self) -> None:
        """Keep a waiting stream alive; the first comment sends the head."""
        if not self._began:
            self._status = 200
            self._begin_stream("text/event-stream; charset=utf-8", None)
        text = " ".join(self.pool.route.phase_text.split()) or "waiting for a worker"
        if self.connection is not None:
            self.connection.piece(f": waking replica, {text}\n\n".encode())

    def _wake_timeout(self) -> Failed:
        text = " ".join(self.pool.route.phase_text.split())
        return Failed(
            504, "server_error", "wake_timeout",
            f"no worker became ready in time{f' ({text})' if text else ''}; it keeps waking while requests come",
            extra="x-should-retry: false\r\n",
        )  # fmt: skip

    # --- ends ---

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

    def body_piece(self, data: bytes, end: bool) -> None:
        """Not used: inference bodies are read whole."""

    def _lost_for_good(self, failed: Failed) -> None:
        link = self.link
        if link is not None:
            link.reset(self, frames.CANCELLED, failed.code)
        if self._delivered:
            self._gw.meter.pending.append(self._record(failed.status, self._counted()))
        self._fail(failed)

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

    # --- metering ---

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


def _timeout(limit_s: float) -> Failed:
    text = f"the request took longer than the endpoint's limit of {limit_s:g} s"
    return Failed(504, "server_error", "timeout", text, extra="x-should-retry: false\r\n")


def _interrupted(text: str) -> Failed:
    return Failed(502, "server_error", "instance_interrupted", text)
