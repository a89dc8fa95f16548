"""Spool, journal and saved tables: what a kill, a torn write or a full disk leaves behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.gateway import logfile, tables
from nanopod.gateway.journal import Dispatch, Journal
from nanopod.gateway.meter import Spool
from nanopod.model.wire import KeyRow, MeterRecord, MeterSegment, RouteRow, Tables


def record(name: str, status: int = 200) -> MeterRecord:
    return MeterRecord(name, name, "w", "k", "e", "r", "i", "chat", status, 1, 2, 3, 1.0, 2.0, 3.0)


def dispatch(call_id: bytes) -> Dispatch:
    return Dispatch(call_id, "inst", 1, "w", "k", "e", "r", "f", False, 1.0, 600.0, 1)


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(0, 400), st.binary(max_size=30))
def test_torn_files_give_their_whole_records(records: list[bytes], cut: int, junk: bytes) -> None:
    data = b"".join(map(logfile.frame, records))
    found, size = logfile.parse(data[:cut])
    assert found == records[: len(found)]
    assert size <= cut
    assert logfile.parse(data)[0] == records
    assert logfile.parse(data + junk)[0][: len(records)] == records


def test_damaged_record_ends_the_file() -> None:
    data = logfile.frame(b"one") + logfile.frame(b"two") + logfile.frame(b"three")
    broken = bytearray(data)
    broken[len(logfile.frame(b"one")) + 9] ^= 1
    assert logfile.parse(bytes(broken))[0] == [b"one"]


def drain(spool: Spool) -> list[MeterSegment]:
    sent: list[MeterSegment] = []
    asyncio.run(spool.seal())
    spool.ship(sent.append)
    return sent


def test_spool_ships_each_record_until_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "gw")
    spool.pending += [record("a"), record("b")]
    spool.write()
    (first,) = drain(spool)
    assert [r.record_id for r in first.records] == ["a", "b"]
    assert drain(spool) == []
    spool.link_lost()
    (again,) = drain(spool)
    assert again == first
    spool.acked("gw-unknown")
    spool.acked(first.segment_id)
    assert spool.unshipped == 0
    assert list(tmp_path.iterdir()) == []


def test_spool_survives_a_kill_with_a_torn_tail(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "gw")
    spool.pending += [record("a"), record("b")]
    spool.write()
    (path,) = tmp_path.iterdir()
    with open(path, "ab") as file:
        file.write(logfile.frame(b"torn away")[:-3])
    after = Spool(tmp_path, "gw")
    after.pending.append(record("c"))
    sent = drain(after)
    assert [r.record_id for segment in sent for r in segment.records] == ["a", "b", "c"]
    assert len({segment.segment_id for segment in sent}) == 2
    for segment in sent:
        after.acked(segment.segment_id)
    assert list(tmp_path.iterdir()) == []


def test_segment_of_nothing_but_a_torn_record_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "0-0.seg").write_bytes(b"\0\0\0")
    assert drain(Spool(tmp_path, "gw")) == []
    assert list(tmp_path.iterdir()) == []


def test_full_disk_stops_admission_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "gw")
    spool.pending.append(record("a"))
    spool.write()
    real = os.write
    calls = []

    def half(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    spool.pending.append(record("b"))
    spool.write()
    assert spool.full
    monkeypatch.undo()
    spool.write()
    assert not spool.full
    (segment,) = drain(spool)
    assert [r.record_id for r in segment.records] == ["a", "b"]
    (path,) = tmp_path.iterdir()
    assert len(logfile.read(path)) == 2, "the half-written record is not left in the file"


def test_journal_knows_what_was_given_away_and_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for name in (b"a", b"b", b"c"):
        journal.dispatched(dispatch(name * 16))
    journal.write()
    journal.finished(b"b" * 16)
    journal.tidy()
    with open(path, "ab") as file:
        file.write(b"\0\0\0\x30torn")
    after = Journal(path)
    assert set(after.recovered) == {b"a" * 16, b"c" * 16}
    assert after.recovered[b"a" * 16] == dispatch(b"a" * 16)
    after.finished(b"a" * 16)
    after.tidy()
    assert set(Journal(path).recovered) == {b"c" * 16}


def test_unwritten_end_of_a_call_is_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.dispatched(dispatch(b"a" * 16))
    journal.write()
    journal.finished(b"a" * 16)
    assert set(Journal(tmp_path / "journal").recovered) == {b"a" * 16}


def test_journal_is_rewritten_when_it_is_mostly_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanopod.gateway.journal.ROTATE_BYTES", 10_000)
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.dispatched(dispatch(b"stays".ljust(16)))
    for n in range(500):
        journal.dispatched(dispatch(n.to_bytes(16, "big")))
        journal.write()
        journal.finished(n.to_bytes(16, "big"))
    journal.tidy()
    assert path.stat().st_size < 12_000
    assert set(Journal(path).recovered) == {b"stays".ljust(16)}


def test_saved_tables_are_private_and_unreadable_ones_are_none(tmp_path: Path) -> None:
    made = Tables(3, b"p", {"x": KeyRow("k", "w")}, {"e": RouteRow("e", "w", "n", "default", "model", "r")}, {})
    path = tmp_path / "tables"
    assert tables.load(path) is None
    tables.save(path, tables.encode(made))
    assert path.stat().st_mode & 0o777 == 0o600
    assert tables.load(path) == made
    path.write_bytes(tables.encode(made)[:-3])
    assert tables.load(path) is None
