"""A cache of loaded things: what is kept, who loads, what goes and when."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import nanopod
from nanopod import Deployment, multiplexed
from nanopod.model import registry
from nanopod.model.errors import Invalid
from nanopod.model.registry import CallContext, current


@pytest.fixture(autouse=True)
def own_closers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "closers", [])


class Adapter:
    def __init__(self, name: str, closed: list[str]) -> None:
        self.name = name
        self._closed = closed

    def close(self) -> None:
        self._closed.append(self.name)


async def until(test: Callable[[], Any]) -> None:
    limit = time.monotonic() + 10
    while not test():
        assert time.monotonic() < limit
        gc.collect()
        await asyncio.sleep(0.002)


def test_the_least_recently_used_goes_first() -> None:
    closed: list[str] = []
    loads: list[str] = []

    @multiplexed(max=2)
    async def load(name: str) -> Adapter:
        loads.append(name)
        return Adapter(name, closed)

    async def story() -> None:
        a = await load("a")
        assert await load("a") is a
        await load("b")
        await load("a")
        await load("c")
        await until(lambda: closed)
        assert closed == ["b"]
        assert load.loaded() == ["a", "c"]
        await load("b")
        await until(lambda: len(closed) == 2)
        assert closed == ["b", "a"]
        assert loads == ["a", "b", "c", "b"]
        for closer in registry.closers:
            await closer()
        assert sorted(closed[2:]) == ["b", "c"], "the end of the worker closes the rest"
        assert load.loaded() == []

    asyncio.run(story())


def test_those_who_want_the_same_wait_for_one_load() -> None:
    loads: list[str] = []

    @multiplexed
    async def load(name: str) -> object:
        loads.append(name)
        await asyncio.sleep(0.01)
        if len(loads) == 1:
            raise OSError("no such adapter")
        return object()

    async def story() -> None:
        first = await asyncio.gather(*(load("a") for _ in range(5)), return_exceptions=True)
        assert [type(one) for one in first] == [OSError] * 5
        found = await asyncio.gather(*(load("a") for _ in range(5)))
        assert len(set(map(id, found))) == 1
        assert loads == ["a", "a"], "what failed is tried again"

    asyncio.run(story())


def test_who_loads_may_be_cancelled_without_harm_to_the_others() -> None:
    loads: list[str] = []

    @multiplexed
    async def load(name: str) -> str:
        loads.append(name)
        await asyncio.sleep(0.02)
        return name.upper()

    async def story() -> None:
        first = asyncio.create_task(load("a"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(load("a")) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()
        others[2].cancel()
        assert await asyncio.gather(*others[:2]) == ["A", "A"]
        assert loads == ["a", "a"]
        for task in (first, others[2]):
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(story())


def test_without_an_argument_it_loads_what_the_call_asks_for() -> None:
    @multiplexed(max=1)
    def load(name: str) -> str:
        return name.upper()

    with pytest.raises(Invalid, match=r"with_options\(model=") as caught:
        load()
    assert caught.value.field == "model"
    token = current.set(CallContext("c" * 32, route_key="french"))
    assert load() == "FRENCH"
    assert load("german") == "GERMAN"
    current.reset(token)
    with pytest.raises(TypeError, match="must be hashable"):
        load([1])
    with pytest.raises(TypeError, match="takes one argument"):
        load("a", "b")


def test_what_a_running_call_uses_is_not_closed_under_it() -> None:
    closed: list[str] = []

    @multiplexed(max=1)
    async def load(name: str) -> Adapter:
        return Adapter(name, closed)

    async def story() -> None:
        done = asyncio.Event()

        async def call() -> None:
            current.set(CallContext("1" * 32))
            adapter = await load("a")
            await done.wait()
            assert adapter.name not in closed

        using = asyncio.create_task(call())
        await asyncio.sleep(0.01)
        await load("b")
        await asyncio.sleep(0.02)
        assert closed == []
        assert load.loaded() == ["b"]
        done.set()
        await using
        del using
        await until(lambda: closed)
        assert closed == ["a"]

    asyncio.run(story())


def test_threads_share_it_and_methods_have_one_for_each_object() -> None:
    closed: list[str] = []

    class Loader:
        def __init__(self) -> None:
            self.loads: list[str] = []

        @multiplexed(max=1)
        def adapter(self, name: str) -> Adapter:
            self.loads.append(name)
            time.sleep(0.01)
            return Adapter(name, closed)

    one, two = Loader(), Loader()
    found: list[Adapter] = []
    threads = [threading.Thread(target=lambda: found.append(one.adapter("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(map(id, found))) == 1
    assert one.loads == ["a"]
    assert two.adapter("a") is not found[0]
    assert two.adapter("a") is Loader.adapter(two, "a")
    one.adapter("b")
    limit = time.monotonic() + 10
    while not closed and time.monotonic() < limit:
        time.sleep(0.002)
    assert closed == ["a"]


def test_things_are_let_go_in_the_way_they_know(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    class Async:
        async def aclose(self) -> None:
            told.append("aclose")

    class Managed:
        async def __aexit__(self, *about: object) -> None:
            told.append(f"aexit {about[0]}")

    class Bad:
        def close(self) -> None:
            raise OSError("stuck")

    things = {"a": Async(), "m": Managed(), "bad": Bad(), "n": 3, "end": 0}

    @multiplexed(max=1)
    async def load(name: str) -> Any:
        return things[name]

    async def story() -> None:
        for name in things:
            await load(name)
        await until(lambda: len(told) == 2 and "could not be closed" in caplog.text)

    asyncio.run(story())
    assert told == ["aclose", "aexit None"]


def test_impossible_sizes_and_targets_are_named() -> None:
    for size in (0, -1, True, 1.5, 10_001):
        with pytest.raises(Invalid, match="max is from 1 to 10000"):
            multiplexed(max=size)
    with pytest.raises(TypeError, match="marks a function"):
        multiplexed(3)


def test_a_deployment_has_it_too() -> None:
    app = Deployment(name="multiplexed-test")

    @app.multiplexed(max=3)
    def load(name: str) -> str:
        return name * 2

    assert load("a") == "aa"
    assert load.__name__ == "load"
    assert nanopod.multiplexed is multiplexed
