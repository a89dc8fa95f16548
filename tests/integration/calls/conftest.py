"""One cloud for all tests that do not bring their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from spawning import Spawning, spawning


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawning]:
    """A cloud with a deployment whose calls are spawned."""
    with spawning(tmp_path_factory.mktemp("spawned")) as running:
        yield running
