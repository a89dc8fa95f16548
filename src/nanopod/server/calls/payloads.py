"""Payloads and results of spawned calls: small ones in their row, large ones in files named by their content."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Final

from nanopod.model.errors import NotFound
from nanopod.store.blobs import BlobStore

INLINE_BYTES_MAX: Final = 64 << 10
"""Larger ones would make every look at their row slow."""
UNUSED_S: Final = 3600.0
"""A file that nobody refers to is kept so long: its row may be about to be written."""


class Payloads:
    """The files of one server, below a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = BlobStore(directory, self._path)

    def _path(self, digest: str) -> Path:
        return self._directory / digest[:2] / digest

    async def keep(self, data: bytes) -> tuple[bytes | None, str]:
        """(inline bytes, blob) under which `data` is found again. Raises `StoreUnavailable` when the disk is full."""
        if len(data) <= INLINE_BYTES_MAX:
            return data, ""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        if not await self._blobs.put(digest, chunks()):
            with contextlib.suppress(OSError):
                os.utime(self._path(digest))  # it is wanted again: `sweep` must not take it for unused
        return None, digest

    async def load(self, inline: bytes | None, blob: str) -> bytes:
        """What was kept. Raises `NotFound` when its file is gone."""
        if not blob:
            return inline or b""
        try:
            return await asyncio.to_thread(self._path(blob).read_bytes)
        except OSError:
            raise NotFound(f"the data of this call ({blob[:12]}...) is gone from the server's disk") from None

    def sweep(self, used: Collection[str]) -> int:
        """Remove files that no call refers to any more; how many. Blocks."""
        self._blobs.sweep()
        removed = 0
        for file in self._directory.glob("??/*"):
            with contextlib.suppress(OSError):
                if file.name not in used and file.stat().st_mtime < time.time() - UNUSED_S:
                    file.unlink()
                    removed += 1
        return removed
