"""Secrets in a transaction: names, names of their keys, and sealed versions. What a value is, nobody here can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, func, select

from nanopod.store.app_schema import secret, secret_version
from nanopod.store.base import Base, to_json

VERSIONS_KEPT: Final = 20
"""Older versions of a secret are forgotten when nothing can start with them any more."""
_words: Final = msgspec.json.Decoder(tuple[str, ...]).decode


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret without its values. `version` is the newest; times are the cluster's, Unix seconds."""

    secret_id: str
    workspace_id: str
    name: str
    version: int
    keys: tuple[str, ...]
    created_at: float
    updated_at: float


class SecretRows(Base):
    """Reads and writes of secrets."""

    def secret(self, workspace_id: str, reference: str) -> Secret | None:
        """A secret of a workspace by name or id."""
        row = self._row(secret, workspace_id=workspace_id, name=reference)
        row = row or self._row(secret, workspace_id=workspace_id, id=reference)
        return _secret(row) if row else None

    def secrets(self, workspace_id: str) -> list[Secret]:
        """The secrets of a workspace, by name."""
        return [
            _secret(row)
            for row in self._rows(select(secret).where(secret.c.workspace_id == workspace_id).order_by(secret.c.name))
        ]

    def sealed_secret(self, secret_id: str, version: int) -> bytes | None:
        """What one version holds, sealed; None when there is no such version (any more)."""
        row = self._row(secret_version, secret_id=secret_id, version=version)
        return bytes(row.sealed) if row else None

    def secret_versions(self, secret_id: str) -> list[int]:
        """Numbers of the versions that are kept, rising."""
        t = secret_version.c
        return [
            row.version for row in self._rows(select(t.version).where(t.secret_id == secret_id).order_by(t.version))
        ]

    def add_secret(self, made: Secret) -> None:
        """A new secret; its version is added with `add_secret_version`."""
        self._insert(
            secret, id=made.secret_id, workspace_id=made.workspace_id, name=made.name, version=0, keys="[]",
            created_at=made.created_at, updated_at=made.updated_at,
        )  # fmt: skip

    def add_secret_version(
        self, secret_id: str, version: int, keys: tuple[str, ...], sealed: bytes, now: float, keep: frozenset[int]
    ) -> None:
        """Make `version` the newest. Versions beyond `VERSIONS_KEPT` go, except those in `keep`."""
        self._insert(secret_version, secret_id=secret_id, version=version, sealed=sealed, created_at=now)
        self._update(secret, secret_id, version=version, keys=to_json(keys), updated_at=now)
        t = secret_version.c
        old = (t.secret_id == secret_id) & (t.version <= version - VERSIONS_KEPT)
        if keep:
            old &= t.version.not_in(sorted(keep))
        self.connection.execute(delete(secret_version).where(old))

    def delete_secret(self, secret_id: str) -> None:
        """Forget a secret with all its versions."""
        self.connection.execute(delete(secret_version).where(secret_version.c.secret_id == secret_id))
        self.connection.execute(delete(secret).where(secret.c.id == secret_id))

    def secrets_count(self, workspace_id: str) -> int:
        """How many secrets a workspace has."""
        found = self.connection.execute(
            select(func.count()).select_from(secret).where(secret.c.workspace_id == workspace_id)
        ).scalar()
        return int(found or 0)


def _secret(row: Row[Any]) -> Secret:
    return Secret(
        row.id, row.workspace_id, row.name, row.version, _words(row.keys), row.created_at, row.updated_at
    )  # fmt: skip
