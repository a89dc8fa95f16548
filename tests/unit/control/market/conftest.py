"""A desk on a fresh store for each test; when the test is over, everything has to agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from desk_stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.check()
    made.close()
