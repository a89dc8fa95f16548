"""Pages of what an instance printed, read from its journal while the shim goes on writing. On a thread."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nanopod.model.wire import LogLine, LogPage, LogQuery
from nanopod.node import files, journal

LINES_MAX: Final = 2500
PAGE_BYTES_MAX: Final = 8 << 20
"""A page ends early beyond this; whoever asks goes on after its last line."""


def page(directory: Path, query: LogQuery) -> LogPage:
    """The lines that a query asks for; an error when the instance has no directory."""
    if not directory.is_dir():
        return LogPage(query.request_id, error="the machine has no log of this instance (any more)")
    lines: list[LogLine] = []
    limit, size = max(1, min(query.limit, LINES_MAX)), 0
    for line in _newest_first(directory, query) if query.newest_first else _oldest_first(directory, query):
        lines.append(line)
        size += len(line.data)
        if len(lines) >= limit or size >= PAGE_BYTES_MAX:
            break
    return LogPage(query.request_id, lines)


def _chosen(directory: Path, query: LogQuery) -> list[int]:
    """First numbers of the segments that may hold something that is asked for."""
    known = journal.segments(directory / files.JOURNAL)
    if query.after is not None:
        known = known[max(0, bisect_right(known, query.after) - 1) :]
    if query.before is not None:
        known = known[: bisect_right(known, query.before)]
    return known


def _segment(directory: Path, first: int, query: LogQuery) -> tuple[bytes, list[journal.Record]]:
    """(a segment, its records that are asked for). One that was just removed is empty."""
    path = Path(journal.segment_path(directory / files.JOURNAL, first))
    try:
        data = path.read_bytes()
    except OSError:
        return b"", []
    after = 0 if query.after is None else query.after
    before = float("inf") if query.before is None else query.before
    since = float("-inf") if query.since is None else query.since
    until = float("inf") if query.until is None else query.until
    return data, [
        record
        for record in journal.records(data, first)
        if after <= record[2] <= before and since <= record[3] <= until
    ]


def _line(data: bytes, record: journal.Record) -> LogLine:
    offset, length, seq, at, monotonic_ns, stream = record
    return LogLine(seq, at, monotonic_ns, stream, data[offset : offset + length])


def _oldest_first(directory: Path, query: LogQuery) -> Iterator[LogLine]:
    for first in _chosen(directory, query):
        data, found = _segment(directory, first, query)
        for record in found:
            yield _line(data, record)


def _newest_first(directory: Path, query: LogQuery) -> Iterator[LogLine]:
    for first in reversed(_chosen(directory, query)):
        data, found = _segment(directory, first, query)
        for record in reversed(found):
            yield _line(data, record)
