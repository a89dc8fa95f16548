"""Every benchmark can be run by its name, and the page that lists them names no other one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from bench.__main__ import CELLS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "BENCHMARKS.md").read_text()


@pytest.mark.parametrize("name", CELLS)
def test_each_cell_is_there(name: str) -> None:
    module, _, function = CELLS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function or "run"))


def test_the_page_names_what_can_be_run() -> None:
    asked = re.findall(r"ONLY=(\w+)", PAGE)
    figures = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert len(asked) > 8 and len(figures) > 20
    for name in {*asked, *figures}:
        assert any(name.startswith(cell) for cell in CELLS), f"no cell runs {name}"
