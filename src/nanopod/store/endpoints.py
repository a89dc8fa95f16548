"""Endpoints, their revisions and the story of each in a transaction."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, and_, delete, func, insert, or_, select, update

from nanopod.model.chain import Endpoint, Revision
from nanopod.model.endpoint import EndpointSpec, Failure, RolloutSpec, ScaleSpec, Traffic
from nanopod.store.base import Base, to_json
from nanopod.store.schema import deployment, endpoint, event, instance, revision

EVENTS_KEPT_MAX: Final = 200
"""Lines of its story remembered per endpoint, about."""
PRUNE_EACH: Final = 16
"""One line in so many looks for old ones."""

_GENERATIONS: Final = (
    "SELECT e.id, e.generation, d.generation FROM endpoint e JOIN deployment d ON d.endpoint_id = e.id "
    "WHERE e.deleted_at IS NULL ORDER BY e.created_at, e.id"
)
# The same few texts are read again and again, and what they mean never changes.
_spec: Final = lru_cache(256)(msgspec.json.Decoder(EndpointSpec).decode)
_scale: Final = lru_cache(1024)(msgspec.json.Decoder(ScaleSpec).decode)
_rollout: Final = lru_cache(256)(msgspec.json.Decoder(RolloutSpec).decode)
_traffic: Final = lru_cache(256)(msgspec.json.Decoder(tuple[Traffic, ...]).decode)
failure_of: Final = lru_cache(256)(msgspec.json.Decoder(Failure).decode)
"""A failure from its column."""
reasons_of: Final = lru_cache(1024)(msgspec.json.Decoder(tuple[str, ...]).decode)
"""Reasons from their column."""


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        endpoint_id=row.id,
        workspace_id=row.workspace_id,
        name=row.name,
        tag=row.tag,
        kind=row.kind,
        generation=row.generation,
        revision_id=row.revision_id,
        scale=_scale(row.scale),
        target=row.target,
        reasons=reasons_of(row.reasons),
        scale_state=bytes(row.scale_state),
        failure=failure_of(row.failure) if row.failure else None,
        ttl_s=row.ttl_s,
        version_label=row.version_label,
        scale_fingerprint=row.scale_fingerprint,
        heartbeat_at=row.heartbeat_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
        stable_revision_id=row.stable_revision_id,
        canary_percent=row.canary_percent,
        canary_at=row.canary_at,
        canary_state=row.canary_state,
        rollout=_rollout(row.rollout) if row.rollout else RolloutSpec(),
        cold=row.cold,
        traffic=_traffic(row.traffic) if row.traffic else (),
        stopped=row.stopped,
    )


def _revision(row: Row[Any]) -> Revision:
    return Revision(
        revision_id=row.id,
        endpoint_id=row.endpoint_id,
        number=row.number,
        spec=_spec(row.spec),
        failures=row.failures,
        failure=failure_of(row.failure) if row.failure else None,
        healthy_at=row.healthy_at,
        created_at=row.created_at,
        version_label=row.version_label,
        state=row.state,
    )


class EndpointRows(Base):
    """Reads and writes of endpoints."""

    # --- endpoints ---

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """The endpoint, deleted or not; None when there is no trace of it."""
        row = self._row(endpoint, id=endpoint_id)
        return _endpoint(row) if row else None

    def endpoint_named(self, workspace_id: str, reference: str) -> Endpoint | None:
        """A living endpoint by id, `name:tag`, or `name` (the default tag, or the only one there is)."""
        name, colon, tag = reference.partition(":")
        match = or_(
            endpoint.c.id == reference,
            and_(endpoint.c.name == name, endpoint.c.tag == tag) if colon else endpoint.c.name == name,
        )
        rows = self._rows(
            select(endpoint).where(endpoint.c.workspace_id == workspace_id, endpoint.c.deleted_at.is_(None), match)
        )
        exact = [row for row in rows if row.id == reference or row.tag == (tag if colon else "default")]
        if exact:
            return _endpoint(exact[0])
        return _endpoint(rows[0]) if len(rows) == 1 else None

    def endpoints(self, workspace_id: str | None = None, *, deleted: bool = False) -> list[Endpoint]:
        """Endpoints, oldest first; those on their way out as well with `deleted`."""
        statement: Select[Any] = select(endpoint).order_by(endpoint.c.created_at, endpoint.c.id)
        if workspace_id is not None:
            statement = statement.where(endpoint.c.workspace_id == workspace_id)
        if not deleted:
            statement = statement.where(endpoint.c.deleted_at.is_(None))
        return [_endpoint(row) for row in self._rows(statement)]

    def endpoint_generations(self) -> list[tuple[str, int, int]]:
        """(id, its generation, its deployment's generation) of every living endpoint: what changed since a last look.

        Raw, because it is asked after every change.
        """
        return [tuple(row) for row in self.connection.exec_driver_sql(_GENERATIONS)]

    def add_endpoint(
        self, endpoint_id: str, workspace_id: str, spec: EndpointSpec, revision_id: str, now: float
    ) -> None:
        """A new endpoint, not scaled yet."""
        self._insert(
            endpoint,
            id=endpoint_id,
            workspace_id=workspace_id,
            name=spec.name,
            tag=spec.tag,
            kind=spec.kind,
            revision_id=revision_id,
            scale=to_json(spec.scale),
            scale_fingerprint=spec.fingerprints.scale,
            rollout=to_json(spec.rollout),
            traffic=to_json(spec.traffic) if spec.traffic else "",
            stopped=spec.stopped,
            target=-1,
            reasons="[]",
            scale_state=b"",
            ttl_s=spec.ttl_s,
            version_label=spec.version_label,
            heartbeat_at=now,
            created_at=now,
            updated_at=now,
        )

    def set_endpoint(self, seen: Endpoint, **values: Any) -> None:
        """Change columns of an endpoint that still is as it was `seen`; raises `Conflict` if not."""
        self._guarded(endpoint, seen.endpoint_id, seen.generation, **plain(values))
        if values.get("deleted_at") is not None:
            # Its name is free for a new one at once, and so must be its deployment's.
            own = deployment.c.endpoint_id == seen.endpoint_id
            self.connection.execute(update(deployment).where(own).values(name=deployment.c.id))

    def heartbeat(self, endpoint_id: str, now: float) -> None:
        """A client of this endpoint is alive. Unguarded: the latest wins."""
        self._update(endpoint, endpoint_id, heartbeat_at=now)

    def purge_endpoint(self, endpoint_id: str) -> None:
        """Forget a deleted endpoint whose instances are gone; usage and its instances' history stay."""
        self.connection.execute(delete(endpoint).where(endpoint.c.id == endpoint_id))
        self.connection.execute(delete(event).where(event.c.endpoint_id == endpoint_id))

    # --- revisions ---

    def revision(self, revision_id: str) -> Revision | None:
        """One revision."""
        row = self._row(revision, id=revision_id)
        return _revision(row) if row else None

    def revisions_of(self, endpoint_id: str) -> list[Revision]:
        """An endpoint's revisions, oldest first."""
        statement = select(revision).where(revision.c.endpoint_id == endpoint_id).order_by(revision.c.number)
        return [_revision(row) for row in self._rows(statement)]

    def add_revision(self, revision_id: str, endpoint_id: str, spec: EndpointSpec, now: float) -> int:
        """A new revision; its number."""
        highest = self.connection.execute(
            select(func.max(revision.c.number)).where(revision.c.endpoint_id == endpoint_id)
        ).scalar()
        number = (highest or 0) + 1
        self._insert(
            revision,
            id=revision_id,
            endpoint_id=endpoint_id,
            number=number,
            spec=to_json(spec),
            model_id=spec.model.model_id if spec.model else None,
            version_label=spec.version_label,
            created_at=now,
        )
        return number

    def prune_revisions(self, endpoint_id: str, keep: int, held: Collection[str] = ()) -> list[str]:
        """Forget an endpoint's oldest revisions beyond `keep` that nothing runs or falls back to; their ids. Those in
        `held` stay."""
        known = self.connection.execute(
            select(revision.c.id).where(revision.c.endpoint_id == endpoint_id).order_by(revision.c.number.desc())
        ).scalars()
        old = list(known)[keep:]
        if not old:
            return []
        holders = (
            select(endpoint.c.revision_id).where(endpoint.c.id == endpoint_id),
            select(endpoint.c.stable_revision_id).where(endpoint.c.id == endpoint_id),
            select(deployment.c.revision_id).where(deployment.c.endpoint_id == endpoint_id),
            select(instance.c.revision_id).where(
                instance.c.endpoint_id == endpoint_id, instance.c.ended_at.is_(None)
            ),
        )  # fmt: skip
        used = {one for statement in holders for one in self.connection.execute(statement).scalars()} | set(held)
        gone = [one for one in old if one not in used]
        if gone:
            self.connection.execute(delete(revision).where(revision.c.id.in_(gone)))
        return gone

    def bundles(self) -> set[str]:
        """The digests of the bundles of every revision there is."""
        texts = self.connection.execute(select(revision.c.spec)).scalars()
        return {spec.bundle for text in texts if (spec := _spec(text)).bundle}

    def set_revision(self, revision_id: str, **values: Any) -> None:
        """Change columns of a revision: its record of failures and health."""
        self._update(revision, revision_id, **plain(values))

    def model_owner(self, workspace_id: str, model_id: str) -> Endpoint | None:
        """The living endpoint whose newest revision serves `model_id`."""
        statement = (
            select(endpoint)
            .join(revision, revision.c.id == endpoint.c.revision_id)
            .where(
                endpoint.c.workspace_id == workspace_id,
                endpoint.c.deleted_at.is_(None),
                revision.c.model_id == model_id,
            )
        )
        row = self.connection.execute(statement).first()
        return _endpoint(row) if row else None

    # --- the story ---

    def tell(self, kind: str, key: str, endpoint_id: str, message: str, now: float) -> None:
        """Add a line to an object's story."""
        done = self.connection.execute(
            insert(event), {"at": now, "kind": kind, "key": key, "endpoint_id": endpoint_id, "message": message}
        )
        key_of_line = done.inserted_primary_key
        if key_of_line is None or key_of_line[0] % PRUNE_EACH:
            return
        oldest = self.connection.execute(
            select(event.c.seq)
            .where(event.c.endpoint_id == endpoint_id)
            .order_by(event.c.seq.desc())
            .offset(EVENTS_KEPT_MAX)
            .limit(1)
        ).scalar()
        if oldest is not None:
            self.connection.execute(delete(event).where(event.c.endpoint_id == endpoint_id, event.c.seq <= oldest))

    def story(self, endpoint_id: str, limit: int = 50) -> list[tuple[float, str, str, str]]:
        """(time, kind, id, message) of an endpoint's last decisions, newest first."""
        statement = select(event).where(event.c.endpoint_id == endpoint_id).order_by(event.c.seq.desc()).limit(limit)
        return [(row.at, row.kind, row.key, row.message) for row in self._rows(statement)]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Structured values as their columns keep them."""
    plain = dict(values)
    for name in ("failure", "scale", "reasons", "spec", "rollout", "traffic"):
        if plain.get(name) is not None:
            plain[name] = to_json(plain[name])
    return plain
