"""The meter spool: a record is on file before the last bytes of its response leave, and ends at the server just once.

Records of one pass are written together into the active segment. A drainer seals it every 0.2 s (fsync), ships sealed
segments in order and deletes each when the server has acknowledged it; what was not acknowledged is sent again after a
reconnection or a restart (`record_id` makes that harmless).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from nanopod.gateway import logfile
from nanopod.model.wire import MeterRecord, MeterSegment

DRAIN_S: Final = 0.2
RING_MAX: Final = 65_536
"""Records that may wait for a disk that does not take them; beyond, nothing new is admitted."""
SHIPPING_MAX: Final = 8
"""Segments on their way to the server at a time."""
SEGMENT_RECORDS_MAX: Final = 20_000
KEPT_RECORDS_MAX: Final = 50_000
"""Records of sealed segments that stay in memory; others are read from their files again when they are shipped."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(MeterRecord).decode
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    records: list[MeterRecord] | None
    shipped: bool = False


class Spool:
    """Meter records of one gateway process, on file until the server has them. `directory` must exist."""

    def __init__(self, directory: Path, gateway_id: str) -> None:
        self._directory = directory
        self._gateway_id = gateway_id
        # Sorted by start; the random part keeps two starts apart whatever the clock does.
        self._boot = f"{time.time_ns() // 1_000_000:014d}{random.getrandbits(32):08x}"
        self._count = 0
        self._active: logfile.LogFile | None = None
        self._active_records: list[MeterRecord] = []
        self._sealed: deque[_Segment] = deque(_Segment(path, None) for path in sorted(directory.glob("*.seg")))
        self.pending: list[MeterRecord] = []
        """Added, not yet on file."""
        self.failed = False
        """True while the disk refuses writes: new requests must be refused too."""
        self._kept = 0

    def write(self) -> None:
        """Put `pending` on file with one write. A failing disk keeps it pending and sets `failed`."""
        pending = self.pending
        try:
            if self._active is None:
                self._count += 1
                self._active = logfile.LogFile(self._directory / f"{self._boot}-{self._count:08d}.seg")
            self._active.write(b"".join([logfile.frame(_encode(record)) for record in pending]))
        except OSError as error:
            if not self.failed:
                _log.error("meter spool: %s; new requests are refused until it can be written", error.strerror)
            self.failed = True
            return
        self.failed = False
        self._active_records += pending
        self.pending = []

    @property
    def full(self) -> bool:
        """True when admission must stop: the disk fails, or more waits for it than memory may hold."""
        return self.failed or len(self.pending) >= RING_MAX

    @property
    def unshipped(self) -> int:
        """Segments that the server has not acknowledged, the active one included."""
        return len(self._sealed) + (self._active is not None)

    async def seal(self) -> None:
        """Close the active segment, durably."""
        if self.pending:
            self.write()
        active, records = self._active, self._active_records
        if active is None or not records:
            return
        self._active, self._active_records = None, []
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, active.sync)
        except OSError as error:
            _log.error("meter spool: fsync of %s: %s", active.path.name, error.strerror)
            self.failed = True
        active.close()
        keep = self._kept + len(records) <= KEPT_RECORDS_MAX
        self._kept += len(records) if keep else 0
        self._sealed.append(_Segment(active.path, records if keep else None))

    def ship(self, send: Callable[[MeterSegment], None]) -> None:
        """Send sealed segments that are not on their way yet, oldest first."""
        on_the_way = sum(segment.shipped for segment in self._sealed)
        for segment in list(self._sealed):
            if on_the_way >= SHIPPING_MAX:
                return
            if segment.shipped:
                continue
            records = segment.records
            if records is None:
                records = [_decode(record) for record in logfile.read(segment.path)]
            if not records:
                self._forget(segment)
                continue
            send(MeterSegment(f"{self._gateway_id}-{segment.path.stem}", records))
            segment.shipped = True
            on_the_way += 1

    def link_lost(self) -> None:
        """The link to the server is gone: whatever was not acknowledged will be sent again."""
        for segment in self._sealed:
            segment.shipped = False

    def acked(self, segment_id: str) -> None:
        """The server has committed this segment: forget it."""
        for segment in self._sealed:
            if f"{self._gateway_id}-{segment.path.stem}" == segment_id:
                self._forget(segment)
                return

    def _forget(self, segment: _Segment) -> None:
        self._sealed.remove(segment)
        self._kept -= len(segment.records or ())
        with contextlib.suppress(FileNotFoundError):
            segment.path.unlink()

    def close(self) -> None:
        """Close the active file; its records stay for the next start."""
        if self.pending:
            self.write()
        if self._active is not None:
            self._active.close()
