"""API keys and the cluster's settings in a transaction."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, or_, select, update

from nanopod.model.chain import Key
from nanopod.store.base import Base, to_json
from nanopod.store.schema import api_key, setting

_words: Final = msgspec.json.Decoder(tuple[str, ...]).decode


def _key(row: Row[Any]) -> Key:
    return Key(
        key_id=row.id,
        workspace_id=row.workspace_id,
        name=row.name,
        digest=row.digest,
        scopes=_words(row.scopes),
        endpoints=_words(row.endpoints) if row.endpoints is not None else None,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


class KeyRows(Base):
    """Reads and writes of who may do what."""

    def setting(self, name: str) -> str | None:
        """A setting of the cluster."""
        row = self._row(setting, name=name)
        return str(row.value) if row else None

    def put_setting(self, name: str, value: str) -> None:
        """Keep a setting of the cluster."""
        self._upsert(setting, {"name": name}, {"value": value})

    def key(self, key_id: str) -> Key | None:
        """A key by its public id, revoked or not."""
        row = self._row(api_key, id=key_id)
        return _key(row) if row else None

    def api_keys(self, workspace_id: str | None = None) -> list[Key]:
        """Keys, newest first, revoked ones as well."""
        statement: Select[Any] = select(api_key).order_by(api_key.c.created_at.desc(), api_key.c.id)
        if workspace_id is not None:
            statement = statement.where(api_key.c.workspace_id == workspace_id)
        return [_key(row) for row in self._rows(statement)]

    def add_key(self, value: Key) -> None:
        """A new key; gateways hear of it."""
        self._insert(
            api_key,
            id=value.key_id,
            workspace_id=value.workspace_id,
            name=value.name,
            digest=value.digest,
            scopes=to_json(value.scopes),
            endpoints=to_json(value.endpoints) if value.endpoints is not None else None,
            created_at=value.created_at,
            expires_at=value.expires_at,
        )
        self.hint("tables")

    def revoke_key(self, key_id: str, now: float) -> None:
        """The key is worth nothing from now on; gateways hear of it at once."""
        self._update(api_key, key_id, revoked_at=now)
        self.hint("tables")

    def key_used(self, key_id: str, at: float) -> None:
        """Remember when a key was used last, to the minute."""
        minute = at // 60 * 60
        self.connection.execute(
            update(api_key).where(
                api_key.c.id == key_id, or_(api_key.c.last_used_at.is_(None), api_key.c.last_used_at < minute)
            ),
            {"last_used_at": minute},
        )
