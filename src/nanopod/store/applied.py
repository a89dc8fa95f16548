"""Applied Kubernetes objects in a transaction."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Row, delete, select

from nanopod.model.chain import Applied
from nanopod.store.app_schema import manifest
from nanopod.store.base import Base, to_json


def _applied(row: Row[Any]) -> Applied:
    return Applied(
        manifest_id=row.id,
        workspace_id=row.workspace_id,
        namespace=row.namespace,
        api_version=row.api_version,
        kind=row.kind,
        name=row.name,
        generation=row.generation,
        document=row.document,
        digest=row.digest,
        native=tuple(json.loads(row.native)),
        status=json.loads(row.status),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


class AppliedRows(Base):
    """Reads and writes of manifests."""

    def applied(self, workspace_id: str, kind: str, name: str, namespace: str = "default") -> Applied | None:
        """One by its kind and name."""
        row = self._row(manifest, workspace_id=workspace_id, namespace=namespace, kind=kind, name=name)
        return _applied(row) if row else None

    def applied_all(self, workspace_id: str | None = None, kind: str = "") -> list[Applied]:
        """Those of a workspace (None: of all), by kind and name."""
        statement = select(manifest).order_by(manifest.c.kind, manifest.c.name, manifest.c.namespace)
        if workspace_id is not None:
            statement = statement.where(manifest.c.workspace_id == workspace_id)
        if kind:
            statement = statement.where(manifest.c.kind == kind)
        return [_applied(row) for row in self._rows(statement)]

    def put_applied(self, made: Applied) -> None:
        """Write it, whether or not it was there."""
        self.hint("manifests")
        values = {
            "api_version": made.api_version,
            "generation": made.generation,
            "document": made.document,
            "digest": made.digest,
            "native": to_json(made.native),
            "status": to_json(made.status),
            "updated_at": made.updated_at,
        }
        updated = self.connection.execute(manifest.update().where(manifest.c.id == made.manifest_id).values(values))
        if not updated.rowcount:
            self._insert(
                manifest,
                id=made.manifest_id,
                workspace_id=made.workspace_id,
                namespace=made.namespace,
                kind=made.kind,
                name=made.name,
                created_at=made.created_at,
                **values,
            )

    def delete_applied(self, manifest_id: str) -> None:
        """Forget it."""
        self.connection.execute(delete(manifest).where(manifest.c.id == manifest_id))
