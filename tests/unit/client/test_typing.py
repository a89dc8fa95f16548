"""A type checker sees through the decorators: parameters and results are those of the function."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

USER = """
from collections.abc import AsyncIterator
import nanopod
from nanopod import Call, Deployment, Retries
app = Deployment()

@app.remote
async def square(x: int) -> int:
    return x * x

@app.remote(concurrency=2)
def cube(x: int) -> int:
    return x ** 3

@app.remote
async def numbers(n: int) -> AsyncIterator[int]:
    yield n

@app.cls(concurrency=4)
class Model:
    @nanopod.enter()
    def load(self) -> None:
        self.size = 3

    @nanopod.method()
    async def answer(self, text: str) -> str:
        return text * self.size

    @nanopod.method
    def count(self, n: int) -> int:
        return n

async def good() -> tuple[int, int]:
    async for item in numbers(3):
        print(item + 1)
    async for squared in square.map([1, 2], order=False):
        print(squared + 1)
    call: Call[int] = await square.spawn.aio(3)
    again: int = await square.with_options(timeout=5, retries=Retries(2), model="a")(4)
    words: str = await Model().answer("x") + Model().answer.remote("y") + await call.ashare()
    items: Call[list[int]] = numbers.spawn(3)
    print(sum(cube.map([1])), again, words, await call + Model().count.spawn(2).get(), await items)
    return await square(5), square.remote(6)

async def bad() -> None:
    await square("x")      # wrong argument
    text: str = await square(5)  # wrong result
    square.remote(y=1)     # wrong name
    numbers("3")           # wrong argument
    cube.remote("x")       # wrong argument, with options
    square.spawn("x")      # wrong argument of a spawned call
    square.with_options(model="a")("x")  # wrong argument, with options of the call
    await Model().answer(3)  # wrong argument of a method
    Model().count.spawn(1).get() + "x"  # wrong result of a spawned call
    "x" + next(square.map([1]))  # wrong result of many calls
"""


@pytest.mark.slow
def test_mistakes_in_calls_are_found(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    path = tmp_path / "user.py"
    path.write_text(textwrap.dedent(USER))
    said, problem, _ = api.run(["--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), str(path)])
    lines = sorted({int(line.split(":")[1]) for line in said.splitlines() if "error" in line})
    first = USER.splitlines().index('    await square("x")      # wrong argument') + 1
    assert lines == list(range(first, first + 10)), said + problem
