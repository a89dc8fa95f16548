"""How long a request's body may be, by what it is for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from nanopod.gateway import heads
from nanopod.gateway.heads import Head
from nanopod.gateway.surface import BLOB_BYTES_MAX, IMAGE_PART_BYTES_MAX, Surface


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/orders", heads.BODY_BYTES_MAX),
        ("PATCH", "/v1/capacities/cap_x", heads.BODY_BYTES_MAX),
        ("PUT", "/v1/blobs/abc", BLOB_BYTES_MAX),
        ("PUT", "/v1/images/image_x/parts/1", IMAGE_PART_BYTES_MAX),
        ("POST", "/v1/images/image_x/parts", IMAGE_PART_BYTES_MAX),
        ("PATCH", "/v1/images/image_x", heads.BODY_BYTES_MAX),
    ],
)
def test_limits(method: str, path: str, expected: int) -> None:
    head = Head()
    head.method, head.path = method, path
    assert Surface(cast(Any, None)).body_limit(head) == expected
