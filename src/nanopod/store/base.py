"""What every part of a transaction shares: the connection, hints, guarded updates, JSON columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, Row, Select, Table, insert, select, update

from nanopod.model.errors import Conflict

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode


def to_json(value: object) -> str:
    """A value as the text of a JSON column."""
    return _encode(value).decode()


class Base:
    """One transaction on one connection. Methods are synchronous and never reach beyond the database."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.hints: set[str] = set()
        """Topics to announce once this is committed: kinds of activations, `tables`, `wanted`."""

    def hint(self, topic: str) -> None:
        """Announce `topic` in this process after the commit. A lost hint costs time only."""
        self.hints.add(topic)

    def _rows(self, statement: Select[Any], values: dict[str, Any] | None = None) -> Sequence[Row[Any]]:
        return self.connection.execute(statement, values or {}).all()

    def _row(self, table: Table, **where: Any) -> Row[Any] | None:
        statement = select(table).where(*(table.c[name] == value for name, value in where.items()))
        return self.connection.execute(statement).first()

    def _insert(self, table: Table, **values: Any) -> None:
        self.connection.execute(insert(table), values)

    def _update(self, table: Table, id: str, **values: Any) -> None:
        self.connection.execute(update(table).where(table.c.id == id), values)

    def _guarded(self, table: Table, id: str, generation: int, **values: Any) -> None:
        """Update a row that still is as it was seen. Raises `Conflict` when it changed meanwhile, or is gone."""
        done = self.connection.execute(
            update(table).where(table.c.id == id, table.c.generation == generation),
            {**values, "generation": generation + 1},
        )
        if done.rowcount != 1:
            raise Conflict(f"{table.name} {id} changed meanwhile (generation {generation} is stale); look again")
