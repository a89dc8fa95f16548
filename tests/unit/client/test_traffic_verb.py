"""`nanopod traffic`: what its words become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nanopod.client.cli.traffic import parsed, tagged
from nanopod.model.errors import Invalid


def row(revision: str, percent: int, tag: str = "") -> dict[str, Any]:
    return {"revision": revision, "percent": percent, "tag": tag}


def test_shares_and_tags_become_rows() -> None:
    assert parsed(["square-00001=90", "latest=10%"], []) == [row("square-00001", 90), row("", 10)]
    assert parsed(["1=100"], ["1=old", "latest=next"]) == [row("1", 100, "old"), row("", 0, "next")]
    assert tagged([], ["latest=next"]) == [row("", 100, "next")]
    stated = [{"revision_id": "r1", "percent": 100, "tag": None}, {"revision_id": None, "percent": 0, "tag": "a"}]
    assert tagged(stated, ["latest=b"]) == [row("r1", 100), row("", 0, "a"), row("", 0, "b")]


@pytest.mark.parametrize(
    "wrong",
    [lambda: parsed(["square"], []), lambda: parsed(["=5"], []), lambda: parsed(["a=-5"], []),
     lambda: tagged([], ["a="]), lambda: tagged([], ["tag"])],
)  # fmt: skip
def test_what_is_neither_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(Invalid, match="must be REVISION="):
        wrong()
