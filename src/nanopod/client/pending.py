"""Calls that wait for their answer: one future for a value, a bounded queue of items for a generator."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from nanopod.model import calls, codec
from nanopod.model.errors import (
    Cancelled,
    DeploymentFailed,
    NanopodError,
    RemoteError,
    SerializationError,
    WorkerLost,
    by_code,
)

OnState = Callable[[calls.State], None]
CREDIT_STEP = calls.ITEM_WINDOW // 2
"""After how many taken items the worker is told that it may send as many more."""


class Pending:
    """A call whose answer is not complete. `frames` are kept to send them again on another connection."""

    __slots__ = (
        "deadline", "expected", "frames", "function", "future", "head", "id", "limit_s", "module", "on_state", "parts",
        "patient_until", "started",
    )  # fmt: skip

    def __init__(self, header: calls.Frame, frames: list[bytes], deadline: float, module: str) -> None:
        self.id = header.id
        self.function: str = getattr(header, "function", "")
        self.frames = frames
        self.deadline = deadline
        self.limit_s = deadline - time.monotonic()
        """How long a try may take, in seconds."""
        self.module = module
        self.patient_until = 0.0
        """Until then an answer that the endpoint does not exist is not believed: its gateway may not know it yet."""
        self.started = False
        self.on_state: OnState | None = None
        self.future: asyncio.Future[bytes] | None = None
        self.head: calls.Result | calls.Error | calls.Item | None = None
        self.parts: list[bytes] = []
        self.expected = 0

    def whole(self, header: calls.Result | calls.Error | calls.Item, payload: bytes) -> bool:
        """Begin a payload; True when it is complete already."""
        if header.size <= len(payload):
            return True
        self.head, self.parts, self.expected = header, [payload], header.size - len(payload)
        return False

    def add(self, payload: bytes) -> tuple[calls.Result | calls.Error | calls.Item, bytes] | None:
        """Go on with a payload; (header, payload) when this part completes it."""
        if self.head is None:
            return None
        self.parts.append(payload)
        self.expected -= len(payload)
        if self.expected > 0:
            return None
        done = (self.head, b"".join(self.parts))
        self.forget_parts()
        return done

    def forget_parts(self) -> None:
        """Drop what came of an unfinished payload: it comes again, from its beginning, on the next connection."""
        self.head, self.parts, self.expected = None, [], 0

    def succeed(self, payload: bytes) -> None:
        """The function returned."""
        if self.future is not None and not self.future.done():
            self.future.set_result(payload)

    def fail(self, error: BaseException) -> None:
        """The call failed."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def item(self, header: calls.Item, payload: bytes) -> None:
        """An item of a generator, where a value was awaited."""
        self.fail(RemoteError("the remote function sent items; it is a generator there: iterate over the call"))

    def end(self) -> None:
        """The generator's end, where a value was awaited."""
        self.fail(RemoteError("the remote function is a generator there; iterate over the call"))

    def session(self, header: calls.SessionState) -> None:
        """A session's state, where a value was awaited."""
        self.fail(RemoteError("the gateway answered a call with a session"))


class PendingSession(Pending):
    """A session that is being opened or closed."""

    __slots__ = ("opened",)

    def __init__(self, header: calls.SessionOpen | calls.SessionClose, deadline: float, payload: bytes = b"") -> None:
        super().__init__(header, [calls.encode(header, payload)], deadline, "")
        self.opened: asyncio.Future[calls.SessionState] = asyncio.get_running_loop().create_future()

    def session(self, header: calls.SessionState) -> None:
        """Where it is now."""
        if not self.opened.done():
            self.opened.set_result(header)

    def fail(self, error: BaseException) -> None:
        """It cannot be had."""
        if not self.opened.done():
            self.opened.set_exception(error)


class PendingItems(Pending):
    """A generator's call: items wait here, at most `ITEM_WINDOW` of them, until they are taken."""

    __slots__ = ("_ended", "_error", "_items", "_loop", "_next", "_taken", "_waiter", "give_credit")

    def __init__(self, header: calls.Call, frames: list[bytes], deadline: float, module: str) -> None:
        super().__init__(header, frames, deadline, module)
        self._loop = asyncio.get_running_loop()
        self._items: deque[bytes] = deque()
        self._next = 0
        self._taken = 0
        self._ended = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.give_credit: Callable[[bytes, int], None] | None = None

    @property
    def taken(self) -> int:
        """How many items the caller has."""
        return self._taken

    def item(self, header: calls.Item, payload: bytes) -> None:
        """Queue an item; one that came before (after a reconnection) is dropped."""
        if header.index < self._next:
            return
        if header.index > self._next:
            self.fail(WorkerLost(f"item {self._next} of the generator was lost on the way", started=True))
            return
        self._next += 1
        self._items.append(payload)
        self._wake()

    def end(self) -> None:
        """No more items."""
        self._ended = True
        self._wake()

    def succeed(self, payload: bytes) -> None:
        """A value, where items were awaited."""
        self.fail(RemoteError("the remote function returned a value; it is no generator there: await the call"))

    def fail(self, error: BaseException) -> None:
        """The generator raised; items that came before are taken first."""
        if not self._ended and self._error is None:
            self._error = error
            self._wake()

    async def take(self) -> bytes:
        """The next item's payload. Raises `StopAsyncIteration` at the end, and what the generator raised."""
        while not self._items:
            if self._error is not None:
                error, self._error, self._ended = self._error, None, True
                raise error
            if self._ended:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("another task already waits for this generator's next item")
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._taken += 1
        if self._taken % CREDIT_STEP == 0 and not self._ended and self.give_credit is not None:
            self.give_credit(self.id, CREDIT_STEP)
        return self._items.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def error_of(header: calls.Error, payload: bytes, module: str) -> BaseException:
    """The exception to raise for an Error frame: the remote one, or the one that its code names."""
    error: BaseException
    if payload:
        try:
            error = codec.decode_exception(payload, module=module)
        except SerializationError as problem:
            error = RemoteError(f"{header.message} (its details cannot be read here: {problem.message})")
    else:
        error = _from_code(header)
    if isinstance(error, NanopodError):
        error.call_id, error.attempts = header.id.hex(), header.attempt
        if header.retry_after_s is not None:
            error.retry_after_s = header.retry_after_s
    elif not isinstance(error, Exception):
        # SystemExit, KeyboardInterrupt or CancelledError of the worker must not end or cancel this program.
        name = type(error).__name__
        if name == "CancelledError":
            return Cancelled("the call was cancelled on the worker")
        wrapped = RemoteError(f"{name}: {error}", type_name=name, traceback="\n".join(getattr(error, "__notes__", ())))
        wrapped.__cause__ = error
        return wrapped
    return error


def _from_code(header: calls.Error) -> NanopodError:
    cls = by_code().get(header.code, RemoteError)
    message = header.message or header.code
    if issubclass(cls, DeploymentFailed):
        stage = header.stage or "start"
        text = message if stage in message else f"{message} (stage: {stage})"
        error: NanopodError = cls(text, stage=stage, log_tail=header.log_tail)
    elif issubclass(cls, WorkerLost):
        error = cls(message, started=header.started, preempted="preempt" in message)
    else:
        error = cls(message)
    if header.log_tail:
        error.add_note(f"The last lines of its log:\n{header.log_tail}")
    return error
