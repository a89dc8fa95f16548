"""The guides to manifests and scaling do what they say, and every file of the examples' manifests is used by one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from document_pages import Stage, blocks, commands, stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MANIFESTS = ROOT / "examples" / "manifests"
MODELS = Path("/tmp/nanopod-models")
"""Where the guide has its models, as the files name it."""


@pytest.fixture
def guided() -> Iterator[Stage]:
    """A directory with the files of the examples, where a page starts and ends a cloud of its own."""
    there = MODELS.exists()
    with stage(shared=False) as made:
        for path in MANIFESTS.iterdir():
            if path.is_file():
                shutil.copy(path, made.directory)
        yield made
    if not there:
        shutil.rmtree(MODELS, ignore_errors=True)


def test_the_guide_to_manifests(guided: Stage) -> None:
    pytest.importorskip("sklearn")
    assert guided.play(DOCS / "MANIFESTS.md") > 30


def test_the_guide_to_scaling(guided: Stage) -> None:
    assert guided.play(DOCS / "SCALING.md") > 8


@pytest.mark.parametrize("name", ["MANIFESTS", "SCALING"])
def test_every_shell_line_is_one_that_is_run(name: str) -> None:
    shown = blocks(DOCS / f"{name}.md")
    for block in shown:
        assert block.language in ("console", "python", ""), f"{name}.md, line {block.line}"
        assert block.language != "python" or len(block.words) == 2, f"{name}.md, line {block.line}: name the file"
    asked = " ".join(command.text for block in shown if block.language == "console" for command in commands(block))
    for block in shown:
        assert block.language != "python" or block.words[1] in asked, f"{name}.md: {block.words[1]} is not run"


def test_every_manifest_of_the_examples_is_applied() -> None:
    found = [block for block in blocks(DOCS / "MANIFESTS.md") if block.language == "console"]
    asked = " ".join(command.text for block in found for command in commands(block))
    files = {path.name for path in MANIFESTS.iterdir() if path.is_file()}
    assert {path for path in files if f"apply -f {path}" in asked} | {"make_models.py"} == files
    assert "python make_models.py" in asked
