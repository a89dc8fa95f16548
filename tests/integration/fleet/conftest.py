"""One gateway with workers of several kinds for all tests here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "gateway"):
    sys.path.insert(0, str(folder))

from fleet_stage import FleetStage  # noqa: E402 - its folders are put into the path above


@pytest.fixture(scope="session")
def fleet() -> Iterator[FleetStage]:
    """A running gateway, without workers."""
    made = FleetStage()
    try:
        made.start()
        yield made
    finally:
        made.close()
