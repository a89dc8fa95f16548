"""Runs remote calls: each once, with its timeout, its cancellation, its output, and an answer that outlives a link.

The event loop of this module is the user's: asynchronous functions run on it, synchronous ones on threads. A call costs
one task; what a batch of calls produces leaves with one write.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from nanopod.model import frames, registry
from nanopod.model.errors import CallTimeout, Cancelled, NotFound, WorkerLost
from nanopod.model.registry import RegisteredFunction
from nanopod.node.runtime.answers import Answers
from nanopod.node.runtime.batching import Batch, Batcher
from nanopod.node.runtime.connection import Stream
from nanopod.node.runtime.running import Running
from nanopod.node.runtime.table import DONE, QUEUED, RECEIVING, RUNNING, Call, Table
from nanopod.node.runtime.threads import Threads
from nanopod.node.runtime.values import Values, async_collected, collected
from nanopod.node.runtime.waiting import until

SWEEP_S: Final = 0.1
CANCEL_S_MAX: Final = 5.0
"""A cancelled function has so long to end; then its call is answered without it."""
INCOMPLETE_S_MAX: Final = 60.0
"""A call whose payload never came is forgotten after so long."""

_HEAD: Final = frames.HEAD


class Executor:
    """The calls of one worker. Methods without a remark are called on the event loop."""

    def __init__(self, module: str, slots: int, serializer: str = "native") -> None:
        self.table = Table()
        values = Values(module, serializer)
        self.answers = Answers(self.table, values)
        self.active = self.answers.active
        """Calls whose function runs or waits for its batch, those included that were answered without it."""
        self.app = registry.App("")
        self.draining = True
        """Takes no calls: before it is ready, and when it drains."""
        self.on_stuck: Callable[[Call], None] = lambda call: None
        """Told of a cancelled call of a `kill_on_cancel` function that did not end in time."""
        self.on_sweep: Callable[[], None] = lambda: None
        """Called a few times a second while calls run."""
        self._running = Running(values, self.table, self.answers)
        self._slots = slots
        self._threads = Threads()
        self._callables: dict[str, Callable[..., Any]] = {}
        self._batchers: dict[str, Batcher] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun: list[Stream] = []
        self._sweeping = False

    def attach(self, loop: asyncio.AbstractEventLoop, app: registry.App) -> None:
        """Run the functions of `app` on `loop` from now on."""
        self._loop = loop
        self.app = app
        self.answers.attach(loop)
        self._running.attach(loop, app)

    # --- new calls ---

    def start(self, call: Call) -> None:
        """Run a complete call, or hand it back when there is no room for it."""
        if call.state != RECEIVING:
            return
        if self.draining or (len(self.active) >= self._slots and self._occupied() >= self._slots):
            self.hand_back(call, "draining" if self.draining else "no free slot")
            return
        self.admit(call)

    def _occupied(self) -> int:
        """Calls that take a slot: one that waits for a remote call of its own lends its slot meanwhile."""
        return sum(1 for call in self.active.values() if call.context is None or not call.context.waits)

    def admit(self, call: Call) -> None:
        """Run a complete call, whether there is room or not."""
        header = call.header
        function = self.app.functions.get(header.function)
        if function is None:
            known = ", ".join(sorted(self.app.functions)) or "none"
            error = NotFound(f"there is no function {header.function}; there are: {known}", field="function")
            self.answers.refuse(call, error)
            return
        call.function = function
        call.deadline = time.monotonic() + header.timeout_s
        self.active[call.id] = call
        assert self._loop is not None, "attached before it takes calls"
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)
        call.run = self._callable(function)
        if function.spec.batch_max:
            self._batcher(function).put(call)
            return
        call.state = RUNNING
        call.context = registry.CallContext(
            call.id.hex(), call.attempt, header.endpoint, header.function, header.timeout_s,
            route_key=header.route_key, session=header.session, depth=header.depth,
        )  # fmt: skip
        self._begin(call)
        kind = function.spec.kind
        if header.codec and "generator" in kind:  # such callers know no items
            call.run = (async_collected if kind == "async_generator" else collected)(call.run)
            kind = "async" if kind == "async_generator" else "sync"
        if kind == "async":
            call.handle = self._loop.create_task(self._running.coroutine(call))
        elif kind == "async_generator":
            call.resumed = asyncio.Event()
            call.handle = self._loop.create_task(self._running.async_items(call))
        elif kind == "generator":
            call.resumed = threading.Event()
            self._threads.run(self._running.items, call)
        else:
            self._threads.run(self._running.plain, call)

    def _begin(self, call: Call) -> None:
        """The function is going to run: tell the gateway that from now on the call may have had effects."""
        call.started = True
        stream = call.stream
        if stream is not None:
            stream.post(frames.pack(_HEAD, stream.id, b"", 0, stream.epoch))
            if call.batch is None:
                self._begun.append(stream)
            else:
                self.answers.flush_soon(stream)

    def _callable(self, function: RegisteredFunction) -> Callable[..., Any]:
        """The function, or the method of the object that its class's context gave when it was entered."""
        owner = function.owner
        if owner is None:
            return function.call
        name = function.spec.name
        if name not in self._callables:
            held = self.app.entered.get(owner)
            # What `__aenter__` returned need not be the object; its methods are those of the class all the same.
            self._callables[name] = function.call.__get__(held, owner)
        return self._callables[name]

    def _batcher(self, function: RegisteredFunction) -> Batcher:
        name = function.spec.name
        if name not in self._batchers:
            self._batchers[name] = Batcher(
                function, self._callable(function), self.answers, self._running, self._threads, self._begin
            )
        return self._batchers[name]

    def batch_done(self) -> None:
        """All calls that arrived together were begun: send what they produce.

        The flush comes after their tasks: each has made its first step by then, and what ended leaves as one write.
        """
        begun, self._begun = self._begun, []
        for stream in begun:
            self.answers.flush_soon(stream)

    def hand_back(self, call: Call, why: str) -> None:
        """The call was not started and will not be: the gateway sends it elsewhere, its caller notices nothing."""
        stream = call.stream
        call.state = RECEIVING
        if stream is not None and stream.is_open:
            self.table.drop(call)
            stream.reset(frames.REFUSED, why)
            self.answers.flush_soon(stream)

    def hand_back_waiting(self, why: str) -> None:
        """Hand back every call that waits for its batch."""
        for batcher in self._batchers.values():
            for call in batcher.waiting():
                batcher.take_out(call)
                self.active.pop(call.id, None)
                self.hand_back(call, why)

    # --- what the gateway says about running calls ---

    def adopt(self, stream: Stream, call: Call) -> None:
        """Bind a call to a stream of a new link and repeat what the gateway may have missed."""
        with self.table.lock:
            state = call.state
            call.stream = stream if state != RECEIVING else None
            stream.target = call
        if state == RECEIVING:
            self.table.drop(call)
            stream.reset(frames.REFUSED, "its payload was not complete, or this worker drains")
        elif call.is_generator:
            stream.reset(frames.ENGINE_LOST, "a generator cannot continue on another link")
        else:
            if call.started:
                stream.post(frames.pack(_HEAD, stream.id, b"", 0, stream.epoch))
            if state == DONE:
                self.answers.deliver(stream, call.final, call.end)
        self.answers.flush_soon(stream)

    def credit(self, call: Call, items: int) -> None:
        """The caller took items of a generator."""
        with self.table.lock:
            call.credit += items
        if call.resumed is not None:
            call.resumed.set()

    def cancel(self, call: Call, reason: str) -> None:
        """The caller gave up, or the time is over."""
        if call.state == RECEIVING:
            self.table.drop(call)
            self.answers.refuse(call, Cancelled("cancelled before it started"))
            return
        if call.state not in (QUEUED, RUNNING) or call.cancel_at:
            return
        call.cancel_code = CallTimeout.code if reason == "timeout" else Cancelled.code
        call.cancel_at = time.monotonic() + CANCEL_S_MAX
        batch = call.batch
        if isinstance(batch, Batcher):
            batch.take_out(call)
            self.answers.ended(call, [self.answers.cancel_frame(call)], 0, False)
        elif isinstance(batch, Batch):
            # The others of its batch go on: it is answered now, and its result dropped when it comes.
            self.answers.ended(call, [self.answers.cancel_frame(call)], 0, False)
            batch.withdraw()
        else:
            if call.context is not None:
                call.context.cancelled = True
            task = call.handle
            if task is not None:
                if inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED:
                    # It came and was cancelled with one read: nothing of its task will ever run, not even its end.
                    self.answers.ended(call, [self.answers.cancel_frame(call)], 0, False)
                task.cancel()
            elif call.resumed is not None:
                call.resumed.set()

    def link_lost(self, streams: list[Stream]) -> None:
        """A connection broke: calls go on without it, generators cannot."""
        for stream in streams:
            call = stream.target
            if isinstance(call, Call) and call.stream is stream:
                with self.table.lock:
                    call.stream = None
                if call.is_generator:
                    self.cancel(call, "the link broke")
                elif call.state == RECEIVING and self._loop is not None:
                    self._loop.call_later(INCOMPLETE_S_MAX + 1.0, self._forget_incomplete)

    # --- time ---

    def _sweep(self) -> None:
        now = time.monotonic()
        for call in list(self.active.values()):
            if call.state not in (QUEUED, RUNNING):
                continue
            if call.cancel_at:
                if now >= call.cancel_at:
                    self._stuck(call)
            elif now >= call.deadline:
                self.cancel(call, "timeout")
        self.on_sweep()
        assert self._loop is not None
        self._sweeping = bool(self.active)
        if self._sweeping:
            self._loop.call_later(SWEEP_S, self._sweep)

    def _stuck(self, call: Call) -> None:
        """It was cancelled and goes on all the same: its caller is not kept waiting."""
        self.answers.finish(call, [self.answers.cancel_frame(call)], b'{"run_us":0,"ok":false}')
        if call.function is not None and call.function.spec.kill_on_cancel:
            self.on_stuck(call)

    def _forget_incomplete(self) -> None:
        limit = time.monotonic() - INCOMPLETE_S_MAX
        for call in list(self.table.calls.values()):
            if call.state == RECEIVING and call.stream is None and call.made_at < limit:
                self.table.drop(call)

    # --- the end ---

    async def drain(self, limit_s: float, *, lost: str = "", forsaken: bool = False) -> int:
        """Hand back what has not started, wait until nothing runs; what still runs at the limit is given up.

        Calls that are given up end in `WorkerLost` with the reason `lost` (so that they were preempted); without a
        reason the gateway finds its own words. Returns how many there were. With `forsaken`, functions that go on
        after their calls were answered are not waited for.
        """
        self.hand_back_waiting("draining")
        done = self._none_open if forsaken else lambda: not self.active
        await until(done, limit_s)
        left = [call for call in list(self.active.values()) if call.state == RUNNING]
        for call in left:
            if call.context is not None:
                call.context.cancelled = True
            handle = call.batch.handle if call.batch is not None else call.handle
            self._give_up(call, lost)
            if handle is not None:
                handle.cancel()
        return len(left)

    def close(self) -> None:
        """Nothing runs any more: let idle threads end."""
        self._threads.close()

    def _none_open(self) -> bool:
        return all(call.state == DONE for call in list(self.active.values()))

    def _give_up(self, call: Call, lost: str) -> None:
        """Answer a call that the worker will not see the end of."""
        if lost and not call.header.idempotent and not call.header.session:
            text = f"the worker had to end before the call did ({lost}); it is not run again by itself"
            self.answers.lost(call, WorkerLost(text, started=True, preempted=True))
            return
        # One that may run again, or belongs to a session, is the gateway's to decide on: it alone knows what follows.
        stream, call.stream = call.stream, None
        if stream is not None:
            stream.reset(frames.ENGINE_LOST, lost or "the worker had to end before the call did")
            stream.connection.flush()
            call.released = True
