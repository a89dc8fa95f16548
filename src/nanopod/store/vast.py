"""Deployments that came over the Vast-shaped routes, in a transaction: numbers for ids, and what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from nanopod.store.app_schema import vast_deployment, vast_version
from nanopod.store.base import Base, to_json


@dataclass(frozen=True, slots=True)
class VastDeployment:
    """`config` as its client sent it; `blob` is the file that runs; `upload` the digest of a one-time upload token."""

    number: int
    workspace_id: str
    name: str
    tag: str
    config: Mapping[str, Any]
    endpoint_id: str
    blob: str
    upload: str
    state: str
    version_id: int
    heartbeat_at: float | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class VastVersion:
    """A file that a deployment ran, or waits for (`blob` empty)."""

    number: int
    deployment: int
    file_hash: str
    blob: str
    label: str
    created_at: float


class VastRows(Base):
    """Reads and writes of such deployments."""

    def vast_deployment(self, number: int) -> VastDeployment | None:
        """One by its number."""
        row = self._row(vast_deployment, id=number)
        return _deployment(row) if row else None

    def vast_deployment_named(self, workspace_id: str, name: str, tag: str) -> VastDeployment | None:
        """One by its name and tag."""
        row = self._row(vast_deployment, workspace_id=workspace_id, name=name, tag=tag)
        return _deployment(row) if row else None

    def vast_deployments(self, workspace_id: str) -> list[VastDeployment]:
        """Those of a workspace, oldest first."""
        t = vast_deployment.c
        statement = select(vast_deployment).where(t.workspace_id == workspace_id).order_by(t.id)
        return [_deployment(row) for row in self._rows(statement)]

    def add_vast_deployment(
        self, workspace_id: str, name: str, tag: str, config: Mapping[str, Any], now: float
    ) -> VastDeployment:  # fmt: skip
        """A new one that has no file yet."""
        made = self.connection.execute(
            insert(vast_deployment).returning(vast_deployment.c.id),
            {"workspace_id": workspace_id, "name": name, "tag": tag, "config": to_json(dict(config)),
             "created_at": now, "updated_at": now},
        ).scalar_one()  # fmt: skip
        found = self.vast_deployment(int(made))
        assert found is not None, "just inserted"
        return found

    def set_vast_deployment(self, number: int, **columns: Any) -> None:
        """Change columns."""
        if "config" in columns:
            columns["config"] = to_json(dict(columns["config"]))
        self.connection.execute(update(vast_deployment).where(vast_deployment.c.id == number), columns)

    def delete_vast_deployment(self, number: int) -> None:
        """Forget one and its versions."""
        self.connection.execute(delete(vast_version).where(vast_version.c.deployment_id == number))
        self.connection.execute(delete(vast_deployment).where(vast_deployment.c.id == number))

    def vast_versions(self, number: int) -> list[VastVersion]:
        """Versions of a deployment, newest first."""
        t = vast_version.c
        statement = select(vast_version).where(t.deployment_id == number).order_by(t.id.desc())
        return [_version(row) for row in self._rows(statement)]

    def add_vast_version(self, number: int, file_hash: str, label: str, now: float) -> int:
        """A version whose file is still to come; its number."""
        return int(
            self.connection.execute(
                insert(vast_version).returning(vast_version.c.id),
                {"deployment_id": number, "file_hash": file_hash, "label": label, "created_at": now},
            ).scalar_one()
        )

    def set_vast_version(self, version: int, blob: str) -> None:
        """Its file is here."""
        self.connection.execute(update(vast_version).where(vast_version.c.id == version), {"blob": blob})

    def drop_vast_versions(self, number: int, keep: int) -> list[int]:
        """Forget all but the newest `keep` versions of a deployment; the numbers of those that went."""
        old = [version.number for version in self.vast_versions(number)[keep:]]
        if old:
            self.connection.execute(delete(vast_version).where(vast_version.c.id.in_(old)))
        return old


def _deployment(row: Row[Any]) -> VastDeployment:
    return VastDeployment(
        row.id, row.workspace_id, row.name, row.tag, json.loads(row.config), row.endpoint_id, row.blob, row.upload,
        row.state, row.version_id, row.heartbeat_at, row.created_at, row.updated_at,
    )  # fmt: skip


def _version(row: Row[Any]) -> VastVersion:
    return VastVersion(row.id, row.deployment_id, row.file_hash, row.blob, row.label, row.created_at)
