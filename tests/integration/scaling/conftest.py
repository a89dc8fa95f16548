"""One cloud for the tests of scaling, with a function whose calls last as long as they are told to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scaling_stage import Scaled


@pytest.fixture
def scaled() -> Iterator[Scaled]:
    """A running cloud of its own: its server is restarted and killed."""
    with Scaled() as running:
        yield running
