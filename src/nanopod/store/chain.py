"""Deployments and instances in a transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Row, Select, and_, delete, false, not_, or_, select

from nanopod.model.chain import OUT_OF_TIME, Deployment, Instance
from nanopod.store.base import Base, tags_json, tags_of, to_json
from nanopod.store.endpoints import failure_of, reasons_of
from nanopod.store.schema import deployment, instance, node

ENDED_KEPT_MAX: Final = 50
"""Ended instances remembered per endpoint."""


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        deployment_id=row.id,
        endpoint_id=row.endpoint_id or "",
        workspace_id=row.workspace_id,
        capacity_id=row.capacity_id,
        revision_id=row.revision_id,
        target_instance_count=row.target_instance_count,
        generation=row.generation,
        reasons=reasons_of(row.reasons),
        fails=row.fails,
        not_before=row.not_before,
        created_at=row.created_at,
        updated_at=row.updated_at,
        name=row.name,
        kind=row.kind,
        sku_id=row.sku_id,
        template_id=row.template_id,
        instance_name_template=row.instance_name_template,
        enabled=row.enabled,
        procurement_id=row.procurement_id,
        tags=tags_of(row.tags),
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
        failure=failure_of(row.failure) if row.failure else None,
        fails=row.fails,
        not_before=row.not_before,
        ready_at=row.ready_at,
        created_at=row.created_at,
        ended_at=row.ended_at,
        seq=row.seq,
        name=row.name,
        sku_id=row.sku_id,
        template_id=row.template_id,
        image_id=row.image_id,
        cloud_init=row.cloud_init,
        priority=row.priority,
        granted_at=row.granted_at,
        early_until=row.early_until,
        early_block=row.early_block,
        warned=row.warned,
        tags=tags_of(row.tags),
        start_kind=row.start_kind,
        start_at=row.start_at,
        hibernated_at=row.hibernated_at,
        home=row.home,
    )


class ChainRows(Base):
    """Reads and writes of what keeps instances, and of instances."""

    # --- deployments ---

    def deployment(self, deployment_id: str) -> Deployment | None:
        """One deployment."""
        row = self._row(deployment, id=deployment_id)
        return _deployment(row) if row else None

    def deployment_of(self, endpoint_id: str) -> Deployment | None:
        """The deployment behind an endpoint."""
        row = self._row(deployment, endpoint_id=endpoint_id)
        return _deployment(row) if row else None

    def deployment_named(self, workspace_id: str, name: str) -> Deployment | None:
        """A deployment of a workspace by its name."""
        row = self._row(deployment, workspace_id=workspace_id, name=name)
        return _deployment(row) if row else None

    def deployments(self, workspace_id: str | None = None) -> list[Deployment]:
        """Deployments, oldest first."""
        statement: Select[Any] = select(deployment)
        if workspace_id is not None:
            statement = statement.where(deployment.c.workspace_id == workspace_id)
        return self._deployments(statement)

    def deployments_alone(self, capacity_id: str | None = None) -> list[Deployment]:
        """The deployments without an endpoint, of one capacity or of all: few, however many endpoints there are."""
        alone = select(deployment).where(deployment.c.endpoint_id.is_(None))
        return self._deployments(alone if capacity_id is None else alone.where(deployment.c.capacity_id == capacity_id))

    def deployments_on(self, capacity_id: str) -> list[Deployment]:
        """The deployments whose instances count against a capacity, oldest first."""
        return self._deployments(select(deployment).where(deployment.c.capacity_id == capacity_id))

    def add_deployment(self, made: Deployment) -> None:
        """A new deployment."""
        values = {name: getattr(made, name) for name in _DEPLOYMENT_FIELDS}
        self._insert(deployment, id=made.deployment_id, generation=made.generation, **_plain(values))

    def set_deployment(self, seen: Deployment, **values: Any) -> None:
        """Change columns of a deployment that still is as it was `seen`; raises `Conflict` if not."""
        self._guarded(deployment, seen.deployment_id, seen.generation, **_plain(values))

    def delete_deployment(self, deployment_id: str) -> None:
        """Forget a deployment; its instances are somebody else's business."""
        self.connection.execute(delete(deployment).where(deployment.c.id == deployment_id))

    def _deployments(self, statement: Select[Any]) -> list[Deployment]:
        rows = self._rows(statement.order_by(deployment.c.created_at, deployment.c.id))
        return [_deployment(row) for row in rows]

    # --- instances ---

    def instance(self, instance_id: str) -> Instance | None:
        """One instance, ended or not."""
        row = self._row(instance, id=instance_id)
        return _instance(row) if row else None

    def instance_named(self, workspace_id: str, name: str) -> Instance | None:
        """An instance of a workspace by its name that is not known to be gone. One that was replaced may still be
        ending under the same name: the one that shall run comes first, then the newest."""
        t = instance.c
        statement = select(instance).where(t.workspace_id == workspace_id, t.name == name, t.ended_at.is_(None))
        row = self.connection.execute(statement.order_by(t.intent != "run", t.seq.desc()).limit(1)).first()
        return _instance(row) if row else None

    def instances_of(self, endpoint_id: str, *, ended: bool = False) -> list[Instance]:
        """An endpoint's instances, oldest first; those that are gone as well with `ended`."""
        return self._whose(instance.c.endpoint_id == endpoint_id, ended)

    def instances_of_deployment(self, deployment_id: str, *, ended: bool = False) -> list[Instance]:
        """A deployment's instances, oldest first; those that are gone as well with `ended`."""
        return self._whose(instance.c.deployment_id == deployment_id, ended)

    def instances_on_capacity(self, capacity_id: str, *, ended: bool = False) -> list[Instance]:
        """The instances that count against a capacity, oldest first; those that are gone as well with `ended`."""
        return self._whose(instance.c.capacity_id == capacity_id, ended)

    def instances_of_template(self, template_id: str, *, ended: bool = False) -> list[Instance]:
        """The instances made from a template, oldest first; those that are gone as well with `ended`."""
        return self._whose(instance.c.template_id == template_id, ended)

    def instances_live(self) -> list[Instance]:
        """Every instance that is not known to be gone, oldest first."""
        return self._oldest(select(instance).where(instance.c.ended_at.is_(None)))

    def instances_on(self, machine_id: str) -> list[Instance]:
        """Instances placed on a machine's nodes and not known to be gone."""
        return self._oldest(
            select(instance)
            .join(node, node.c.id == instance.c.node_id)
            .where(node.c.machine_id == machine_id, instance.c.ended_at.is_(None))
        )

    def instances_page(
        self, workspace_id: str | None, limit: int = 50, after: str | None = None, endpoint_id: str | None = None, *,
        before: str | None = None, ids: Sequence[str] = (), names: Sequence[str] = (), capacity_id: str | None = None,
        deployment_id: str | None = None, sku_id: str | None = None, statuses: Sequence[str] = (),
        created_after: float | None = None, created_before: float | None = None,
        tags: Mapping[str, str] | None = None, tag_keys: Sequence[str] = (), sort: str = "-created_at",
    ) -> list[Instance]:  # fmt: skip
        """Instances that meet every filter, newest first (`sort` "created_at": oldest first).

        `statuses` are those of the wire: `awaiting_allocation`, `running`, `hibernated`, `terminated`, `failed`.
        At most `limit`: right after the instance `after`, or right before `before`.
        """
        t = instance.c
        statement: Select[Any] = select(instance)
        equal = (
            (t.workspace_id, workspace_id), (t.endpoint_id, endpoint_id), (t.capacity_id, capacity_id),
            (t.deployment_id, deployment_id), (t.sku_id, sku_id),
        )  # fmt: skip
        statement = statement.where(*(column == wanted for column, wanted in equal if wanted is not None))
        for column, some in ((t.id, ids), (t.name, names)):
            if some:
                statement = statement.where(column.in_(some))
        if created_after is not None:
            statement = statement.where(t.created_at > created_after)
        if created_before is not None:
            statement = statement.where(t.created_at < created_before)
        if statuses:
            statement = statement.where(or_(false(), *(_STATUS[status] for status in statuses if status in _STATUS)))
        statement = statement.where(*self._tagged(t.tags, tags or {}, tag_keys))
        falling = sort.startswith("-")
        rows = self._page(
            statement, t.created_at, t.id, descending=falling, limit=limit, after=after, before=before
        )  # fmt: skip
        return [_instance(row) for row in rows]

    def early_starts(self, after_block: int, limit: int) -> list[tuple[str, str, int, str]]:
        """(capacity, SKU, block, instance) of starts before the first block, also of ended instances, oldest first."""
        statement = select(instance).where(instance.c.early_block > after_block)
        newest = statement.order_by(instance.c.early_block.desc(), instance.c.seq.desc()).limit(limit)
        found = [(row.capacity_id, row.sku_id, int(row.early_block), row.id) for row in self._rows(newest)]
        return found[::-1]

    def add_instance(self, made: Instance) -> None:
        """A new instance, with its number (`seq`) among all of them."""
        values = {name: getattr(made, name) for name in _INSTANCE_FIELDS}
        self._insert(instance, id=made.instance_id, generation=made.generation, **_plain(values))

    def set_instance(self, seen: Instance, **values: Any) -> None:
        """Change columns of an instance that still is as it was `seen`; raises `Conflict` if not."""
        self._guarded(instance, seen.instance_id, seen.generation, **_plain(values))

    def delete_instance(self, instance_id: str) -> None:
        """Forget an instance that is gone."""
        self.connection.execute(delete(instance).where(instance.c.id == instance_id))

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

    def _whose(self, owner: Any, ended: bool) -> list[Instance]:
        statement = select(instance).where(owner)
        return self._oldest(statement if ended else statement.where(instance.c.ended_at.is_(None)))

    def _oldest(self, statement: Select[Any]) -> list[Instance]:
        rows = self._rows(statement.order_by(instance.c.created_at, instance.c.seq, instance.c.id))
        return [_instance(row) for row in rows]


_DEPLOYMENT_FIELDS: Final = tuple(
    column.name for column in deployment.columns if column.name not in ("id", "generation")
)  # fmt: skip
_INSTANCE_FIELDS: Final = tuple(column.name for column in instance.columns if column.name not in ("id", "generation"))
_GONE: Final = instance.c.ended_at.is_not(None)
_OVER: Final = and_(instance.c.intent == "stop", instance.c.reason.like(f"{OUT_OF_TIME}%"))
_STATUS: Final = {
    "awaiting_allocation": and_(
        instance.c.ended_at.is_(None), instance.c.granted_at.is_(None), not_(_OVER), instance.c.phase != "hibernated"
    ),
    "hibernated": and_(instance.c.ended_at.is_(None), instance.c.phase == "hibernated"),
    "running": and_(
        instance.c.ended_at.is_(None), instance.c.granted_at.is_not(None), not_(_OVER), instance.c.phase != "hibernated"
    ),
    "terminated": or_(and_(_GONE, instance.c.phase != "failed"), and_(instance.c.ended_at.is_(None), _OVER)),
    "failed": and_(_GONE, instance.c.phase == "failed"),
}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as their columns keep them."""
    plain = dict(values)
    if plain.get("endpoint_id") == "" and "target_instance_count" in plain:
        plain["endpoint_id"] = None  # a deployment that stands alone
    for name in ("failure", "reasons"):
        if plain.get(name) is not None:
            plain[name] = to_json(plain[name])
    if "tags" in plain:
        plain["tags"] = tags_json(plain["tags"])
    return plain
