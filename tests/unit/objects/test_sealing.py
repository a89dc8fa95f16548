"""Secrets at rest: what is sealed opens only with the cluster's secret, and only where it belongs."""

from __future__ import annotations

import pytest

from nanopod.model.errors import Invalid
from nanopod.server.sealing import Sealer, open_pairs, seal_pairs


def test_what_is_sealed_opens_with_the_same_secret_only() -> None:
    sealed = Sealer(b"a" * 32).seal(b"hunter2", "sec_1 1")
    assert b"hunter2" not in sealed
    assert Sealer(b"a" * 32).open(sealed, "sec_1 1") == b"hunter2"
    with pytest.raises(Invalid, match="another key"):
        Sealer(b"b" * 32).open(sealed, "sec_1 1")


def test_it_does_not_open_elsewhere_nor_changed() -> None:
    sealer = Sealer(b"a" * 32)
    sealed = sealer.seal(b"hunter2", "sec_1 1")
    for bad, about in (
        (sealed, "sec_1 2"),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), "sec_1 1"),
        (sealed[:-3], "sec_1 1"),
    ):
        with pytest.raises(Invalid, match="changed by hand"):
            sealer.open(bad, about)
    for cut in (b"", b"\x01", b"\x02" + sealed[1:]):
        with pytest.raises(Invalid):
            sealer.open(cut, "sec_1 1")


def test_the_same_value_looks_different_each_time() -> None:
    sealer = Sealer(b"a" * 32)
    assert sealer.seal(b"x", "") != sealer.seal(b"x", "")


def test_a_new_secret_of_the_cluster_still_opens_what_the_old_one_sealed() -> None:
    old, both = Sealer(b"a" * 32), Sealer(b"b" * 32, b"a" * 32)
    assert both.open(old.seal(b"x", "y"), "y") == b"x"
    fresh = both.seal(b"x", "y")
    assert Sealer(b"b" * 32).open(fresh, "y") == b"x"
    with pytest.raises(Invalid):
        old.open(fresh, "y")


def test_pairs_come_back_and_are_not_shown() -> None:
    sealer = Sealer(b"a" * 32)
    pairs = {"B": "2", "A": "ünicode \n"}
    assert open_pairs(sealer, seal_pairs(sealer, pairs, "sec_1", 3), "sec_1", 3) == pairs
    assert "aaaa" not in repr(sealer)
