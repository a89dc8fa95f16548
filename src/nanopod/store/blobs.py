"""Files named by the SHA-256 of their content, in a directory. A file that is there is whole and on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Final

from nanopod.model.errors import Invalid, QuotaExceeded
from nanopod.store.writer import RETRY_AFTER_S, StoreUnavailable

BLOB_BYTES_MAX: Final = 256 << 20
UPLOADS_MAX: Final = 32
STALE_S: Final = 3600.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Blobs below `directory`; `path_of(digest)` says where (see `model.layout.Layout.blob`)."""

    def __init__(self, directory: Path, path_of: Callable[[str], Path]) -> None:
        self._directory = directory
        self._path_of = path_of
        self._uploads = 0

    @staticmethod
    def check(digest: str) -> str:
        """`digest` itself. Raises `Invalid` unless it is 64 lower-case hexadecimal digits."""
        if not _DIGEST.fullmatch(digest):
            raise Invalid("a blob is named by its SHA-256: 64 hexadecimal digits in lower case", field="sha256")
        return digest

    def has(self, digest: str) -> bool:
        """True when the blob is here, whole."""
        return self._path_of(self.check(digest)).is_file()

    def size(self, digest: str) -> int | None:
        """Its size in bytes; None when it is not here."""
        with contextlib.suppress(OSError):
            return self._path_of(self.check(digest)).stat().st_size
        return None

    @property
    def directory(self) -> Path:
        """Where the blobs are kept; what is not finished may wait below it, on the same file system."""
        return self._directory

    def adopt(self, file: Path, digest: str) -> None:
        """Make a file of the same file system the blob `digest`; its content was written to the disk and hashed."""
        with _disk_errors(self._directory):
            self._keep(file, self.check(digest))

    def path(self, digest: str) -> Path:
        """The file of a blob, there or not."""
        return self._path_of(self.check(digest))

    def remove(self, digest: str) -> None:
        """Forget a blob; whoever has it open reads on."""
        self._path_of(self.check(digest)).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what interrupted uploads left more than an hour ago; how many files."""
        removed = 0
        for part in (*self._directory.glob("*.part"), *self._directory.glob("images/*/*.new")):
            with contextlib.suppress(OSError):
                if part.stat().st_mtime < time.time() - STALE_S:
                    part.unlink()
                    removed += 1
        return removed

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> bool:
        """Keep the bytes of `chunks` under `digest`; False when they were here already (and the rest is not read).

        Raises `Invalid` when they are too many or their digest differs, `StoreUnavailable` when the disk is full.
        """
        if self.has(digest):
            return False
        if self._uploads >= UPLOADS_MAX:
            raise QuotaExceeded(f"{UPLOADS_MAX} uploads are running; try again soon", retry_after_s=1.0)
        self._uploads += 1
        part = self._directory / f"{digest}.{secrets.token_hex(4)}.part"
        try:
            with _disk_errors(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
                with open(part, "xb") as file:
                    await self._receive(digest, chunks, file)
                    await asyncio.to_thread(_flush, file)
                await asyncio.to_thread(self._keep, part, digest)
        finally:
            self._uploads -= 1
            part.unlink(missing_ok=True)
        return True

    async def _receive(self, digest: str, chunks: AsyncIterator[bytes], file: IO[bytes]) -> None:
        hashed = hashlib.sha256()
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > BLOB_BYTES_MAX:
                raise Invalid(f"a blob may have at most {BLOB_BYTES_MAX >> 20} MiB", field="body")
            hashed.update(chunk)
            file.write(chunk)
        if hashed.hexdigest() != digest:
            raise Invalid(
                f"the {size} bytes received have the SHA-256 {hashed.hexdigest()}, not {digest}: send the file again",
                field="sha256",
            )

    def _keep(self, part: Path, digest: str) -> None:
        target = self._path_of(digest)
        for directory in (target.parent.parent, target.parent):
            directory.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)
        # A rename is only certain to survive a power cut once the directory that holds the name is written too.
        fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES):
            raise StoreUnavailable(
                f"cannot keep the upload in {directory}: {error.strerror}; free some space or check its permissions",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        raise
