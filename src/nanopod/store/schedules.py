"""Schedules in a transaction: which functions start by themselves, and when next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, func, select

from nanopod.model.endpoint import ScheduleSpec
from nanopod.store.app_schema import schedule
from nanopod.store.base import Base, to_json

_spec: Final = lru_cache(1024)(msgspec.json.Decoder(ScheduleSpec).decode)


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A function that starts by itself. Times are Unix seconds of wall time; `next_at` says when, unless `paused`."""

    schedule_id: str
    workspace_id: str
    endpoint_id: str
    function: str
    spec: ScheduleSpec
    paused: bool
    next_at: float
    last_at: float | None
    last_call_id: str
    created_at: float
    updated_at: float


def _schedule(row: Row[Any]) -> StoredSchedule:
    return StoredSchedule(
        row.id, row.workspace_id, row.endpoint_id, row.function, _spec(row.spec), bool(row.paused), row.next_at,
        row.last_at, row.last_call_id, row.created_at, row.updated_at,
    )  # fmt: skip


class ScheduleRows(Base):
    """Reads and writes of schedules."""

    def schedule(self, schedule_id: str) -> StoredSchedule | None:
        """One schedule."""
        row = self._row(schedule, id=schedule_id)
        return _schedule(row) if row else None

    def schedules(
        self, workspace_id: str | None = None, endpoint_id: str | None = None
    ) -> list[StoredSchedule]:  # fmt: skip
        """Schedules, newest first."""
        t = schedule.c
        statement: Select[Any] = select(schedule).order_by(t.created_at.desc(), t.id.desc())
        if workspace_id is not None:
            statement = statement.where(t.workspace_id == workspace_id)
        if endpoint_id is not None:
            statement = statement.where(t.endpoint_id == endpoint_id)
        return [_schedule(row) for row in self._rows(statement)]

    def schedules_due(self, now: float, limit: int) -> list[StoredSchedule]:
        """Schedules that are not paused and whose time has come, longest due first."""
        t = schedule.c
        statement = select(schedule).where(t.next_at <= now, t.paused.is_(False)).order_by(t.next_at, t.id)
        return [_schedule(row) for row in self._rows(statement.limit(limit))]

    def next_schedule_at(self) -> float | None:
        """When the next start is due; None when there is none."""
        t = schedule.c
        at = self.connection.execute(select(func.min(t.next_at)).where(t.paused.is_(False))).scalar()
        return float(at) if at is not None else None

    def add_schedule(self, made: StoredSchedule) -> None:
        """A new schedule."""
        self._insert(
            schedule, id=made.schedule_id, workspace_id=made.workspace_id, endpoint_id=made.endpoint_id,
            function=made.function, spec=to_json(made.spec), paused=made.paused, next_at=made.next_at,
            last_at=made.last_at, last_call_id=made.last_call_id, created_at=made.created_at,
            updated_at=made.updated_at,
        )  # fmt: skip

    def set_schedule(self, schedule_id: str, **values: Any) -> None:
        """Change columns of a schedule."""
        if "spec" in values:
            values["spec"] = to_json(values["spec"])
        self._update(schedule, schedule_id, **values)

    def delete_schedule(self, schedule_id: str) -> None:
        """Forget a schedule."""
        self.connection.execute(delete(schedule).where(schedule.c.id == schedule_id))
