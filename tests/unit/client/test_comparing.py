"""What a plan shows of two versions of a file: the first line that counts."""

from __future__ import annotations

import pytest

from nanopod.client.comparing import _first

OLD = """from nanopod import Deployment
app = Deployment()
app.configure_autoscaling(cold_workers=1, max_workers=2)

# multiplies
@app.remote
def square(x):
    return x * x
"""


@pytest.mark.parametrize(
    ("edits", "shown"),
    [
        ([("x * x", "x ** 2")], "app.py:8: - return x * x + return x ** 2"),
        ([("max_workers=2", "max_workers=3"), ("x * x", "x ** 2")], "app.py:8: - return x * x + return x ** 2"),
        (
            [("# multiplies", "# makes squares"), ("(x):", "(x, y=1):")],
            "app.py:7: - def square(x): + def square(x, y=1):",
        ),
        ([("app = Deployment()", "import math\napp = Deployment()")], "app.py:2: - (nothing) + import math"),
        ([("    return x * x", "    x = x + 1\n    return x * x")], "app.py:8: - (nothing) + x = x + 1"),
        ([("max_workers=2", "max_workers=3")], "app.py differs"),
        ([("return x * x", "return (")], "app.py:8: - return x * x + return ("),
    ],
)
def test_the_first_line_that_counts(edits: list[tuple[str, str]], shown: str) -> None:
    new = OLD
    for before, after in edits:
        assert before in new
        new = new.replace(before, after)
    assert _first("app.py", OLD.encode(), new.encode()) == shown
