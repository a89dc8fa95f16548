"""One cloud for the manifests; what a test applied is deleted at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from applying_stage import Stage
from bench.cloud import Cloud

ENDPOINTS = ("InferenceGraph", "InferenceService", "Service", "LLMInferenceService")


@pytest.fixture(scope="package")
def cloud() -> Iterator[Cloud]:
    """A running cloud, shared by the tests of this directory."""
    with Cloud() as running:
        yield running


@pytest.fixture
def stage(cloud: Cloud, tmp_path: Path) -> Iterator[Stage]:
    """The cloud; what a test applied is deleted at its end."""
    yield Stage(cloud, tmp_path)
    rows = cloud.api("GET", "/v1/manifests?limit=200")["data"]
    for row in sorted(rows, key=lambda row: row["kind"] not in ENDPOINTS):
        cloud.api("DELETE", f"/v1/manifests/{row['kind']}/{row['name']}")
