"""`f.map` and its kin against a small real gateway: order, failures, laziness, the limit in flight, giving up."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from stand_in_gateway import KEY, FakeGateway

from nanopod import Deployment
from nanopod.client.function import RemoteFunction
from nanopod.model import calls
from nanopod.model.errors import Invalid, SerializationError

pytestmark = pytest.mark.integration


def function(gateway: FakeGateway, name: str) -> RemoteFunction[..., Any]:
    """A function of the gateway's, known by name."""
    gateway.specs.setdefault("app:default", {"fingerprints": {}})
    return Deployment.from_name("app", url=gateway.url, api_key=KEY).function(name)


def on_gateway(test: Callable[..., Any], **functions: Any) -> None:
    async def main() -> None:
        async with FakeGateway({"square": lambda x: x * x, "add": lambda x, y: x + y, **functions}) as gateway:
            async with asyncio.timeout(60):
                await test(gateway)

    asyncio.run(main())


class Gate:
    """A remote function whose calls wait until the test lets them go, each by its argument."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.changed = asyncio.Event()
        self.opened: dict[int, asyncio.Event] = {}

    async def __call__(self, x: int) -> int:
        self.begun.append(x)
        self.changed.set()
        await self.opened.setdefault(x, asyncio.Event()).wait()
        return x

    def open(self, *items: int) -> None:
        for item in items:
            self.opened.setdefault(item, asyncio.Event()).set()

    async def until_begun(self, count: int) -> None:
        while len(self.begun) < count:
            self.changed.clear()
            await self.changed.wait()


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


# --- for `for` ---


def test_results_come_in_the_order_of_the_items(gateway: FakeGateway) -> None:
    square = function(gateway, "square")
    assert list(square.map(range(1000))) == [n * n for n in range(1000)]
    assert sorted(square.map(range(100), order=False)) == [n * n for n in range(100)]
    assert list(square.map([])) == []
    gateway.functions["add"] = lambda x, y: x + y
    add = function(gateway, "add")
    assert list(add.starmap([(1, 2), [3, 4]])) == list(add.map([1, 3], [2, 4])) == [3, 7]
    assert max(gateway.started.values()) == 1


def test_a_failed_item_raises_at_its_place_or_is_the_exception(gateway: FakeGateway) -> None:
    square = function(gateway, "square")
    items = [1, "two", threading.Lock(), 4]
    results = square.map(items)
    assert next(results) == 1
    with pytest.raises(TypeError, match="can't multiply"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    one, two, three, four = square.map(items, return_exceptions=True)
    assert (one, four) == (1, 16) and isinstance(two, TypeError) and isinstance(three, SerializationError)
    with pytest.raises(TypeError):
        square.for_each(["x"])
    assert square.for_each(["x", 2], ignore_exceptions=True) is None  # type: ignore[func-returns-value]


def test_items_are_read_as_they_are_needed(gateway: FakeGateway) -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    results = function(gateway, "square").map(endless(), concurrency=4)
    assert list(itertools.islice(results, 50)) == [n * n for n in range(50)]
    assert len(read) <= 50 + 8, "no further ahead than what may be in flight"
    before = len(read)
    results.close()
    assert list(results) == [] and len(read) == before


def test_an_iterable_that_raises_does_so_at_its_place(gateway: FakeGateway) -> None:
    def breaks() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the file ends here")

    results = function(gateway, "square").map(breaks())
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(OSError, match="ends here"):
        next(results)


def test_items_come_from_an_asynchronous_iterable_too(gateway: FakeGateway) -> None:
    async def some() -> AsyncIterator[int]:
        for n in range(200):
            await asyncio.sleep(0)
            yield n

    assert list(function(gateway, "square").map(some(), concurrency=8)) == [n * n for n in range(200)]


def test_progress_is_shown_when_it_is_asked_for(gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(function(gateway, "square").map(range(5), progress=True)) == [0, 1, 4, 9, 16]
    assert "square" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [0, 1.5, True, 100_000])
def test_an_impossible_limit_is_refused(gateway: FakeGateway, wrong: Any) -> None:
    with pytest.raises(Invalid, match="calls in flight") as caught:
        function(gateway, "square").map([1], concurrency=wrong)
    assert caught.value.field == "concurrency"
    with pytest.raises(Invalid, match="takes an iterable"):
        function(gateway, "square").map(3)  # type: ignore[arg-type]


# --- for `async for` ---


def test_as_many_calls_as_asked_for_are_in_flight() -> None:
    async def scenario(gateway: FakeGateway) -> None:
        gate = Gate()
        gateway.functions["wait"] = gate
        results = function(gateway, "wait").map(range(10), concurrency=3)
        first = asyncio.ensure_future(anext(results))
        await gate.until_begun(3)
        assert gate.begun == [0, 1, 2] and not first.done()
        gate.open(1)  # the head is missing still, others take the places
        await gate.until_begun(4)
        gate.open(2)
        await gate.until_begun(5)
        assert gate.begun == [0, 1, 2, 3, 4] and not first.done()
        gate.open(*range(10))
        assert [await first, *[n async for n in results]] == list(range(10))

    on_gateway(scenario)


def test_results_come_as_they_are_done_when_order_does_not_matter() -> None:
    async def scenario(gateway: FakeGateway) -> None:
        gate = Gate()
        gateway.functions["wait"] = gate
        results = function(gateway, "wait").map(range(3), order=False, concurrency=3)
        first = asyncio.ensure_future(anext(results))
        await gate.until_begun(3)
        gate.open(2)
        assert await first == 2
        gate.open(1)
        assert await anext(results) == 1
        gate.open(0)
        assert [n async for n in results] == [0]

    on_gateway(scenario)


@pytest.mark.parametrize("how", ["break", "aclose", "with", "cancel", "fail"])
def test_what_is_in_flight_is_cancelled_when_nobody_wants_it(how: str) -> None:
    async def scenario(gateway: FakeGateway) -> None:
        gate = Gate()
        gateway.functions["wait"] = gate
        gate.open(0)
        wait = function(gateway, "wait")

        async def consume() -> None:
            if how == "break":
                async for _ in wait.map(range(9), concurrency=4):
                    break
            elif how == "aclose":
                results = wait.map(range(9), concurrency=4)
                await anext(results)
                await results.aclose()
            elif how == "with":
                async with wait.map(range(9), concurrency=4) as results:
                    await anext(results)
            else:
                async for _ in wait.map([0, *("x" if how == "fail" else ()), 1, 2, 3], concurrency=5):
                    pass

        def fails(x: Any) -> Any:
            return gate(x) if isinstance(x, int) else int(x)

        gateway.functions["wait"] = fails
        task = asyncio.ensure_future(consume())
        if how == "cancel":
            await gate.until_begun(4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "fail":
            with pytest.raises(ValueError, match="invalid literal"):
                await task
        else:
            await task
        del task
        await until(lambda: all(job.done() for job in gateway.tasks.values()) and len(gate.begun) > 1)
        cancelled = [frame.id for frame in gateway.frames if isinstance(frame, calls.Cancel)]
        assert len(cancelled) == len(set(cancelled)) >= 2

    on_gateway(scenario)


def test_a_cut_link_repeats_calls_without_starting_them_twice() -> None:
    async def scenario(gateway: FakeGateway) -> None:
        gate = Gate()
        gateway.functions["wait"] = gate
        results = function(gateway, "wait").map(range(20), concurrency=20)
        first = asyncio.ensure_future(anext(results))
        await gate.until_begun(20)
        gateway.cut()
        gate.open(*range(20))
        assert [await first, *[n async for n in results]] == list(range(20))
        assert max(gateway.started.values()) == 1

    on_gateway(scenario)


def test_for_each_and_many_forms_work_in_a_loop() -> None:
    async def scenario(gateway: FakeGateway) -> None:
        square = function(gateway, "square")
        await square.for_each.aio(range(50), concurrency=10)
        assert sum(gateway.started.values()) == 50

        async def some() -> AsyncIterator[tuple[int, int]]:
            for n in range(5):
                yield n, n

        assert [n async for n in function(gateway, "add").starmap(some())] == [0, 2, 4, 6, 8]

    on_gateway(scenario)
