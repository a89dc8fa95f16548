"""The database's own driver under a transaction, for statements that are worth the way around SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from nanopod.store.base import native


class Rows(Protocol):
    """What a statement found."""

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Driver:
    """Statements with `?` for their values, on SQLite or PostgreSQL."""

    def __init__(self, raw: Any, dialect: str) -> None:
        self._raw = raw
        self._dialect = dialect

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement."""
        return cast("Rows", self._raw.execute(native(statement, self._dialect), tuple(values)))

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each of the rows; nothing happens without any."""
        if len(rows) == 1:
            self.execute(statement, rows[0])
        elif rows:
            self._raw.cursor().executemany(native(statement, self._dialect), rows)


@contextmanager
def driver(connection: Connection) -> Iterator[Driver]:
    """The driver of a connection. Its errors become SQLAlchemy's, which is what the store looks for."""
    dialect = connection.dialect
    try:
        yield Driver(connection.connection.driver_connection, dialect.name)
    except dialect.loaded_dbapi.Error as error:
        raise OperationalError("the ledger", None, cast("Exception", error)) from error
