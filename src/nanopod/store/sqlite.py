"""The store on SQLite: a file beside the server, written by one connection and read by a few."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from nanopod.store.migrate import migrate
from nanopod.store.writer import RETRY_AFTER_S, GroupStore, Hints, StoreUnavailable

__all__ = ["SqliteStore", "StoreUnavailable"]

BUSY_MS_MAX: Final = 5_000

_UNAVAILABLE: Final = frozenset({"FULL", "IOERR", "READONLY", "CANTOPEN", "BUSY", "LOCKED", "NOMEM", "PERM", "AUTH"})
_WORDS: Final = {
    "FULL": "the disk is full: free some space",
    "READONLY": "the database cannot be written: check the directory's permissions and mount",
    "IOERR": "the disk fails or is full: check it and free some space",
    "CANTOPEN": "the database cannot be opened: check that the directory still exists",
}


class SqliteStore(GroupStore):
    """A database file. `read` and `write` may be called from one event loop; `close` waits for what is queued.

    `block_s` fixes the length of the market's blocks for a database that has none yet.
    """

    def __init__(self, path: Path, on_hints: Hints | None = None, *, block_s: int | None = None) -> None:
        super().__init__(on_hints)
        self.path = path
        # One engine for all readers, so that a statement is compiled once and not once per thread.
        self._read_engine = _engine(lambda: _connect(path, read_only=True))
        self._write_engine = _engine(lambda: _connect(path))
        try:
            self._connection = self._write_engine.connect()
            raw = self._connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            self._raw = raw
            self._synchronous = "FULL"
            migrate(self._connection, path)
            self._start(block_s)
        except BaseException as error:
            self._write_engine.dispose()
            with contextlib.suppress(AttributeError, DBAPIError):
                self._connection.close()
            known = _explain(error, path)
            if known is None:
                raise
            raise known from error

    def _begin(self, durable: bool) -> None:
        level = "FULL" if durable else "NORMAL"
        if level != self._synchronous:
            self._raw.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level
        self._raw.execute("BEGIN IMMEDIATE")

    def _end(self) -> None:
        self._raw.execute("COMMIT")

    def _abandon(self) -> None:
        if self._raw.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._raw.execute("ROLLBACK")

    def _savepoint(self, statement: str) -> None:
        self._raw.execute(statement)

    def _lost(self, error: BaseException) -> bool:
        return not self._raw.in_transaction or self._explain(error) is not None

    def _explain(self, error: BaseException) -> StoreUnavailable | None:
        return _explain(error, self.path)

    def _farewell(self) -> None:
        # Only now may the file be closed by others.
        with contextlib.suppress(sqlite3.Error, DBAPIError):
            self._raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _look(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    def _dispose(self) -> None:
        self._write_engine.dispose()


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, set up for sharing the file with others of this process."""
    mode = "ro" if read_only else "rwc"
    raw = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True, isolation_level=None, check_same_thread=False, timeout=5.0,
    )  # fmt: skip
    raw.execute(f"PRAGMA busy_timeout = {BUSY_MS_MAX}")
    if read_only:
        raw.execute("PRAGMA query_only = ON")
    else:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
    raw.execute("PRAGMA foreign_keys = ON")
    return raw


def _engine(creator: Callable[[], sqlite3.Connection]) -> Engine:
    """SQLAlchemy over our own connections. It must not begin or commit by itself: we do."""
    return create_engine("sqlite://", creator=creator, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _explain(error: BaseException | None, path: Path) -> StoreUnavailable | None:
    """What a failing disk means for people; None for any other error."""
    if isinstance(error, DBAPIError):
        error = error.orig
    name = str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_").split("_")[0]
    if name not in _UNAVAILABLE:
        return None
    words = _WORDS.get(name, f"the database is not available ({name.lower()})")
    return StoreUnavailable(f"{words} ({path.parent})", retry_after_s=RETRY_AFTER_S)
