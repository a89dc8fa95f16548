"""Stages are expensive (a process each), so tests of one module share one where they can."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A gateway of the test's own, not yet started."""
    made = Stage()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    """A running gateway with one model worker and one function worker."""
    made = Stage()
    try:
        made.start()
        made.worker("endp_model", "inst_m")
        made.worker("endp_fn", "inst_f")
        yield made
    finally:
        made.close()
