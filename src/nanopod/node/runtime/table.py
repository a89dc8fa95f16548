"""Remote calls that a worker has or had: what makes a call start once, and its result survive a broken link.

Written by the link's thread (new calls), the event loop and pool threads (results): one lock, held for microseconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Final

from nanopod.model import calls
from nanopod.model.registry import CallContext, RegisteredFunction
from nanopod.node.files import TAIL_LINES
from nanopod.node.runtime.connection import Stream

KEPT_S: Final = 600.0
KEPT_BYTES_MAX: Final = 64 << 20
KEPT_CALLS_MAX: Final = 4096
RELEASED_BYTES_MAX: Final = 4096
"""A released result this small is kept a while longer: a caller that lost its gateway may ask again."""
FLUSH_S: Final = 0.05
LIVE_LINES_MAX: Final = 1000
"""Printed lines of one call that are sent along as they come."""

RECEIVING, QUEUED, RUNNING, DONE = "receiving", "queued", "running", "done"
"""`receiving`: not started, and on its way back to the gateway if its link breaks; `queued`: waits for its batch."""


class Call:
    """One remote call."""

    __slots__ = (
        "attempt", "batch", "cancel_at", "cancel_code", "context", "credit", "deadline", "done_at", "end", "final",
        "final_bytes", "flushed_at", "function", "handle", "header", "id", "is_probe", "lines", "live_lines",
        "made_at", "parts", "payload", "raised", "released", "resumed", "run", "size", "started", "state", "stream",
        "workload",
    )  # fmt: skip

    def __init__(self, header: calls.Call, stream: Stream, payload: bytes, now: float, attempt: int = 1) -> None:
        self.id = header.id
        self.header = header
        self.attempt = attempt
        self.stream: Stream | None = stream
        self.payload = payload
        self.parts: list[bytes] = []
        """Payload that came in further frames."""
        self.size = len(payload)
        self.state = RECEIVING
        self.started = False
        """User code ran, or may have."""
        self.function: RegisteredFunction | None = None
        self.run: Any = None
        """What to call: the function itself, or the method of an entered object."""
        self.batch: Any = None
        """The batch it is part of, or waits for."""
        self.is_probe = False
        """Part of a benchmark: no gateway knows of it, nothing of it is kept."""
        self.raised: BaseException | None = None
        """What a probe ended with."""
        self.context: CallContext | None = None
        self.handle: Any = None
        """The task that runs it; None for functions that run in a thread."""
        self.credit = calls.ITEM_WINDOW
        self.resumed: Any = None
        """Set when a generator gets credit."""
        self.deadline = 0.0
        self.cancel_at = 0.0
        """When a cancelled call is answered although it still runs; 0: not cancelled."""
        self.cancel_code = ""
        self.workload: float | None = None
        """Units of load, when the function has a calculator."""
        self.final: list[bytes] = []
        """The call frames that answer it."""
        self.final_bytes = 0
        self.end = b""
        """Payload of END."""
        self.made_at = self.flushed_at = now
        self.done_at = 0.0
        self.released = False
        self.lines: deque[str] | None = None
        self.live_lines = 0

    @property
    def is_generator(self) -> bool:
        """True when it answers with items; such a call cannot change its link."""
        function = self.function
        return function is not None and "generator" in function.spec.kind and not self.header.codec

    def on_line(self, stream: str, line: str) -> None:
        """A line that it printed: kept for errors, and sent along."""
        lines = self.lines
        if lines is None:
            lines = self.lines = deque(maxlen=TAIL_LINES)
        lines.append(line)
        wire = self.stream
        if wire is not None and self.live_lines < LIVE_LINES_MAX and not wire.is_waiting:
            self.live_lines += 1
            wire.data(calls.encode(calls.Log(self.id, stream, line)))
            now = time.monotonic()
            if now - self.flushed_at > FLUSH_S:
                # What is printed in the first moments leaves with the answer, if that comes at once.
                self.flushed_at = now
                wire.connection.flush()

    @property
    def log_tail(self) -> str:
        """Its last lines of output."""
        return "\n".join(self.lines) if self.lines else ""


class Table:
    """Calls by id, and finished ones in the order of finishing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: dict[bytes, Call] = {}
        self._finished: deque[Call] = deque()
        self._bytes = 0

    def finished(self, call: Call, now: float) -> None:
        """Keep a result, and forget the oldest ones beyond the bounds. Under `lock`."""
        call.state, call.done_at = DONE, now
        if call.is_probe:
            return
        finished = self._finished
        finished.append(call)
        self._bytes += call.final_bytes
        while finished and (
            self._bytes > KEPT_BYTES_MAX or len(finished) > KEPT_CALLS_MAX or finished[0].done_at < now - KEPT_S
        ):
            self._forget(finished.popleft())

    def _forget(self, call: Call) -> None:
        self._bytes -= call.final_bytes
        if self.calls.get(call.id) is call:
            del self.calls[call.id]

    def release(self, call_ids: list[bytes]) -> None:
        """The gateway does not need these results any more."""
        with self.lock:
            for call_id in call_ids:
                call = self.calls.get(call_id)
                if call is None or call.released:
                    continue
                call.released = True
                if call.state == RECEIVING or call.final_bytes > RELEASED_BYTES_MAX:
                    self._bytes -= call.final_bytes
                    call.final, call.final_bytes = [], 0
                    del self.calls[call_id]

    def again(self, call: Call) -> Call | None:
        """A new try of a call takes the place of the earlier one that ended; the known one if there is no such place.

        A retry comes under the same id: without this it would be answered with the error that it is the answer to.
        """
        with self.lock:
            known = self.calls.get(call.id)
            if known is not None and not (known.state == DONE and call.attempt > known.attempt):
                return known
            if known is not None:
                self._bytes -= known.final_bytes
                known.final, known.final_bytes, known.released = [], 0, True
            self.calls[call.id] = call
        return None

    def drop(self, call: Call) -> None:
        """Forget a call that never ran."""
        with self.lock:
            if self.calls.get(call.id) is call:
                del self.calls[call.id]

    def held(self) -> list[Call]:
        """Calls that a gateway should hear of: all but released ones and generators."""
        return [call for call in list(self.calls.values()) if not call.released and not call.is_generator]

    def undelivered(self) -> bool:
        """True while a finished call's answer has not been taken by any gateway."""
        return any(call.state == DONE and call.stream is None and not call.released for call in self.held())
