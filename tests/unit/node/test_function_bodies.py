"""Which changes of a file a running worker can take."""

from __future__ import annotations

import pytest

from nanopod.model import bodies

OLD = b'''"""A file."""
import os
from nanopod import Deployment
LIMIT = 3
app = Deployment()

@app.context(1)
class Model:
    async def __aenter__(self): return self
    async def __aexit__(self, *about): pass

def helper(x):
    return x

@app.remote(concurrency=2)
async def square(x: int = 1) -> int:
    return helper(x) * x

@app.remote
def items(n):
    yield n

if __name__ == "__main__":
    print(square.remote(2))
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"return helper(x) * x", b"return helper(x) * x * x"),
        (b"x: int = 1) -> int", b"x: int = 2, y=None) -> float"),
        (b'"""A file."""', b'"""Another docstring."""'),
        (b"print(square.remote(2))", b"print(square.remote(3))"),
        (b"    return x\n", b"    # a comment\n    return x\n"),
        (
            b"def helper(x):\n    return x",
            b"def helper(x):\n    import math\n    def inner():\n        yield 1\n    return x",
        ),
    ],
)
def test_bodies_may_differ(old: bytes, new: bytes) -> None:
    assert old in OLD
    assert bodies.obstacle(OLD, OLD.replace(old, new)) == ""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"LIMIT = 3", b"LIMIT = 4", "LIMIT changed"),
        (b"import os\n", b"import sys\n", "an import changed"),
        (b"import os\n", b"", "changed"),
        (b"@app.context(1)", b"@app.context(2)", "class Model changed"),
        (b"return self", b"return None", "class Model changed"),
        (b"(concurrency=2)", b"(concurrency=3)", "the decorators of square changed"),
        (b"async def square", b"def square", "became"),
        (b"def helper", b"def helpers", "function helper became function helpers"),
        (b"yield n", b"return n", "no longer a generator"),
        (b"if __name__", b"def more(): pass\nif __name__", "function more was added"),
        (b"@app.remote\ndef items(n):\n    yield n\n", b"", "function items was removed"),
        (b"def items(n):", b"def square(n):", "defined twice"),
    ],
)
def test_everything_else_is_named(old: bytes, new: bytes, told: str) -> None:
    assert old in OLD
    assert told in bodies.obstacle(OLD, OLD.replace(old, new))


def test_other_files_must_be_equal_and_syntax_errors_are_told() -> None:
    files = {"a.py": OLD, "data.txt": b"1"}
    assert bodies.obstacle_in(files, {**files, "data.txt": b"2"}) == "data.txt changed"
    assert bodies.obstacle_in(files, {"a.py": OLD}) == "data.txt was removed"
    assert bodies.obstacle_in(files, {**files, "b.py": b""}) == "b.py was added"
    assert "a.py, line" in bodies.obstacle_in(files, {**files, "a.py": OLD.replace(b"LIMIT = 3", b"LIMIT = 4")})
    with pytest.raises(SyntaxError):
        bodies.obstacle(OLD, b"def (:")
