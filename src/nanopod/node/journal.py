"""What an instance printed, with times and sequence numbers: append-only segments of records. Imports little.

A segment is a file named by its first sequence number; a record is a head (`HEAD`) and its data, in little-endian. The
shim is the only writer. Numbers rise by one over all starts of an instance; the oldest segments are removed when there
are too many. A torn last record (the shim was killed) is cut off by the next writer and never shown by a reader.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final

from nanopod.node.redact import Redactor

HEAD: Final = Struct("<IQdQB")
"""Bytes of data, sequence number, Unix seconds, nanoseconds since boot, stream (1 out, 2 err)."""
SEGMENT_BYTES_MAX: Final = 1 << 20
SEGMENTS_MAX: Final = 64
RECORD_BYTES_MAX: Final = 1 << 20
"""The end of a log that is taken over from before the shim ran."""
PIECE_BYTES_MAX: Final = 16_384
"""Longer lines are cut into pieces of this size."""
Record = tuple[int, int, int, float, int, int]
"""Offset of the data in the segment, its length, then: sequence number, Unix seconds, nanoseconds, stream."""


def segments(directory: str | os.PathLike[str]) -> list[int]:
    """First sequence numbers of the segments, rising; empty when there is no journal."""
    try:
        return sorted(int(name) for name in os.listdir(directory) if name.isdigit())
    except OSError:
        return []


def segment_path(directory: str | os.PathLike[str], first: int) -> str:
    """The file of the segment that begins with this number."""
    return os.path.join(directory, f"{first:020d}")


def records(data: bytes, first: int) -> Iterator[Record]:
    """A segment's whole records, in order."""
    offset, size, seq = 0, len(data), first
    while offset + HEAD.size <= size:
        length, found, at, monotonic_ns, stream = HEAD.unpack_from(data, offset)
        offset += HEAD.size
        if found != seq or length > PIECE_BYTES_MAX or offset + length > size:
            return
        yield offset, length, seq, at, monotonic_ns, stream
        offset += length
        seq += 1


class Journal:
    """The writer. Trouble with the disk loses records, never the instance: their numbers are then missing."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._size = 0
        self.next_seq = 1
        with contextlib.suppress(OSError):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            known = segments(directory)
            if known:
                self._resume(known[-1])

    def _resume(self, first: int) -> None:
        """Go on after the last whole record of the newest segment."""
        self.next_seq = first
        fd = os.open(segment_path(self._directory, first), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(4 * SEGMENT_BYTES_MAX)
        end = 0
        for offset, length, seq, *_ in records(data, first):
            end = offset + length
            self.next_seq = seq + 1
        os.ftruncate(fd, end)
        self._fd, self._size = fd, end

    def write(self, stream: int, pieces: Sequence[bytes]) -> None:
        """Append pieces of output, all with the present time."""
        at, monotonic_ns, seq = time.time(), time.monotonic_ns(), self.next_seq
        record = bytearray()
        for piece in pieces:
            record += HEAD.pack(len(piece), seq, at, monotonic_ns, stream)
            record += piece
            seq += 1
        try:
            if self._fd < 0 or self._size + len(record) > SEGMENT_BYTES_MAX:
                self._roll()
            if os.write(self._fd, record) != len(record):
                raise OSError("short write")
            self._size += len(record)
        except OSError:
            self._spoiled()
        self.next_seq = seq

    def _roll(self) -> None:
        """Begin a segment, and remove the oldest."""
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(segment_path(self._directory, self.next_seq), flags, 0o600)
        self._size = 0
        for first in segments(self._directory)[:-SEGMENTS_MAX]:
            with contextlib.suppress(OSError):
                os.unlink(segment_path(self._directory, first))

    def _spoiled(self) -> None:
        """Nothing may follow a part of a record or a gap in the numbers: the next write begins a new segment."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
        self.close()

    def close(self) -> None:
        """Close the present segment."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1


def record(directory: str | os.PathLike[str], log: str | os.PathLike[str], start: int) -> None:
    """Append what a plain log holds from `start` on; before a shim runs, which is then the only writer."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - RECORD_BYTES_MAX))
            text = file.read(RECORD_BYTES_MAX)
    except OSError:
        return
    if not text:
        return
    journal = Journal(os.fspath(directory))
    pieces = [piece for line in text.splitlines(keepends=True) for piece in _cut(line)]
    for number in range(0, len(pieces), 1000):
        journal.write(1, pieces[number : number + 1000])
    journal.close()


class Capture:
    """Takes what an instance prints on two pipes, in the shim: into its plain log and into its journal, by line."""

    FLUSH_S: Final = 0.25
    """An unfinished line (a prompt, a progress bar) is recorded after so long."""
    READ_BYTES: Final = 65_536

    def __init__(self, log_fd: int, journal: Journal, redactor: Redactor | None = None) -> None:
        self._log_fd = log_fd
        self._redactor = redactor or None
        self._journal = journal
        self._streams: dict[int, int] = {}
        """{reading end: stream}"""
        self.writers: tuple[int, int] = (-1, -1)
        """Ends that the instance's processes write to: out, err."""
        self._rest = {1: b"", 2: b""}
        self._rest_until: float | None = None
        ends = []
        for stream in (1, 2):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._streams[reader] = stream
            ends.append(writer)
        self.writers = (ends[0], ends[1])

    @property
    def fds(self) -> list[int]:
        """Ends to poll for input."""
        return list(self._streams)

    @property
    def due(self) -> float | None:
        """When `flush` has something to do (monotonic seconds)."""
        return self._rest_until

    def read(self, fd: int) -> bool:
        """Take what is there; False when there is nothing."""
        stream = self._streams[fd]
        try:
            data = os.read(fd, self.READ_BYTES)
        except OSError:
            return False
        if not data:
            return False
        self._take(stream, data if self._redactor is None else self._redactor.feed(stream, data))
        return True

    def _take(self, stream: int, data: bytes) -> None:
        self._log(data)
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        pieces: list[bytes] = []
        for line in lines:
            if len(line) < PIECE_BYTES_MAX:
                pieces.append(line + b"\n")
            else:
                pieces.extend(_cut(line + b"\n"))
        if len(rest) >= PIECE_BYTES_MAX:
            *whole, rest = _cut(rest)
            pieces.extend(whole)
        self._rest[stream] = rest
        if pieces:
            self._journal.write(stream, pieces)
        if rest and self._rest_until is None:
            self._rest_until = time.monotonic() + self.FLUSH_S

    def _log(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._log_fd, view) :]
        except OSError:
            return  # a full disk loses output, never the instance

    def flush(self, now: float | None = None) -> None:
        """Record unfinished lines: those that waited long enough, or all without `now`."""
        if self._rest_until is None or (now is not None and now < self._rest_until):
            return
        self._rest_until = None
        for stream, rest in self._rest.items():
            if rest:
                self._journal.write(stream, [rest])
                self._rest[stream] = b""

    def finish(self, bytes_max: int = 16 << 20) -> None:
        """Take what is left in the pipes, up to a limit, once everybody who wrote is gone."""
        for fd in self._streams:
            taken = 0
            while taken < bytes_max and self.read(fd):
                taken += self.READ_BYTES
        if self._redactor is not None:
            for stream in self._rest:
                self._take(stream, self._redactor.finish(stream))
        self.flush()
        self._journal.close()


def _cut(line: bytes) -> list[bytes]:
    """Pieces of at most the largest size; never none."""
    return [line[start : start + PIECE_BYTES_MAX] for start in range(0, len(line), PIECE_BYTES_MAX)]
