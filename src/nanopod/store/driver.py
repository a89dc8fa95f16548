"""The database's own driver under a transaction, for statements that are worth the way around SQLAlchemy."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Protocol, cast

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.exc import OperationalError


class Rows(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


@lru_cache(1024)
def native(statement: str, dialect: str) -> str:
    """A statement with `?` for its values, as the driver of `dialect` wants it. It holds no other `?` and no `%`."""
    return statement if dialect == "sqlite" else statement.replace("?", "%s")


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


def driver_of(connection: Connection) -> Driver:
    """The driver of a connection. Its errors are its own."""
    return Driver(connection.connection.driver_connection, connection.dialect.name)


@contextmanager
def driver(connection: Connection) -> Iterator[Driver]:
    """The driver of a connection. Its errors become SQLAlchemy's, which is what the store looks for."""
    try:
        yield driver_of(connection)
    except connection.dialect.loaded_dbapi.Error as error:
        raise OperationalError("the ledger", None, cast("Exception", error)) from error


class Reader:
    """Rows of one table by the values of some columns: the statement, and what makes a row of what the driver gives.

    A row has the table's columns as attributes, in their order and with the values SQLAlchemy would give.
    """

    def __init__(self, table: Table, names: tuple[str, ...], dialect: Dialect) -> None:
        quote = dialect.identifier_preparer.quote
        columns = ", ".join(quote(column.name) for column in table.columns)
        where = " WHERE " + " AND ".join(f"{quote(name)} = ?" for name in names) if names else ""
        self.statement: Final = f"SELECT {columns} FROM {quote(table.name)}{where}"
        # Its fields are the table's, which no type checker can know.
        named: Any = namedtuple
        self._make: Callable[[Sequence[Any]], Any] = named(table.name, [column.name for column in table.columns])._make
        found = [(at, column.type.result_processor(dialect, None)) for at, column in enumerate(table.columns)]
        self._processors = [(at, one) for at, one in found if one is not None]

    def row(self, values: Sequence[Any]) -> Any:
        """The driver's row as one with attributes."""
        if not self._processors:
            return self._make(values)
        kept = list(values)
        for at, process in self._processors:
            kept[at] = process(kept[at])
        return self._make(kept)


_readers: Final[dict[tuple[str, str, tuple[str, ...]], Reader]] = {}


def reader(table: Table, names: tuple[str, ...], dialect: Dialect) -> Reader:
    """The `Reader` of a table by these columns, made once for a kind of database."""
    key = (dialect.name, table.name, names)
    found = _readers.get(key)
    if found is None:
        found = _readers[key] = Reader(table, names, dialect)
    return found
