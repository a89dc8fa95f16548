"""How much load a worker takes: its functions run as calls do, by codec, frames and executor, before it is ready."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from nanopod.model import calls, codec, frames
from nanopod.model.errors import CallTimeout, SerializationError
from nanopod.model.registry import RegisteredFunction
from nanopod.node.runtime.connection import Connection, Stream
from nanopod.node.runtime.executor import Executor
from nanopod.node.runtime.measuring import has_benchmark, median
from nanopod.node.runtime.table import Call
from nanopod.node.runtime.workload import Workload

CONCURRENCY_MAX: Final = 64
BENCHMARK_S_MAX: Final = 300.0
_CREDIT: Final = 1 << 60
_log: Final = logging.getLogger(__name__)


class BenchmarkFailed(Exception):
    """Every round of a function's benchmark failed; `error` is the last reason."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"the benchmark of {name} failed: {type(error).__name__}: {error}")
        self.name = name
        self.error = error


@dataclass(slots=True)
class Measured:
    """The outcome of one function's benchmark."""

    perf: float = 0.0
    """Units of load per second: the median over rounds."""
    rounds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each call took that succeeded."""
    errors: int = 0
    at_once: int = 1

    def as_state(self) -> dict[str, Any]:
        """For STATE: times in milliseconds."""
        ranked = sorted(self.seconds)
        return {
            "perf": self.perf, "rounds": len(self.rounds), "at_once": self.at_once, "errors": self.errors,
            "p50_ms": round(_percentile(ranked, 0.5) * 1000, 3), "p99_ms": round(_percentile(ranked, 0.99) * 1000, 3),
        }  # fmt: skip


async def benchmark(
    executor: Executor, functions: Mapping[str, RegisteredFunction], module: str, runs_max: int | None = None
) -> dict[str, Measured]:
    """What was measured of each function that has a benchmark, one after the other.

    `runs_max` bounds the rounds of each. Raises `BenchmarkFailed` when all rounds of a function fail.
    """
    measured = {}
    for function in functions.values():
        if has_benchmark(function):
            runs = function.benchmark_runs if runs_max is None else min(runs_max, function.benchmark_runs)
            measured[function.spec.name] = await _measure(_Caller(executor, function, module), max(1, runs))
    return measured


async def _measure(caller: _Caller, runs: int) -> Measured:
    """A warm-up call, then the rounds."""
    function = caller.function
    found = Measured(at_once=max(1, min(function.spec.concurrency, CONCURRENCY_MAX)))
    workload = Workload(function)
    last: BaseException | None = None
    limit = time.monotonic() + BENCHMARK_S_MAX
    for number in range(runs + 1):
        left_s = limit - time.monotonic()
        if left_s <= 0:
            last = last or TimeoutError(f"no round ended within {BENCHMARK_S_MAX:.0f} s")
            break
        try:
            samples = [_sample(function) for _ in range(1 if number == 0 else found.at_once)]
            units = sum(workload.of((), sample) for sample in samples)
            began = time.perf_counter()
            ended = await caller.calls(samples, left_s)
            took_s = max(time.perf_counter() - began, 1e-9)
        except Exception as error:  # of the author's generator of samples
            last = error
            found.errors += 1
            continue
        failed = [outcome for outcome in ended if isinstance(outcome, BaseException)]
        if failed:
            last = failed[0]
            found.errors += len(failed)
        elif number:
            found.rounds.append(units / took_s)
            found.seconds += cast(list[float], ended)
    if not found.rounds:
        raise BenchmarkFailed(function.spec.name, last or RuntimeError("no round was run")) from last
    found.perf = max(median(found.rounds), 1e-9)
    _log.info(
        "benchmark of %s: %.6g per second (median of %d rounds of %d)",
        function.spec.name, found.perf, len(found.rounds), found.at_once,
    )  # fmt: skip
    return found


def _sample(function: RegisteredFunction) -> dict[str, Any]:
    if function.benchmark_dataset:
        return random.choice(function.benchmark_dataset)
    assert function.benchmark_generator is not None
    return function.benchmark_generator()


def _percentile(ranked: list[float], share: float) -> float:
    """The nearest rank."""
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


class _Loopback(Connection):
    """A connection whose other side is this object: it reads the frames of answers as a gateway does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(cast(socket.socket, None), lambda: None)
        self.answers: dict[int, asyncio.Future[bytes]] = {}
        """{stream: its END}"""
        self._loop = loop
        self._reader = frames.FrameReader()
        self._reading = threading.Lock()

    def flush(self) -> None:
        """Take what was queued."""
        with self._reading:
            with self.lock:
                out, self.out = self.out, []
            for kind, stream, _, _, payload in self._reader.feed(b"".join(out)):
                answer = self.answers.get(stream)
                if answer is not None and kind in (frames.END, frames.RESET):
                    self._loop.call_soon_threadsafe(_settle, answer, payload if kind == frames.END else b"{}")


def _settle(future: asyncio.Future[bytes], payload: bytes) -> None:
    if not future.done():
        future.set_result(payload)


class _Caller:
    """Makes calls of one function as a gateway would."""

    def __init__(self, executor: Executor, function: RegisteredFunction, module: str) -> None:
        self.function = function
        self._executor = executor
        self._module = module
        self._link = _Loopback(asyncio.get_running_loop())
        self._next = 1

    async def calls(self, samples: list[dict[str, Any]], wait_s_max: float) -> list[float | BaseException]:
        """All at once: for each the seconds that it took, or what it raised."""
        tasks = [asyncio.ensure_future(self._call(sample)) for sample in samples]
        try:
            await asyncio.wait(tasks, timeout=wait_s_max)
        finally:
            for task in tasks:
                task.cancel()
        return [
            cast(BaseException, CallTimeout(f"no answer within {wait_s_max:.0f} s"))
            if task.cancelled() or not task.done()
            else task.result()
            for task in tasks
        ]

    async def _call(self, sample: dict[str, Any]) -> float | BaseException:
        spec = self.function.spec
        try:
            payload = codec.encode(((), sample), path="benchmark")
        except SerializationError as error:
            return error
        began = time.perf_counter()
        number, self._next = self._next, self._next + 1
        stream = Stream(self._link, number, 1, _CREDIT)
        over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._link.streams[number] = stream
        self._link.answers[number] = over
        header = calls.Call(os.urandom(16), "", spec.name, timeout_s=spec.timeout_s, size=len(payload))
        sent, _ = calls.decode(calls.encode(header))
        call = Call(cast(calls.Call, sent), stream, payload, time.monotonic())
        call.is_probe, call.credit = True, _CREDIT
        stream.target = call
        try:
            self._executor.admit(call)
            self._executor.batch_done()
            end = await over
        except asyncio.CancelledError:
            self._executor.cancel(call, "the benchmark is over")
            raise
        finally:
            del self._link.answers[number]
            self._link.streams.pop(number, None)
        if json.loads(end).get("ok"):
            return time.perf_counter() - began
        return call.raised or RuntimeError("the call ended without an answer")
