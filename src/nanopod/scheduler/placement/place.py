"""Which node an instance goes to, or why it cannot be placed: a pure choice among nodes with free slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanopod.model.capacity import Capacity, Node


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node with the number of its slots that are taken, and by which capacities."""

    node: Node
    used: int
    holders: frozenset[str] = frozenset()

    @property
    def free(self) -> int:
        """Slots that are left."""
        return self.node.slots - self.used


@dataclass(frozen=True, slots=True)
class Placement:
    """`node_id`, or None with the reason for each node (or one for all)."""

    node_id: str | None
    reasons: tuple[str, ...]


def place(
    capacity: Capacity, candidates: Sequence[Candidate], now: float, avoid: Mapping[str, int] | None = None
) -> Placement:
    """The node for one more instance of `capacity`: fewest recent failures there, most free slots, then lowest id.

    A capacity may use as many nodes of a SKU at once as its schedule holds at `now`; a node it uses already costs it
    nothing more. `avoid` counts failed starts per node id.
    """
    failures = avoid or {}
    found: list[Candidate] = []
    reasons: list[str] = []
    for candidate in candidates:
        if reason := refusal(capacity, candidate, candidates, now):
            reasons.append(f"{candidate.node.node_id}: {reason}")
        else:
            found.append(candidate)
    if not candidates:
        return Placement(None, ("no node has joined yet",))
    if not found:
        return Placement(None, tuple(reasons))
    best = min(found, key=lambda c: (failures.get(c.node.node_id, 0), -c.free, c.node.node_id))
    return Placement(best.node.node_id, (f"{best.node.node_id}: {best.free} of {best.node.slots} slots free",))


def refusal(capacity: Capacity, candidate: Candidate, candidates: Sequence[Candidate], now: float) -> str:
    """Why this node cannot take one more instance of the capacity; empty when it can. `candidates`: all nodes."""
    node = candidate.node
    if node.state != "up":
        return f"is {node.state}"
    if candidate.free <= 0:
        return f"all {node.slots} slots are taken"
    schedule = capacity.by_sku.get(node.sku_id)
    held = schedule.nodes_at(now) if schedule is not None else 0
    if capacity.capacity_id in candidate.holders:
        return ""
    in_use = sum(1 for c in candidates if c.node.sku_id == node.sku_id and capacity.capacity_id in c.holders)
    if in_use >= held:
        return f"capacity {capacity.name} holds {held} nodes of its kind now, all in use"
    return ""
