"""What contexts wrote down of themselves when a worker ended, for the next worker of the same deployment on this node.

```
<directory>/lock             shared by those who read, exclusive for who replaces
<directory>/<key>/<context>  what `__asnapshot__` wrote; the newest only
<directory>/.new-<pid>       on its way
```
The key is a digest of everything that must be the same: code, image, Python, machine type, GPUs and their driver.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nanopod.model.endpoint import EndpointSpec

BYTES_MAX: Final = 64 << 30
FREE_SHARE: Final = 0.5
"""A snapshot may take so much of what is free on the disk."""
KEEP_S: Final = 7 * 86_400.0
"""Snapshots of other deployments that nobody renewed for so long are removed."""
LOCK_S_MAX: Final = 2.0
_log: Final = logging.getLogger(__name__)


def key_of(app: EndpointSpec, gpus: tuple[str, ...]) -> str:
    """What a snapshot must have in common with the worker that reads it. `gpus`: model and driver of each."""
    parts = (
        app.fingerprints.code or app.bundle, app.fingerprints.image, app.module, platform.python_version(),
        platform.machine(), *gpus,
    )  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Snapshots:
    """The snapshots of one deployment on one node. Everything here blocks: call it on a thread."""

    def __init__(self, directory: Path, key: str, bytes_max: int = BYTES_MAX) -> None:
        self._directory = directory
        self._key = key
        self._bytes_max = bytes_max

    @contextlib.contextmanager
    def _locked(self, how: int, wait_s_max: float) -> Iterator[bool]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._directory / "lock", "a") as lock:
            limit = time.monotonic() + wait_s_max
            while True:
                try:
                    fcntl.flock(lock, how | fcntl.LOCK_NB)
                except OSError:
                    if time.monotonic() >= limit:
                        yield False
                        return
                    time.sleep(0.01)
                else:
                    yield True
                    return

    @contextlib.contextmanager
    def reading(self) -> Iterator[Path | None]:
        """The directory of the snapshot that fits, unchanged while this is entered; None when there is none."""
        found = self._directory / self._key
        if not found.is_dir():
            yield None
            return
        with self._locked(fcntl.LOCK_SH, LOCK_S_MAX) as held:
            yield found if held and found.is_dir() else None

    def begin(self) -> Path:
        """An empty directory for a new snapshot."""
        new = self._directory / f".new-{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700, parents=True)
        return new

    def commit(self, new: Path) -> bool:
        """Let the new snapshot take the place of all earlier ones; False when it is too large, or others read."""
        size = sum(path.lstat().st_size for path in new.rglob("*") if not path.is_dir())
        limit = min(self._bytes_max, int((shutil.disk_usage(new).free + size) * FREE_SHARE))
        if size > limit:
            _log.warning("the snapshot takes %d bytes, at most %d are kept: it is dropped", size, limit)
            self.discard(new)
            return False
        with self._locked(fcntl.LOCK_EX, LOCK_S_MAX) as held:
            if not held:
                self.discard(new)
                return False
            for path in self._directory.iterdir():
                if path.is_dir() and path != new and _is_over(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            new.rename(self._directory / self._key)
        os.utime(self._directory)
        self._prune()
        return True

    def discard(self, new: Path) -> None:
        """Remove what was begun, or a snapshot that cannot be read."""
        shutil.rmtree(new, ignore_errors=True)

    def _prune(self) -> None:
        """Remove what deployments left behind that were not seen for long."""
        limit = time.time() - KEEP_S
        for path in self._directory.parent.iterdir():
            with contextlib.suppress(OSError):
                if path != self._directory and path.is_dir() and path.stat().st_mtime < limit:
                    shutil.rmtree(path, ignore_errors=True)


def _is_over(name: str) -> bool:
    """True for earlier snapshots, and for those of processes that ended in the middle."""
    if not name.startswith(".new-"):
        return True
    pid = name.removeprefix(".new-")
    return not (pid.isdigit() and Path(f"/proc/{pid}").exists())
