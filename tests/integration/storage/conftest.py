"""One cloud for the tests of this directory, whose Jobs do not wait long between tries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench.cloud import Cloud


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """A running cloud."""
    with Cloud(env={"NANOPOD_JOB_BACKOFF_S": "0.2", "NANOPOD_STORAGE_LINKS": "0"}) as running:
        yield running
