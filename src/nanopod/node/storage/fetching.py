"""Fetches files into the cache: several at once, each tried again from its last byte, checked before it counts.

A file lands in `parts/` with the version it is of beside it, so that whoever comes after an interruption, another
process too, goes on where it ended. A try that brought bytes does not count as a failed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from nanopod.node import files
from nanopod.node.storage.cache import Cache, Kept, key_of
from nanopod.node.storage.errors import Broken, GivenUp, StorageFailed
from nanopod.node.storage.streams import Remote, Stream

PARALLEL: Final = 4
TRIES_MAX: Final = 3
BACKOFF_S: Final = 0.5
BACKOFF_S_MAX: Final = 20.0
DAMAGED_MAX: Final = 2
"""Times that a file may arrive with another digest than its source states."""
CHUNK_BYTES: Final = 1 << 20
PROGRESS_BYTES: Final = 1 << 20
"""A try that brought so many was worth it: tries are counted anew."""


class Progress:
    """How far a storage is. Written by several threads."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.stage = "fetching"
        self._lock = threading.Lock()
        self._bytes = 0
        self._size = 0
        self._files = 0
        self._count = 0

    def expect(self, count: int, size: int) -> None:
        """So many files with so many bytes (as far as is known)."""
        with self._lock:
            self._count, self._size = count, size

    def grow(self, size: int) -> None:
        """A file whose size was not known has so many bytes."""
        with self._lock:
            self._size += size

    def add(self, size: int) -> None:
        """So many bytes are here; negative when some have to come again."""
        with self._lock:
            self._bytes += size

    def file(self) -> None:
        """One more file is here."""
        with self._lock:
            self._files += 1

    @property
    def bytes(self) -> int:
        """What is here."""
        return self._bytes

    def text(self) -> str:
        """What is shown to people: `fetching s3://b/m: 1.2 of 4.0 GB, 3 of 12 files`."""
        with self._lock:
            have, size, done, count = self._bytes, self._size, self._files, self._count
        if not count:
            return f"{self.stage} {self.shown}" + (f": {amount(have)}" if have else "")
        how = f"{amount(have, size)} of {amount(size)}" if size else amount(have)
        return f"{self.stage} {self.shown}: {how}" + (f", {done} of {count} files" if count > 1 else "")


def amount(size: int, like: int = 0) -> str:
    """Bytes in words: `4.0 GB`; only the number, in the unit of `like`, where that is given."""
    most = like or size
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if most >= factor:
            return f"{size / factor:.1f}" if like else f"{size / factor:.1f} {unit}"
    return f"{size}" if like else f"{size} bytes"


class Fetcher:
    """Fetches the files of one storage. `given_up()` is asked often: True ends it."""

    def __init__(
        self, cache: Cache, progress: Progress, given_up: Callable[[], bool], backoff_s: float = BACKOFF_S
    ) -> None:  # fmt: skip
        self.cache = cache
        self.progress = progress
        self._given_up = given_up
        self._backoff_s = backoff_s
        self._halt = False

    def check(self) -> None:
        """Raises `GivenUp` once nobody wants it any more, or another file failed for good."""
        if self._halt or self._given_up():
            raise GivenUp

    def pause(self, fails: int) -> None:
        """Wait before another try: with jitter, longer each time. Raises `GivenUp`."""
        longest = min(BACKOFF_S_MAX, self._backoff_s * 2 ** (fails - 1))
        until = time.monotonic() + longest * random.uniform(0.5, 1.0)
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(0.1, left))

    def again(self, action: Callable[[], Any]) -> Any:
        """What `action` returns, tried `TRIES_MAX` times while it raises `Broken`. Raises `StorageFailed`."""
        for fails in range(1, TRIES_MAX + 1):
            self.check()
            try:
                return action()
            except Broken as error:
                if fails == TRIES_MAX:
                    raise StorageFailed(f"{error} ({fails} tries)", user_fault=False) from None
                self.pause(fails)
        raise AssertionError("unreachable: the last try returns or raises")

    def all(self, remotes: Sequence[Remote]) -> tuple[Kept, ...]:
        """Every file, `PARALLEL` at once. Raises `StorageFailed` or `GivenUp`."""
        known = sum(one.size or 0 for one in remotes)
        self.progress.expect(len(remotes), known)
        missing = sum(one.size or 0 for one in remotes if self.cache.known(one.identity, one.mark) is None)
        if missing > (free := self.cache.room(missing)):
            raise StorageFailed(
                f"{self.progress.shown} has {amount(missing)} to fetch and the node's disk has room for "
                f"{amount(max(0, free))}; use a node with a larger disk, or fewer files (storage.allow)",
                user_fault=False,
            )
        left = list(enumerate(remotes))[::-1]
        found: dict[int, Kept] = {}
        errors: list[BaseException] = []

        def work() -> None:
            while left:
                with contextlib.suppress(IndexError):
                    number, remote = left.pop()
                    try:
                        found[number] = self.one(remote)
                    except BaseException as error:
                        errors.append(error)
                        self._halt = True
                        return

        # Not a pool: its threads would keep an agent that ends from ending until the last byte is here.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(remotes)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(errors, key=lambda error: isinstance(error, GivenUp)):
            raise error
        return tuple(found[number] for number in range(len(remotes)))

    def one(self, remote: Remote) -> Kept:
        """One file. Raises `StorageFailed` or `GivenUp`."""
        found = self.cache.known(remote.identity, remote.mark)
        if found is not None and self.cache.has(kept := Kept(remote.path, *found)):
            self.progress.add(found[1])
            self.progress.file()
            return kept
        key = key_of(remote.identity, remote.mark)
        part = self.cache.parts / key
        with self._alone(part):
            return self._fetch(remote, part)

    @contextlib.contextmanager
    def _alone(self, part: Path) -> Iterator[None]:
        """Be the only one that writes this part, also beside a process that was not quite gone."""
        with open(part.with_suffix(".lock"), "a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    self.check()
                    time.sleep(0.05)
            yield

    def _fetch(self, remote: Remote, part: Path) -> Kept:
        found = self.cache.known(remote.identity, remote.mark)
        if found is not None and self.cache.has(kept := Kept(remote.path, *found)):
            self.progress.add(found[1])  # whoever had the lock brought it
            self.progress.file()
            return kept
        fails = damaged = 0
        download = _Download(self, remote, part)
        while True:
            self.check()
            before = download.have
            try:
                sha256, size, mark = download.run()
                break
            except Damaged as error:
                damaged += 1
                if damaged >= DAMAGED_MAX:
                    raise StorageFailed(str(error), user_fault=False) from None
            except (Broken, OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (28, 122):
                    raise StorageFailed(f"{remote.path}: the node's disk is full", user_fault=False) from None
                fails = 1 if download.have - before >= PROGRESS_BYTES else fails + 1
                if fails >= TRIES_MAX:
                    said = f"{self.progress.shown}: {remote.path}: {error} ({TRIES_MAX} tries)"
                    raise StorageFailed(said, user_fault=False) from None
                self.pause(fails)
        self.cache.keep(part, sha256)
        for left in (".json", ".lock"):
            part.with_suffix(left).unlink(missing_ok=True)
        self.cache.learn(remote.identity, remote.mark or mark, sha256, size)
        self.progress.file()
        return Kept(remote.path, sha256, size)


class Damaged(Exception):
    """What arrived is not what the source states."""


class _Download:
    """One file on its way into its part."""

    def __init__(self, fetcher: Fetcher, remote: Remote, part: Path) -> None:
        self._fetcher = fetcher
        self._remote = remote
        self._part = part
        self._state = part.with_suffix(".json")
        self.have = 0
        """Bytes of the part that were counted as progress."""
        self._size_known = remote.size is not None

    def run(self) -> tuple[str, int, str]:
        """One try: (SHA-256, bytes, mark) of the whole file. Raises `Broken`, `Damaged`, OSError, `StorageFailed`."""
        mark = self._remote.mark or self._kept_mark()
        start = self._part.stat().st_size if mark and self._part.exists() else 0
        if self._remote.size is not None and start > self._remote.size:
            start = 0
        if start and start == self._remote.size:
            return self._finished(start, mark)
        stream = self._remote.open(start, mark)
        with contextlib.closing(stream.body):
            return self._take(stream, start, mark)

    def _kept_mark(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(self._state.read_bytes())["mark"])
        return ""

    def _finished(self, size: int, mark: str) -> tuple[str, int, str]:
        """All bytes are here already; what is left is to see whether they are right."""
        self._count(size - self.have)
        hashes = _Hashes(self._remote.digest)
        hashes.file(self._part)
        self._judge(hashes, None)
        return hashes.sha256, size, mark

    def _take(self, stream: Stream, asked: int, mark: str) -> tuple[str, int, str]:
        begins = stream.start
        if not self._size_known and stream.size is not None:
            self._size_known = True
            self._fetcher.progress.grow(stream.size)
        hashes = _Hashes(stream.digest or self._remote.digest)
        if begins and begins == asked:
            hashes.file(self._part)
        elif begins:
            raise Broken(f"asked for bytes from {asked} on and was given those from {begins} on")
        self._count(begins - self.have)
        fresh = stream.mark or mark
        files.write_atomic(self._state, json.dumps({"mark": fresh}).encode())
        with open(self._part, "r+b" if begins else "wb") as out:
            out.truncate(begins)
            out.seek(begins)
            while chunk := stream.body.read(CHUNK_BYTES):
                out.write(chunk)
                hashes.update(chunk)
                self._count(len(chunk))
                self._fetcher.check()
            out.flush()
            os.fsync(out.fileno())
        size = stream.size if stream.size is not None else self._remote.size
        if size is not None and self.have < size:
            raise Broken(f"the transfer broke off after {self.have} of {size} bytes")
        if size is not None and self.have > size:
            self._damaged(f"{self.have} bytes arrived instead of {size}")
        self._judge(hashes, stream.digest)
        return hashes.sha256, self.have, fresh

    def _count(self, size: int) -> None:
        self.have += size
        self._fetcher.progress.add(size)

    def _judge(self, hashes: _Hashes, said: tuple[str, str] | None) -> None:
        digest = said or self._remote.digest
        if digest is not None and hashes.found != digest[1].lower():
            self._damaged(f"the {digest[0].upper()} of what arrived is not the one the source states")

    def _damaged(self, why: str) -> None:
        self._part.unlink(missing_ok=True)
        self._count(-self.have)
        raise Damaged(f"{self._fetcher.progress.shown}: {self._remote.path}: {why}")


class _Hashes:
    """The SHA-256 of what passes, and the digest that the source states if that is another."""

    def __init__(self, digest: tuple[str, str] | None) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if digest is not None and digest[0] == "md5" else None

    def update(self, data: bytes) -> None:
        """More bytes."""
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)

    def file(self, path: Path) -> None:
        """All bytes of a file."""
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.update(chunk)

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._sha256.hexdigest()

    @property
    def found(self) -> str:
        """What is compared with the source's digest."""
        return self._md5.hexdigest() if self._md5 is not None else self.sha256
