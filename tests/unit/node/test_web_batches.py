"""Which requests run together, and that the trouble of one is not that of the others."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from nanopod.model.endpoint import FunctionSpec
from nanopod.node.runtime.webbatches import WebBatches


def batches(function: Any, **spec: Any) -> WebBatches:
    async def run(_: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await function(*args, **kwargs)

    given = {"batch_max": 4, "batch_wait_ms": 60_000.0, "concurrency": 4, **spec}
    return WebBatches(FunctionSpec("f", **given), inspect.signature(function), run)


def test_requests_of_one_moment_go_together_up_to_the_size() -> None:
    sizes: list[int] = []

    async def double(x: list[int], /, y: list[int] = 5) -> list[int]:  # type: ignore[assignment]
        sizes.append(len(x))
        return [a * 2 + b for a, b in zip(x, y, strict=True)]

    async def main() -> None:
        made = batches(double)
        found = await asyncio.gather(*(made.call([x], {"y": 1} if x % 2 else {}) for x in range(10)))
        assert found == [2 * x + (1 if x % 2 else 5) for x in range(10)]

    asyncio.run(main())
    assert max(sizes) == 4
    assert sum(sizes) == 10
    assert sizes[0] == 4


def test_a_full_batch_does_not_wait_and_an_idle_function_neither() -> None:
    """With a wait of a minute, this ends at once or not at all."""
    gate = asyncio.Event()
    sizes: list[int] = []

    async def held(x: list[int]) -> list[int]:
        sizes.append(len(x))
        await gate.wait()
        return x

    async def main() -> None:
        made = batches(held, concurrency=8)
        first = asyncio.ensure_future(made.call([0], {}))
        while not sizes:
            await asyncio.sleep(0)
        rest = [asyncio.ensure_future(made.call([x], {})) for x in range(1, 6)]
        while len(sizes) < 2:
            await asyncio.sleep(0)
        assert sizes == [1, 4]  # one waits for company
        rest[4].cancel()
        gate.set()
        assert await asyncio.gather(first, *rest[:4]) == [0, 1, 2, 3, 4]
        assert await made.call([9], {}) == 9
        assert sizes == [1, 4, 1]

    asyncio.run(main())


def test_trouble() -> None:
    async def odd(x: list[int]) -> Any:
        if 7 in x:
            raise ValueError("seven")
        if 8 in x:
            return [1]
        if 9 in x:
            return 5
        return [KeyError(value) if value % 2 else value for value in x]

    async def main() -> None:
        made = batches(odd)
        found = await asyncio.gather(*(made.call([x], {}) for x in (2, 3)), return_exceptions=True)
        assert found[0] == 2
        assert isinstance(found[1], KeyError)
        for bad, error, text in ((7, ValueError, "seven"), (8, TypeError, "1 results"), (9, TypeError, "a int")):
            both = await asyncio.gather(made.call([bad], {}), made.call([0], {}), return_exceptions=True)
            for one in both:
                with pytest.raises(error, match=text):
                    raise one  # type: ignore[misc]

    asyncio.run(main())
