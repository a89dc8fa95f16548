"""One cloud for the rollouts, and user files that are edited and deployed to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench.cloud import Cloud


@pytest.fixture(scope="package")
def cloud() -> Iterator[Cloud]:
    """A running cloud, shared by the tests of this directory."""
    with Cloud() as running:
        yield running
