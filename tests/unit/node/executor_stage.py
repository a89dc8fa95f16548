"""An executor on the running loop, and the gateway's end of it in the same process."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from nanopod.model import calls, codec, frames
from nanopod.model.endpoint import FunctionSpec
from nanopod.model.registry import App, RegisteredFunction
from nanopod.node.runtime.connection import Connection, Stream
from nanopod.node.runtime.executor import Executor
from nanopod.node.runtime.table import Call

WAIT_S_MAX = 20.0


class Wire(Connection):
    """Reads what the executor sends, and wakes those who wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(cast(Any, None), lambda: None)
        self.asked: dict[int, Asked] = {}
        self._loop = loop
        self._reader = frames.FrameReader()
        self._reading = threading.Lock()

    def flush(self) -> None:
        with self._reading:
            with self.lock:
                out, self.out = self.out, []
            for kind, stream, _, _, payload in self._reader.feed(b"".join(out)):
                self._loop.call_soon_threadsafe(self.asked[stream].take, kind, payload)


class Asked:
    """One call and what came for it."""

    def __init__(self, stage: Stage, call: Call, stream: Stream) -> None:
        self.stage = stage
        self.call = call
        self.stream = stream
        self.frames: list[tuple[int, bytes]] = []
        self.over = asyncio.Event()

    def take(self, kind: int, payload: bytes) -> None:
        assert not self.over.is_set(), "nothing comes after the end"
        self.frames.append((kind, payload))
        if kind in (frames.END, frames.RESET):
            self.over.set()

    @property
    def started(self) -> bool:
        return any(kind == frames.HEAD for kind, _ in self.frames)

    @property
    def end(self) -> dict[str, Any]:
        return next(json.loads(payload) for kind, payload in self.frames if kind == frames.END)

    @property
    def header(self) -> Any:
        """The frame that answers the call."""
        found = [calls.decode(payload)[0] for kind, payload in self.frames if kind == frames.DATA]
        return next(header for header in found if isinstance(header, calls.Result | calls.Error | calls.End))

    @property
    def reset(self) -> tuple[str, str] | None:
        for kind, payload in self.frames:
            if kind == frames.RESET:
                code, text = frames.unpack_reset(payload)
                return frames.RESET_NAMES[code], text
        return None

    def lines(self) -> list[str]:
        """What it printed while it ran."""
        found = [calls.decode(payload)[0] for kind, payload in self.frames if kind == frames.DATA]
        return [header.line for header in found if isinstance(header, calls.Log)]

    def payload(self) -> bytes:
        header, parts = self.header, []
        for kind, payload in self.frames:
            if kind == frames.DATA:
                found, part = calls.decode(payload)
                if found == header or (parts and isinstance(found, calls.Part)):
                    parts.append(part)
        return b"".join(parts)

    async def value(self) -> Any:
        """What it returned; raises what it raised."""
        async with asyncio.timeout(WAIT_S_MAX):
            await self.over.wait()
        assert self.reset is None, self.reset
        header, data = self.header, self.payload()
        if isinstance(header, calls.Error):
            if data:
                raise codec.decode_exception(data, module="deployment")
            raise Ended(header.code)
        return codec.decode(data)

    async def until_started(self) -> Asked:
        await until(lambda: self.started)
        return self

    def cancel(self, reason: str = "enough") -> None:
        self.stage.executor.cancel(self.call, reason)


class Ended(Exception):
    """It was answered without an exception of its own."""


class Stage:
    """An executor that takes calls."""

    def __init__(self, slots: int = 8, **options: Any) -> None:
        self.app = App("test")
        self.executor = Executor("deployment", slots, **options)
        self.executor.draining = False
        self._next = 1
        _stages.append(self)

    def open(self) -> Stage:
        """Called on the loop."""
        loop = asyncio.get_running_loop()
        self.executor.attach(loop, self.app)
        self.wire = Wire(loop)
        return self

    def add(self, function: Callable[..., Any], name: str = "", **given: Any) -> RegisteredFunction:
        """A remote function; options of its specification and of its registration."""
        spec = {key: given.pop(key) for key in list(given) if key in FunctionSpec.__dataclass_fields__}
        kind: Any = (
            "async_generator" if inspect.isasyncgenfunction(function)
            else "generator" if inspect.isgeneratorfunction(function)
            else "async" if inspect.iscoroutinefunction(function) else "sync"
        )  # fmt: skip
        name = name or function.__name__
        found = RegisteredFunction(FunctionSpec(name, kind, **spec), function, **given)
        self.app.functions[name] = found
        return found

    def ask(
        self, function: str, *args: Any, payload: bytes | None = None, attempt: int = 1, header: Any = None,
        kwargs: dict[str, Any] | None = None, **fields: Any,
    ) -> Asked:  # fmt: skip
        """Send a call."""
        sent = codec.encode((args, kwargs or {})) if payload is None else payload
        header = header or calls.Call(os.urandom(16), "endp_x", function, size=len(sent), **fields)
        stream = self.stream()
        call = Call(header, stream, sent, time.monotonic(), attempt)
        asked = self.wire.asked[stream.id] = Asked(self, call, stream)
        known = self.executor.table.again(call)
        if known is not None:
            asked.call = known
            self.executor.adopt(stream, known)
        else:
            stream.target = call
            self.executor.start(call)
        self.executor.batch_done()
        return asked

    def stream(self) -> Stream:
        number, self._next = self._next, self._next + 1
        stream = Stream(self.wire, number, 1, 1 << 40)
        self.wire.streams[number] = stream
        return stream

    async def run(self, function: str, *args: Any, **fields: Any) -> Any:
        return await self.ask(function, *args, **fields).value()


async def until(test: Callable[[], Any], wait_s_max: float = WAIT_S_MAX) -> None:
    """Wait for a condition."""
    limit = time.monotonic() + wait_s_max
    while not test():
        assert time.monotonic() < limit, "it did not come to be"
        await asyncio.sleep(0.002)


_stages: list[Stage] = []


def on_stage(story: Callable[..., Any], *args: Any) -> None:
    """Run an asynchronous test. No thread of it goes on for long afterwards."""

    async def limited() -> None:
        async with asyncio.timeout(60):
            await story(*args)

    try:
        asyncio.run(limited())
    finally:
        while _stages:
            _stages.pop().executor.close()
