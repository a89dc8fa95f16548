"""Shared queues in a transaction. Items leave in the order they came; one that is leased comes back when its time is
over. Values are bytes, times wall time in Unix seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, func, select

from nanopod.store.app_schema import queue_item, shared_queue
from nanopod.store.base import Base

_PUT: Final = "INSERT INTO queue_item (queue_id, partition, seq, value, expires_at) VALUES (?, ?, ?, ?, ?)"
_NEXT: Final = (
    "SELECT seq, value, deliveries FROM queue_item WHERE queue_id = ? AND partition = ? AND leased_until <= ? "
    "AND expires_at > ? ORDER BY seq LIMIT ?"
)
_LEASE: Final = (
    "UPDATE queue_item SET lease = ?, leased_until = ?, deliveries = deliveries + 1 WHERE queue_id = ? AND seq = ?"
)
_REMOVE: Final = "DELETE FROM queue_item WHERE queue_id = ? AND seq = ?"
_ACK: Final = "DELETE FROM queue_item WHERE queue_id = ? AND seq = ? AND lease = ?"
_NACK: Final = (
    "UPDATE queue_item SET lease = '', leased_until = 0 WHERE queue_id = ? AND seq = ? AND lease = ? AND lease <> ''"
)
_BACK: Final = (
    "SELECT min(leased_until) FROM queue_item WHERE queue_id = ? AND partition = ? AND leased_until > ? "
    "AND expires_at > ?"
)
_COUNT: Final = "SELECT count(*) FROM queue_item WHERE queue_id = ? AND expires_at > ?"


@dataclass(frozen=True, slots=True)
class SharedQueue:
    """A queue. Its time is the cluster's."""

    queue_id: str
    workspace_id: str
    name: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Taken:
    """An item that was handed out. `deliveries` counts this time, too; `lease` is "" for one that is gone already."""

    seq: int
    value: bytes
    deliveries: int
    lease: str = ""


class QueueRows(Base):
    """Reads and writes of shared queues."""

    def shared_queue(self, workspace_id: str, reference: str) -> SharedQueue | None:
        """A queue of a workspace by name or id."""
        row = self._row(shared_queue, workspace_id=workspace_id, name=reference)
        row = row or self._row(shared_queue, workspace_id=workspace_id, id=reference)
        return _queue(row) if row else None

    def shared_queues(self, workspace_id: str) -> list[SharedQueue]:
        """The queues of a workspace, by name."""
        t = shared_queue.c
        statement = select(shared_queue).where(t.workspace_id == workspace_id).order_by(t.name)
        return [_queue(row) for row in self._rows(statement)]

    def add_shared_queue(self, made: SharedQueue) -> None:
        """A new queue."""
        self._insert(
            shared_queue, id=made.queue_id, workspace_id=made.workspace_id, name=made.name, created_at=made.created_at
        )

    def delete_shared_queue(self, queue_id: str) -> None:
        """Forget a queue and what is in it."""
        self.connection.execute(delete(queue_item).where(queue_item.c.queue_id == queue_id))
        self.connection.execute(delete(shared_queue).where(shared_queue.c.id == queue_id))

    def queue_put(self, queue_id: str, partition: str, values: Sequence[bytes], expires_at: float) -> int:
        """Append items; the number of the first one."""
        first = self.next_number(f"queue {queue_id}", len(values))
        self._raw_many(
            _PUT, [(queue_id, partition, first + number, value, expires_at) for number, value in enumerate(values)]
        )
        return first

    def queue_take(self, queue_id: str, partition: str, count: int, now: float) -> list[Taken]:
        """Take the oldest items out for good."""
        found = self._every(_NEXT, (queue_id, partition, now, now, count))
        self._raw_many(_REMOVE, [(queue_id, row[0]) for row in found])
        return [Taken(int(row[0]), bytes(row[1]), int(row[2]) + 1) for row in found]

    def queue_lease(
        self, queue_id: str, partition: str, count: int, now: float, lease: str, until: float
    ) -> list[Taken]:
        """Hand the oldest items out under `lease`; they come back at `until` unless they are acknowledged."""
        found = self._every(_NEXT, (queue_id, partition, now, now, count))
        self._raw_many(_LEASE, [(lease, until, queue_id, row[0]) for row in found])
        return [Taken(int(row[0]), bytes(row[1]), int(row[2]) + 1, lease) for row in found]

    def queue_back_at(self, queue_id: str, partition: str, now: float) -> float | None:
        """When the next leased item comes back; None when none is leased."""
        found = self._first(_BACK, (queue_id, partition, now, now))[0]
        return None if found is None else float(found)

    def queue_done(self, queue_id: str, seq: int, lease: str) -> bool:
        """An item was dealt with; False when the lease was over (it may be handed out again, or was)."""
        return bool(lease) and self._raw(_ACK, (queue_id, seq, lease)).rowcount == 1

    def queue_return(self, queue_id: str, seq: int, lease: str) -> bool:
        """An item comes back at once; False when the lease was over."""
        return self._raw(_NACK, (queue_id, seq, lease)).rowcount == 1

    def queue_partition_of(self, queue_id: str, seq: int) -> str | None:
        """Where an item is; None when it is gone."""
        row = self._row(queue_item, queue_id=queue_id, seq=seq)
        return None if row is None else str(row.partition)

    def queue_count(self, queue_id: str, now: float) -> int:
        """How many items there are, leased ones as well."""
        return int(self._first(_COUNT, (queue_id, now))[0])

    def queue_counts(self, queue_id: str, now: float) -> dict[str, int]:
        """How many items each partition has, leased ones as well; empty ones are left out."""
        t = queue_item.c
        statement = (
            select(t.partition, func.count().label("items"))
            .where(t.queue_id == queue_id, t.expires_at > now)
            .group_by(t.partition)
            .order_by(t.partition)
        )
        return {row.partition: row.items for row in self._rows(statement)}

    def queue_clear(self, queue_id: str, partition: str | None) -> int:
        """Throw the items of a partition (None: of all) away; how many."""
        statement = delete(queue_item).where(queue_item.c.queue_id == queue_id)
        if partition is not None:
            statement = statement.where(queue_item.c.partition == partition)
        return self.connection.execute(statement).rowcount

    def sweep_queues(self, now: float, limit: int) -> int:
        """Forget items that expired, at most `limit`; how many."""
        t = queue_item.c
        old = self._rows(select(t.queue_id, t.seq).where(t.expires_at <= now).order_by(t.expires_at).limit(limit))
        self._raw_many(_REMOVE, [(row.queue_id, row.seq) for row in old])
        return len(old)


def _queue(row: Row[Any]) -> SharedQueue:
    return SharedQueue(row.id, row.workspace_id, row.name, row.created_at)
