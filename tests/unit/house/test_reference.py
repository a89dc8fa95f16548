"""The reference is what the code says, and the code says something about everything in it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import nanopod

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date(maker: ModuleType) -> None:
    made, kept = maker.page().splitlines(), maker.PAGE.read_text().splitlines()
    differing = [pair for pair in zip(made, kept, strict=False) if pair[0] != pair[1]]
    assert made == kept, f"run `make reference`; the first difference (made, kept): {differing[:1]}"


def test_every_export_is_in_it_with_a_text(maker: ModuleType) -> None:
    page = maker.PAGE.read_text()
    for names in nanopod._ROOMS.values():
        for name in names:
            entry = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.S | re.M)
            assert entry is not None, f"{name} is not in the reference"
            prose = re.sub(r"```.*?```", "", entry[1], flags=re.S)
            assert re.search(r"\w+ \w+", prose), f"{name} has no docstring"


def test_it_has_every_command_column_and_gpu(maker: ModuleType) -> None:
    from nanopod.__main__ import table
    from nanopod.client import columns, gpus
    from nanopod.client.query import Column

    page = maker.PAGE.read_text()
    for verb in table():
        assert f"### nanopod {verb}\n" in page
    for name in (name for name, value in vars(columns).items() if isinstance(value, Column)):
        assert f"`{name}`" in page
    for name in (name for name, value in vars(gpus).items() if name[0].isupper() and isinstance(value, str)):
        assert f"`{name}`" in page
