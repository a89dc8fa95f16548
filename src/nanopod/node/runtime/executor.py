"""Runs remote calls: each once, with its timeout, its cancellation, its output, and an answer that outlives a link.

The event loop of this module is the user's: asynchronous functions run on it, synchronous ones on threads. A call costs
one task; what a batch of calls produces leaves with one write.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any, Final

from nanopod.model import calls, codec, frames, registry
from nanopod.model.errors import CallTimeout, Cancelled, Invalid, NanopodError, NotFound
from nanopod.node.runtime import output
from nanopod.node.runtime.connection import Stream
from nanopod.node.runtime.table import DONE, RECEIVING, RUNNING, Call, Table
from nanopod.node.runtime.threads import Threads
from nanopod.node.runtime.waiting import until
from nanopod.node.runtime.workload import Workload

SWEEP_S: Final = 0.1
CANCEL_S_MAX: Final = 5.0
"""A cancelled function has so long to end; then its call is answered without it."""
INCOMPLETE_S_MAX: Final = 60.0
"""A call whose payload never came is forgotten after so long."""
LOG_TAIL_CHARS: Final = 8192
MESSAGE_CHARS: Final = 2000

_log: Final = logging.getLogger(__name__)
_HEAD: Final = frames.HEAD


class Executor:
    """The calls of one worker. Methods without a remark are called on the event loop."""

    def __init__(self, module: str, slots: int) -> None:
        self.table = Table()
        self.app = registry.App("")
        self.draining = True
        """Takes no calls: before it is ready, and when it drains."""
        self.active: dict[bytes, Call] = {}
        """Calls whose function runs, those included that were answered without it."""
        self._module = module
        self._slots = slots
        self._threads = Threads()
        self._workloads: dict[str, Workload] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._dirty = False
        self._flushing: list[Stream] = []
        self._begun: list[Stream] = []
        self._sweeping = False

    def attach(self, loop: asyncio.AbstractEventLoop, app: registry.App) -> None:
        """Run the functions of `app` on `loop` from now on."""
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self.app = app
        self._workloads = {
            name: Workload(function) for name, function in app.functions.items() if function.workload is not None
        }

    # --- new calls ---

    def start(self, call: Call) -> None:
        """Run a complete call, or hand it back when there is no room for it."""
        if call.state != RECEIVING:
            return
        if self.draining or len(self.active) >= self._slots:
            self.hand_back(call, "draining" if self.draining else "no free slot")
            return
        header = call.header
        function = self.app.functions.get(header.function)
        if function is None:
            known = ", ".join(sorted(self.app.functions)) or "none"
            self.refuse(call, NotFound(f"there is no function {header.function}; there are: {known}", field="function"))
            return
        call.function = function
        call.state = RUNNING
        call.started = True
        call.deadline = time.monotonic() + header.timeout_s
        call.context = registry.CallContext(call.id.hex(), 1, header.endpoint, header.function, header.timeout_s)
        self.active[call.id] = call
        stream = call.stream
        if stream is not None:
            stream.post(frames.pack(_HEAD, stream.id, b"", 0, stream.epoch))
        kind = function.spec.kind
        assert self._loop is not None, "attached before it takes calls"
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)
        if kind == "async":
            call.handle = self._loop.create_task(self._run_async(call))
        elif kind == "async_generator":
            call.resumed = asyncio.Event()
            call.handle = self._loop.create_task(self._run_async_items(call))
        elif kind == "generator":
            call.resumed = threading.Event()
            self._threads.run(self._run_items, call)
        else:
            self._threads.run(self._run_sync, call)
        if stream is not None:
            self._begun.append(stream)

    def batch_done(self) -> None:
        """All calls that arrived together were begun: send what they produce.

        The flush comes after their tasks: each has made its first step by then, and what ended leaves as one write.
        """
        begun, self._begun = self._begun, []
        for stream in begun:
            self.flush_soon(stream)

    def hand_back(self, call: Call, why: str) -> None:
        """The call was not started and will not be: the gateway sends it elsewhere, its caller notices nothing."""
        stream = call.stream
        call.state = RECEIVING
        if stream is not None and stream.is_open:
            self.table.drop(call)
            stream.reset(frames.REFUSED, why)
            self.flush_soon(stream)

    def refuse(self, call: Call, error: NanopodError) -> None:
        """Answer a call that cannot be run."""
        payload = codec.encode_exception(error)
        header = calls.Error(call.id, error.code, error.message, size=len(payload), stage="run", started=False)
        self._finish(call, calls.split(header, payload), b'{"run_us":0,"ok":false}')

    # --- functions ---

    async def _run_async(self, call: Call) -> None:
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        try:
            args, kwargs = self._arguments(call)
            assert call.function is not None
            value = await call.function.call(*args, **kwargs)
            payload = codec.encode(value, path="result")
        except asyncio.CancelledError as error:
            self._cancelled(call, error, began)
        except BaseException as error:
            self._failed(call, error, began)
        else:
            self._returned(call, payload, began)

    def _run_sync(self, call: Call) -> None:
        """On a pool thread."""
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        try:
            args, kwargs = self._arguments(call)
            assert call.function is not None
            value = call.function.call(*args, **kwargs)
            payload = codec.encode(value, path="result")
        except BaseException as error:
            self._failed(call, error, began)
        else:
            self._returned(call, payload, began)

    async def _run_async_items(self, call: Call) -> None:
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        index = 0
        try:
            args, kwargs = self._arguments(call)
            assert call.function is not None
            items = call.function.call(*args, **kwargs)
            try:
                async for item in items:
                    while call.credit <= 0:
                        call.resumed.clear()
                        await call.resumed.wait()
                    stream = self._item(call, index, item)
                    self.flush_soon(stream)
                    if stream.is_waiting:
                        await stream.drained()
                    index += 1
            finally:
                await items.aclose()
        except asyncio.CancelledError as error:
            self._cancelled(call, error, began)
        except BaseException as error:
            self._failed(call, error, began)
        else:
            self._exhausted(call, began)

    def _run_items(self, call: Call) -> None:
        """On a pool thread."""
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        try:
            args, kwargs = self._arguments(call)
            context = call.context
            assert call.function is not None
            assert context is not None
            assert self._loop is not None
            items = call.function.call(*args, **kwargs)
            try:
                for index, item in enumerate(items):
                    while call.credit <= 0 and not context.cancelled:
                        call.resumed.wait(1.0)
                        call.resumed.clear()
                    if context.cancelled:
                        break
                    stream = self._item(call, index, item)
                    stream.connection.flush()
                    if stream.is_waiting:
                        asyncio.run_coroutine_threadsafe(stream.drained(), self._loop).result()
            finally:
                items.close()
        except BaseException as error:
            self._failed(call, error, began)
        else:
            self._exhausted(call, began)

    def _arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of a call. Raises `SerializationError`."""
        payload = b"".join((call.payload, *call.parts)) if call.parts else call.payload
        call.payload, call.parts = b"", []
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = codec.decode(payload, module=self._module)
        workload = self._workloads.get(call.header.function)
        if workload is not None:
            call.workload = workload.of(*arguments)
        return arguments

    def _item(self, call: Call, index: int, item: object) -> Stream:
        """Send one item of a generator; the stream it went to. Raises when nobody listens any more."""
        payload = codec.encode(item, path=f"item[{index}]")
        if len(payload) > calls.INLINE_BYTES_MAX:
            raise _too_large(f"item {index}", len(payload))
        stream = call.stream
        if stream is None or not stream.is_open:
            raise Cancelled("the link to the caller is gone")
        with self.table.lock:
            call.credit -= 1
        for frame in calls.split(calls.Item(call.id, index, len(payload)), payload):
            stream.post(frames.pack(frames.DATA, stream.id, frame, 0, stream.epoch), len(frame))
        return stream

    # --- answers: on the loop or on a pool thread ---

    def _returned(self, call: Call, payload: bytes, began: int) -> None:
        run_us = (time.perf_counter_ns() - began) // 1000
        if len(payload) > calls.INLINE_BYTES_MAX:
            self._failed(call, _too_large("the result", len(payload)), began)
            return
        header = calls.Result(call.id, len(payload), calls.Usage(run_us))
        answer = calls.split(header, payload) if len(payload) > calls.PART_BYTES else [calls.encode(header, payload)]
        self._ended(call, answer, run_us, True)

    def _exhausted(self, call: Call, began: int) -> None:
        if call.cancel_code:
            self._ended(call, [self._cancel_frame(call)], (time.perf_counter_ns() - began) // 1000, False)
            return
        run_us = (time.perf_counter_ns() - began) // 1000
        self._ended(call, [calls.encode(calls.End(call.id, calls.Usage(run_us)))], run_us, True)

    def _failed(self, call: Call, error: BaseException, began: int) -> None:
        run_us = (time.perf_counter_ns() - began) // 1000
        output.end_of(call)
        tail = call.log_tail[-LOG_TAIL_CHARS:]
        try:
            payload = codec.encode_exception(error, log_tail=tail)
        except Exception:  # an exception that cannot even be described
            payload = codec.encode_exception(RuntimeError(type(error).__name__), log_tail=tail)
        if len(payload) > calls.INLINE_BYTES_MAX:
            payload = codec.encode_exception(RuntimeError(f"{type(error).__name__}: its content is too large"))
        code = error.code if isinstance(error, NanopodError) else "remote_error"
        header = calls.Error(
            call.id, code, _describe(error), len(payload), calls.Usage(run_us), "run", tail, True,
        )  # fmt: skip
        self._ended(call, calls.split(header, payload), run_us, False)

    def _cancelled(self, call: Call, error: BaseException, began: int) -> None:
        """A task ended by CancelledError: by our wish, or by a mistake of its own."""
        if call.cancel_code:
            self._ended(call, [self._cancel_frame(call)], (time.perf_counter_ns() - began) // 1000, False)
        else:
            self._failed(call, error, began)

    def _cancel_frame(self, call: Call) -> bytes:
        error: NanopodError = Cancelled("the call was cancelled")
        if call.cancel_code == CallTimeout.code:
            error = CallTimeout(f"the call ran longer than its timeout of {call.header.timeout_s:g} s")
        output.end_of(call)
        return calls.encode(
            calls.Error(
                call.id, error.code, error.message, stage="run", log_tail=call.log_tail[-LOG_TAIL_CHARS:], started=True
            )
        )

    def _ended(self, call: Call, answer: list[bytes], run_us: int, ok: bool) -> None:
        """The function is over: its slot is free, its answer leaves."""
        self.active.pop(call.id, None)
        output.end_of(call)
        end = b'{"run_us":%d,"ok":%s}' % (run_us, b"true" if ok else b"false")
        if call.workload is not None:
            end = b'%s,"workload":%.9g}' % (end[:-1], call.workload)
        self._finish(call, answer, end)

    def _finish(self, call: Call, answer: list[bytes], end: bytes) -> None:
        with self.table.lock:
            if call.state == DONE:
                return
            if not call.is_generator:
                call.final, call.end, call.final_bytes = answer, end, sum(map(len, answer))
            self.table.finished(call, time.monotonic())
            stream = call.stream
        # What the function held must not live as long as its result.
        call.handle = call.context = call.lines = None
        if stream is not None:
            self._deliver(stream, answer, end)

    def _deliver(self, stream: Stream, answer: list[bytes], end: bytes) -> None:
        pack, number, epoch = frames.pack, stream.id, stream.epoch
        last = pack(frames.END, number, end, 0, epoch)
        if len(answer) == 1:
            stream.post(pack(frames.DATA, number, answer[0], 0, epoch) + last, len(answer[0]), last=True)
        else:
            for frame in answer:
                stream.post(pack(frames.DATA, number, frame, 0, epoch), len(frame))
            stream.post(last, last=True)
        self.flush_soon(stream)

    def flush_soon(self, stream: Stream) -> None:
        """Send what the present pass of the loop produced with one write; at once from other threads."""
        loop = self._loop
        if loop is None or threading.get_ident() != self._loop_thread:
            stream.connection.flush()
            return
        flushing = self._flushing
        if not flushing or flushing[-1].connection is not stream.connection:
            flushing.append(stream)
        if not self._dirty:
            self._dirty = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._dirty = False
        flushing, self._flushing = self._flushing, []
        for stream in flushing:
            stream.connection.flush()

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
                self._deliver(stream, call.final, call.end)
        self.flush_soon(stream)

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
            self.refuse(call, Cancelled("cancelled before it started"))
            return
        if call.state != RUNNING or call.cancel_at:
            return
        call.cancel_code = CallTimeout.code if reason == "timeout" else Cancelled.code
        call.cancel_at = time.monotonic() + CANCEL_S_MAX
        if call.context is not None:
            call.context.cancelled = True
        if call.handle is not None:
            call.handle.cancel()
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
            if call.state != RUNNING:
                continue
            if call.cancel_at:
                if now >= call.cancel_at:
                    self._finish(call, [self._cancel_frame(call)], b'{"run_us":0,"ok":false}')
            elif now >= call.deadline:
                self.cancel(call, "timeout")
        assert self._loop is not None
        self._sweeping = bool(self.active)
        if self._sweeping:
            self._loop.call_later(SWEEP_S, self._sweep)

    def _forget_incomplete(self) -> None:
        limit = time.monotonic() - INCOMPLETE_S_MAX
        for call in list(self.table.calls.values()):
            if call.state == RECEIVING and call.stream is None and call.made_at < limit:
                self.table.drop(call)

    async def drain(self, limit_s: float) -> int:
        """Wait until nothing runs and every answer was taken; what still runs at the limit is given up, its number."""
        await until(lambda: not self.active, limit_s)
        left = [call for call in self.active.values() if call.state == RUNNING]
        for call in left:
            if call.stream is not None:
                call.stream.reset(frames.ENGINE_LOST, "the worker had to end before the call did")
                call.stream.connection.flush()
                call.stream = None
            if call.handle is not None:
                call.handle.cancel()
        return len(left)


def _too_large(what: str, size: int) -> Invalid:
    return Invalid(
        f"{what} is {size} bytes, at most {calls.INLINE_BYTES_MAX} travel in one piece; store it and return where"
    )


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # whatever a user's __str__ raises
        text = ""
    name = type(error).__qualname__
    return (f"{name}: {text}" if text else name)[:MESSAGE_CHARS]
