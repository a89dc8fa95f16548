"""Benchmarks through codec, frames and executor, and what is learned from the calls a worker really gets."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from executor_stage import Stage, on_stage, until

from nanopod.model.errors import CallTimeout
from nanopod.model.registry import RegisteredFunction
from nanopod.node.runtime import benchmark as benchmark_module
from nanopod.node.runtime.benchmark import BenchmarkFailed, Measured, benchmark
from nanopod.node.runtime.measuring import Perf


async def measured(stage: Stage, runs_max: int | None = None) -> dict[str, Measured]:
    return await benchmark(stage.executor, stage.app.functions, "deployment", runs_max)


def test_rounds_are_full_and_the_median_counts() -> None:
    async def story() -> None:
        running, most, calls = 0, 0, 0

        async def square(x: int) -> int:
            nonlocal running, most, calls
            calls += 1
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02 if calls > 5 else 0.2)
            running -= 1
            return x * x

        stage = Stage(64).open()
        stage.executor.draining = True
        dataset = [{"x": 3}]
        stage.add(square, concurrency=4, benchmark_dataset=dataset, benchmark_runs=5, workload=lambda x: x * 10.0)
        found = (await measured(stage))["square"]
        assert (calls, most) == (1 + 5 * 4, 4), "one to warm up, then rounds of four"
        assert found.perf == statistics.median(found.rounds)
        assert found.perf > found.rounds[0], "the slow first round is not the median"
        # Four calls of 30 units in 20 ms and whatever the machine adds.
        assert found.perf <= 4 * 30 / 0.02
        told = found.as_state()
        assert (told["rounds"], told["at_once"], told["errors"]) == (5, 4, 0)
        assert 20 <= told["p50_ms"] <= told["p99_ms"]
        assert stage.executor.table.calls == {}, "no gateway hears of it"
        assert not stage.executor.active
        assert len((await measured(stage, 1))["square"].rounds) == 1

    on_stage(story)


def test_every_kind_of_function_can_be_measured() -> None:
    threads: set[str] = set()

    def plain(x: int) -> int:
        threads.add(threading.current_thread().name)
        return x

    def items(n: int) -> Iterator[int]:
        yield from range(n)

    async def batched(x: list[int]) -> list[int]:
        batches.append(len(x))
        return x

    batches: list[int] = []

    async def story() -> None:
        stage = Stage(64).open()
        stage.add(plain, concurrency=2, benchmark_generator=lambda: {"x": 1}, benchmark_runs=2)
        stage.add(items, benchmark_dataset=[{"n": 300}], benchmark_runs=2)
        stage.add(batched, batch_max=8, concurrency=8, benchmark_dataset=[{"x": 1}], benchmark_runs=2)
        stage.add(plain, "unmeasured")
        found = await measured(stage)
        assert list(found) == ["plain", "items", "batched"]
        assert all(one.perf > 0 for one in found.values())
        assert threading.main_thread().name not in threads
        assert batches == [1, 8, 8]

    on_stage(story)


def test_a_failed_call_fails_its_round_and_only_that() -> None:
    async def story() -> None:
        count = 0

        async def shaky(x: int) -> int:
            nonlocal count
            count += 1
            if count in (3, 4):
                raise ValueError("not now")
            return x

        stage = Stage(64).open()
        stage.add(shaky, concurrency=2, benchmark_dataset=[{"x": 1}], benchmark_runs=4)
        found = (await measured(stage))["shaky"]
        assert (len(found.rounds), found.errors) == (2, 2)

    on_stage(story)


def test_when_all_rounds_fail_the_last_reason_is_told() -> None:
    async def broken(x: int) -> float:
        return 1 / x

    async def unsendable(x: int) -> Any:
        return threading.Lock()

    async def story() -> None:
        for function in (broken, unsendable):
            stage = Stage().open()
            stage.add(function, benchmark_dataset=[{"x": 0}], benchmark_runs=2)
            with pytest.raises(BenchmarkFailed) as caught:
                await measured(stage)
            assert caught.value.name == function.__name__
            assert type(caught.value.error).__name__ in ("ZeroDivisionError", "SerializationError")
        stage = Stage().open()
        stage.add(broken, benchmark_dataset=[{"x": threading.Lock()}], benchmark_runs=1)
        with pytest.raises(BenchmarkFailed, match="SerializationError: benchmark"):
            await measured(stage)
        stage = Stage().open()
        stage.add(broken, benchmark_generator=lambda: {}["none"], benchmark_runs=1)
        with pytest.raises(BenchmarkFailed, match="KeyError"):
            await measured(stage)

    on_stage(story)


def test_a_benchmark_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "BENCHMARK_S_MAX", 0.1)

    async def slow(x: int) -> None:
        await asyncio.sleep(60)

    async def story() -> None:
        stage = Stage().open()
        stage.add(slow, benchmark_dataset=[{"x": 1}], benchmark_runs=3)
        with pytest.raises(BenchmarkFailed) as caught:
            await measured(stage)
        assert isinstance(caught.value.error, CallTimeout)
        await until(lambda: not stage.executor.active)

    on_stage(story)


# --- what calls show ---


def functions(**concurrency: Any) -> dict[str, RegisteredFunction]:
    stage = Stage()
    for name, given in concurrency.items():
        spec = {"concurrency": given} if isinstance(given, int) else given
        stage.add(len, name, **spec)
    return stage.app.functions


def note(perf: Perf, name: str, seconds: float, at_once: int, times: int = 20, workload: float = 100.0) -> bool:
    for _ in range(times):
        perf.note(name, workload, round(seconds * 1e6), at_once)
    return perf.review()


def test_several_functions_count_by_their_weight() -> None:
    known = functions(a={"benchmark_weight": 1.0}, b={"benchmark_weight": 3.0})
    assert Perf(known, {}).value is None
    assert Perf(known, {"a": 100.0}).value == 100
    # Of four units of time one goes to a: 4 / (1/100 + 3/300).
    assert Perf(known, {"a": 100.0, "b": 300.0}).value == pytest.approx(200)


def test_without_a_benchmark_twenty_calls_are_enough() -> None:
    perf = Perf(functions(f=4), {})
    assert not note(perf, "f", 0.1, 1, times=19)
    assert perf.value is None
    assert note(perf, "f", 0.1, 1, times=1)
    assert perf.value == pytest.approx(4 * 100 / 0.1), "as if four ran at once as fast as one"
    # A full worker tells more: four at once take twice as long each.
    assert note(perf, "f", 0.2, 4)
    assert perf.value == pytest.approx(4 * 100 / 0.2)


def test_a_benchmark_is_corrected_by_full_workers_alone() -> None:
    perf = Perf(functions(f=4, g=1), {"f": 4000.0})
    assert not note(perf, "f", 1.0, 1, times=200), "a half idle worker says nothing"
    assert not note(perf, "f", 0.09, 4), "within a fifth it is noise"
    assert perf.value == 4000
    assert note(perf, "f", 0.2, 4, times=100)
    assert perf.value == pytest.approx(2000)
    assert not note(perf, "g", 0.5, 1, times=40), "what has no benchmark beside what has one does not count"
    assert perf.value == pytest.approx(2000)


def test_a_batch_has_as_many_places_as_run_at_once() -> None:
    perf = Perf(functions(f={"concurrency": 32, "batch_max": 16}), {"f": 1.0})
    assert note(perf, "f", 0.001, 2)
    assert perf.value == pytest.approx(2 * 100 / 0.001)


def test_live_calls_reach_perf_through_the_executor() -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(0.005)
        return x

    async def story() -> None:
        stage = Stage(2).open()
        stage.add(slow, concurrency=2)
        perf = Perf(stage.app.functions, {})
        changed = asyncio.Event()
        stage.executor.answers.on_value = lambda call, run_us, at_once: perf.note(
            call.header.function, call.header.workload, run_us, at_once or len(stage.executor.active)
        )
        stage.executor.on_sweep = lambda: changed.set() if perf.review() else None
        for _ in range(12):
            await asyncio.gather(stage.run("slow", 1, workload=50.0), stage.run("slow", 2, workload=50.0))
        await asyncio.wait_for(changed.wait(), 20)
        assert perf.value is not None
        assert 0 < perf.value <= 2 * 50 / 0.005

    on_stage(story)
