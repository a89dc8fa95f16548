"""The storages of a node: each is fetched once however many instances wait for it, and goes on a while without them.

An instance waits for its files; it never fetches them itself. So a download belongs to nobody: a second instance joins
it, and one that is stopped leaves it. What nobody waits for any more goes on for `LINGER_S` seconds, because whoever
was stopped is often wanted again, and keeps what it has when it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nanopod.model.endpoint import StorageSpec
from nanopod.model.layout import Layout
from nanopod.node.storage import archives, buckets, schemes, websites
from nanopod.node.storage.cache import Cache, Gone, Tree, key_of
from nanopod.node.storage.errors import Broken, GivenUp, StorageFailed
from nanopod.node.storage.fetching import Fetcher, Progress
from nanopod.node.storage.schemes import Place
from nanopod.node.storage.streams import Remote

JOBS_MAX: Final = 4
"""Storages that are fetched at once; others wait."""
LINGER_S: Final = 600.0
TELL_S: Final = 1.0
"""How often people are told of the progress."""
POLL_S: Final = 0.1
LINK_TRIES: Final = 3
_LISTINGS: Final[Mapping[str, Callable[[Place, Mapping[str, str]], list[Remote]]]] = {
    "s3": buckets.s3, "gs": buckets.gs, "web": websites.web, "azure": websites.azure, "hf": websites.hf,
}  # fmt: skip
FETCHED: Final = (*_LISTINGS, "git")
"""Schemes whose files are copied into the node's cache."""
_log: Final = logging.getLogger("nanopod.node.storage")


def place_of(spec: StorageSpec) -> Place:
    """A storage's URI taken apart. Raises `StorageFailed`."""
    try:
        return schemes.parse(spec.uri)
    except schemes.BadUri as error:
        raise StorageFailed(str(error)) from None


@dataclass(slots=True)
class _Job:
    """One storage on its way."""

    progress: Progress
    waiters: int = 0
    left_at: float = 0.0
    done: Future[Tree] = field(default_factory=Future)
    linger_s: float = LINGER_S

    def given_up(self) -> bool:
        """True once nobody waited for long."""
        return self.waiters == 0 and time.monotonic() - self.left_at > self.linger_s


class Storage:
    """All storages of a node. The loop's methods are `bring` and `sweep`; the rest runs on threads of its own."""

    def __init__(self, layout: Layout, linger_s: float = LINGER_S) -> None:
        self._root = layout.storage
        self._cache: Cache | None = None
        self._linger_s = linger_s
        self._jobs: dict[str, _Job] = {}
        self._turns = threading.BoundedSemaphore(JOBS_MAX)
        self._lock = threading.Lock()

    @property
    def cache(self) -> Cache:
        """Made when it is needed first."""
        with self._lock:
            if self._cache is None:
                self._cache = Cache(self._root)
            return self._cache

    async def bring(
        self,
        spec: StorageSpec,
        settings: Mapping[str, str],
        directory: Path,
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        """Have the files of a storage in a directory; `tell` is called with how far it is.

        Raises `StorageFailed`; `GivenUp` once `stop` is set, while what was begun goes on for a while.
        """
        place = place_of(spec)
        loop = asyncio.get_running_loop()
        for last in (*[False] * (LINK_TRIES - 1), True):
            try:
                tree = await self._fetched(spec, place, settings, tell, stop)
                await loop.run_in_executor(None, self.cache.link, tree, directory)
                return
            except GivenUp:
                if stop.is_set() or last:
                    raise
                # It was just being given up when we joined: it goes on from what it has.
            except Gone as error:
                if last:
                    raise StorageFailed(
                        f"{place.shown}: {error} is let go of again and again", user_fault=False
                    ) from None
            except OSError as error:
                raise StorageFailed(f"{place.shown}: {error}", user_fault=False) from None

    async def _fetched(
        self, spec: StorageSpec, place: Place, settings: Mapping[str, str], tell: Callable[[str], None],
        stop: threading.Event,
    ) -> Tree:  # fmt: skip
        key = identity(spec, settings)
        job = self._jobs.get(key)
        fresh = job is None or job.done.done()
        if job is None or fresh:
            job = self._jobs[key] = _Job(Progress(place.shown), linger_s=self._linger_s)
        job.waiters += 1
        if fresh:
            whole = (key, job, spec, place, dict(settings))
            # No pool of threads: an agent that ends must not wait for them.
            threading.Thread(target=self._run, args=whole, name="storage", daemon=True).start()
        done = asyncio.wrap_future(job.done)
        done.add_done_callback(lambda found: found.cancelled() or found.exception())  # it may fail without us
        told_at, said = 0.0, ""
        try:
            while not done.done():
                if stop.is_set():
                    raise GivenUp
                now = time.monotonic()
                if now - told_at >= TELL_S and (text := job.progress.text()) != said:
                    told_at, said = now, text
                    tell(text)
                await asyncio.wait([done], timeout=POLL_S)
            return done.result()
        finally:
            job.waiters -= 1
            job.left_at = time.monotonic()
            if job.done.done() and self._jobs.get(key) is job:
                del self._jobs[key]

    def _run(self, key: str, job: _Job, spec: StorageSpec, place: Place, settings: dict[str, str]) -> None:
        """On a thread: fetch, and say how it went."""
        try:
            with self._turns:
                fetcher = Fetcher(self.cache, job.progress, job.given_up)
                tree = fetch(fetcher, spec, place, settings, key)
            _log.info("storage=%s files=%d bytes=%d", place.shown, len(tree), sum(one.size for one in tree))
            job.done.set_result(tree)
        except BaseException as error:
            if not isinstance(error, StorageFailed | GivenUp):
                _log.exception("storage=%s", place.shown)
                error = StorageFailed(f"{place.shown}: {type(error).__name__}: {error}", user_fault=False)
            elif isinstance(error, GivenUp):
                _log.info("storage=%s given up after %d bytes: nobody waits for it", place.shown, job.progress.bytes)
            job.done.set_exception(error)

    async def sweep(self) -> None:
        """Let go of what is kept beyond the limit and of what was left by an interruption."""
        self._jobs = {key: job for key, job in self._jobs.items() if job.waiters or not job.done.done()}
        if self._root.is_dir() and not self._jobs:
            await asyncio.to_thread(archives.sweep, self.cache)


def identity(spec: StorageSpec, settings: Mapping[str, str]) -> str:
    """What tells two storages apart: where, which files, and as whom."""
    facts = [spec.uri, list(spec.allow), list(spec.ignore), sorted(settings.items())]
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()


def fetch(fetcher: Fetcher, spec: StorageSpec, place: Place, settings: dict[str, str], key: str) -> Tree:
    """The files of a storage, in the cache. Blocks. Raises `StorageFailed` or `GivenUp`.

    While a source cannot be reached, what it had when it was seen last is good enough if all of it is here.
    """
    remembered = key_of("storage", key)
    try:
        if place.scheme == "git":
            tree = tuple(one for one in archives.clone(fetcher, place, settings) if _wanted(spec, one.path))
        else:
            listing = _LISTINGS[place.scheme]
            rows = [one for one in fetcher.again(lambda: listing(place, settings)) if _wanted(spec, one.path)]
            _distinct({one.path for one in rows}, place)
            tree = fetcher.all(rows) if rows else ()
        if len(tree) == 1 and archives.is_archive(tree[0].path):
            tree = archives.unpack(fetcher, tree[0])
            _distinct({one.path for one in tree}, place)
    except StorageFailed as error:
        found = None if error.user_fault else fetcher.cache.tree(remembered)
        if found is None:
            raise
        _log.warning("storage=%s taken as it was seen last: %s", place.shown, error)
        return found
    except Broken as error:
        raise StorageFailed(str(error), user_fault=False) from None
    if not tree:
        raise StorageFailed(f"{place.shown}: storage.allow and storage.ignore leave none of its files")
    fetcher.cache.remember(remembered, tree)
    return tree


def _wanted(spec: StorageSpec, path: str) -> bool:
    return schemes.wanted(path, spec.allow, spec.ignore)


def _distinct(paths: Set[str], place: Place) -> None:
    """Raises `StorageFailed` where one path is a file and a directory at once, as object stores and archives allow."""
    for path in paths:
        top = path
        while "/" in top:
            top = top.rpartition("/")[0]
            if top in paths:
                raise StorageFailed(f"{place.shown}: {top!r} is an object and the beginning of {path!r}; remove one")
