"""Notices, past allocations and idempotency keys in a transaction: what is told, shown and not done twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, select

from nanopod.model.chain import Event
from nanopod.model.errors import Invalid
from nanopod.store.base import Base, to_json
from nanopod.store.market_schema import notice

NOTICES_KEPT_MAX: Final = 100_000
"""Notices remembered, of all workspaces."""
PRUNE_EACH: Final = 256
"""One notice in so many looks for old ones."""

_data: Final = msgspec.json.Decoder(dict[str, Any]).decode
_ADD: Final = "INSERT INTO notice (seq, at, workspace_id, type, object_id, data) VALUES (?, ?, ?, ?, ?, ?)"
_NEWEST: Final = (
    "SELECT node_count FROM allocation_history WHERE capacity_id = ? AND sku_id = ? AND block <= ? "
    "ORDER BY block DESC LIMIT 1"
)
_ALLOCATE: Final = (
    "INSERT INTO allocation_history (capacity_id, sku_id, block, node_count) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (capacity_id, sku_id, block) DO UPDATE SET node_count = excluded.node_count"
)
# What held at `from_block` began at the last change before it, so that row is needed as well.
_ALLOCATIONS: Final = (
    "SELECT h.sku_id, h.block, h.node_count FROM allocation_history h WHERE h.capacity_id = ? AND h.block >= "
    "COALESCE((SELECT MAX(p.block) FROM allocation_history p WHERE p.capacity_id = h.capacity_id "
    "AND p.sku_id = h.sku_id AND p.block <= ?), ?) ORDER BY h.sku_id, h.block"
)
_PRUNE_ALLOCATIONS: Final = (
    "DELETE FROM allocation_history WHERE block < (SELECT MAX(n.block) FROM allocation_history n "
    "WHERE n.capacity_id = allocation_history.capacity_id AND n.sku_id = allocation_history.sku_id AND n.block <= ?)"
)
_REMEMBER: Final = (
    "INSERT INTO idempotency (workspace_id, operation, key, object_id, created_at) VALUES (?, ?, ?, ?, ?)"
)


class NoticeRows(Base):
    """Reads and writes of what users are told and of what was done before."""

    # --- notices ---

    def add_notice(self, at: float, workspace_id: str, type: str, object_id: str, data: Mapping[str, Any]) -> Event:
        """Tell a workspace something; streams get it once it is committed. The oldest notices are forgotten."""
        seq = self.next_number("notice")
        self._later.setdefault(_ADD, []).append((seq, at, workspace_id, type, object_id, to_json(data)))
        if seq % PRUNE_EACH == 0:
            self.flush()
            self._raw("DELETE FROM notice WHERE seq <= ?", (seq - NOTICES_KEPT_MAX,))
        event = Event(seq, at, workspace_id, type, object_id, data)
        self.announce(event)
        return event

    def notices_after(
        self, workspace_id: str | None, seq: int, limit: int = 1_000, types: Sequence[str] | None = None
    ) -> list[Event]:
        """Notices of a workspace (None: of all) numbered above `seq`, oldest first."""
        self.flush()
        statement = _narrowed(select(notice).where(notice.c.seq > seq), workspace_id, types)
        return [_notice(row) for row in self._rows(statement.order_by(notice.c.seq).limit(limit))]

    def notices_page(
        self, workspace_id: str | None = None, *, types: Sequence[str] = (), object_id: str | None = None,
        at_after: float | None = None, at_before: float | None = None,
        limit: int = 50, after: int | str | None = None, before: int | str | None = None,
    ) -> list[Event]:  # fmt: skip
        """Notices that meet every filter, newest first: right after the one numbered `after`, or before `before`."""
        self.flush()
        t = notice.c
        statement = _narrowed(select(notice), workspace_id, types)
        if object_id is not None:
            statement = statement.where(t.object_id == object_id)
        if at_after is not None:
            statement = statement.where(t.at > at_after)
        if at_before is not None:
            statement = statement.where(t.at < at_before)
        if after is not None:
            statement = statement.where(t.seq < _number(after, "starting_after"))
        elif before is not None:
            rows = self._rows(statement.where(t.seq > _number(before, "ending_before")).order_by(t.seq).limit(limit))
            return [_notice(row) for row in rows[::-1]]
        return [_notice(row) for row in self._rows(statement.order_by(t.seq.desc()).limit(limit))]

    def notice_last(self) -> int:
        """The number of the newest notice; 0 when there never was one."""
        self.flush()
        row = self._first("SELECT value FROM counter WHERE name = 'notice'")
        return int(row[0]) if row else 0

    # --- past allocations ---

    def put_allocation(self, capacity_id: str, sku_id: str, block: int, node_count: int) -> None:
        """From `block` on a capacity holds `node_count` nodes. Kept only where that is a change."""
        known = self._first(_NEWEST, (capacity_id, sku_id, block))
        if (known[0] if known else 0) != node_count:
            self._raw(_ALLOCATE, (capacity_id, sku_id, block, node_count))

    def allocations(self, capacity_id: str, from_block: int) -> list[tuple[str, int, int]]:
        """(SKU, block, nodes from then on) of a capacity, in order; with what held at `from_block` already."""
        rows = self._every(_ALLOCATIONS, (capacity_id, from_block, from_block))
        return [(sku_id, block, node_count) for sku_id, block, node_count in rows]

    def prune_allocations(self, before_block: int) -> None:
        """Forget what is only needed for blocks before `before_block`."""
        self._raw(_PRUNE_ALLOCATIONS, (before_block,))

    # --- not twice ---

    def seen_before(self, workspace_id: str, operation: str, key: str) -> str | None:
        """The object that a request with this idempotency key made before."""
        found = self._row_of_key(workspace_id, operation, key)
        return str(found) if found is not None else None

    def remember(self, workspace_id: str, operation: str, key: str, object_id: str, now: float) -> None:
        """This idempotency key made this object. In the transaction that makes it, so both or neither are kept."""
        self._raw(_REMEMBER, (workspace_id, operation, key, object_id, now))

    def _row_of_key(self, workspace_id: str, operation: str, key: str) -> Any:
        statement = "SELECT object_id FROM idempotency WHERE workspace_id = ? AND operation = ? AND key = ?"
        row = self._first(statement, (workspace_id, operation, key))
        return row[0] if row else None


def _narrowed(statement: Select[Any], workspace_id: str | None, types: Sequence[str] | None) -> Select[Any]:
    if workspace_id is not None:
        statement = statement.where(notice.c.workspace_id == workspace_id)
    return statement.where(notice.c.type.in_(types)) if types else statement


def _number(cursor: int | str, field: str) -> int:
    try:
        return int(str(cursor).removeprefix("evnt_"))
    except ValueError as error:
        raise Invalid(f"{field}: {cursor!r} is not the number of an event", field=field) from error


def _notice(row: Row[Any]) -> Event:
    return Event(row.seq, row.at, row.workspace_id, row.type, row.object_id, _data(row.data))
