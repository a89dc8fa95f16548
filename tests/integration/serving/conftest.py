"""One stage with a worker of each kind for all tests of a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))
sys.path.insert(0, str(Path(__file__).parent))

from serving_stage import ServingStage


@pytest.fixture(scope="module")
def stage() -> Iterator[ServingStage]:
    made = ServingStage()
    try:
        made.start()
        yield made
    finally:
        made.close()
