"""Volumes in a transaction: numbered versions of a manifest, and the one lease to write.

A manifest is {path: [blob, bytes, mode]}. `blob` names the SHA-256 (hex) of the content, or of its parts in order,
with blanks between them; an empty file has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, func, select, update

from nanopod.store.app_schema import volume, volume_version
from nanopod.store.base import Base, to_json

VERSIONS_KEPT: Final = 10
"""Older manifests are forgotten; the newest is always there."""

Entry = tuple[str, int, int]
Manifest = dict[str, Entry]
_manifest: Final = msgspec.json.Decoder(dict[str, tuple[str, int, int]]).decode


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `writer` may commit until `writer_until` (Unix seconds, wall time); `size_bytes_max` 0: no limit."""

    volume_id: str
    workspace_id: str
    name: str
    region: str
    size_bytes_max: int
    version: int
    used_bytes: int
    writer: str
    writer_until: float
    created_at: float
    updated_at: float


class VolumeRows(Base):
    """Reads and writes of volumes."""

    def volume(self, workspace_id: str, reference: str) -> Volume | None:
        """A volume of a workspace by name or id."""
        row = self._row(volume, workspace_id=workspace_id, name=reference)
        row = row or self._row(volume, workspace_id=workspace_id, id=reference)
        return _volume(row) if row else None

    def volumes(self, workspace_id: str) -> list[Volume]:
        """The volumes of a workspace, by name."""
        return [
            _volume(row)
            for row in self._rows(select(volume).where(volume.c.workspace_id == workspace_id).order_by(volume.c.name))
        ]

    def add_volume(self, made: Volume) -> None:
        """A new volume; version 0 of it is empty."""
        self._insert(
            volume, id=made.volume_id, workspace_id=made.workspace_id, name=made.name, region=made.region,
            size_bytes_max=made.size_bytes_max, created_at=made.created_at, updated_at=made.updated_at,
        )  # fmt: skip

    def set_volume(self, volume_id: str, **columns: Any) -> None:
        """Change columns of a volume. Writes run one after another, so what was read in this one still holds."""
        self._update(volume, volume_id, **columns)

    def lease_volume(self, volume_id: str, writer: str, now: float, until: float) -> Volume:
        """Give `writer` the lease until `until`, unless another one has it; the volume as it is then."""
        t = volume.c
        free = (t.writer == writer) | (t.writer == "") | (t.writer_until <= now)
        self.connection.execute(
            update(volume).where(t.id == volume_id, free), {"writer": writer, "writer_until": until}
        )
        row = self._row(volume, id=volume_id)
        assert row is not None, "it was looked up in this transaction"
        return _volume(row)

    def release_volume(self, volume_id: str, writer: str) -> None:
        """The writer is done; nothing happens when another one has the lease."""
        t = volume.c
        self.connection.execute(
            update(volume).where(t.id == volume_id, t.writer == writer), {"writer": "", "writer_until": 0.0}
        )

    def manifest(self, volume_id: str, version: int) -> Manifest | None:
        """What a version holds; None when it is not kept (any more). Version 0 is empty."""
        if version == 0:
            return {}
        row = self._row(volume_version, volume_id=volume_id, version=version)
        return _manifest(row.manifest) if row else None

    def volume_versions(self, volume_id: str) -> list[tuple[int, float]]:
        """(number, time) of the versions that are kept, newest first."""
        t = volume_version.c
        statement = select(t.version, t.created_at).where(t.volume_id == volume_id).order_by(t.version.desc())
        return [(row.version, row.created_at) for row in self._rows(statement)]

    def commit_volume(self, seen: Volume, manifest: Manifest, used_bytes: int, now: float) -> int:
        """Make `manifest` the next version; its number."""
        version = seen.version + 1
        self._insert(
            volume_version, volume_id=seen.volume_id, version=version, manifest=to_json(manifest), created_at=now
        )
        self._update(volume, seen.volume_id, version=version, used_bytes=used_bytes, updated_at=now)
        t = volume_version.c
        self.connection.execute(
            delete(volume_version).where(t.volume_id == seen.volume_id, t.version <= version - VERSIONS_KEPT)
        )
        return version

    def delete_volume(self, volume_id: str) -> None:
        """Forget a volume with all its versions."""
        self.connection.execute(delete(volume_version).where(volume_version.c.volume_id == volume_id))
        self.connection.execute(delete(volume).where(volume.c.id == volume_id))

    def volumes_count(self, workspace_id: str) -> int:
        """How many volumes a workspace has."""
        found = self.connection.execute(
            select(func.count()).select_from(volume).where(volume.c.workspace_id == workspace_id)
        ).scalar()
        return int(found or 0)


def _volume(row: Row[Any]) -> Volume:
    return Volume(
        row.id, row.workspace_id, row.name, row.region, row.size_bytes_max, row.version, row.used_bytes, row.writer,
        row.writer_until, row.created_at, row.updated_at,
    )  # fmt: skip
