"""Secrets, volumes, dictionaries and queues come back as they were written, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from nanopod.store import secrets as secret_rows
from nanopod.store import volumes as volume_rows
from nanopod.store.dicts import SharedDict
from nanopod.store.queues import SharedQueue, Taken
from nanopod.store.secrets import Secret
from nanopod.store.transaction import Transaction
from nanopod.store.volumes import Volume

InWrite = Callable[[Callable[[Transaction], Any]], Any]


def test_secrets_have_versions(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = Secret("sec_1", "w1", "hf", 0, (), 1.0, 1.0)
        write.add_secret(made)
        write.add_secret(replace(made, secret_id="sec_2", workspace_id="w2"))
        write.add_secret_version("sec_1", 1, ("A",), b"\x00one", 2.0, frozenset())
        write.add_secret_version("sec_1", 2, ("A", "B"), b"two", 3.0, frozenset())
        now = replace(made, version=2, keys=("A", "B"), updated_at=3.0)
        assert write.secret("w1", "hf") == write.secret("w1", "sec_1") == now
        assert write.secret("w2", "sec_1") is None
        assert write.secrets("w1") == [now] and write.secrets_count("w1") == 1
        assert (write.sealed_secret("sec_1", 1), write.sealed_secret("sec_1", 3)) == (b"\x00one", None)
        assert write.secret_versions("sec_1") == [1, 2]
        with pytest.raises(IntegrityError), write.part():
            write.add_secret(replace(made, secret_id="sec_3"))
        write.delete_secret("sec_1")
        assert write.secret("w1", "hf") is None and write.secret_versions("sec_1") == []

    in_write(test)


def test_old_versions_of_a_secret_go_unless_they_are_used(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_secret(Secret("sec_1", "w1", "hf", 0, (), 1.0, 1.0))
        last = secret_rows.VERSIONS_KEPT + 3
        for version in range(1, last + 1):
            write.add_secret_version("sec_1", version, ("A",), b"x", 1.0, frozenset({2}))
        assert write.secret_versions("sec_1") == [2, *range(4, last + 1)]

    in_write(test)


def test_volumes_have_numbered_manifests_and_one_writer(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = Volume("vol_1", "w1", "m", "eu", 100, 0, 0, "", 0.0, 1.0, 1.0)
        write.add_volume(made)
        assert write.volume("w1", "m") == write.volume("w1", "vol_1") == made
        assert write.volume("w2", "m") is None
        assert write.manifest("vol_1", 0) == {} and write.manifest("vol_1", 1) is None
        first = {"a/b": ("ab" * 32, 7, 0o644), "c": ("", 0, 0o755)}
        assert write.commit_volume(made, first, 7, 2.0) == 1
        seen = write.volume("w1", "m")
        assert seen is not None and (seen.version, seen.used_bytes, seen.updated_at) == (1, 7, 2.0)
        assert write.manifest("vol_1", 1) == first
        for _ in range(volume_rows.VERSIONS_KEPT):
            assert seen is not None
            write.commit_volume(seen, {}, 0, 3.0)
            seen = write.volume("w1", "m")
        assert write.manifest("vol_1", 1) is None
        assert [number for number, _ in write.volume_versions("vol_1")] == list(
            range(volume_rows.VERSIONS_KEPT + 1, 1, -1)
        )
        assert write.lease_volume("vol_1", "ann", 10.0, 20.0).writer == "ann"
        assert write.lease_volume("vol_1", "bob", 11.0, 21.0).writer == "ann", "one at a time"
        assert write.lease_volume("vol_1", "ann", 12.0, 22.0).writer_until == 22.0
        assert write.lease_volume("vol_1", "bob", 22.0, 30.0).writer == "bob", "a lease ends by itself"
        write.release_volume("vol_1", "ann")
        write.release_volume("vol_1", "bob")
        assert write.lease_volume("vol_1", "ann", 23.0, 24.0).writer == "ann"
        write.delete_volume("vol_1")
        assert write.volumes("w1") == [] and write.volume_versions("vol_1") == []

    in_write(test)


def test_dictionaries(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = SharedDict("dict_1", "w1", "d", 1.0)
        write.add_shared_dict(made)
        assert write.shared_dict("w1", "d") == write.shared_dict("w1", "dict_1") == made
        assert write.shared_dicts("w1") == [made] and write.shared_dicts("w2") == []
        write.dict_put("dict_1", [(b"b", b"2"), (b"\x00a", b"\xff1"), (b"c", b"3")], 10.0)
        write.dict_put("dict_1", [(b"b", b"two")], 20.0)
        assert write.dict_get("dict_1", b"b", 5.0) == (b"two", 20.0)
        assert write.dict_get("dict_1", b"b", 20.0) is None, "it expired"
        assert write.dict_get("dict_2", b"b", 5.0) is None
        assert (write.dict_count("dict_1", 5.0), write.dict_count("dict_1", 15.0)) == (3, 1)
        pairs = [(b"\x00a", b"\xff1"), (b"b", b"two"), (b"c", b"3")]
        assert write.dict_page("dict_1", 5.0, None, 10, values=True) == pairs, "keys are in the order of their bytes"
        assert write.dict_page("dict_1", 5.0, b"\x00a", 1, values=False) == [(b"b", b"")]
        write.dict_touch("dict_1", [b"c"], 30.0)
        assert write.dict_pop("dict_1", b"c", 25.0) == b"3"
        assert write.dict_pop("dict_1", b"c", 25.0) is None
        assert (write.sweep_dicts(15.0, 10), write.sweep_dicts(15.0, 10)) == (1, 0)
        assert write.dict_has("dict_1", b"b", 15.0) and not write.dict_has("dict_1", b"\x00a", 5.0)
        assert write.dict_clear("dict_1") == 1
        write.dict_put("dict_1", [(b"b", b"2")], 10.0)
        write.delete_shared_dict("dict_1")
        assert write.shared_dict("w1", "d") is None and write.dict_count("dict_1", 0.0) == 0

    in_write(test)


def test_queues_give_items_in_order_and_leased_ones_again(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = SharedQueue("queue_1", "w1", "q", 1.0)
        write.add_shared_queue(made)
        assert write.shared_queue("w1", "q") == write.shared_queue("w1", "queue_1") == made
        assert write.queue_put("queue_1", "", [b"a", b"b"], 100.0) == 1
        assert write.queue_put("queue_1", "p", [b"x"], 100.0) == 3
        assert write.queue_counts("queue_1", 5.0) == {"": 2, "p": 1} and write.queue_count("queue_1", 5.0) == 3
        assert write.queue_lease("queue_1", "", 1, 5.0, "L1", 9.0) == [Taken(1, b"a", 1, "L1")]
        assert write.queue_back_at("queue_1", "", 5.0) == 9.0
        assert write.queue_take("queue_1", "", 5, 6.0) == [Taken(2, b"b", 1)]
        assert write.queue_take("queue_1", "", 5, 8.0) == [], "what is leased is not there"
        assert write.queue_lease("queue_1", "", 5, 9.0, "L2", 20.0) == [Taken(1, b"a", 2, "L2")]
        assert not write.queue_done("queue_1", 1, "L1"), "that lease is over"
        assert not write.queue_return("queue_1", 1, "") and not write.queue_done("queue_1", 1, "")
        assert write.queue_return("queue_1", 1, "L2")
        assert write.queue_lease("queue_1", "", 5, 9.5, "L3", 20.0) == [Taken(1, b"a", 3, "L3")]
        assert write.queue_partition_of("queue_1", 3) == "p" and write.queue_partition_of("queue_1", 9) is None
        assert write.queue_done("queue_1", 1, "L3") and not write.queue_done("queue_1", 1, "L3")
        assert write.queue_back_at("queue_1", "", 9.5) is None
        assert write.queue_put("queue_1", "", [b"c"], 50.0) == 4, "numbers rise over everything that was taken out"
        assert (write.sweep_queues(60.0, 10), write.queue_clear("queue_1", "nope")) == (1, 0)
        assert write.queue_clear("queue_1", None) == 1
        write.queue_put("queue_1", "", [b"d"], 50.0)
        write.delete_shared_queue("queue_1")
        assert write.shared_queues("w1") == [] and write.queue_count("queue_1", 0.0) == 0

    in_write(test)
