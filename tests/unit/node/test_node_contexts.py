"""Contexts: order, side by side, roll-back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nanopod.model.registry import App, RegisteredContext
from nanopod.node.runtime.contexts import ContextFailed, Contexts


class Stage:
    """Builds an app whose contexts write down what happens to them."""

    def __init__(self) -> None:
        self.app = App("test")
        self.told: list[str] = []

    def add(self, name: str, *needs: type, enter_s: float = 0.0, exit_s: float = 0.0, **raises: BaseException) -> type:
        told = self.told

        async def enter(manager: Any) -> str:
            told.append(f"{name}+")
            try:
                await asyncio.sleep(enter_s)
            except asyncio.CancelledError:
                told.append(f"{name}!")
                raise
            if "on_enter" in raises:
                raise raises["on_enter"]
            told.append(f"{name}=")
            return name

        async def leave(manager: Any, kind: Any, error: Any, trace: Any) -> None:
            told.append(f"{name}-{kind.__name__ if kind else ''}")
            await asyncio.sleep(exit_s)
            if "on_exit" in raises:
                raise raises["on_exit"]

        cls = type(name, (), {"__aenter__": enter, "__aexit__": leave})
        self.app.contexts[cls] = RegisteredContext(cls, needs=needs)
        return cls


def test_needs_come_first_and_others_side_by_side() -> None:
    async def story() -> None:
        stage = Stage()
        a = stage.add("a", enter_s=0.02)
        stage.add("b", enter_s=0.05)
        stage.add("c", a, enter_s=0.01)
        contexts = Contexts(stage.app)
        began = asyncio.get_running_loop().time()
        await contexts.enter()
        assert asyncio.get_running_loop().time() - began < 0.08 * 2
        assert stage.told == ["a+", "b+", "a=", "c+", "c=", "b="]
        assert {cls.__name__: value for cls, value in stage.app.entered.items()} == {"a": "a", "b": "b", "c": "c"}
        assert await contexts.exit(None, 1.0) == []
        assert sorted(stage.told[6:]) == ["a-", "b-", "c-"]
        assert stage.app.entered == {}

    asyncio.run(story())


def test_the_first_failure_takes_the_others_back() -> None:
    async def story() -> None:
        stage = Stage()
        bad = stage.add("bad", enter_s=0.02, on_enter=OSError("no weights"))
        stage.add("done")
        stage.add("slow", enter_s=30)
        stage.add("child", bad)
        with pytest.raises(ContextFailed, match="context bad failed: OSError: no weights") as caught:
            await Contexts(stage.app).enter()
        assert isinstance(caught.value.error, OSError)
        assert stage.told == ["bad+", "done+", "slow+", "done=", "slow!", "done-OSError"]
        assert stage.app.entered == {}

    asyncio.run(story())


def test_being_cancelled_takes_everything_back() -> None:
    async def story() -> None:
        stage = Stage()
        stage.add("done")
        stage.add("slow", enter_s=30)
        task = asyncio.create_task(Contexts(stage.app).enter())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stage.told == ["done+", "slow+", "done=", "slow!", "done-"]

    asyncio.run(story())


def test_circles_and_strangers_are_named() -> None:
    stage = Stage()
    a = stage.add("a")
    b = stage.add("b", a)
    stage.app.contexts[a] = RegisteredContext(a, needs=(b,))
    with pytest.raises(ContextFailed, match="a -> b -> a"):
        asyncio.run(Contexts(stage.app).enter())
    lonely = Stage()
    lonely.add("c", a)
    with pytest.raises(ContextFailed, match="needs a, which is not registered"):
        asyncio.run(Contexts(lonely.app).enter())


def test_one_that_cancels_itself_is_a_failure() -> None:
    stage = Stage()
    stage.add("odd", on_enter=asyncio.CancelledError())
    with pytest.raises(ContextFailed, match="odd"):
        asyncio.run(Contexts(stage.app).enter())


def test_leaving_has_a_limit_and_failures_do_not_spread() -> None:
    async def story() -> None:
        stage = Stage()
        stage.add("slow", exit_s=30)
        stage.add("bad", on_exit=RuntimeError("no"))
        stage.add("good")
        contexts = Contexts(stage.app)
        await contexts.enter()
        began = asyncio.get_running_loop().time()
        assert sorted(await contexts.exit(None, 0.1)) == ["bad", "slow"]
        assert asyncio.get_running_loop().time() - began < 1
        assert "good-" in stage.told
        assert await contexts.exit(None, 0.1) == [], "left once"

    asyncio.run(story())


def test_ordinary_context_managers_do_too() -> None:
    class Plain:
        def __init__(self, value: int) -> None:
            self.value = value

        def __enter__(self) -> int:
            return self.value

        def __exit__(self, *_: object) -> None:
            left.append(self.value)

    left: list[int] = []

    async def story() -> None:
        app = App("test")
        app.contexts[Plain] = RegisteredContext(Plain, (7,))
        contexts = Contexts(app)
        await contexts.enter()
        assert app.entered[Plain] == 7
        await contexts.exit(None, 1.0)
        assert left == [7]

    asyncio.run(story())
