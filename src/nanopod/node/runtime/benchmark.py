"""How much load a worker takes: its functions run as calls do, through codec and executor, before it is ready."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from nanopod.model import codec
from nanopod.model.registry import App, RegisteredFunction
from nanopod.node.runtime.workload import Workload

CONCURRENCY_MAX: Final = 64
BENCHMARK_S_MAX: Final = 300.0
_log: Final = logging.getLogger(__name__)


class BenchmarkFailed(Exception):
    """Every round of a function's benchmark failed; `error` is the last reason."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"the benchmark of {name} failed: {type(error).__name__}: {error}")
        self.name = name
        self.error = error


async def benchmark(app: App, module: str, runs_max: int | None = None) -> float | None:
    """Units of load per second: the median over rounds, the harmonic mean over functions; None: nothing to measure.

    Raises `BenchmarkFailed` when all rounds of a function fail.
    """
    perfs = []
    for function in app.functions.values():
        if function.benchmark_dataset or function.benchmark_generator is not None:
            runs = function.benchmark_runs if runs_max is None else min(runs_max, function.benchmark_runs)
            perfs.append(await _measure(function, module, max(1, runs)))
    return statistics.harmonic_mean(perfs) if perfs else None


async def _measure(function: RegisteredFunction, module: str, runs: int) -> float:
    name = function.spec.name
    at_once = max(1, min(function.spec.concurrency, CONCURRENCY_MAX))
    workload = Workload(function)
    rounds: list[float] = []
    last: BaseException | None = None
    limit = time.monotonic() + BENCHMARK_S_MAX
    for number in range(runs + 1):
        left_s = min(function.spec.timeout_s, limit - time.monotonic())
        if left_s <= 0:
            last = last or TimeoutError(f"no round ended within {BENCHMARK_S_MAX:.0f} s")
            break
        try:
            samples = [_sample(function) for _ in range(1 if number == 0 else at_once)]
            units = sum(workload.of((), sample) for sample in samples)
            began = time.perf_counter()
            async with asyncio.timeout(left_s):
                await asyncio.gather(*(_call(function, module, sample) for sample in samples))
            if number:
                rounds.append(units / max(time.perf_counter() - began, 1e-9))
        except Exception as error:  # whatever the user's function raises fails this round only
            last = error
    if not rounds:
        assert last is not None, "without rounds there was an error"
        raise BenchmarkFailed(name, last) from last
    perf = max(statistics.median(rounds), 1e-9)
    _log.info("benchmark of %s: %.6g per second (median of %d rounds of %d)", name, perf, len(rounds), at_once)
    return perf


def _sample(function: RegisteredFunction) -> dict[str, Any]:
    if function.benchmark_dataset:
        return random.choice(function.benchmark_dataset)
    assert function.benchmark_generator is not None
    return function.benchmark_generator()


async def _call(function: RegisteredFunction, module: str, sample: dict[str, Any]) -> None:
    """One call as a caller would make it; its answer is encoded and thrown away."""
    args, kwargs = codec.decode(codec.encode(((), sample), path="benchmark"), module=module)
    kind = function.spec.kind
    if kind == "async":
        codec.encode(await function.call(*args, **kwargs), path="result")
    elif kind == "async_generator":
        async for item in function.call(*args, **kwargs):
            codec.encode(item, path="item")
    else:
        await _in_thread(_consume if kind == "generator" else _plain, function.call, args, kwargs)


def _plain(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    codec.encode(call(*args, **kwargs), path="result")


def _consume(call: Callable[..., Iterable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for item in call(*args, **kwargs):
        codec.encode(item, path="item")


async def _in_thread(function: Callable[..., None], *args: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(None, lambda: contextvars.Context().run(function, *args))
