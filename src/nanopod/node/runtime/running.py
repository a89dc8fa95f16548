"""Runs the functions of calls: coroutines on the event loop, plain ones on threads, generators at the caller's pace."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nanopod.model import calls, frames, registry, spill
from nanopod.model.errors import Cancelled
from nanopod.node.runtime import output, spilling
from nanopod.node.runtime.answers import Answers, too_large
from nanopod.node.runtime.connection import Stream
from nanopod.node.runtime.table import Call, Table
from nanopod.node.runtime.values import Values
from nanopod.node.runtime.workload import Workload


class Running:
    """One coroutine or thread function for each kind of function."""

    def __init__(self, values: Values, table: Table, answers: Answers) -> None:
        self.workloads: dict[str, Workload] = {}
        self.values = values
        self._table = table
        self._answers = answers
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop, app: registry.App) -> None:
        """Coroutines run on this loop."""
        self._loop = loop
        self.workloads = {
            name: Workload(function) for name, function in app.functions.items() if function.workload is not None
        }

    async def coroutine(self, call: Call) -> None:
        """An `async def` function."""
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        try:
            if call.payload[:2] == spill.SPILLED:
                call.payload = await asyncio.to_thread(spilling.fetched, call.payload)
            args, kwargs = self.arguments(call)
            payload = self.values.encode(call.header, await call.run(*args, **kwargs), "result")
            if len(payload) > calls.INLINE_BYTES_MAX and not call.header.codec:
                payload = await asyncio.to_thread(spilling.spilled, payload, "the result")
        except asyncio.CancelledError as error:
            self._answers.cancelled(call, error, _since(began))
        except BaseException as error:
            self._answers.failed(call, error, _since(began))
        else:
            self._answers.returned(call, payload, _since(began))

    def plain(self, call: Call) -> None:
        """An ordinary function, on a pool thread."""
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        try:
            args, kwargs = self.arguments(call)
            payload = self.values.encode(call.header, call.run(*args, **kwargs), "result")
            if len(payload) > calls.INLINE_BYTES_MAX and not call.header.codec:
                payload = spilling.spilled(payload, "the result")
        except BaseException as error:
            self._answers.failed(call, error, _since(began))
        else:
            self._answers.returned(call, payload, _since(began))

    async def async_items(self, call: Call) -> None:
        """An asynchronous generator."""
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        index = 0
        try:
            if call.payload[:2] == spill.SPILLED:
                call.payload = await asyncio.to_thread(spilling.fetched, call.payload)
            args, kwargs = self.arguments(call)
            items = call.run(*args, **kwargs)
            try:
                async for item in items:
                    while call.credit <= 0:
                        call.resumed.clear()
                        await call.resumed.wait()
                    stream = self._item(call, index, item)
                    self._answers.flush_soon(stream)
                    if stream.is_waiting:
                        await stream.drained()
                    index += 1
            finally:
                await items.aclose()
        except asyncio.CancelledError as error:
            self._answers.cancelled(call, error, _since(began))
        except BaseException as error:
            self._answers.failed(call, error, _since(began))
        else:
            self._answers.exhausted(call, _since(began))

    def items(self, call: Call) -> None:
        """An ordinary generator, on a pool thread."""
        registry.current.set(call.context)
        output.printing.set(call)
        began = time.perf_counter_ns()
        try:
            args, kwargs = self.arguments(call)
            context = call.context
            assert context is not None
            assert self._loop is not None
            items = call.run(*args, **kwargs)
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
            self._answers.failed(call, error, _since(began))
        else:
            self._answers.exhausted(call, _since(began))

    def arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of a call. Raises `SerializationError`."""
        payload = b"".join((call.payload, *call.parts)) if call.parts else call.payload
        call.payload, call.parts = b"", []
        arguments = self.values.arguments(call.header, payload)
        workload = self.workloads.get(call.header.function)
        if workload is not None:
            call.workload = workload.of(*arguments)
        return arguments

    def _item(self, call: Call, index: int, item: object) -> Stream:
        """Send one item of a generator; the stream it went to. Raises when nobody listens any more."""
        payload = self.values.encode(call.header, item, f"item[{index}]")
        if len(payload) > calls.INLINE_BYTES_MAX:
            raise too_large(f"item {index}", len(payload))
        stream = call.stream
        if stream is None or not stream.is_open:
            raise Cancelled("the link to the caller is gone")
        with self._table.lock:
            call.credit -= 1
        for frame in calls.split(calls.Item(call.id, index, len(payload)), payload):
            stream.post(frames.pack(frames.DATA, stream.id, frame, 0, stream.epoch), len(frame))
        return stream


def _since(began: int) -> int:
    return (time.perf_counter_ns() - began) // 1000
