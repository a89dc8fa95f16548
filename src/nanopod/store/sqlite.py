"""The store on SQLite: one writer thread that commits groups of transactions together, and a pool of readers.

A transaction is a plain function of a `Transaction`. Grouping makes a synchronous disk write per commit nearly free
under load: functions that queue up while one group is being written form the next. Each has a savepoint of its own, so
one that raises takes nothing else along. Futures are resolved after the commit: what was acknowledged is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from nanopod.model.errors import NoCapacity
from nanopod.store.migrate import migrate
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")
Hints = Callable[[frozenset[str]], None]

GROUP_MAX: Final = 64
GROUP_S_MAX: Final = 0.002
PENDING_MAX: Final = 10_000
READERS: Final = 4
BUSY_MS_MAX: Final = 5_000
RETRY_AFTER_S: Final = 5.0

_UNAVAILABLE: Final = frozenset({"FULL", "IOERR", "READONLY", "CANTOPEN", "BUSY", "LOCKED", "NOMEM", "PERM", "AUTH"})
_WORDS: Final = {
    "FULL": "the disk is full: free some space",
    "READONLY": "the database cannot be written: check the directory's permissions and mount",
    "IOERR": "the disk fails or is full: check it and free some space",
    "CANTOPEN": "the database cannot be opened: check that the directory still exists",
}


class StoreUnavailable(NoCapacity):
    """Nothing can be written (or read) now: the disk is full, read-only or failing. Nothing was changed."""


class _Write:
    """One function that waits for the writer."""

    __slots__ = ("durable", "error", "fn", "future", "hints", "loop", "result")

    def __init__(self, fn: Callable[[Transaction], Any], durable: bool) -> None:
        self.fn = fn
        self.durable = durable
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.hints: set[str] = set()


class SqliteStore:
    """A database file. `read` and `write` may be called from one event loop; `close` waits for what is queued."""

    def __init__(self, path: Path, on_hints: Hints | None = None) -> None:
        self.path = path
        self.on_hints = on_hints
        """Called in the event loop with the topics that a committed group touched."""
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._pending = 0
        self._closed = False
        self._ailing = ""
        self._local = threading.local()
        self._readers: list[Connection] = []
        # One engine for all readers, so that a statement is compiled once and not once per thread.
        self._read_engine = _engine(lambda: _connect(path, read_only=True))
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._write_engine = _engine(lambda: _connect(path))
        try:
            self._connection = self._write_engine.connect()
            raw = self._connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            self._raw = raw
            self._synchronous = "FULL"
            migrate(self._connection, path)
        except DBAPIError as error:
            raise _explain(error, path) or error from error
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()

    # --- for the event loop ---

    async def write(self, fn: Callable[[Transaction], T], *, durable: bool = True) -> T:
        """Run `fn` in a transaction; its result once that is committed.

        What `fn` raises is raised here and undoes `fn` alone. With `durable=False` a crash of the machine (not of the
        process) may lose it: for locks and observations, which come again. Raises `StoreUnavailable` when the disk
        cannot take it.
        """
        if self._closed:
            raise StoreUnavailable("the server is stopping", retry_after_s=1.0)
        if self._pending >= PENDING_MAX:
            raise StoreUnavailable(f"{PENDING_MAX} changes wait to be written", retry_after_s=RETRY_AFTER_S)
        wanted = _Write(fn, durable)
        self._pending += 1
        self._queue.put(wanted)
        result: T = await wanted.future
        return result

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` on one consistent, read-only state."""
        if self._closed:
            raise StoreUnavailable("the server is stopping", retry_after_s=1.0)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, fn)

    async def close(self) -> None:
        """Commit what is queued, then close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # The writer goes last: only a connection that may write can tidy the file up when no other is left.
        await asyncio.to_thread(self._pool.shutdown)
        for connection in self._readers:
            connection.close()
        self._read_engine.dispose()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._write_engine.dispose()

    # --- in a reader's thread ---

    def _read(self, fn: Callable[[Transaction], T]) -> T:
        connection: Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = self._read_engine.connect()
                self._readers.append(connection)
            connection.exec_driver_sql("BEGIN")
            try:
                return fn(Transaction(connection))
            finally:
                connection.exec_driver_sql("ROLLBACK")
        except DBAPIError as error:
            raise _explain(error, self.path) or error from error
        except sqlite3.Error as error:
            raise _explain_raw(error, self.path) or error from error

    # --- in the writer's thread ---

    def _run(self) -> None:
        while True:
            group, last = self._take()
            if group:
                self._commit(group)
            if last:
                # Only now may the file be closed by others.
                with contextlib.suppress(sqlite3.Error, DBAPIError):
                    self._raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._connection.close()
                return

    def _take(self) -> tuple[list[_Write], bool]:
        """Wait for work; then whatever else is there, at most `GROUP_MAX` functions or `GROUP_S_MAX` seconds."""
        first = self._queue.get()
        if first is None:
            return [], True
        group = [first]
        limit = time.monotonic() + GROUP_S_MAX
        while len(group) < GROUP_MAX and time.monotonic() < limit:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return group, True
            group.append(item)
        return group, False

    def _commit(self, group: list[_Write]) -> None:
        raw = self._raw
        try:
            level = "FULL" if any(write.durable for write in group) else "NORMAL"
            if level != self._synchronous:
                raw.execute(f"PRAGMA synchronous = {level}")
                self._synchronous = level
            raw.execute("BEGIN IMMEDIATE")
            for write in group:
                self._apply(write)
            raw.execute("COMMIT")
            self._recovered()
        except BaseException as error:
            if raw.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    raw.execute("ROLLBACK")
            known = self._unavailable(error)
            for write in group:
                write.error, write.hints = known, set()
        self._deliver(group)

    def _apply(self, write: _Write) -> None:
        """Run one function in its savepoint. Raises only when the whole transaction is lost."""
        raw = self._raw
        raw.execute("SAVEPOINT f")
        transaction = Transaction(self._connection)
        try:
            write.result = write.fn(transaction)
            write.hints = transaction.hints
            raw.execute("RELEASE f")
        except BaseException as error:
            if not raw.in_transaction or (isinstance(error, DBAPIError) and _explain(error, self.path)):
                raise  # the disk, not the function: SQLite may have rolled everything back already
            write.error = error
            raw.execute("ROLLBACK TO f")
            raw.execute("RELEASE f")

    def _unavailable(self, error: BaseException) -> BaseException:
        known: BaseException | None = None
        if isinstance(error, DBAPIError):
            known = _explain(error, self.path)
        elif isinstance(error, sqlite3.Error):
            known = _explain_raw(error, self.path)
        if known is None:
            log.error("store=error", exc_info=error)
            return error
        if str(known) != self._ailing:
            self._ailing = str(known)
            log.error("store=unavailable reason=%s", known)
        return known

    def _recovered(self) -> None:
        if self._ailing:
            self._ailing = ""
            log.info("store=available again")

    def _deliver(self, group: list[_Write]) -> None:
        """Hand the results to the event loop, all in one step."""
        try:
            group[0].loop.call_soon_threadsafe(self._resolve, group)
        except RuntimeError:
            log.debug("store=loop closed before %d results were delivered", len(group))

    def _resolve(self, group: list[_Write]) -> None:
        self._pending -= len(group)
        hints: set[str] = set()
        for write in group:
            hints |= write.hints
            if write.future.done():
                continue
            if write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.result)
        if hints and self.on_hints is not None:
            self.on_hints(frozenset(hints))


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, set up for sharing the file with others of this process."""
    mode = "ro" if read_only else "rwc"
    raw = sqlite3.connect(
        f"file:{_quoted(path)}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )
    raw.execute(f"PRAGMA busy_timeout = {BUSY_MS_MAX}")
    if read_only:
        raw.execute("PRAGMA query_only = ON")
    else:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
    raw.execute("PRAGMA foreign_keys = ON")
    return raw


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.absolute()))


def _engine(creator: Callable[[], sqlite3.Connection]) -> Engine:
    """SQLAlchemy over our own connections. It must not begin or commit by itself: we do."""
    return create_engine("sqlite://", creator=creator, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _explain(error: DBAPIError, path: Path) -> StoreUnavailable | None:
    return _explain_raw(error.orig, path)


def _explain_raw(error: BaseException | None, path: Path) -> StoreUnavailable | None:
    """What a failing disk means for people; None for any other error."""
    name = str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_").split("_")[0]
    if name not in _UNAVAILABLE:
        return None
    words = _WORDS.get(name, f"the database is not available ({name.lower()})")
    return StoreUnavailable(f"{words} ({path.parent})", retry_after_s=RETRY_AFTER_S)
