"""Parts of images on their way in: streamed to files beside the blobs, then joined into one blob.

A part is a file `<blobs>/images/<image>/<number>-<sha256>` and is there only when it is whole and on the disk. Joining
reads every part once, hashes the whole and gives the parts' space back as it goes only after the blob is in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Final

from nanopod.model.errors import Invalid, QuotaExceeded
from nanopod.store.blobs import BlobStore

IMAGE_BYTES_MAX: Final = 128 << 30
PART_BYTES_MAX: Final = 5 << 30
PARTS_MAX: Final = 10_000
UPLOADS_MAX: Final = 16
"""Parts that may arrive at the same time."""
_BATCH: Final = 1 << 20
_COPY: Final = 4 << 20


class PartStore:
    """The unfinished images beside a blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._root = blobs.directory / "images"
        self._uploads = 0

    def size(self, image_id: str, number: int, digest: str) -> int | None:
        """Bytes of a part; None when it is not here."""
        with contextlib.suppress(OSError):
            return self._path(image_id, number, digest).stat().st_size
        return None

    def total(self, image_id: str, digests: Sequence[str]) -> int:
        """Bytes of all parts that are here."""
        return sum(self.size(image_id, n, digest) or 0 for n, digest in enumerate(digests, 1) if digest)

    async def put(
        self, image_id: str, number: int, chunks: AsyncIterator[bytes], *, bytes_max: int, digest: str | None = None
    ) -> tuple[str, int]:
        """Keep one part; (its SHA-256, its size). Raises `Invalid` when it is empty, too long or not `digest`."""
        if self._uploads >= UPLOADS_MAX:
            raise QuotaExceeded(f"{UPLOADS_MAX} parts are arriving; send this one again soon", retry_after_s=1.0)
        self._uploads += 1
        directory = self._root / image_id
        fresh = directory / f"{number}.{secrets.token_hex(4)}.new"
        try:
            await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
            with open(fresh, "xb") as file:
                found, size = await _receive(chunks, file, min(bytes_max, PART_BYTES_MAX))
                if digest is not None and found != digest:
                    raise Invalid(
                        f"sha256: the {size} bytes received have the SHA-256 {found}, not {digest}: send it again",
                        field="sha256",
                    )
                if size == 0:
                    raise Invalid("body: a part has at least one byte", field="body")
                await asyncio.to_thread(_flush, file)
            os.replace(fresh, self._path(image_id, number, found))
        finally:
            self._uploads -= 1
            fresh.unlink(missing_ok=True)
        return found, size

    def join(self, image_id: str, digests: Sequence[str]) -> tuple[str, int]:
        """Make one blob of all parts, in order: (its SHA-256, its size). Takes long; call it in a thread.

        Raises `Invalid` when a part is not here.
        """
        hashed = hashlib.sha256()
        size = 0
        whole = self._root / image_id / f"whole.{secrets.token_hex(4)}.new"
        try:
            with open(whole, "xb") as file:
                for number, digest in enumerate(digests, 1):
                    size += self._append(image_id, number, digest, file, hashed)
                _flush(file)
            self._blobs.adopt(whole, hashed.hexdigest())
        finally:
            whole.unlink(missing_ok=True)
        return hashed.hexdigest(), size

    def _append(self, image_id: str, number: int, digest: str, file: IO[bytes], hashed: hashlib._Hash) -> int:
        size = 0
        try:
            with open(self._path(image_id, number, digest), "rb") as part:
                while chunk := part.read(_COPY):
                    hashed.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
        except FileNotFoundError:
            raise Invalid(f"parts: part {number} is not here any more; upload it again", field="parts") from None
        return size

    def forget(self, image_id: str) -> None:
        """Remove every part of an image."""
        shutil.rmtree(self._root / image_id, ignore_errors=True)

    def _path(self, image_id: str, number: int, digest: str) -> Path:
        return self._root / image_id / f"{number:05d}-{digest}"


async def _receive(chunks: AsyncIterator[bytes], file: IO[bytes], bytes_max: int) -> tuple[str, int]:
    """Write what comes, in batches and in threads, so that hashing gigabytes holds nobody else up."""
    hashed = hashlib.sha256()
    size = 0
    batch: list[bytes] = []
    waiting = 0

    def take() -> None:
        data = b"".join(batch)
        hashed.update(data)
        file.write(data)

    async for chunk in chunks:
        size += len(chunk)
        if size > bytes_max:
            raise Invalid(
                f"body: this part is longer than the {bytes_max} bytes that it may have "
                f"(a part {PART_BYTES_MAX >> 30} GiB, an image {IMAGE_BYTES_MAX >> 30} GiB)",
                field="body",
            )
        batch.append(chunk)
        waiting += len(chunk)
        if waiting >= _BATCH:
            await asyncio.to_thread(take)
            batch, waiting = [], 0
    if batch:
        take()
    return hashed.hexdigest(), size


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
