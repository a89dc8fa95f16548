"""Many calls of one function: `f.map(xs)`. Items are read as they are needed, calls leave in batches, results come back
in order or as they are done.

The consumer drives: it reads items, encodes them and hands them over, in its own thread or task; the event loop of the
link only sends and receives. An item costs no task and no future. What arrives with one read of the socket wakes the
consumer once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from nanopod.client import background, calling
from nanopod.client.link import Link
from nanopod.client.pending import Pending
from nanopod.model import calls, registry
from nanopod.model.errors import Invalid, NanopodError

if TYPE_CHECKING:
    from nanopod.client.function import BoundFunction
    from nanopod.client.sdk import Route

R = TypeVar("R")
Pair = tuple[tuple[Any, ...], dict[str, Any]]
Pairs = Iterator[Pair] | AsyncIterator[Pair]
Arrival = tuple[int, bytes, BaseException | None]

SLOTS_S: Final = 5.0
"""How often the deployment is asked how many calls its workers run at once."""
UNASKED_LIMIT: Final = 64
"""Calls in flight when the deployment cannot be asked."""
UNTAKEN_MIN: Final = 1024
"""So many results may always wait for a consumer, or for an earlier item; else four times the calls in flight."""
SLOW_S: Final = 0.001
"""Items that come slower than this are sent one by one."""
LIMIT_MAX: Final = 8192


def each(items: Any, *more: Any) -> Pairs:
    """(args, kwargs) of a call with each item; several iterables go in step, as far as the shortest."""
    if not more and isinstance(items, AsyncIterable):
        return _each_async(items)
    return ((args, {}) for args in zip(*(_checked(rows) for rows in (items, *more)), strict=False))


def spread(items: Any) -> Pairs:
    """(args, kwargs) of a call with the parts of each item."""
    if isinstance(items, AsyncIterable):
        return _spread_async(items)
    return ((tuple(item), {}) for item in _checked(items))


async def _each_async(items: AsyncIterable[Any]) -> AsyncIterator[Pair]:
    async for item in items:
        yield (item,), {}


async def _spread_async(items: AsyncIterable[Any]) -> AsyncIterator[Pair]:
    async for item in items:
        yield tuple(item), {}


def _checked(items: Any) -> Iterable[Any]:
    if not isinstance(items, Iterable):
        raise Invalid(f"map() takes an iterable of items, not {type(items).__name__}", field="items")
    return items


class MappedCall(Pending):
    """One call of many: its answer goes to their sink."""

    __slots__ = ("index", "sink")

    def __init__(self, header: calls.Call, frames: list[bytes], deadline: float, module: str, index: int) -> None:
        super().__init__(header, frames, deadline, module)
        self.index = index
        self.sink: Callable[[MappedCall, bytes, BaseException | None], None] | None = None

    def succeed(self, payload: bytes) -> None:
        """The function returned."""
        if self.sink is not None:
            self.sink(self, payload, None)

    def fail(self, error: BaseException) -> None:
        """The call failed."""
        if self.sink is not None:
            self.sink(self, b"", error)


class Flow:
    """The event loop's half: calls in flight, and what arrived. Counters have one writer each, so threads may read."""

    def __init__(self, link: Link, wake: Callable[[], None]) -> None:
        self.link = link
        self.loop = asyncio.get_running_loop()
        self.arrivals: deque[Arrival] = deque()
        self.arrived = 0
        self._wake = wake
        self._waking = False
        self._running: dict[int, MappedCall] = {}
        self._closed = False

    def begin(self, batch: list[MappedCall]) -> None:
        """Send calls."""
        if self._closed:
            return
        for pending in batch:
            pending.sink = self._sink
            self._running[pending.index] = pending
            self.link.begin(pending)

    def close(self) -> None:
        """Withdraw what is in flight."""
        self._closed = True
        running, self._running = self._running, {}
        for pending in running.values():
            pending.sink = None
            self.link.cancel(pending)

    def woken(self) -> None:
        """Wake the consumer, once for everything that arrives in this turn of the loop."""
        if not self._waking:
            self._waking = True
            self.loop.call_soon(self._wake_now)

    def _sink(self, pending: MappedCall, payload: bytes, error: BaseException | None) -> None:
        self._running.pop(pending.index, None)
        pending.sink = None
        self.arrivals.append((pending.index, payload, error))
        self.arrived += 1
        self.woken()

    def _wake_now(self) -> None:
        self._waking = False
        self._wake()


class Results(Generic[R]):
    """The results of `f.map(...)`: for `for`, and for `async for` where an event loop runs.

    Nothing is sent before the first one is asked for. `close()` (or `aclose()`, the end of a `with`, or dropping the
    iterator, as `break` does) cancels what is in flight. A failed item ends the iteration when it raises.
    """

    _done = True

    def __init__(
        self, function: BoundFunction, pairs: Pairs, *, order: bool = True, return_exceptions: bool = False,
        limit: int | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        if limit is not None and (type(limit) is not int or not 1 <= limit <= LIMIT_MAX):
            raise Invalid(f"concurrency is from 1 to {LIMIT_MAX} calls in flight, not {limit!r}", field="concurrency")
        self._function = function
        self._pairs = pairs
        self._ordered = order
        self._return_exceptions = return_exceptions
        self._asked_limit = limit
        self._limit = limit or 2 * max(1, function.options.concurrency or 1)
        self._progress = progress
        self._bar: Any = None
        self._flow: Flow | None = None
        self._route: Route | None = None
        self._sent = 0
        self._taken = 0
        self._exhausted = False
        self._done = False
        self._is_slow = True
        self._early: dict[int, Arrival] = {}
        self._ready: deque[Arrival] = deque()
        self._event: threading.Event | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._room: asyncio.Event | None = None
        self._asker: asyncio.Task[None] | None = None

    # --- for `for` ---

    def __iter__(self) -> Results[R]:
        return self

    def __next__(self) -> R:
        if self._done:
            raise StopIteration
        if self._flow is None:
            if background.in_loop():
                raise background.BlockingCallInLoop(
                    "this loop would block the event loop that runs here; write: async for ... in "
                    f"{self._function.name}.map(...)"
                )
            self._event = threading.Event()
            background.run(self._begin(self._event.set))
        assert self._flow is not None and self._event is not None, "begun above"
        try:
            while True:
                self._event.clear()
                if self._step():
                    return self._take()
                if self._is_over():
                    self.close()
                    raise StopIteration
                with registry.Waiting():
                    self._event.wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Results[R]:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    # --- for `async for` ---

    def __aiter__(self) -> Results[R]:
        return self

    async def __anext__(self) -> R:
        if self._done:
            raise StopAsyncIteration
        if self._flow is None:
            woken = weakref.WeakMethod(self._wake_waiter)
            await self._begin(lambda: (woken() or _nothing)())
        assert self._flow is not None, "begun above"
        try:
            while True:
                if self._step():
                    return self._take()
                if self._is_over():
                    self.close()
                    raise StopAsyncIteration
                if self._waiter is not None:
                    raise RuntimeError("another task already waits for the next result")
                self._waiter = self._flow.loop.create_future()
                try:
                    with registry.Waiting():
                        await self._waiter
                finally:
                    self._waiter = None
        except BaseException:
            self.close()
            raise

    async def __aenter__(self) -> Results[R]:
        return self

    async def __aexit__(self, *about: object) -> None:
        self.close()

    async def aclose(self) -> None:
        """Cancel what is in flight and end the iteration."""
        self.close()

    def close(self) -> None:
        """The same, from any thread."""
        if self._done:
            return
        self._done = True
        if self._bar is not None:
            self._bar.stop()
        if isinstance(self._pairs, Iterator):
            with contextlib.suppress(ValueError):  # another thread reads from it now
                cast(Any, self._pairs).close()
        flow = self._flow
        if flow is not None and not flow.loop.is_closed():
            flow.loop.call_soon_threadsafe(_end, flow, self._feeder, self._asker)

    def __del__(self) -> None:
        if not self._done and self._flow is not None:
            self.close()

    def _wake_waiter(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the consumer's half ---

    async def _begin(self, wake: Callable[[], None]) -> None:
        function = self._function
        function.check_callable()
        self._route, link = await calling.way(function)
        self._flow = flow = Flow(link, wake)
        if self._asked_limit is None:
            self._asker = flow.loop.create_task(_ask_slots(weakref.ref(self), flow))
        if isinstance(self._pairs, AsyncIterator):
            self._room = asyncio.Event()
            self._feeder = flow.loop.create_task(_feed(weakref.ref(self), flow, self._pairs, self._room))
        if self._progress:
            self._bar = _Bar(function.name)

    def _step(self) -> bool:
        """Sort what arrived, send more if there is room; True when a result can be taken."""
        flow = self._flow
        assert flow is not None, "begun before"
        arrivals, ready = flow.arrivals, self._ready
        while arrivals:
            arrival = arrivals.popleft()
            if not self._ordered:
                ready.append(arrival)
            else:
                self._early[arrival[0]] = arrival
        if self._ordered and not ready:
            at, early = self._taken, self._early
            while (found := early.pop(at, None)) is not None:
                ready.append(found)
                at += 1
        if self._room is not None:
            if not self._room.is_set() and self._has_room(flow):
                flow.loop.call_soon_threadsafe(self._room.set)
        elif not self._exhausted and (not ready or 2 * (self._sent - flow.arrived) <= self._limit):
            # While results wait to be taken, items are read by the half limit at once: it costs less.
            self._fill(flow)
            return bool(ready) or bool(flow.arrivals and self._step())
        return bool(ready)

    def _has_room(self, flow: Flow) -> bool:
        untaken_max = max(UNTAKEN_MIN, 4 * self._limit)
        return self._sent - flow.arrived < self._limit and self._sent - self._taken < untaken_max

    def _fill(self, flow: Flow) -> None:
        """Read items and send them until enough are in flight; not longer than a result has to wait for it."""
        pairs = cast(Iterator[Pair], self._pairs)
        batch: list[MappedCall] = []
        clock = time.perf_counter
        began = clock()
        while self._has_room(flow):
            try:
                pair = next(pairs)
            except StopIteration:
                self._exhausted = True
                break
            except Exception as error:  # whatever the user's iterable raises: at its place
                self._exhausted = True
                self._refused(flow, error)
                break
            made = self._make(flow, pair)
            if made is not None:
                batch.append(made)
            now = clock()
            took_s, began = now - began, now
            was_slow, self._is_slow = self._is_slow, took_s > SLOW_S
            if was_slow or self._is_slow:
                self._send(flow, batch)
                batch = []
                if self._ready or flow.arrivals:
                    return
        self._send(flow, batch)

    def _make(self, flow: Flow, pair: Pair) -> MappedCall | None:
        """The call of one item; one that cannot be made is a failed item."""
        function, route = self._function, self._route
        assert route is not None, "begun before"
        try:
            args, kwargs = function.bind(*pair)
            payload = calling.encoded(function, args, kwargs)
            header = calling.header_of(function, route, flow.link.new_id(), args, kwargs)
            frames, deadline = flow.link.prepared(header, payload)
        except Exception as error:  # a wrong argument, or one that cannot travel
            self._refused(flow, error)
            return None
        made = MappedCall(header, frames, deadline, function.module, self._sent)
        patience_s = route.patient_until - time.monotonic()
        if patience_s > 0.0:
            made.patient_until = flow.loop.time() + patience_s
        self._sent += 1
        return made

    def _refused(self, flow: Flow, error: Exception) -> None:
        index = self._sent
        self._sent += 1

        def arrive() -> None:
            flow.arrivals.append((index, b"", error))
            flow.arrived += 1
            flow.woken()

        flow.loop.call_soon_threadsafe(arrive)

    def _send(self, flow: Flow, batch: list[MappedCall]) -> None:
        if not batch:
            return
        if self._event is None or self._feeder is not None:
            flow.begin(batch)
        else:
            flow.loop.call_soon_threadsafe(flow.begin, batch)

    def _take(self) -> R:
        _, payload, error = self._ready.popleft()
        self._taken += 1
        if self._bar is not None:
            self._bar.advance(failed=error is not None)
        if error is None:
            try:
                value: R = calling.decoded(self._function, payload)
                return value
            except NanopodError as problem:
                error = problem
        if self._return_exceptions and isinstance(error, Exception):
            return cast(R, error)
        raise error

    def _is_over(self) -> bool:
        return self._exhausted and self._taken == self._sent


# --- beside the iterator; none of these keeps it, so that dropping it ends them ---


def _nothing() -> None:
    """For whoever is gone."""


def _end(flow: Flow, *tasks: asyncio.Task[None] | None) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()
    flow.close()


async def _feed(ref: weakref.ref[Results[Any]], flow: Flow, pairs: AsyncIterator[Pair], room: asyncio.Event) -> None:
    """Read an asynchronous iterable as far as there is room."""
    try:
        async for pair in pairs:
            while (results := ref()) is not None and not results._has_room(flow):
                room.clear()
                if not results._has_room(flow):
                    del results
                    await room.wait()
            if results is None:
                return
            made = results._make(flow, pair)
            if made is not None:
                results._send(flow, [made])
            del results
    except Exception as error:  # whatever the user's iterable raises: at its place
        if (results := ref()) is not None:
            results._refused(flow, error)
    if (results := ref()) is not None:
        results._exhausted = True
    flow.woken()


async def _ask_slots(ref: weakref.ref[Results[Any]], flow: Flow) -> None:
    """Keep twice as many calls in flight as the workers can run."""
    from nanopod.client import figures

    while (results := ref()) is not None:
        function, limit = results._function, results._limit
        del results
        try:
            found = await asyncio.to_thread(figures.stats, function.app, function.name)
            at_once = min(int(found["slots"]), found["ready"] * int(found["function"]["concurrency"]))
            limit = min(LIMIT_MAX, 2 * at_once) if at_once else limit
        except (NanopodError, AssertionError, KeyError):
            limit = max(limit, UNASKED_LIMIT)
        if (results := ref()) is None:
            return
        results._limit = limit
        if results._room is not None:
            results._room.set()
        del results
        flow.woken()
        await asyncio.sleep(SLOTS_S)


class _Bar:
    """A line with how many are done."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # What a program prints may be piped elsewhere; the bar is for whoever sits at the terminal.
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(name, total=None)
        self._name = name
        self._failed = 0
        self._bar.start()

    def advance(self, *, failed: bool) -> None:
        """One more is done."""
        self._failed += failed
        text = f"{self._name} ({self._failed} failed)" if self._failed else self._name
        self._bar.update(self._task, advance=1, description=text)

    def stop(self) -> None:
        """The line stays as it is."""
        self._bar.stop()
