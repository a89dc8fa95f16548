"""SKUs, nodes and capacities in a transaction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, select, update

from nanopod.model.capacity import Capacity, Node, Sku, SkuLife
from nanopod.store.base import Base, tags_json, tags_of, to_json
from nanopod.store.schema import capacity, node, sku

_sku: Final = msgspec.json.Decoder(Sku).decode
_life: Final = msgspec.json.Decoder(SkuLife).decode
_inventory: Final = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of a node beyond what decisions need."""

    node: Node
    boot_id: str
    version: str
    inventory: dict[str, Any]
    created_at: float


def _sku_of(row: Row[Any]) -> Sku:
    found = _sku(row.properties)
    alias = _life(row.life).alias if row.life else ""
    return replace(found, alias=alias) if alias else found


def _node(row: Row[Any]) -> Node:
    return Node(row.id, row.machine_id, row.sku_id, row.slots, row.state, row.seen_at, row.provider_id)


def _capacity(row: Row[Any]) -> Capacity:
    return Capacity(
        row.id, row.workspace_id, row.name, row.kind, {}, row.generation, row.account_id, tags_of(row.tags),
        row.created_at, row.updated_at,
    )  # fmt: skip


class NodeRows(Base):
    """Reads and writes of hardware and of the time that is held on it."""

    def skus(self) -> list[Sku]:
        """Every kind of node that was ever seen here."""
        found = map(_sku_of, self._rows_all(sku))
        return sorted(found, key=lambda one: (one.alias, one.sku_id))

    def sku(self, sku_id: str) -> Sku | None:
        """One kind of node."""
        row = self._row(sku, id=sku_id)
        return _sku_of(row) if row else None

    def sku_lives(self) -> dict[str, SkuLife]:
        """What the operator said of kinds of nodes; those of which nothing was said are not in it."""
        return {id: _life(life) for id, life in self._every("SELECT id, life FROM sku WHERE life <> ''")}

    def set_sku_life(self, sku_id: str, life: SkuLife) -> None:
        """Keep what the operator says of a kind of node; its nodes do not change it when they join again."""
        self._update(sku, sku_id, life=to_json(life))

    def put_sku(self, value: Sku) -> None:
        """Add or refresh a kind of node."""
        self._upsert(sku, {"id": value.sku_id}, {"alias": value.alias, "properties": to_json(value)})

    def nodes(self) -> list[Node]:
        """Every node, in the order they came."""
        return [_node(row) for row in self._rows(select(node).order_by(node.c.created_at, node.c.id))]

    def node_facts(self) -> list[NodeFacts]:
        """Every node with what is shown of it."""
        return [
            NodeFacts(_node(row), row.boot_id, row.version, _inventory(row.inventory), row.created_at)
            for row in self._rows(select(node).order_by(node.c.created_at, node.c.id))
        ]

    def node(self, node_id: str) -> Node | None:
        """One node."""
        row = self._row(node, id=node_id)
        return _node(row) if row else None

    def put_node(
        self, value: Node, boot_id: str, version: str, inventory: dict[str, Any], now: float, provider_id: str = ""
    ) -> None:
        """Add a node, or refresh what its agent says about it. Without a `provider_id` a node keeps the one it has."""
        values = {
            "machine_id": value.machine_id,
            "sku_id": value.sku_id,
            "slots": value.slots,
            "state": value.state,
            "seen_at": now,
            "boot_id": boot_id,
            "version": version,
            "inventory": to_json(inventory),
        }
        seller = provider_id or value.provider_id
        if seller:
            values["provider_id"] = seller
        self._upsert(node, {"id": value.node_id}, values, created_at=now)

    def see_machine(self, machine_id: str, now: float) -> None:
        """The machine's agent gave a sign of life."""
        self.connection.execute(update(node).where(node.c.machine_id == machine_id), {"seen_at": now})

    def set_node_provider(self, node_id: str, provider_id: str) -> None:
        """Record who sells the node's time."""
        self._update(node, node_id, provider_id=provider_id)

    def set_node_state(self, node_id: str, state: str) -> None:
        """Record whether the node can be used."""
        self._update(node, node_id, state=state)

    def capacity(self, capacity_id: str) -> Capacity | None:
        """One capacity."""
        row = self._row(capacity, id=capacity_id)
        return _capacity(row) if row else None

    def capacity_named(self, workspace_id: str, reference: str) -> Capacity | None:
        """A capacity of a workspace by id or name."""
        row = self._row(capacity, workspace_id=workspace_id, name=reference)
        if row is None:
            row = self._row(capacity, workspace_id=workspace_id, id=reference)
        return _capacity(row) if row else None

    def capacities(self, workspace_id: str | None = None) -> list[Capacity]:
        """Capacities, oldest first."""
        statement: Select[Any] = select(capacity).order_by(capacity.c.created_at, capacity.c.id)
        if workspace_id is not None:
            statement = statement.where(capacity.c.workspace_id == workspace_id)
        return [_capacity(row) for row in self._rows(statement)]

    def add_capacity(self, value: Capacity, now: float | None = None) -> None:
        """A new capacity, made `now` or when it says. What it holds is in the books, not in its row."""
        made_at = value.created_at if now is None else now
        self._insert(
            capacity,
            id=value.capacity_id,
            workspace_id=value.workspace_id,
            name=value.name,
            kind=value.kind,
            account_id=value.account_id,
            tags=tags_json(value.tags),
            created_at=made_at,
            updated_at=made_at,
        )

    def set_capacity(self, seen: Capacity, **columns: Any) -> None:
        """Change fields of a capacity that still is as it was `seen`; raises `Conflict` if not."""
        if "tags" in columns:
            columns["tags"] = tags_json(columns["tags"])
        self._guarded(capacity, seen.capacity_id, seen.generation, **columns)

    def delete_capacity(self, capacity_id: str) -> None:
        """Forget a capacity."""
        self.connection.execute(delete(capacity).where(capacity.c.id == capacity_id))
