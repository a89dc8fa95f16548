"""Every file in examples/ runs as a newcomer runs it, in local mode, and prints what it should."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from document_pages import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
EXAMPLES = Path(__file__).parents[2] / "examples"
SAID: dict[str, str] = {
    "square.py": r"square\(5\) = 25\n",
    "stream.py": r"A worker may go away at any moment; what it promised does not\. \n",
    "counter_context.py": r"values \[101, 102, .*, 110\] from 1 process\n",
    "digit_inference.py": r"(.*\n)*probabilities of a black image:( 0\.100){10}\n",
    "batch_map.py": r"10000 items, 3 failed, the roots add up to 666\d\d\d\.\d\n\d+ items per second\n",
    "cron_job.py": r"ticked at least 2 times: True\n\['ticks', 'so', 'far'\]\n",
    "web_endpoint.py": (
        r'square: \{"result":144\}\nwords: data: "one"  data: "two"  event: end data: \{\}\nsite: hello you\n'
    ),
}
"""What each prints on its standard output, as a pattern."""
ELSEWHERE = ("demo.py", "semantic_search.py")
"""Longer stories, with a model to fetch or minutes to tell; here they are only loaded."""
LINES_MAX = 60
CELLS = """
import json, sys, types
module = types.ModuleType("__main__")
sys.modules["__main__"] = module
for index, cell in enumerate(json.load(open(sys.argv[1]))["cells"], 1):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"<cell {index}>", "exec"), module.__dict__)
"""
"""The code cells in their order, in one namespace that is `__main__`, as a kernel does it."""


@pytest.fixture(scope="module", autouse=True)
def copies(place: Stage) -> None:
    """The examples where the shared cloud is; their own directory stays clean."""
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, place.directory)


def run(place: Stage, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=place.directory, env=place.env, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    place.sweep()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SAID)
def test_an_example(place: Stage, name: str) -> None:
    said = run(place, name)
    assert re.fullmatch(SAID[name], said), said


def test_the_model_continues_a_story(place: Stage) -> None:
    assert len(run(place, "llm_generate.py").split()) > 15


def test_the_notebook_runs_cell_by_cell(place: Stage) -> None:
    said = run(place, "-c", CELLS, "notebook.ipynb")
    assert said == "moving Point(x=1, y=2)\nPoint(x=101, y=102)\n[Point(x=0, y=100), Point(x=1, y=101)]\n"


def test_every_example_is_run_and_can_be_read_at_once() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == {*SAID, *ELSEWHERE, "llm_generate.py", "market.py", "notebook.ipynb"}
    for name in (*SAID, "llm_generate.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < LINES_MAX, f"{name} is too long for a newcomer"


def test_a_day_on_the_market(place: Stage) -> None:
    """It starts a cloud of its own, with a clock that is advanced."""
    said = run(place, "market.py")
    assert "lead_s=600" in said and "awaiting_allocation" in said
    assert len(re.findall(r"running +ready +inference", said.rpartition("$ nanopod instances list")[2])) == 2, said


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_longer_stories_load(place: Stage, name: str) -> None:
    """Their syntax, their imports and the names that they use of nanopod."""
    run(place, "-c", f"import runpy; runpy.run_path({name!r}, run_name='loaded')")
