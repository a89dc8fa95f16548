"""Shared dictionaries in a transaction. Keys and values are bytes; an entry lives until a time after its last use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, select

from nanopod.store.app_schema import dict_entry, shared_dict
from nanopod.store.base import Base

_PUT: Final = (
    "INSERT INTO dict_entry (dict_id, key, value, version, expires_at) VALUES (?, ?, ?, 1, ?) "
    "ON CONFLICT (dict_id, key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at, "
    "version = dict_entry.version + 1"
)
_GET: Final = "SELECT value, expires_at FROM dict_entry WHERE dict_id = ? AND key = ? AND expires_at > ?"
_HAS: Final = "SELECT 1 FROM dict_entry WHERE dict_id = ? AND key = ? AND expires_at > ?"
_COUNT: Final = "SELECT count(*) FROM dict_entry WHERE dict_id = ? AND expires_at > ?"
_TOUCH: Final = "UPDATE dict_entry SET expires_at = ? WHERE dict_id = ? AND key = ?"
_REMOVE: Final = "DELETE FROM dict_entry WHERE dict_id = ? AND key = ?"


@dataclass(frozen=True, slots=True)
class SharedDict:
    """A dictionary. Its time is the cluster's; those of its entries are wall time."""

    dict_id: str
    workspace_id: str
    name: str
    created_at: float


class DictRows(Base):
    """Reads and writes of shared dictionaries."""

    def shared_dict(self, workspace_id: str, reference: str) -> SharedDict | None:
        """A dictionary of a workspace by name or id."""
        row = self._row(shared_dict, workspace_id=workspace_id, name=reference)
        row = row or self._row(shared_dict, workspace_id=workspace_id, id=reference)
        return _dict(row) if row else None

    def shared_dicts(self, workspace_id: str) -> list[SharedDict]:
        """The dictionaries of a workspace, by name."""
        t = shared_dict.c
        return [
            _dict(row) for row in self._rows(select(shared_dict).where(t.workspace_id == workspace_id).order_by(t.name))
        ]

    def add_shared_dict(self, made: SharedDict) -> None:
        """A new dictionary."""
        self._insert(
            shared_dict, id=made.dict_id, workspace_id=made.workspace_id, name=made.name, created_at=made.created_at
        )

    def delete_shared_dict(self, dict_id: str) -> None:
        """Forget a dictionary and what is in it."""
        self.connection.execute(delete(dict_entry).where(dict_entry.c.dict_id == dict_id))
        self.connection.execute(delete(shared_dict).where(shared_dict.c.id == dict_id))

    def dict_get(self, dict_id: str, key: bytes, now: float) -> tuple[bytes, float] | None:
        """(value, when it expires) of an entry that has not expired."""
        row = self._first(_GET, (dict_id, key, now))
        return None if row is None else (bytes(row[0]), float(row[1]))

    def dict_has(self, dict_id: str, key: bytes, now: float) -> bool:
        """Whether there is an entry."""
        return self._first(_HAS, (dict_id, key, now)) is not None

    def dict_count(self, dict_id: str, now: float) -> int:
        """How many entries there are."""
        return int(self._first(_COUNT, (dict_id, now))[0])

    def dict_put(self, dict_id: str, entries: Sequence[tuple[bytes, bytes]], expires_at: float) -> None:
        """Set entries, whatever was there."""
        self._raw_many(_PUT, [(dict_id, key, value, expires_at) for key, value in entries])

    def dict_touch(self, dict_id: str, keys: Sequence[bytes], expires_at: float) -> None:
        """Entries were used: they live on until `expires_at`."""
        self._raw_many(_TOUCH, [(expires_at, dict_id, key) for key in keys])

    def dict_pop(self, dict_id: str, key: bytes, now: float) -> bytes | None:
        """Take an entry out; its value."""
        found = self.dict_get(dict_id, key, now)
        self._raw(_REMOVE, (dict_id, key))
        return None if found is None else found[0]

    def dict_page(
        self, dict_id: str, now: float, after: bytes | None, limit: int, *, values: bool
    ) -> list[tuple[bytes, bytes]]:
        """Entries in the order of their keys' bytes, those after a key; without `values` the values are empty."""
        t = dict_entry.c
        columns = (t.key, t.value) if values else (t.key,)
        statement = select(*columns).where(t.dict_id == dict_id, t.expires_at > now).order_by(t.key).limit(limit)
        if after is not None:
            statement = statement.where(t.key > after)
        return [(bytes(row.key), bytes(row.value) if values else b"") for row in self._rows(statement)]

    def dict_clear(self, dict_id: str) -> int:
        """Take everything out; how many entries."""
        return self.connection.execute(delete(dict_entry).where(dict_entry.c.dict_id == dict_id)).rowcount

    def sweep_dicts(self, now: float, limit: int) -> int:
        """Forget entries that expired, at most `limit`; how many."""
        t = dict_entry.c
        old = self._rows(select(t.dict_id, t.key).where(t.expires_at <= now).order_by(t.expires_at).limit(limit))
        self._raw_many(_REMOVE, [(row.dict_id, bytes(row.key)) for row in old])
        return len(old)


def _dict(row: Row[Any]) -> SharedDict:
    return SharedDict(row.id, row.workspace_id, row.name, row.created_at)
