"""What every part of a transaction shares: the connection, hints and news, guarded updates, pages, JSON columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Row,
    Select,
    Table,
    func,
    insert,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from nanopod.market.shape import from_schedule, to_schedule
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.schedule import BLOCK_S, Schedule
from nanopod.store.driver import Driver, Rows, driver_of, reader

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode
_sorted: Final = msgspec.json.Encoder(order="sorted").encode
_tags: Final = lru_cache(1024)(msgspec.json.Decoder(dict[str, str]).decode)

_NUMBER: Final = "SELECT value FROM counter WHERE name = ?"
_KEEP_NUMBER: Final = (
    "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)


def to_json(value: object) -> str:
    """A value as the text of a JSON column."""
    return _encode(value).decode()


def tags_json(tags: Mapping[str, str]) -> str:
    """Tags as their column keeps them: sorted, without spaces, so that a filter may look for a part of the text."""
    return _sorted(dict(tags)).decode()


def tags_of(text: str) -> Mapping[str, str]:
    """Tags from their column; a fresh mapping each time."""
    return dict(_tags(text)) if text != "{}" else {}


class Base:
    """One transaction on one connection. Methods are synchronous and never reach beyond the database."""

    def __init__(self, connection: Connection, block_s: int = BLOCK_S) -> None:
        self.connection = connection
        self.block_s = block_s
        """Length of the market's blocks in seconds: rows count blocks, values are in seconds."""
        self.hints: set[str] = set()
        """Topics to announce once this is committed: kinds of activations, `tables`, `wanted`."""
        self.news: list[object] = []
        """What `announce` was given, in order."""
        self._dialect = connection.dialect.name
        self._errors: type[Exception] = connection.dialect.loaded_dbapi.Error
        self._driver: Driver | None = None
        self._numbers: dict[str, int] = {}
        """The last numbers taken from counters, not yet written."""
        self._later: dict[str, list[tuple[Any, ...]]] = {}
        """Rows by the statement that is to write them."""

    def hint(self, topic: str) -> None:
        """Announce `topic` in this process after the commit. A lost hint costs time only."""
        self.hints.add(topic)

    def announce(self, item: object) -> None:
        """Hand `item` to the store's `on_news` after the commit, in the order of the commits, before the writer's
        caller hears of it. What a function that raises announced is dropped."""
        self.news.append(item)

    def next_number(self, name: str, count: int = 1) -> int:
        """The first of `count` new numbers from a counter that begins with 1. A write that fails gives them back."""
        last = self._numbers.get(name)
        if last is None:
            # Nobody else takes numbers meanwhile: there is one writer.
            row = self._first(_NUMBER, (name,))
            last = int(row[0]) if row else 0
        self._numbers[name] = last + count
        return last + 1

    def flush(self) -> None:
        """Write what waits for company: numbers, and rows that nothing in between looks at."""
        if self._numbers:
            numbers, self._numbers = self._numbers, {}
            self._raw_many(_KEEP_NUMBER, list(numbers.items()))
        if self._later:
            later, self._later = self._later, {}
            for statement, rows in later.items():
                self._raw_many(statement, rows)

    @contextmanager
    def part(self) -> Iterator[None]:
        """A part that may fail for itself: what it wrote, hinted and announced is taken back when it raises.

        Without this, a function that catches an error of the database cannot go on: PostgreSQL refuses whatever comes
        after it.
        """
        self.flush()
        hints, announced = set(self.hints), len(self.news)
        self.connection.exec_driver_sql("SAVEPOINT part")
        try:
            yield
            self.flush()
        except BaseException:
            self._numbers, self._later = {}, {}
            self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT part")
            self.connection.exec_driver_sql("RELEASE SAVEPOINT part")
            self.hints = hints
            del self.news[announced:]
            raise
        self.connection.exec_driver_sql("RELEASE SAVEPOINT part")

    # --- statements ---

    def _raw(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run a statement written with `?`, past SQLAlchemy: for the hot paths. Errors are still SQLAlchemy's."""
        if self._driver is None:
            self._driver = driver_of(self.connection)
        try:
            return self._driver.execute(statement, values)
        except self._errors as error:
            raise self._translated(statement, error) from error

    def _raw_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement for each of the rows."""
        if self._driver is None:
            self._driver = driver_of(self.connection)
        try:
            self._driver.executemany(statement, rows)
        except self._errors as error:
            raise self._translated(statement, error) from error

    def _first(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The first row of a statement written with `?`, as the driver's tuple, or None."""
        found = self._raw(statement, values)
        try:
            return found.fetchone()
        except self._errors as error:
            raise self._translated(statement, error) from error

    def _every(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a statement written with `?`, as the driver's tuples."""
        found = self._raw(statement, values)
        try:
            return found.fetchall()
        except self._errors as error:
            raise self._translated(statement, error) from error

    def _translated(self, statement: str, error: Exception) -> BaseException:
        """A driver's error as SQLAlchemy's of the same name; values stay out of its text."""
        return DBAPIError.instance(statement, None, error, self._errors, hide_parameters=True)

    def _rows(self, statement: Select[Any], values: dict[str, Any] | None = None) -> Sequence[Row[Any]]:
        return self.connection.execute(statement, values or {}).all()

    def _row(self, table: Table, **where: Any) -> Any:
        """A row of a table by values that are not None, with its columns as attributes; None when there is none."""
        known = reader(table, tuple(where), self.connection.dialect)
        found = self._first(known.statement, tuple(where.values()))
        return None if found is None else known.row(found)

    def _rows_all(self, table: Table) -> list[Any]:
        """Every row of a small table, in no order."""
        known = reader(table, (), self.connection.dialect)
        return [known.row(one) for one in self._every(known.statement)]

    def _rows_among(self, table: Table, column: str, values: Sequence[Any]) -> list[Any]:
        """The rows of a table whose `column` is one of a few values."""
        known = reader(table, (column,), self.connection.dialect)
        if len(values) == 1:
            return [known.row(one) for one in self._every(known.statement, values)]
        return list(self._rows(select(table).where(table.c[column].in_(values))))

    def _insert(self, table: Table, **values: Any) -> None:
        self.connection.execute(insert(table), values)

    def _upsert(self, table: Table, keys: Mapping[str, Any], values: Mapping[str, Any], **first: Any) -> None:
        """Insert a row, or change `values` of the one with these keys; `first` counts only for a new one."""
        make = postgresql.insert if self._dialect == "postgresql" else sqlite.insert
        statement = make(table).values(**keys, **values, **first)
        self.connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=dict(values)))

    def _update(self, table: Table, id: str, **values: Any) -> None:
        if values:
            self.connection.execute(update(table).where(table.c.id == id), values)

    def _guarded(self, table: Table, id: str, generation: int, **values: Any) -> None:
        """Update a row that still is as it was seen. Raises `Conflict` when it changed meanwhile, or is gone."""
        done = self.connection.execute(
            update(table).where(table.c.id == id, table.c.generation == generation),
            {**values, "generation": generation + 1},
        )
        if done.rowcount != 1:
            raise Conflict(f"{table.name} {id} changed meanwhile (generation {generation} is stale); look again")

    def _contains(self, column: Column[Any], part: str) -> Any:
        """True where the column's text holds `part`, case counting."""
        find = func.strpos if self._dialect == "postgresql" else func.instr
        return find(column, part) > 0

    def _tagged(self, column: Column[Any], tags: Mapping[str, str], keys: Sequence[str] = ()) -> list[Any]:
        """Conditions: these tags with these values, and these keys with any value."""
        parts = [f"{to_json(key)}:{to_json(value)}" for key, value in tags.items()]
        return [self._contains(column, part) for part in [*parts, *(f"{to_json(key)}:" for key in keys)]]

    def _page(
        self, statement: Select[Any], by: Column[Any], id: Column[Any], *,
        descending: bool = True, limit: int = 50, after: str | None = None, before: str | None = None,
        tie: Column[Any] | None = None, either: Sequence[Any] = (),
    ) -> Sequence[Row[Any]]:  # fmt: skip
        """At most `limit` rows in order of (by, tie): those right after the row `after`, or right before `before`.

        `tie` is a column without equals, the id unless given. Of the conditions `either`, if there are any, one must
        hold: each is looked up by itself, so that an index gives its rows in order. Raises `Invalid` when that row does
        not exist.
        """
        last = id if tie is None else tie
        backwards = before is not None and after is None
        falling = descending is not backwards
        cursor = before if backwards else after
        if cursor is not None:
            mark = self.connection.execute(select(by, last).where(id == cursor)).first()
            if mark is None:
                field = "ending_before" if backwards else "starting_after"
                raise Invalid(f"{field}: there is no {cursor} in this list; begin again without it", field=field)
            at, rank = mark
            place = tuple_(by, last)
            statement = statement.where(place < (at, rank) if falling else place > (at, rank))
        order = (by.desc(), last.desc()) if falling else (by.asc(), last.asc())
        if len(either) > 1:
            parts = [statement.where(one).order_by(*order).limit(limit).subquery() for one in either]
            merged = union(*(select(part) for part in parts)).subquery()
            columns = merged.c[by.name], merged.c[last.name]
            order = (columns[0].desc(), columns[1].desc()) if falling else (columns[0].asc(), columns[1].asc())
            statement = select(merged)
        elif either:
            statement = statement.where(*either)
        rows = self._rows(statement.order_by(*order).limit(limit))
        return rows[::-1] if backwards else rows

    def _shape(self, schedule: Schedule) -> str:
        """A schedule as a column of blocks."""
        return shape_json(schedule, self.block_s)

    def _schedule(self, text: str) -> Schedule:
        """The schedule that a column of blocks means."""
        return schedule_of(text, self.block_s)


_runs: Final = msgspec.json.Decoder(list[tuple[int, int, int]]).decode


def shape_json(schedule: Schedule, block_s: int) -> str:
    """`[[first block, end block, nodes], ...]` as JSON. Raises `Invalid` for an edge that is off the grid."""
    return to_json(from_schedule(schedule, block_s)) if schedule.entries else "[]"


@lru_cache(4096)
def schedule_of(text: str, block_s: int) -> Schedule:
    """The inverse of `shape_json`."""
    return to_schedule(tuple(_runs(text)), block_s)
