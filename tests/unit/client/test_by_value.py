"""Functions by value: what their bundle holds, when it counts as changed, and what cannot travel. Pickled values."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nanopod import Deployment
from nanopod.client import deploying, notebook
from nanopod.model import codec, pickled
from nanopod.model.errors import Invalid, SerializationError

CELLS = """
import threading
from nanopod import Deployment
app = Deployment(name="cells", by_value=True)
app.image("python")
app.configure_autoscaling(cold_workers=1)
FACTOR = 3
class Point:
    def __init__(self, x): self.x = x
    def scaled(self): return Point(self.x * FACTOR)
def helper(x): return x + FACTOR
@app.remote
async def other(x): return x
@app.remote
async def f(x=1): return helper(x) + Point(x).scaled().x + await other(x)
"""


def session(text: str) -> Deployment:
    """The deployment of an interactive session whose module is `cells`."""
    module = type(sys)("cells")
    sys.modules["cells"] = module
    exec(compile(text, "<stdin>", "exec"), module.__dict__)
    made: Deployment = module.__dict__["app"]
    made._mode = "deploy"
    return made


def code_of(text: str) -> str:
    return deploying.build(session(text))[0].fingerprints.code


def test_a_session_can_be_deployed_and_its_bundle_registers_what_is_in_it(tmp_path: Path) -> None:
    spec, bundle = deploying.build(session(CELLS))
    assert spec.module == "deployment" and {one.name for one in spec.functions} == {"f", "other"}
    assert set(bundle.files) == set(spec.files) == {"deployment.py", "deployment.pkl"}
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(bundle.data)) as archive:
        archive.extractall(tmp_path, filter="data")
    worker = """
import asyncio, deployment
from nanopod.model import registry
app = registry.apps["cells"]
print(asyncio.run(app.functions["f"].call(5)), deployment.Point.__module__, list(app.functions))
"""
    done = subprocess.run(
        [sys.executable, "-c", worker], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"NANOPOD_MODE": "serve", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == "28 deployment ['other', 'f']\n", done.stderr


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("", "", False),
        ("import threading\n", "import threading  # a comment\n\n\n", False),
        ("import threading\n", "import threading\nUNUSED = 4\n", False),
        ("FACTOR = 3", "FACTOR = 4", True),
        ("x + FACTOR", "x - FACTOR", True),
        ("Point(self.x * FACTOR)", "Point(self.x + FACTOR)", True),
        ("async def f(x=1)", "async def f(x=2)", True),
    ],
)
def test_only_what_the_functions_use_counts_as_a_change(old: str, new: str, changes: bool) -> None:
    assert (code_of(CELLS) != code_of(CELLS.replace(old, new) if old else CELLS)) is changes


def test_what_cannot_be_pickled_is_named() -> None:
    app = session(CELLS.replace("FACTOR = 3", "FACTOR = threading.Lock()"))
    with pytest.raises(Invalid, match=r"cannot pickle '_thread\.lock'") as caught:
        deploying.build(app)
    assert caught.value.field == "by_value"


def test_another_version_of_python_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"made by value with Python 3\.1,"):
        notebook.load(str(tmp_path / "deployment.py"), "x", name="n", tag="t", serializer="native", python="3.1")


def test_a_cell_may_be_run_again() -> None:
    app = Deployment(name="again", by_value=True)

    def f() -> int:
        return 1

    app.remote(f)
    app.remote(f)
    assert list(app._functions) == ["f"]


# --- pickled values ---


def test_pickles_are_read_only_where_that_was_asked_for() -> None:
    value = {"f": len, "l": [1, (2, 3)]}
    data = pickled.encode(value)
    assert data[:1] == codec.PICKLED and pickled.decode(data, allowed=True) == value
    with pytest.raises(SerializationError, match='serializer="pickle"'):
        pickled.decode(data, allowed=False)
    with pytest.raises(SerializationError):
        codec.decode(data)
    with pytest.raises(SerializationError, match="cannot be read"):
        pickled.decode(codec.PICKLED + b"nonsense", allowed=True)


def test_what_cannot_be_pickled_says_where() -> None:
    with pytest.raises(SerializationError, match=r"^result cannot be pickled: TypeError"):
        pickled.encode(threading.Lock(), path="result")


@pytest.mark.parametrize("value", [None, 1, "x", [], ((), {}), {"a": b"\xc1"}])
def test_no_native_value_looks_like_a_pickle(value: Any) -> None:
    assert codec.encode(value)[:1] != codec.PICKLED


def test_the_serializer_is_part_of_the_code() -> None:
    with pytest.raises(Invalid, match="serializer"):
        Deployment(serializer="json")  # type: ignore[arg-type]
    other = CELLS.replace("by_value=True", 'by_value=True, serializer="pickle"')
    assert code_of(CELLS) != code_of(other)
    assert deploying.build(session(other))[0].serializer == "pickle"
