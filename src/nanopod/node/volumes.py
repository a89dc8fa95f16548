"""Volumes on a node: the files of a version in a directory, what changed there, and how that becomes the next version.

A mount is a directory of ours with `files/`, `state.json` (the manifest that the files came from, and what the file
system said of each) and `lock`. Where it is depends on the path that was asked for:

| path | files | shared |
| --- | --- | --- |
| relative, `data` | `<instance>/volumes/<name>`, a link at `data` in the worker's directory | each worker has its own |
| absolute, `/models` | `<data>/node/mounts/<volume id>`, a link at `/models` | by the workers of the node |

Content is kept once in `cache/volumes`. Read-only mounts, and files above `COPY_BYTES_MAX`, are hard links to it; other
files are copies, so that a worker may write into them. A kept file that somebody wrote into all the same (root may) is
noticed by its time and fetched anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from nanopod.model import parts
from nanopod.model.errors import Conflict, Invalid, NanopodError, NotFound
from nanopod.model.layout import Layout
from nanopod.model.parts import PART_BYTES, Entry, Manifest
from nanopod.node import files
from nanopod.node.cloud import Cloud

COPY_BYTES_MAX: Final = 64 << 20
KEPT_AT: Final = 1_000_000_000
"""The time of every kept file: one that was written to has another."""
PARALLEL: Final = 4
LEASE_S: Final = 60.0
WRITER_S_MAX: Final = 60.0
READ_TRIES: Final = 3
Stat = tuple[int, int, int]
"""Inode, bytes, time of the last change in nanoseconds."""


class Cache:
    """Content of volumes on this node, by what it is."""

    def __init__(self, layout: Layout, cloud: Cloud) -> None:
        self._layout = layout
        self._cloud = cloud
        self._root = layout.data / "cache" / "volumes"

    def file(self, volume: str, entry: Entry) -> Path:
        """A whole file with the content and mode of `entry`, fetched unless it is here. Not to be written to."""
        blob, size, mode = entry
        name = parts.digest_of(blob.encode()) + ("x" if mode & 0o100 else "")
        path = self._root / name[:2] / name
        with contextlib.suppress(FileNotFoundError):
            seen = path.stat()
            if seen.st_size == size and seen.st_mtime_ns == KEPT_AT * 10**9:
                return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.{os.getpid()}.{os.urandom(4).hex()}.part")
        try:
            self._fetch(volume, blob, part)
            os.chmod(part, 0o555 if mode & 0o100 else 0o444)
            os.utime(part, (KEPT_AT, KEPT_AT))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _fetch(self, volume: str, blob: str, part: Path) -> None:
        with open(part, "xb") as file:
            for digest in blob.split():
                near = self._layout.blob(digest)
                if near.is_file():  # the server's own store is on this machine
                    with open(near, "rb") as source:
                        shutil.copyfileobj(source, file, PART_BYTES)
                    continue
                data = self._cloud.send("GET", f"/v1/volumes/{volume}/parts/{digest}")
                if parts.digest_of(data) != digest:
                    raise Conflict(f"a part of volume {volume} arrived damaged; try again")
                file.write(data)


class Mount:
    """One mount. Blocking; everything that reads or changes it as a whole holds its lock."""

    def __init__(self, root: Path, name: str, cache: Cache, cloud: Cloud, *, read_only: bool) -> None:
        self.root = root
        self.name = name
        self.files = root / "files"
        self._cache = cache
        self._cloud = cloud
        self._read_only = read_only
        self._api = f"/v1/volumes/{name}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.root / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # --- what was loaded ---

    def _state(self) -> tuple[int, Manifest, dict[str, Stat]]:
        """(version, manifest that the files came from, what each was like then)."""
        try:
            found = json.loads((self.root / "state.json").read_bytes())
            stats = {path: (int(s[0]), int(s[1]), int(s[2])) for path, s in found["stats"].items()}
            return int(found["version"]), parts.manifest_of(found["manifest"]), stats
        except (OSError, ValueError, KeyError, TypeError):
            return 0, {}, {}

    def _keep(self, version: int, manifest: Manifest, stats: Mapping[str, Stat]) -> None:
        state = {"version": version, "manifest": manifest, "stats": stats}
        files.write_atomic(self.root / "state.json", json.dumps(state).encode())

    def _seen(self) -> dict[str, Stat]:
        """What is in the directory now."""
        found: dict[str, Stat] = {}
        for top, _, names in os.walk(self.files):
            for name in names:
                path = os.path.join(top, name)
                with contextlib.suppress(OSError):
                    if os.path.isfile(path):
                        found[os.path.relpath(path, self.files)] = _stat(path)
        return found

    # --- the newest version ---

    def load(self, *, discard: bool) -> int:
        """Bring the newest version; its number. See `client.volumes.Volume.reload`."""
        with self._locked():
            self.files.mkdir(exist_ok=True)
            _, base, before = self._state()
            found = self._cloud.ask("GET", f"{self._api}/files")
            version, newest = int(found["version"]), parts.manifest_of(found["files"])
            here = self._seen()
            touched = {path for path in here.keys() | before.keys() if here.get(path) != before.get(path)}
            wanted = {path for path in newest.keys() | base.keys() if newest.get(path) != base.get(path)}
            if discard:
                wanted |= touched
            elif clashes := sorted(wanted & touched):
                raise Conflict(
                    f"volume {self.name!r}: {', '.join(clashes[:5])} changed here and by others: save what is here "
                    "elsewhere, then call .reload(discard=True); or commit before others do"
                )
            stats = {path: before[path] for path in before if path in newest and path not in wanted}
            with ThreadPoolExecutor(PARALLEL) as pool:
                fetched = {
                    path: pool.submit(self._cache.file, self.name, newest[path]) for path in wanted & newest.keys()
                }
                for path in sorted(wanted - newest.keys()):
                    self._drop(path)
                for path in sorted(fetched):
                    stats[path] = self._place(path, newest[path], fetched[path].result())
            self._keep(version, newest, stats)
            return version

    def _place(self, path: str, entry: Entry, kept: Path) -> Stat:
        """Have a file with the content of `kept`; at once, for whoever has the old one open reads on."""
        target = self.files / path
        part = self.root / f"{os.getpid()}.{os.urandom(4).hex()}.part"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._read_only or entry[1] > COPY_BYTES_MAX:
                try:
                    os.link(kept, part)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                        raise
                    shutil.copyfile(kept, part)
            else:
                shutil.copyfile(kept, part)
                os.chmod(part, entry[2])
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return _stat(target)

    def _drop(self, path: str) -> None:
        target = self.files / path
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
            for parent in target.parents:
                if parent == self.files:
                    break
                parent.rmdir()  # until one is not empty

    # --- the next version ---

    def commit(self) -> int:
        """Make what is here the next version; its number. See `client.volumes.Volume.commit`."""
        if self._read_only:
            raise Invalid(
                f"volume {self.name!r} is mounted read-only here; leave read_only out of image.volume() to commit",
                field="read_only",
            )
        with self._locked():
            version, base, before = self._state()
            here = self._seen()
            now: Manifest = {}
            stats: dict[str, Stat] = {}
            with ThreadPoolExecutor(PARALLEL) as pool:
                running = {}
                for path, seen in here.items():
                    if path in base and before.get(path) == seen:
                        now[path], stats[path] = base[path], seen
                    else:
                        running[path] = pool.submit(self._upload, path)
                for path, done in running.items():
                    now[path], stats[path] = done.result()
            changes = parts.changes(base, now)
            if not changes:
                return version
            version = self._commit(changes)
            self._keep(version, now, stats)
            return version

    def _commit(self, changes: dict[str, dict[str, Any]]) -> int:
        writer = f"{os.uname().nodename}:{os.getpid()}:{os.urandom(4).hex()}"
        self._lease(writer)
        try:
            made = self._cloud.ask("POST", f"{self._api}/versions", {"writer": writer, "files": changes})
        finally:
            with contextlib.suppress(NanopodError):  # it ends by itself in a minute
                self._cloud.send("DELETE", f"{self._api}/lease?writer={writer}")
        return int(made["version"])

    def _lease(self, writer: str) -> None:
        """Become the one writer; who came first is waited for."""
        limit = time.monotonic() + WRITER_S_MAX
        pause_s = 0.05
        while True:
            try:
                self._cloud.ask("POST", f"{self._api}/lease", {"writer": writer, "lease_s": LEASE_S})
                return
            except Conflict:
                if time.monotonic() > limit:
                    raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2.0, pause_s * 1.5)

    def _upload(self, path: str) -> tuple[Entry, Stat]:
        """Have the server keep a file's content. Raises `Conflict` for one that is being written to."""
        whole = self.files / path
        for _ in range(READ_TRIES):
            before = _stat(whole)
            digests, size = [], 0
            with open(whole, "rb") as file:
                while data := file.read(PART_BYTES):
                    digest = parts.digest_of(data)
                    self._send(digest, data)
                    digests.append(digest)
                    size += len(data)
                mode = parts.mode_of(os.fstat(file.fileno()).st_mode)
            if _stat(whole) == before and size == before[1]:
                return (" ".join(digests), size, mode), before
        raise Conflict(f"volume {self.name!r}: {path} is being written to; close it before the commit")

    def _send(self, digest: str, data: bytes) -> None:
        try:
            self._cloud.send("HEAD", f"{self._api}/parts/{digest}")
        except NotFound:
            self._cloud.send("PUT", f"{self._api}/parts/{digest}", data)


def _stat(path: str | os.PathLike[str]) -> Stat:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
