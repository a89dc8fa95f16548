"""One spawned call on its way: what came of its answer so far, and what that answer means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nanopod.model import calls
from nanopod.model.errors import Invalid, NanopodError, WorkerLost
from nanopod.server.calls import wire
from nanopod.server.calls.tail import Tail
from nanopod.store.calls import Status

RESULT_BYTES_MAX: Final = calls.INLINE_BYTES_MAX
"""All items of a generator together."""
CREDIT_STEP: Final = calls.ITEM_WINDOW // 2
RETRIED: Final = frozenset({"service_unavailable", "too_many_requests"})
"""What the gateway refuses for the moment; a call that never started is sent again."""


@dataclass(slots=True)
class Answer:
    """The end of a call: the frames that answer it, and what its row says."""

    status: Status
    frames: list[bytes]
    run_us: int = 0
    cost_micro: int = 0
    attempt: int = 1
    error_type: str = ""
    error_code: str = ""
    error_message: str = ""


@dataclass(slots=True, eq=False)
class Flight:
    """A call that was given to the gateway and has no answer yet."""

    id: bytes
    workspace_id: str
    endpoint_id: str
    tail: Tail
    started_at: float | None = None
    worker: str = ""
    attempt: int = 1
    withdrawn: bool = False
    only_asked: bool = False
    """Nobody can tell whether it ran, should the gateway not know it: it may be asked for, not started."""
    refusals: int = 0
    patient_until: float = 0.0
    """Until then an answer that there is no such endpoint is not believed (loop time)."""
    answer: Answer | None = None
    _items: list[bytes] = field(default_factory=list)
    _next: int = 0
    _bytes: int = 0
    _head: calls.Result | calls.Error | calls.Item | None = None
    _parts: list[bytes] = field(default_factory=list)
    _missing: int = 0

    @property
    def text(self) -> str:
        """Its id as text."""
        return wire.text_of(self.id)

    @property
    def items(self) -> int:
        """Items of a generator that are here."""
        return self._next

    def restart(self) -> None:
        """The connection is another one: an answer that was cut off comes again from its beginning."""
        self._head, self._parts, self._missing = None, [], 0

    def take(self, header: calls.Header, payload: bytes) -> calls.Result | calls.Error | calls.Item | calls.End | None:
        """A frame of the answer. The header of what it completes, or None; `answer` is set at the end."""
        if isinstance(header, calls.Part):
            if self._head is None:
                return None
            self._parts.append(payload)
            self._missing -= len(payload)
            if self._missing > 0:
                return None
            header, payload = self._head, b"".join(self._parts)
            self.restart()
        elif isinstance(header, calls.Result | calls.Error | calls.Item) and header.size > len(payload):
            self._head, self._parts, self._missing = header, [payload], header.size - len(payload)
            return None
        if isinstance(header, calls.Item):
            return self._item(header, payload)
        if isinstance(header, calls.Result):
            self._finish("succeeded", [calls.encode(header, payload)], header.usage)
            return header
        if isinstance(header, calls.End):
            self._finish("succeeded", [*self._items, calls.encode(header)], header.usage)
            return header
        if isinstance(header, calls.Error):
            self._failed(header, payload)
            return header
        return None

    def fail(self, error: NanopodError, started: bool | None = None) -> None:
        """End the call with an error of the server's own."""
        self._failed(calls.Error(self.id, error.code, error.message, started=started, attempt=self.attempt), b"")

    def _item(self, header: calls.Item, payload: bytes) -> calls.Item | None:
        if header.index < self._next:
            return None  # it came before, on an earlier connection
        if header.index > self._next:
            self.fail(WorkerLost(f"item {self._next} of the generator was lost on the way", started=True), True)
            return header
        self._next += 1
        self._bytes += len(payload)
        if self._bytes > RESULT_BYTES_MAX:
            limit = RESULT_BYTES_MAX >> 20
            self.fail(Invalid(f"the generator's items take more than {limit} MiB; yield names of files instead"), True)
            return header
        self._items.append(calls.encode(header, payload))
        return header

    def _failed(self, header: calls.Error, payload: bytes) -> None:
        status: Status = "cancelled" if header.code == "cancelled" else "failed"
        self._finish(status, [*self._items, calls.encode(header, payload)], header.usage)
        assert self.answer is not None
        self.answer.error_code = header.code or "remote_error"
        self.answer.error_type = header.types[0] if header.types else ""
        self.answer.error_message = header.message
        self.answer.attempt = max(self.attempt, header.attempt)

    def _finish(self, status: Status, frames: list[bytes], usage: calls.Usage | None) -> None:
        if self.answer is not None:
            return
        run_us, cost = (usage.run_us, usage.cost_micro) if usage is not None else (0, 0)
        self.answer = Answer(status, frames, run_us, cost, self.attempt)
