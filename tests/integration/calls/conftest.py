"""One cloud for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from spawning import Spawning, spawning


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawning]:
    """A cloud with a deployment whose calls are spawned."""
    with spawning(tmp_path_factory.mktemp("spawned")) as running:
        yield running
