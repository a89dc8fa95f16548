"""One inference request: to a worker, back to the caller, and on to another worker when the first one dies.

```
reading -> parked -> opened -> streaming -> done | failed | cancelled
             ^---------+-- moving <--+            (moving: as parked, but the answer has begun)
```
Output ids are kept per choice. When a worker is lost in mid-stream and engines promise `exact`, the next worker gets
the prompt's ids and the output so far, and the caller's response goes on with the very next byte.
"""

from __future__ import annotations

import sys
import time
from array import array
from struct import Struct
from typing import Final

import msgspec

from nanopod.gateway import heads
from nanopod.gateway.asked import COMMENT_S, DONE, MOVING, OPENED, PARKED, STREAMING, WAIT_S_MAX, Asked, Usage
from nanopod.gateway.foreign import Events, with_usage
from nanopod.gateway.heads import Failed
from nanopod.gateway.links import CREDIT_BYTES, WINDOW_BYTES, WorkerLink
from nanopod.model import frames, unreadable

TRIES_MAX: Final = 3
MOVES_MAX: Final = 3
TOKEN_GAP_S_MAX: Final = 15.0
FIRST_TOKEN_S_MAX: Final = 60.0
PROGRESS_S: Final = 0.2
DOOMED_S: Final = 3.0
BODY_BYTES_MAX: Final = 32 << 20
HEAD_BYTES_MAX: Final = 65_535
_OPEN_BODY_BYTES: Final = frames.FRAME_BYTES_MAX - 65_536 - 2
_TOKENS: Final = Struct(">BIH").unpack_from
_json: Final = msgspec.json.Encoder().encode


class WorkerHead(msgspec.Struct, frozen=True):
    """Payload of HEAD."""

    status: int = 200
    headers: dict[str, str] = {}
    prompt_ids: msgspec.Raw = msgspec.Raw()


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


class Request(Asked):
    """A request as its workers see it: dispatch, their frames, and the way from a lost worker to the next one."""

    __slots__ = ()

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
        else:
            self._begin_anew(link)
        self.epoch += 1
        self._state = OPENED
        self._last_at = self._progress_at = now
        self._instance_id = link.instance_id
        self._revision_id = link.revision_id
        if (
            self._sse
            and link.continuation != "exact"
            and self._head.headers.get("x-nanopod-require-continuation") == "exact"
        ):
            self.pool.in_flight -= 1
            text = "this model's engine cannot continue streams exactly"
            self._fail(heads.invalid("invalid_value", text, status=422))
            return
        body = self._body
        if link.engine == "command" and self._sse:
            self._events = Events(drop_usage=not self._wishes.include_usage)
            if not self._wishes.include_usage:
                body = with_usage(body)
        head = self._open_head()
        if len(head) > HEAD_BYTES_MAX:
            self.pool.in_flight -= 1
            self._lost_for_good(_interrupted("the answer is too long already to be continued on another worker"))
            return
        if len(body) <= _OPEN_BODY_BYTES:
            link.open(self, head, body)
        else:
            stream = link.open(self, head, body[:_OPEN_BODY_BYTES], end=False)
            step = frames.FRAME_BYTES_MAX
            for at in range(_OPEN_BODY_BYTES, len(body), step):
                link.data(stream, body[at : at + step], end=at + step >= len(body))
        self._gw.wheel.by(self, min(self._deadline, now + TOKEN_GAP_S_MAX))

    def _begin_anew(self, link: WorkerLink) -> None:
        """Forget what belongs to the try before this one."""
        if not self._delivered and (
            self._sse_wanted or link.continuation != "exact" or link.revision_id != self._revision_id
        ):
            # Nothing of an earlier try was seen by anyone: this worker starts from the beginning. Of an answer that is
            # not streamed the ids so far are kept, which saves making them again.
            self._outputs, self._prompt_ids = [], b""
        self._held, self._body_parts, self._body_size = [], [], 0
        self._owed = 0

    def _open_head(self) -> bytes:
        """The head of OPEN. What all requests with this head begin with is written once; the rest are numbers, and ids
        that need no escapes."""
        opening = self._head.opening
        if opening is None or opening[0] is not type(self) or opening[1] != self._key.workspace_id:
            opening = self._head.opening = self._open_common()
        shown = self.shown_id
        shown = f'"{shown}"' if shown is self.record_id else _json(shown).decode()
        response_id = ("cmpl-" if self._kind == "completion" else "chatcmpl-") + self.record_id[4:]
        timeout_s = max(0.1, self._deadline - self._gw.now)
        head = (
            opening[2]
            + (
                f'"x-request-id":{shown}}},"timeout_s":{timeout_s},"attempt":{{"request_id":"{self.record_id}",'
                f'"epoch":{self.epoch},"response_id":"{response_id}","created":{int(self.arrival)},'
                f'"system_fingerprint":"{self._fingerprint}","seed":{self._seed}'
            ).encode()
        )
        if self._prompt_ids:
            head += b',"prompt_ids":' + self._prompt_ids
        if any(self._outputs):
            head += b',"choices":' + _json([ids.tolist() for ids in self._outputs])
        return head + b"}}"

    def _open_common(self) -> tuple[type, str, bytes]:
        account = self._key.workspace_id
        headers = {**self._open_headers(), "x-nanopod-account": account}
        begin = _json({"k": "http", "method": self._head.method, "path": self._open_path(), "headers": headers})
        return type(self), account, begin[:-2] + b","

    def _open_path(self) -> str:
        """The path for the worker, with its query where that matters."""
        return self._head.path

    def _open_headers(self) -> dict[str, str]:
        """The caller's headers that the worker gets, but for those that this gateway sets."""
        given = self._head.headers
        headers = {"content-type": given.get("content-type", "application/json")}
        if "accept" in given:
            headers["accept"] = given["accept"]
        return headers

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
            if self._owed > WINDOW_BYTES + frames.FRAME_BYTES_MAX:
                self._lost("the worker sent more than it was allowed", reset=True)
                return
            self._give_credit()

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
        self._status = status = status if 200 <= status <= 599 else 502
        self._worker_headers = headers = heads.fit(head.headers)
        if not flags & frames.FLAG_END or not 200 <= status < 300:
            self._sse = False
            return
        self._sse = True
        self._begin_stream(headers.get("content-type", "text/event-stream; charset=utf-8"), link.continuation)

    def _sse_error_pending(self, status: int) -> None:
        """A whole body comes where a stream has begun: it will be told as an event."""
        self._status = status
        self._sse = False

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
            try:
                events = self._events.feed(payload)
            except ValueError as error:
                self._lost_for_good(Failed(502, "server_error", "internal_error", str(error)))
                return
            for event in events:
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
        self._data_seen = self._data_seen.union(held)
        for data in held:
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
        if self._status >= 400:
            self.pool.ends.ended(self._revision_id, self._status >= 500)
        else:
            took_s = self._gw.now - self.opened_at
            tokens = usage.prompt_tokens, usage.completion_tokens
            self.pool.ends.served(self._revision_id, self.workload, took_s, *tokens)
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
        extra = self._extra(link.continuation) + self._worker_lines()
        body = b"".join(self._body_parts) if len(self._body_parts) != 1 else self._body_parts[0]
        content_type = headers.get("content-type", "application/json")
        connection.respond(self._status, body, content_type=content_type, extra=extra)

    def _worker_lines(self) -> str:
        """Header lines of the worker's answer that the caller gets besides its content type."""
        headers, lines = self._worker_headers, ""
        for name in ("retry-after", "x-should-retry"):
            if name in headers:
                lines += f"{name}: {headers[name]}\r\n"
        return lines

    def _end_as_event(self, body: bytes) -> None:
        """A worker's error for a caller whose stream has begun: the same body, as an event."""
        try:
            message = msgspec.json.decode(body)["error"]
            event = b"data: " + _json({"error": message}) + b"\n\n"
        except (*unreadable.JSON, KeyError, TypeError):
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

    def on_timer(self, now: float) -> None:
        """Whatever is due of: comments, the wait limit, the time limit, a silent worker."""
        state = self._state
        if state == DONE:
            return
        if self.link is None:
            self._on_wait_timer(now)
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

    def _lost_for_good(self, failed: Failed) -> None:
        link = self.link
        self.pool.ends.ended(self._revision_id, failed.status >= 500)
        if link is not None:
            link.reset(self, frames.CANCELLED, failed.code)
        if self._delivered:
            self._gw.meter.pending.append(self._record(failed.status, self._counted()))
        self._fail(failed)


def _timeout(limit_s: float) -> Failed:
    text = f"the request took longer than the endpoint's limit of {limit_s:g} s"
    return Failed(504, "server_error", "timeout", text, extra="x-should-retry: false\r\n")


def _interrupted(text: str) -> Failed:
    return Failed(502, "server_error", "instance_interrupted", text)
