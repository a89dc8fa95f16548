"""One gateway with one worker for the tests that do not hurt them; the others start their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "gateway"):
    sys.path.insert(0, str(folder))

from web_stage import WebStage  # noqa: E402 - its folders are put into the path above


@pytest.fixture(scope="session")
def web() -> Iterator[WebStage]:
    """A running gateway with one worker of the site."""
    made = WebStage()
    try:
        made.start()
        made.site_worker()
        yield made
    finally:
        made.close()


@pytest.fixture
def own_web() -> Iterator[WebStage]:
    """A gateway of the test's own, started, without workers."""
    made = WebStage()
    try:
        made.start()
        yield made
    finally:
        made.close()
