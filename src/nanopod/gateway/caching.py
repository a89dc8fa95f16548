"""Results of functions that asked for it (`cache_ttl`), by revision, function and arguments; bounded and in memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from nanopod.gateway.callframes import payload_of
from nanopod.model import calls

CACHE_CALLS_MAX: Final = 4096
CACHE_BYTES_MAX: Final = 64 << 20
RESULT_BYTES_MAX: Final = 1 << 20
"""A larger result is not worth the room of hundreds of small ones."""

Key = tuple[str, str, bytes]
"""(revision id, function, SHA-256 of the arguments)."""


def digest(frames: list[bytes]) -> bytes:
    """The SHA-256 of a call's payload, from its frames."""
    found = hashlib.sha256()
    for frame in frames:
        found.update(payload_of(frame))
    return found.digest()


class Results:
    """What functions returned, for as long as they said. The least recently used goes first."""

    __slots__ = ("_bytes", "_kept")

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    def find(self, key: Key, now: float) -> bytes | None:
        """The payload of a result that still holds at `now`."""
        found = self._kept.get(key)
        if found is None:
            return None
        if found[1] <= now:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[0]

    def keep(self, key: Key, frames: list[bytes], until: float) -> None:
        """Keep the result that these frames carry; anything but a whole small `Result` is passed over."""
        header, first = calls.decode(frames[0])
        if not isinstance(header, calls.Result) or header.size > RESULT_BYTES_MAX:
            return
        payload = first if len(frames) == 1 else b"".join((first, *map(payload_of, frames[1:])))
        if key in self._kept:
            self._drop(key)
        self._kept[key] = (payload, until)
        self._bytes += len(payload)
        while self._bytes > CACHE_BYTES_MAX or len(self._kept) > CACHE_CALLS_MAX:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        self._bytes -= len(self._kept.pop(key)[0])

    def __len__(self) -> int:
        return len(self._kept)
