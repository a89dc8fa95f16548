"""Hardware kinds, the nodes that are of them, and the capacities that hold time on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nanopod.model.schedule import Schedule

Lifecycle = Literal["stable", "deprecated", "deleted"]
LatencyClass = Literal["lan", "wan"]
"""`wan`: reached over a link a partner dialled; takes latency-tolerant work only."""


@dataclass(frozen=True, slots=True)
class Sku:
    """A kind of node. All nodes of one SKU are interchangeable; equal properties are the same SKU.

    `memory` and `local_storage` are bytes; `max_watts` is the cap at the wall, 0 where nobody caps it.
    """

    sku_id: str
    alias: str
    accelerator: str = "none"
    num_accelerators: int = 0
    accelerator_memory: int = 0
    num_vcpus: int = 0
    memory: int = 0
    local_storage: int = 0
    region: str = "local"
    availability_zone: str = "local-a"
    form_factor: str = "none"
    rdma_type: str = "none"
    provider: str = "local"
    federated: bool = False
    max_watts: int = 0
    supports_public_ipv4: bool = False
    latency_class: LatencyClass = "lan"


@dataclass(frozen=True, slots=True)
class SkuLife:
    """What the operator says of a kind of node; none of it is a property, so its id stays. Unix seconds.

    `alias` replaces the name that its nodes give it. Of a deprecated one only who has it buys more; a deleted one is
    over.
    """

    alias: str = ""
    lifecycle: Lifecycle = "stable"
    audience_hint: str = ""
    deprecated_at: float | None = None
    deleted_at: float | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a machine that runs instances of one SKU.

    `slots` is how many instances fit at once; the market counts each of these places as one node.
    """

    node_id: str
    machine_id: str
    sku_id: str
    slots: int
    state: Literal["up", "draining", "unreachable", "lost"] = "up"
    seen_at: float = 0.0
    provider_id: str = ""
    """Who sells its time; filled in by the server."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Time on nodes that a workspace holds: one schedule per SKU.

    `market` capacities belong to users, `originating` ones to providers, `read_only` ones to the system. `by_sku` is
    what it owns from the present block on; a stored row alone does not know it (the books do).
    """

    capacity_id: str
    workspace_id: str
    name: str
    kind: Literal["market", "originating", "read_only"] = "market"
    by_sku: Mapping[str, Schedule] = field(default_factory=dict)
    generation: int = 0
    account_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0

    def total(self) -> Schedule:
        """The sum over all SKUs."""
        whole = Schedule()
        for schedule in self.by_sku.values():
            whole = whole.plus(schedule)
        return whole
