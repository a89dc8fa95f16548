"""The table of features: every row is complete and names a test that is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "FEATURES.md"
CELL = re.compile(r"(?<!\\)\|")
MARKS = {"Y", "y", "P", "-", "?"}
ROWS_MIN = 50


def rows() -> list[list[str]]:
    """The cells of every row below a heading of the tables."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in CELL.split(line)[1:-1]] for line in lines]
    return [cells for cells in found if cells[0] != "feature" and not cells[0].startswith("---")]


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the test functions in a module."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )  # fmt: skip


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0].replace(" ", "-"))
def test_a_row_is_complete_and_its_test_exists(cells: list[str]) -> None:
    assert len(cells) == 11 and all(cells), "a cell is empty or missing"
    assert set(cells[1:9]) <= MARKS, "the other systems have a mark each"
    match = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", cells[10])
    assert match is not None, f"{cells[10]} is no `path::test`"
    assert (ROOT / match[1]).is_file(), f"there is no {match[1]}"
    assert match[2] in names_in(match[1]), f"{match[1]} has no {match[2]}"


def test_no_row_is_there_twice_and_all_are_read() -> None:
    names = [cells[0] for cells in rows()]
    assert len(names) == len(set(names)) >= ROWS_MIN
