"""The store on PostgreSQL: one writer connection that holds the database for this server, and a few readers.

Everything a transaction does is the same as on SQLite. What is added is that the server of the database may go away and
come back: the writer then connects again with growing pauses, and everybody hears `StoreUnavailable` until it has. A
commit whose answer got lost is looked up, so that it is neither reported lost nor done twice.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Engine, MetaData, String, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from nanopod.model.errors import Conflict, Invalid
from nanopod.store.migrate import WHOLE, migrate_server
from nanopod.store.transaction import Transaction
from nanopod.store.writer import RETRY_AFTER_S, GroupStore, Hints, StoreUnavailable

T = TypeVar("T")
Raw = psycopg.Connection[tuple[Any, ...]]

LOCK_KEY: Final = 0x6E616E6F706F64
"""The advisory lock of the one server of a database: "nanopod" in ASCII."""
CONNECT_S_MAX: Final = 5
STATEMENT_S_MAX: Final = 60
LOCKED_S_MAX: Final = 10
"""How long a statement may take, and how much of that it may wait for somebody else's lock."""
LOCK_WAIT_S_MAX: Final = 5.0
"""How long a server that was killed may keep its lock before a new one gives up."""
LOCK_STEP_S: Final = 0.1
BACK_OFF_S: Final = 0.1
BACK_OFF_S_MAX: Final = 5.0
KNOWN_S_MAX: Final = 10.0
"""How long to look for the fate of a commit whose answer got lost."""

_FATAL: Final = re.compile(r"FATAL:\s+(.*)")
_STATES: Final = {
    "53100": "the database server's disk is full: free some space there",
    "53": "the database server is out of resources (connections, memory or disk)",
    "25006": "the database cannot be written: it is read-only or a standby",
    "58": "the database server's disk or system fails",
    "57P": "the database server is stopping or starting",
    "08": "the connection to the database server is lost",
    "57014": "a statement took too long",
    "55P03": "the database is locked by somebody else",
}
"""What states (or their first characters) mean for people."""


class _Text(StrDumperUnknown):
    """Text on its way to the database. It cannot hold the character NUL, which SQLite takes like any other."""

    def dump(self, obj: str) -> Any:
        """The text with U+FFFD in place of NUL: what a worker printed must not keep a write from happening."""
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class PostgresStore(GroupStore):
    """A database of a PostgreSQL server (13 or later). Used like `SqliteStore`.

    Raises `StoreUnavailable` when it cannot be reached, `Conflict` when another nanopod server uses it.
    """

    def __init__(self, url: str, on_hints: Hints | None = None, *, block_s: int | None = None) -> None:
        super().__init__(on_hints)
        try:
            parts = conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:
            raise Invalid("database: this is not the URL of a PostgreSQL database", field="database") from error
        self.place = f"{parts.get('host') or 'localhost'}/{parts.get('dbname') or parts.get('user') or ''}"
        """Where it is, without secrets."""
        self._url = url
        self._delay_s = 0.0
        self._next_try = 0.0
        self._read_engine = self._engine()
        self._write_engine = self._engine()
        try:
            self._open_writer(time.monotonic() + LOCK_WAIT_S_MAX)
            migrate_server(self._connection, _tables())
            self._start(block_s)
        except BaseException as error:
            self._close_writer()
            known = self._explain(error)
            if known is None:
                raise
            raise known from error

    # --- connections ---

    def _engine(self) -> Engine:
        """SQLAlchemy over our own connections. It must not begin or commit by itself: we do."""
        return create_engine(
            "postgresql+psycopg://", creator=self._connect, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )

    def _connect(self) -> Raw:
        raw: Raw = psycopg.connect(
            self._url,
            autocommit=True, connect_timeout=CONNECT_S_MAX, application_name="nanopod",
            keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=15_000,
        )  # fmt: skip
        raw.adapters.register_dumper(str, _Text)
        raw.execute(f"SET statement_timeout = {STATEMENT_S_MAX * 1000}; SET lock_timeout = {LOCKED_S_MAX * 1000}")
        # Every statement here is short. A scan that the writer's planner avoids counts as dear enough to be compiled,
        # which takes hundreds of times as long as running it.
        raw.execute("SET jit = off")
        return raw

    def _open_writer(self, lock_until: float) -> None:
        """Connect, and take the database for this server. Raises `Conflict` when another has it all that time."""
        self._connection = self._write_engine.connect()
        raw = self._connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        self._raw = raw
        while True:
            taken = raw.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone()
            if taken and taken[0]:
                break
            if time.monotonic() >= lock_until:
                raise Conflict(
                    f"another nanopod server uses the database {self.place}; stop it, or give this one its own",
                    field="database",
                )
            time.sleep(LOCK_STEP_S)
        # What was acknowledged must be on the disk, whatever the server's default is.
        raw.execute("SET synchronous_commit = on")
        # It looks up a few rows by key; a plan made while a table was small must not go on reading it whole.
        raw.execute("SET enable_seqscan = off")

    def _close_writer(self) -> None:
        connection: Connection | None = getattr(self, "_connection", None)
        if connection is not None:
            _discard(connection)

    def _reconnect(self) -> None:
        """Connect again, unless that failed a moment ago. Raises what makes it impossible."""
        now = time.monotonic()
        if now < self._next_try:
            raise self._away(self._next_try - now)
        self._close_writer()
        try:
            self._open_writer(now)
        except BaseException as error:
            self._close_writer()
            self._delay_s = min(BACK_OFF_S_MAX, max(BACK_OFF_S, 2 * self._delay_s))
            self._next_try = time.monotonic() + self._delay_s * random.uniform(0.5, 1.0)
            if isinstance(error, Conflict):
                raise StoreUnavailable(str(error), retry_after_s=RETRY_AFTER_S) from error
            raise
        self._delay_s = self._next_try = 0.0

    def _away(self, retry_after_s: float = RETRY_AFTER_S) -> StoreUnavailable:
        return StoreUnavailable(
            f"the database server cannot be reached ({self.place}): look whether it runs",
            retry_after_s=max(0.1, retry_after_s),
        )

    # --- in the writer's thread ---

    def _begin(self, durable: bool) -> None:
        if self._raw.closed:
            self._reconnect()
        try:
            self._raw.execute("BEGIN")
        except psycopg.OperationalError:
            if not self._raw.closed:
                raise
            # It was lost while nothing was under way: nobody needs to hear of it if it can be made again.
            self._reconnect()
            self._raw.execute("BEGIN")
        if not durable:
            self._raw.execute("SET LOCAL synchronous_commit = off")

    def _end(self) -> None:
        row = self._raw.execute("SELECT pg_current_xact_id_if_assigned()::text").fetchone()
        number = row[0] if row else None
        try:
            done = self._raw.execute("COMMIT")
        except psycopg.OperationalError:
            if number is None or not self._raw.closed or not self._was_committed(str(number)):
                raise
            return
        if done.statusmessage != "COMMIT":
            raise psycopg.OperationalError("the transaction was rolled back instead of committed")

    def _was_committed(self, number: str) -> bool:
        """What became of a transaction whose commit was not answered. Raises `StoreUnavailable` when unknown."""
        until = time.monotonic() + KNOWN_S_MAX
        while time.monotonic() < until:
            with contextlib.suppress(psycopg.Error, SQLAlchemyError, StoreUnavailable):
                self._reconnect()
                row = self._raw.execute("SELECT pg_xact_status(%s::text::xid8)", (number,)).fetchone()
                if row and row[0] in ("committed", "aborted"):
                    return bool(row[0] == "committed")
            time.sleep(BACK_OFF_S)
        raise StoreUnavailable(
            f"the database server went away during a commit ({self.place}); look whether it was kept",
            retry_after_s=RETRY_AFTER_S,
        )

    def _abandon(self) -> None:
        with contextlib.suppress(psycopg.Error):
            if not self._raw.closed and self._raw.info.transaction_status != TransactionStatus.IDLE:
                self._raw.execute("ROLLBACK")

    def _savepoint(self, statement: str) -> None:
        self._raw.execute(statement)

    def _lost(self, error: BaseException) -> bool:
        gone = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
        return self._raw.closed or self._raw.info.transaction_status in gone or self._explain(error) is not None

    def _explain(self, error: BaseException) -> StoreUnavailable | None:
        if isinstance(error, DBAPIError):
            error = error.orig or error
        if not isinstance(error, psycopg.Error):
            return None
        state = error.sqlstate or ""
        for length in (5, 3, 2):
            if state[:length] in _STATES:
                return StoreUnavailable(f"{_STATES[state[:length]]} ({self.place})", retry_after_s=RETRY_AFTER_S)
        if state or not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return None
        # While connecting there are no states, only words; those of the server name a user or a database.
        refusal = _FATAL.search(str(error))
        if refusal:
            return StoreUnavailable(
                f"the database server refuses: {refusal[1]} ({self.place})", retry_after_s=RETRY_AFTER_S
            )
        return self._away()

    def _farewell(self) -> None:
        with contextlib.suppress(SQLAlchemyError, psycopg.Error):
            self._connection.close()

    def _dispose(self) -> None:
        self._write_engine.dispose()

    # --- in a reader's thread ---

    def _look(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def _look_away(self, connection: Connection) -> None:
        # Not ROLLBACK, after which the driver forgets the statements it prepared.
        connection.exec_driver_sql("COMMIT")

    def _read_once(self, fn: Callable[[Transaction], T]) -> T:
        try:
            return super()._read_once(fn)
        except (DBAPIError, psycopg.Error):
            connection: Connection | None = getattr(self._local, "connection", None)
            if connection is None or not _broken(connection):
                raise
            # The server may be back already: functions that read may run again.
            self._local.connection = None
            with contextlib.suppress(ValueError):
                self._readers.remove(connection)
            _discard(connection)
            return super()._read_once(fn)


def _discard(connection: Connection) -> None:
    """Close a connection that may be broken, without a word to it."""
    with contextlib.suppress(SQLAlchemyError, psycopg.Error):
        connection.invalidate()
    with contextlib.suppress(SQLAlchemyError, psycopg.Error):
        connection.close()


def _broken(connection: Connection) -> bool:
    if connection.invalidated or connection.closed:
        return True
    raw = connection.connection.driver_connection
    return isinstance(raw, psycopg.Connection) and raw.closed


def _tables() -> MetaData:
    """Every table, with text that is compared byte by byte, as in SQLite, whatever the database's own language is."""
    whole = MetaData()
    for table in WHOLE.sorted_tables:
        table.to_metadata(whole)
    for table in whole.tables.values():
        for column in table.columns:
            if isinstance(column.type, String):
                column.type = type(column.type)(collation="C")
    return whole
