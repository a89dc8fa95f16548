"""One cloud for the commands that do not hurt it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.cloud import Cloud
from devloop_stage import Terminal


@pytest.fixture(scope="package")
def devloop_cloud() -> Iterator[Cloud]:
    """A running cloud, shared by the tests of this directory."""
    with Cloud() as running:
        yield running


@pytest.fixture
def terminal(devloop_cloud: Cloud, tmp_path: Path) -> Terminal:
    """Commands against the shared cloud, in a directory of their own."""
    return Terminal(devloop_cloud, tmp_path)
