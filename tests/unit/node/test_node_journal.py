"""What instances print: lines, numbers, times, limits, torn ends, and pages of it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.wire import LogQuery
from nanopod.node import files, journal, logs
from nanopod.node.journal import Capture, Journal


def page(directory: Path, **query: Any) -> list[tuple[int, bytes]]:
    found = logs.page(directory, LogQuery("r", "inst_test", **query))
    assert found.error == ""
    return [(line.seq, line.data) for line in found.lines]


def writer(directory: Path) -> Journal:
    return Journal(str(directory / files.JOURNAL))


@pytest.fixture
def captured(tmp_path: Path) -> Any:
    """A capture into a directory, with its plain log."""
    fd = os.open(tmp_path / files.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    capture = Capture(fd, writer(tmp_path))
    yield capture
    for open_fd in (fd, *capture.writers, *capture.fds):
        os.close(open_fd)


def test_lines_are_cut_numbered_and_both_logs_agree(tmp_path: Path, captured: Capture) -> None:
    out, err = captured.writers
    for fd, text in ((out, b"one\ntw"), (err, b"error\n"), (out, b"o\nthree")):
        os.write(fd, text)
        for reader in captured.fds:
            captured.read(reader)
    assert page(tmp_path) == [(1, b"one\n"), (2, b"error\n"), (3, b"two\n")]
    assert captured.due is not None
    captured.flush(captured.due + 0.1)
    assert captured.due is None
    assert page(tmp_path, after=4) == [(4, b"three")]
    os.write(out, b" end")
    captured.finish()
    assert page(tmp_path, after=5) == [(5, b" end")]
    assert (tmp_path / files.LOG).read_bytes() == b"one\ntwerror\no\nthree end"
    found = logs.page(tmp_path, LogQuery("r", "x")).lines
    assert [line.stream for line in found] == [1, 2, 1, 1, 1]
    assert abs(found[0].at - time.time()) < 5
    assert found[0].monotonic_ns <= found[-1].monotonic_ns <= time.monotonic_ns()


@given(st.lists(st.binary(max_size=40_000), max_size=6))
def test_no_byte_is_lost_however_it_comes(parts: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        fd = os.open(directory / files.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        capture = Capture(fd, writer(directory))
        try:
            for part in parts:
                os.write(capture.writers[0], part)
                while capture.read(capture.fds[0]):
                    pass
            capture.finish()
        finally:
            for open_fd in (fd, *capture.writers, *capture.fds):
                os.close(open_fd)
        found = page(directory, limit=2500)
        if len(found) < 2500:
            assert b"".join(data for _, data in found) == b"".join(parts)
        assert (directory / files.LOG).read_bytes() == b"".join(parts)
        assert all(len(data) <= journal.PIECE_BYTES_MAX for _, data in found)


def test_numbers_go_on_and_a_torn_end_is_cut_off(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.write(1, [b"a\n", b"b\n"])
    first.close()
    (segment,) = (tmp_path / files.JOURNAL).iterdir()
    with open(segment, "ab") as file:
        file.write(journal.HEAD.pack(100, 3, 0.0, 0, 1) + b"torn")
    assert page(tmp_path) == [(1, b"a\n"), (2, b"b\n")]
    second = writer(tmp_path)
    second.write(2, [b"c\n"])
    second.close()
    assert page(tmp_path) == [(1, b"a\n"), (2, b"b\n"), (3, b"c\n")]


def test_old_segments_go_and_pages_reach_over_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES_MAX", 400)
    monkeypatch.setattr(journal, "SEGMENTS_MAX", 4)
    log = writer(tmp_path)
    for number in range(1, 101):
        log.write(1, [b"%03d\n" % number])
    log.close()
    assert len(list((tmp_path / files.JOURNAL).iterdir())) == 4
    found = page(tmp_path, limit=2500)
    first = found[0][0]
    assert 50 < first < 70
    assert found == [(number, b"%03d\n" % number) for number in range(first, 101)]
    assert page(tmp_path, newest_first=True, limit=2500) == found[::-1]
    for after in (1, first, 77, 100, 101):
        for before in (70, 90, 200):
            expected = [line for line in found if after <= line[0] <= before]
            assert page(tmp_path, after=after, before=before, limit=2500) == expected
            newest = page(tmp_path, after=after, before=before, limit=3, newest_first=True)
            assert newest == expected[::-1][:3]


def test_a_full_disk_loses_lines_and_leaves_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = writer(tmp_path)
    log.write(1, [b"before\n"])

    def full(fd: int, data: bytes) -> int:
        real(fd, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.write
    monkeypatch.setattr(os, "write", full)
    log.write(1, [b"lost\n"])
    monkeypatch.undo()
    log.write(1, [b"after\n"])
    log.close()
    assert page(tmp_path) == [(1, b"before\n"), (3, b"after\n")]
    assert writer(tmp_path).next_seq == 4


def test_a_page_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PAGE_BYTES_MAX", 100)
    log = writer(tmp_path)
    log.write(1, [b"x" * 60] * 5)
    assert [seq for seq, _ in page(tmp_path)] == [1, 2]
    assert logs.page(tmp_path / "none", LogQuery("r", "none")).error
