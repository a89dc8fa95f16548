"""Endpoints, revisions, deployments and instances in a transaction."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, and_, delete, func, insert, or_, select

from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, Failure, ScaleSpec
from nanopod.store.base import Base, to_json
from nanopod.store.schema import deployment, endpoint, event, instance, node, revision

ENDED_KEPT_MAX: Final = 50
"""Ended instances remembered per endpoint."""
EVENTS_KEPT_MAX: Final = 200
"""Lines of its story remembered per endpoint, about."""
PRUNE_EACH: Final = 16
"""One line in so many looks for old ones."""

# The same few texts are read again and again, and what they mean never changes.
_GENERATIONS: Final = (
    "SELECT e.id, e.generation, d.generation FROM endpoint e JOIN deployment d ON d.endpoint_id = e.id "
    "WHERE e.deleted_at IS NULL ORDER BY e.created_at, e.id"
)
_spec: Final = lru_cache(256)(msgspec.json.Decoder(EndpointSpec).decode)
_scale: Final = lru_cache(1024)(msgspec.json.Decoder(ScaleSpec).decode)
_failure: Final = lru_cache(256)(msgspec.json.Decoder(Failure).decode)
_reasons: Final = lru_cache(1024)(msgspec.json.Decoder(tuple[str, ...]).decode)


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
        reasons=_reasons(row.reasons),
        scale_state=bytes(row.scale_state),
        failure=_failure(row.failure) if row.failure else None,
        ttl_s=row.ttl_s,
        version_label=row.version_label,
        scale_fingerprint=row.scale_fingerprint,
        heartbeat_at=row.heartbeat_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
    )


def _revision(row: Row[Any]) -> Revision:
    return Revision(
        revision_id=row.id,
        endpoint_id=row.endpoint_id,
        number=row.number,
        spec=_spec(row.spec),
        failures=row.failures,
        failure=_failure(row.failure) if row.failure else None,
        healthy_at=row.healthy_at,
        created_at=row.created_at,
    )


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        deployment_id=row.id,
        endpoint_id=row.endpoint_id,
        workspace_id=row.workspace_id,
        capacity_id=row.capacity_id,
        revision_id=row.revision_id,
        target_instance_count=row.target_instance_count,
        generation=row.generation,
        reasons=_reasons(row.reasons),
        fails=row.fails,
        not_before=row.not_before,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _instance(row: Row[Any]) -> Instance:
    return Instance(
        instance_id=row.id,
        deployment_id=row.deployment_id,
        endpoint_id=row.endpoint_id,
        workspace_id=row.workspace_id,
        revision_id=row.revision_id,
        capacity_id=row.capacity_id,
        node_id=row.node_id,
        epoch=row.epoch,
        generation=row.generation,
        intent=row.intent,
        phase=row.phase,
        slots=row.slots,
        pid=row.pid,
        exit_code=row.exit_code,
        reason=row.reason,
        failure=_failure(row.failure) if row.failure else None,
        fails=row.fails,
        not_before=row.not_before,
        ready_at=row.ready_at,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


class ChainRows(Base):
    """Reads and writes of the chain's rows."""

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
        self._guarded(endpoint, seen.endpoint_id, seen.generation, **_plain(values))

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
            created_at=now,
        )
        return number

    def set_revision(self, revision_id: str, **values: Any) -> None:
        """Change columns of a revision: its record of failures and health."""
        self._update(revision, revision_id, **_plain(values))

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

    # --- deployments ---

    def deployment(self, deployment_id: str) -> Deployment | None:
        """One deployment."""
        row = self._row(deployment, id=deployment_id)
        return _deployment(row) if row else None

    def deployment_of(self, endpoint_id: str) -> Deployment | None:
        """The deployment behind an endpoint."""
        row = self._row(deployment, endpoint_id=endpoint_id)
        return _deployment(row) if row else None

    def deployments(self, workspace_id: str | None = None) -> list[Deployment]:
        """Deployments, oldest first."""
        statement: Select[Any] = select(deployment).order_by(deployment.c.created_at, deployment.c.id)
        if workspace_id is not None:
            statement = statement.where(deployment.c.workspace_id == workspace_id)
        return [_deployment(row) for row in self._rows(statement)]

    def add_deployment(
        self, deployment_id: str, endpoint_id: str, workspace_id: str, capacity_id: str, revision_id: str, now: float
    ) -> None:
        """A new deployment that wants no instance yet."""
        self._insert(
            deployment,
            id=deployment_id,
            endpoint_id=endpoint_id,
            workspace_id=workspace_id,
            capacity_id=capacity_id,
            revision_id=revision_id,
            reasons="[]",
            created_at=now,
            updated_at=now,
        )

    def set_deployment(self, seen: Deployment, **values: Any) -> None:
        """Change columns of a deployment that still is as it was `seen`; raises `Conflict` if not."""
        self._guarded(deployment, seen.deployment_id, seen.generation, **_plain(values))

    # --- instances ---

    def instance(self, instance_id: str) -> Instance | None:
        """One instance, ended or not."""
        row = self._row(instance, id=instance_id)
        return _instance(row) if row else None

    def instances_of(self, endpoint_id: str, *, ended: bool = False) -> list[Instance]:
        """An endpoint's instances, oldest first; those that are gone as well with `ended`."""
        statement: Select[Any] = select(instance).where(instance.c.endpoint_id == endpoint_id)
        if not ended:
            statement = statement.where(instance.c.ended_at.is_(None))
        return [_instance(row) for row in self._rows(statement.order_by(instance.c.created_at, instance.c.id))]

    def instances_live(self) -> list[Instance]:
        """Every instance that is not known to be gone, oldest first."""
        statement = select(instance).where(instance.c.ended_at.is_(None))
        return [_instance(row) for row in self._rows(statement.order_by(instance.c.created_at, instance.c.id))]

    def instances_on(self, machine_id: str) -> list[Instance]:
        """Instances placed on a machine's nodes and not known to be gone."""
        statement = (
            select(instance)
            .join(node, node.c.id == instance.c.node_id)
            .where(node.c.machine_id == machine_id, instance.c.ended_at.is_(None))
            .order_by(instance.c.created_at, instance.c.id)
        )
        return [_instance(row) for row in self._rows(statement)]

    def instances_page(
        self, workspace_id: str, limit: int, after: str | None, endpoint_id: str | None = None
    ) -> list[Instance]:
        """Instances of a workspace, newest first, after the one with the id `after`."""
        statement: Select[Any] = select(instance).where(instance.c.workspace_id == workspace_id)
        if endpoint_id is not None:
            statement = statement.where(instance.c.endpoint_id == endpoint_id)
        if after is not None:
            last = self.connection.execute(select(instance.c.created_at).where(instance.c.id == after)).scalar()
            at = float(last) if last is not None else 0.0
            statement = statement.where(
                or_(instance.c.created_at < at, and_(instance.c.created_at == at, instance.c.id < after))
            )
        statement = statement.order_by(instance.c.created_at.desc(), instance.c.id.desc()).limit(limit)
        return [_instance(row) for row in self._rows(statement)]

    def add_instance(
        self, instance_id: str, owner: Deployment, revision_id: str, slots: int, now: float, not_before: float = 0.0
    ) -> None:
        """A new instance, queued and not placed."""
        self._insert(
            instance,
            id=instance_id,
            deployment_id=owner.deployment_id,
            endpoint_id=owner.endpoint_id,
            workspace_id=owner.workspace_id,
            revision_id=revision_id,
            capacity_id=owner.capacity_id,
            epoch=1,
            intent="run",
            phase="queued",
            slots=slots,
            not_before=not_before,
            created_at=now,
        )

    def set_instance(self, seen: Instance, **values: Any) -> None:
        """Change columns of an instance that still is as it was `seen`; raises `Conflict` if not."""
        self._guarded(instance, seen.instance_id, seen.generation, **_plain(values))

    def forget_ended(self, endpoint_id: str) -> None:
        """Keep the history of an endpoint's instances short."""
        kept = (
            select(instance.c.id)
            .where(instance.c.endpoint_id == endpoint_id, instance.c.ended_at.is_not(None))
            .order_by(instance.c.ended_at.desc())
            .limit(ENDED_KEPT_MAX)
        )
        self.connection.execute(
            delete(instance).where(
                instance.c.endpoint_id == endpoint_id, instance.c.ended_at.is_not(None), instance.c.id.not_in(kept)
            )
        )

    # --- the story ---

    def tell(self, kind: str, key: str, endpoint_id: str, message: str, now: float) -> None:
        """Add a line to an object's story."""
        done = self.connection.execute(
            insert(event), {"at": now, "kind": kind, "key": key, "endpoint_id": endpoint_id, "message": message}
        )
        if done.lastrowid % PRUNE_EACH:
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


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Structured values as their columns keep them."""
    plain = dict(values)
    for name in ("failure", "scale", "reasons", "spec"):
        if plain.get(name) is not None:
            plain[name] = to_json(plain[name])
    return plain
