"""A call that is cancelled in the moment in which it comes frees its slot, as any other does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from executor_stage import Ended, Stage, on_stage


def test_cancelled_before_the_first_step_of_its_task() -> None:
    ran: list[int] = []

    async def plain(x: int) -> int:
        ran.append(x)
        await asyncio.sleep(0)
        return x

    async def items(x: int) -> AsyncIterator[int]:
        ran.append(x)
        yield x

    async def story() -> None:
        stage = Stage(slots=2).open()
        stage.add(plain, concurrency=2)
        stage.add(items, concurrency=2)
        for _ in range(10):
            for name in ("plain", "items"):
                asked = stage.ask(name, 1)
                asked.cancel()
                with pytest.raises(Ended, match="cancelled"):
                    await asked.value()
        assert ran == [], "nothing of it ran"
        assert stage.executor.active == {}, "and no slot is taken"
        assert await stage.run("plain", 7) == 7

    on_stage(story)
