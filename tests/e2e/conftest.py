"""One cloud for the tests that do not hurt it; those that kill things start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench.cloud import Cloud
from document_pages import Stage, stage

pytest.importorskip("openai")


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """A running cloud, shared by the whole session."""
    with Cloud() as running:
        yield running
        left = running.up
        assert left is not None
        assert left.poll() is None, "the shared cloud died during the tests"


@pytest.fixture(scope="session")
def tiny(cloud: Cloud) -> str:
    """The name of a ready endpoint that serves the model that ships inside."""
    cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
    cloud.wait_ready("nanopod-tiny")
    return "nanopod-tiny"


@pytest.fixture(scope="session")
def place() -> Iterator[Stage]:
    """A directory with a local cloud that pages of the documentation and examples share, as a reader's has."""
    with stage() as made:
        yield made
