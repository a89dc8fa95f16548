"""A type checker sees through the decorators: parameters and results are those of the function."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

USER = """
from collections.abc import AsyncIterator
from nanopod import Deployment
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

async def good() -> tuple[int, int]:
    async for item in numbers(3):
        print(item)
    return await square(5), square.remote(6)

async def bad() -> None:
    await square("x")      # wrong argument
    text: str = await square(5)  # wrong result
    square.remote(y=1)     # wrong name
    numbers("3")           # wrong argument
    cube.remote("x")       # wrong argument, with options
"""


@pytest.mark.slow
def test_mistakes_in_calls_are_found(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    path = tmp_path / "user.py"
    path.write_text(textwrap.dedent(USER))
    said, problem, _ = api.run(["--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), str(path)])
    lines = sorted({int(line.split(":")[1]) for line in said.splitlines() if "error" in line})
    first = USER.splitlines().index('    await square("x")      # wrong argument') + 1
    assert lines == list(range(first, first + 5)), said + problem
