"""Calls of one function that run as one batch: the function takes a list for each parameter and returns a list.

A batch leaves when it is full, when its first call has waited long enough, and at once when the function is idle. Calls
that wait have not started: they go back to the gateway when the worker drains, and leave without a trace when they are
cancelled. A call that is cancelled (or out of time) while its batch runs is answered at once and its result dropped;
the function is cancelled only when nobody waits for any part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from nanopod.model import registry
from nanopod.model.errors import Invalid
from nanopod.model.registry import CallContext, RegisteredFunction
from nanopod.node.runtime import output
from nanopod.node.runtime.answers import Answers
from nanopod.node.runtime.running import Running
from nanopod.node.runtime.table import DONE, QUEUED, RUNNING, Call
from nanopod.node.runtime.threads import Threads

Begin = Callable[[Call], None]
_PLACED: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_REST: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Batch:
    """Calls that run together. What it prints belongs to all of them."""

    __slots__ = ("calls", "context", "handle")

    def __init__(self, members: list[Call], context: CallContext) -> None:
        self.calls = members
        self.context = context
        self.handle: asyncio.Task[None] | None = None

    def on_line(self, stream: str, line: str) -> None:
        """A line that the function printed."""
        for call in self.calls:
            if call.state == RUNNING:
                call.on_line(stream, line)

    def withdraw(self) -> None:
        """One of the calls was answered already: when all were, the function need not go on."""
        if all(call.state == DONE for call in self.calls):
            self.context.cancelled = True
            if self.handle is not None:
                self.handle.cancel()


class Batcher:
    """The waiting and running batches of one function. All methods are called on the event loop."""

    def __init__(
        self, function: RegisteredFunction, run: Callable[..., Any], answers: Answers, running: Running,
        threads: Threads, begin: Begin,
    ) -> None:  # fmt: skip
        spec = function.spec
        self._name = spec.name
        self._is_async = spec.kind == "async"
        self._size_max = max(1, spec.batch_max)
        self._wait_s = spec.batch_wait_ms / 1000
        self._at_once_max = max(1, spec.concurrency // self._size_max)
        self._run = run
        self._signature = inspect.signature(run)
        self._answers = answers
        self._running = running
        self._threads = threads
        self._begin = begin
        """Tells that a call starts now."""
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Call] = deque()
        self._batches: set[Batch] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False

    # --- calls that wait ---

    def put(self, call: Call) -> None:
        """Let a call wait for its batch. All that arrive with one read are looked at together."""
        call.state = QUEUED
        call.batch = self
        self._waiting.append(call)
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def take_out(self, call: Call) -> None:
        """The call waits no longer: it was cancelled, or goes back to the gateway."""
        self._waiting.remove(call)
        call.batch = None

    def waiting(self) -> list[Call]:
        """Calls that have not started."""
        return list(self._waiting)

    def _look(self) -> None:
        """Start every batch that is due."""
        self._looking = False
        while self._waiting:
            # A batch whose function waits for a remote call may be waiting for one of ours.
            at_once = sum(1 for batch in self._batches if not batch.context.waits)
            if at_once >= self._at_once_max:
                return
            due = self._waiting[0].made_at + self._wait_s
            now = time.monotonic()
            if at_once and len(self._waiting) < self._size_max and now < due:
                if self._timer is None:
                    self._timer = self._loop.call_later(due - now, self._time)
                return
            self._start([self._waiting.popleft() for _ in range(min(self._size_max, len(self._waiting)))])

    def _time(self) -> None:
        self._timer = None
        self._look()

    # --- a batch ---

    def _start(self, members: list[Call]) -> None:
        first = members[0]
        header = first.header
        context = CallContext(
            first.id.hex(), first.attempt, header.endpoint, self._name, header.timeout_s,
            depth=max(call.header.depth for call in members),
        )  # fmt: skip
        batch = Batch(members, context)
        self._batches.add(batch)
        for call in members:
            call.batch, call.context, call.state = batch, context, RUNNING
            self._begin(call)
        if self._is_async:
            # An empty context: nothing of whoever happened to be running when the batch was due.
            batch.handle = self._loop.create_task(self._coroutine(batch), context=Context())
        else:
            self._threads.run(self._plain, batch)

    async def _coroutine(self, batch: Batch) -> None:
        began = self._enter(batch)
        live: list[Call] = []
        try:
            live, args, kwargs = self._columns(batch)
            results = self._checked(await self._run(*args, **kwargs) if live else [], len(live))
        except BaseException as error:
            self._raised(batch, error, began)
        else:
            self._returned(batch, live, results, began)
        finally:
            self._over(batch)

    def _plain(self, batch: Batch) -> None:
        """On a pool thread."""
        began = self._enter(batch)
        try:
            live, args, kwargs = self._columns(batch)
            results = self._checked(self._run(*args, **kwargs) if live else [], len(live))
        except BaseException as error:
            self._raised(batch, error, began)
        else:
            self._returned(batch, live, results, began)
        finally:
            with contextlib.suppress(RuntimeError):  # the worker ended meanwhile
                self._loop.call_soon_threadsafe(self._over, batch)

    def _enter(self, batch: Batch) -> int:
        registry.current.set(batch.context)
        output.printing.set(batch)
        return time.perf_counter_ns()

    def _columns(self, batch: Batch) -> tuple[list[Call], list[list[Any]], dict[str, list[Any]]]:
        """(calls, positional lists, lists by name); a call whose arguments do not fit is answered and left out."""
        live: list[Call] = []
        rows: list[dict[str, Any]] = []
        for call in batch.calls:
            if call.state != RUNNING:
                continue
            try:
                args, kwargs = self._running.arguments(call)
                bound = self._signature.bind(*args, **kwargs)
                bound.apply_defaults()
                rows.append(self._row(bound.arguments))
            except Exception as error:  # what a caller sent must not spoil the others' batch
                self._answers.failed(call, error, 0)
            else:
                live.append(call)
        placed: list[list[Any]] = []
        named: dict[str, list[Any]] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind in _REST:
                continue
            column = [row[name] for row in rows]
            if parameter.kind in _PLACED:
                placed.append(column)
            else:
                named[name] = column
        return live, placed, named

    def _row(self, arguments: dict[str, Any]) -> dict[str, Any]:
        for name, parameter in self._signature.parameters.items():
            if parameter.kind in _REST and arguments[name]:
                raise Invalid(
                    f"{self._name}() runs in batches, where each parameter is a list: *{name} cannot be one; "
                    "give the parameter a name of its own",
                    field=name,
                )
        return arguments

    def _checked(self, results: Any, count: int) -> Sequence[Any]:
        if not isinstance(results, list | tuple):
            raise TypeError(
                f"{self._name}() runs in batches: it must return a list with one result for each of its {count} calls, "
                f"not {type(results).__qualname__}"
            )
        if len(results) != count:
            raise ValueError(
                f"{self._name}() runs in batches: it was given {count} calls and returned {len(results)} results; "
                "return one for each, in the same order"
            )
        return results

    # --- how it ended ---

    def _returned(self, batch: Batch, live: list[Call], results: Sequence[Any], began: int) -> None:
        output.end_of(batch)
        shares = _shares(began, len(live))
        for call, value, run_us in zip(live, results, shares, strict=True):
            if call.state == DONE:
                continue
            if isinstance(value, Exception):
                self._answers.failed(call, value, run_us)
                continue
            try:
                payload = self._running.values.encode(call.header, value, "result")
            except Exception as error:  # one that cannot travel is that call's error alone
                self._answers.failed(call, error, run_us)
            else:
                # Each has its share of the time, as if they had run one after another.
                self._answers.returned(call, payload, run_us, 1)

    def _raised(self, batch: Batch, error: BaseException, began: int) -> None:
        output.end_of(batch)
        left = [call for call in batch.calls if call.state != DONE]
        for call, run_us in zip(left, _shares(began, len(left)), strict=True):
            if isinstance(error, asyncio.CancelledError):
                self._answers.cancelled(call, error, run_us)
            else:
                self._answers.failed(call, error, run_us)

    def _over(self, batch: Batch) -> None:
        self._batches.discard(batch)
        for call in batch.calls:
            self._answers.active.pop(call.id, None)
        self._look()


def _shares(began: int, count: int) -> list[int]:
    """The microseconds since then in as many equal parts; the sum is exact."""
    whole, rest = divmod((time.perf_counter_ns() - began) // 1000, max(1, count))
    return [whole + (1 if index < rest else 0) for index in range(count)]
