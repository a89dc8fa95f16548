"""Which node an instance goes to, or why it cannot be placed: a pure choice among nodes with free slots.

Whether an instance may run at all is its capacity's quota, which was decided before: only granted instances come here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nanopod.model.capacity import Node


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node with the number of its slots that are taken."""

    node: Node
    used: int

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
    sku_id: str, candidates: Sequence[Candidate], avoid: Mapping[str, int] | None = None, near: Collection[str] = ()
) -> Placement:
    """The node for one more instance of a SKU: fewest recent failures there, one of `near`, most free slots, lowest id.

    `sku_id` "" goes to any kind of node. `avoid` counts failed starts per node id; `near` are nodes that run what the
    instance replaces: what it is made of is there already.
    """
    failures = avoid or {}
    if not candidates:
        return Placement(None, ("no node has joined yet",))
    fitting = [c for c in candidates if not sku_id or c.node.sku_id == sku_id]
    if not fitting:
        return Placement(None, (f"there is no node of its kind ({sku_id})",))
    found: list[Candidate] = []
    reasons: list[str] = []
    for candidate in fitting:
        if reason := refusal(sku_id, candidate):
            reasons.append(f"{candidate.node.node_id}: {reason}")
        else:
            found.append(candidate)
    if not found:
        return Placement(None, tuple(reasons))
    best = min(
        found, key=lambda c: (failures.get(c.node.node_id, 0), c.node.node_id not in near, -c.free, c.node.node_id)
    )
    return Placement(best.node.node_id, (f"{best.node.node_id}: {best.free} of {best.node.slots} slots free",))


def refusal(sku_id: str, candidate: Candidate) -> str:
    """Why this node cannot take one more instance of the SKU; empty when it can."""
    node = candidate.node
    if sku_id and node.sku_id != sku_id:
        return f"is of another kind ({node.sku_id})"
    if node.state != "up":
        return f"is {node.state}"
    if candidate.free <= 0:
        return f"all {node.slots} slots are taken"
    return ""
