"""Append-only files of checked records: what the meter spool and the dispatch journal are made of.

A record is `u32 length | u32 CRC-32 | bytes` (big endian). A torn or damaged tail ends the file when it is read.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from struct import Struct
from typing import Final

_HEAD: Final = Struct(">II")
RECORD_BYTES_MAX: Final = 1 << 20


def frame(record: bytes) -> bytes:
    """`record` as it stands in the file."""
    return _HEAD.pack(len(record), zlib.crc32(record)) + record


def parse(data: bytes) -> tuple[list[bytes], int]:
    """(whole records, bytes they take) of a file's content; stops at the first one that is torn or damaged."""
    records: list[bytes] = []
    at = 0
    while len(data) - at >= 8:
        length, check = _HEAD.unpack_from(data, at)
        record = data[at + 8 : at + 8 + length]
        if length > RECORD_BYTES_MAX or len(record) < length or zlib.crc32(record) != check:
            break
        records.append(record)
        at += 8 + length
    return records, at


def read(path: Path) -> list[bytes]:
    """Whole records of a file; none when it does not exist."""
    try:
        return parse(path.read_bytes())[0]
    except FileNotFoundError:
        return []


class LogFile:
    """One file being appended to, mode 0600. A failed write leaves no torn record behind."""

    __slots__ = ("_fd", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append `data` (whole framed records) or raise `OSError` with the file as it was."""
        try:
            done = os.write(self._fd, data)
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Have the disk hold what was written (blocks: not for the event loop)."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
