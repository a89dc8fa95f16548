"""Usage records in a transaction: written raw in batches, each exactly once, and summed up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Select, String, cast, func, literal_column, select

from nanopod.model.errors import Invalid
from nanopod.model.wire import MeterRecord
from nanopod.store.base import Base
from nanopod.store.schema import usage_record

FIELDS: Final = (
    "record_id", "request_id", "workspace_id", "key_id", "endpoint_id", "revision_id", "instance_id", "kind",
    "status", "prompt_tokens", "completion_tokens", "compute_us", "t_arrival", "t_first", "t_end", "moves", "function",
)  # fmt: skip
GROUPS: Final = ("endpoint", "key", "day", "kind")
SUMS: Final = ("requests", "prompt_tokens", "completion_tokens", "compute_us")
_REPLACED: Final = tuple(name for name in FIELDS if name != "record_id")

# A record with status 0 tells how far a running stream has come; whatever is known later replaces it. A final record
# is never replaced, so posting it again, or an old progress record after it, changes nothing.
_UPSERT: Final = (
    f"INSERT INTO usage_record ({', '.join(FIELDS)}) VALUES ({', '.join('?' * len(FIELDS))}) "
    f"ON CONFLICT (record_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _REPLACED)} "
    "WHERE usage_record.status = 0 AND excluded.t_end >= usage_record.t_end"
)


_DAY: Final = {
    "sqlite": "date(usage_record.t_end, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(usage_record.t_end) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
"""The UTC day in which a record ended, by dialect."""


class UsageRows(Base):
    """Reads and writes of what was used."""

    def put_usage(self, records: Iterable[MeterRecord]) -> int:
        """Keep records, each once however often it is sent; how many were given."""
        rows = [tuple(getattr(record, name) for name in FIELDS) for record in records]
        if rows:
            self._raw_many(_UPSERT, rows)
        return len(rows)

    def usage(
        self, workspace_id: str, start: float | None, end: float | None, group_by: Sequence[str]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(one dict per group, the total) of what ended in [start, end). Raises `Invalid` for an unknown group."""
        columns: dict[str, ColumnElement[Any]] = {
            "endpoint": usage_record.c.endpoint_id,
            "key": usage_record.c.key_id,
            "kind": usage_record.c.kind,
            "day": literal_column(_DAY[self._dialect], String),
        }
        for name in group_by:
            if name not in columns:
                raise Invalid(f"group_by: {name!r} is not one of {', '.join(GROUPS)}", field="group_by")
        groups = [columns[name].label(name) for name in group_by]
        sums = [
            func.count().label("requests"),
            *(cast(func.coalesce(func.sum(usage_record.c[name]), 0), BigInteger).label(name) for name in SUMS[1:]),
        ]
        grouped: Any = select(*groups, *sums)
        statement = self._within(grouped, workspace_id, start, end)
        rows = self._rows(statement.group_by(*groups).order_by(*groups)) if groups else []
        summed: Any = select(*sums)
        total = self.connection.execute(self._within(summed, workspace_id, start, end)).one()
        return [dict(row._mapping) for row in rows], dict(total._mapping)

    def _within(self, statement: Any, workspace_id: str, start: float | None, end: float | None) -> Select[Any]:
        statement = statement.where(usage_record.c.workspace_id == workspace_id)
        if start is not None:
            statement = statement.where(usage_record.c.t_end >= start)
        if end is not None:
            statement = statement.where(usage_record.c.t_end < end)
        narrowed: Select[Any] = statement
        return narrowed

    def usage_records(
        self, workspace_id: str, limit: int, before_seq: int | None = None
    ) -> list[tuple[int, MeterRecord]]:
        """(sequence number, record), newest first, of those numbered below `before_seq`."""
        statement = select(usage_record).where(usage_record.c.workspace_id == workspace_id)
        if before_seq is not None:
            statement = statement.where(usage_record.c.seq < before_seq)
        rows = self._rows(statement.order_by(usage_record.c.seq.desc()).limit(limit))
        return [(row.seq, MeterRecord(**{name: row._mapping[name] for name in FIELDS})) for row in rows]
