"""Content on a node, kept once by its SHA-256 and given to instances as hard links.

```
cache/storage/blobs/ab/<sha256>[x]   content; `x`: a program       parts/<key>        what is being fetched
cache/storage/index/ab/<key>         what a source's file holds    parts/<key>.json   and of which version it is
cache/storage/trees/ab/<key>         the files of an archive, a repository, or of a storage as it was last seen
```
A file that an instance has is a link more to its content: content with one link only is in use by nobody, and the one
that was used longest ago goes first when there is more than the limit. Its modification time is always the same, so a
kept file that somebody wrote into (root may) is noticed and fetched anew; when it was used is its access time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nanopod.node import files

KEPT_AT: Final = 1_000_000_000
LIMIT_VARIABLE: Final = "NANOPOD_STORAGE_CACHE_GB"
"""Environment of the agent: how much may be kept; by default half of the disk."""
SHARE_MAX: Final = 0.5
FREE_BYTES_MIN: Final = 256 << 20
"""Left on the disk by whatever is fetched."""
FRESH_S: Final = 60.0
"""Content that was used so lately is about to be linked to."""
STALE_S: Final = 7 * 86_400.0
"""Parts and indexes that nobody touched for so long go."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of a storage."""

    path: str
    sha256: str
    size: int
    program: bool = False


Tree = tuple[Kept, ...]


def key_of(*words: str) -> str:
    """A name for what these words say."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


class Gone(Exception):
    """Content that was here is not any more."""


class Cache:
    """The content of one node. Safe for threads of one process; blocking."""

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        self.root = root
        self.parts = root / "parts"
        for name in ("blobs", "index", "trees", "parts"):
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._limit = limit_bytes if limit_bytes is not None else _limit(root)
        self._lock = threading.Lock()

    # --- content ---

    def _blob(self, sha256: str, program: bool) -> Path:
        return self.root / "blobs" / sha256[:2] / (sha256 + ("x" if program else ""))

    def has(self, one: Kept) -> bool:
        """True while its content is here and unchanged."""
        return _good(self._blob(one.sha256, one.program), one.size)

    def keep(self, part: Path, sha256: str, *, program: bool = False) -> None:
        """Take a whole file in, under its digest; `part` is gone then."""
        place = self._blob(sha256, program)
        place.parent.mkdir(exist_ok=True, mode=0o700)
        os.chmod(part, 0o555 if program else 0o444)
        now = time.time()
        os.utime(part, (now, KEPT_AT))
        with self._lock:
            os.replace(part, place)

    def link(self, tree: Sequence[Kept], directory: Path) -> None:
        """Have the files in a directory. Raises `Gone` when one of them must be fetched again, OSError."""
        now = time.time()
        with self._lock:
            for one in tree:
                blob, place = self._blob(one.sha256, one.program), directory / one.path
                if not _good(blob, one.size):
                    raise Gone(one.path)
                os.utime(blob, (now, KEPT_AT))
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                _give(blob, place)

    # --- what sources hold ---

    def known(self, identity: str, mark: str) -> tuple[str, int] | None:
        """(SHA-256, bytes) of a source's file in this version, if it was fetched before."""
        found = self._read("index", key_of(identity, mark)) if mark else None
        try:
            return (str(found["sha256"]), int(found["size"])) if found else None
        except (KeyError, TypeError, ValueError):
            return None

    def learn(self, identity: str, mark: str, sha256: str, size: int) -> None:
        """Remember what a source's file holds in this version."""
        if mark:
            self._write("index", key_of(identity, mark), {"sha256": sha256, "size": size})

    def tree(self, key: str) -> Tree | None:
        """A list of files as it was remembered; None when there is none or not all content is here."""
        found = self._read("trees", key)
        try:
            tree = tuple(Kept(str(p), str(d), int(s), bool(x)) for p, d, s, x in found["files"]) if found else None
        except (KeyError, TypeError, ValueError):
            return None
        return tree if tree is not None and all(map(self.has, tree)) else None

    def remember(self, key: str, tree: Tree) -> None:
        """Remember a list of files."""
        rows = [[one.path, one.sha256, one.size, one.program] for one in tree]
        self._write("trees", key, {"files": rows})

    def _read(self, kind: str, key: str) -> dict[str, Any] | None:
        path = self.root / kind / key[:2] / key
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_bytes())
            os.utime(path)
            return found if isinstance(found, dict) else None
        return None

    def _write(self, kind: str, key: str, value: dict[str, Any]) -> None:
        path = self.root / kind / key[:2] / key
        path.parent.mkdir(exist_ok=True, mode=0o700)
        # Two threads may learn the same: each writes a file of its own first.
        part = path.with_name(f"{key}.{threading.get_ident()}")
        files.write_atomic(part, json.dumps(value).encode())
        os.replace(part, path)

    # --- room ---

    def room(self, size: int) -> int:
        """Make room for so many bytes; how many are free then beyond what is left free always."""
        free = shutil.disk_usage(self.root).free - FREE_BYTES_MIN
        if size > free:
            self.evict(size - free)
            free = shutil.disk_usage(self.root).free - FREE_BYTES_MIN
        return free

    def evict(self, more: int = 0, fresh_s: float = FRESH_S) -> int:
        """Let go of what nobody uses until `more` bytes are freed and the limit is kept; how many bytes went."""
        now, freed = time.time(), 0
        with self._lock:
            blobs = sorted(self._blobs(), key=lambda found: found[1].st_atime)
            excess = max(more, sum(seen.st_size for _, seen in blobs) - self._limit)
            for path, seen in blobs:
                if freed >= excess:
                    break
                if seen.st_nlink > 1 or now - seen.st_atime < fresh_s:
                    continue
                path.unlink(missing_ok=True)
                freed += seen.st_size
        self._tidy(now)
        return freed

    def _blobs(self) -> Iterator[tuple[Path, os.stat_result]]:
        for top, _, names in os.walk(self.root / "blobs"):
            for name in names:
                path = Path(top, name)
                with contextlib.suppress(OSError):
                    yield path, path.stat()

    def _tidy(self, now: float) -> None:
        for kind in ("parts", "index", "trees"):
            for top, _, names in os.walk(self.root / kind):
                for name in names:
                    path = Path(top, name)
                    with contextlib.suppress(OSError):
                        if now - path.stat().st_mtime > STALE_S:
                            path.unlink()


def _good(blob: Path, size: int) -> bool:
    try:
        seen = blob.stat()
    except OSError:
        return False
    return seen.st_size == size and seen.st_mtime_ns == KEPT_AT * 10**9


def _give(blob: Path, place: Path) -> None:
    try:
        os.link(blob, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        shutil.copy2(blob, place)


def _limit(root: Path) -> int:
    given = os.environ.get(LIMIT_VARIABLE, "")
    with contextlib.suppress(ValueError):
        if float(given) > 0:
            return int(float(given) * 1e9)
    return int(shutil.disk_usage(root).total * SHARE_MAX)
