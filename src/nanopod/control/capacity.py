"""Machines: who is there, and what their coming and going means to the market.

A machine's nodes belong to the provider of the cluster's own hardware; each of their places is time that it sells. So
whoever writes down that nodes came, went or changed lets the desk know in the same transaction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from nanopod.control.instance import wake_waiting
from nanopod.control.live import Live
from nanopod.control.observe import observe_machine
from nanopod.control.ports import Clock, Plan, Reads, Writes
from nanopod.model.capacity import Node, Sku
from nanopod.model.wire import AgentHello

if TYPE_CHECKING:
    from nanopod.control.market.desk import Desk

UNREACHABLE_S: Final = 10.0
"""A machine whose agent has been unlinked for this long gets no new instances."""
LOST_S: Final = 60.0
"""Unlinked for this long it is given up: its leases are over and whatever still runs there is fenced. A linked one that
says nothing for this long gets no new instances."""
PROVIDER: Final = "local-node"
"""The provider of the nodes of agents."""
TEST_CLOCK: Final = "test_clock_now"
"""The setting that holds the time of a cluster with a test clock."""


class MachineWrites(Writes, Protocol):
    """A transaction in which nodes are written."""

    def put_sku(self, value: Sku) -> None: ...
    def put_node(
        self, value: Node, boot_id: str, version: str, inventory: dict[str, Any], now: float, provider_id: str = ""
    ) -> None: ...


def register_machine(write: MachineWrites, desk: Desk, hello: AgentHello, now: float, at: float | None = None) -> None:
    """An agent introduced its machine: write its nodes and instances down, put its time on sale, wake whom it concerns.

    `now` is wall time, `at` the cluster's; without `at` it is wall time, or that of the test clock if there is one.
    """
    if at is None:
        frozen = write.setting(TEST_CLOCK)
        at = float(frozen) if frozen else now
    own = next((p.provider_id for p in write.providers() if p.name == PROVIDER), "")
    before = [node for node in write.nodes() if node.machine_id == hello.machine_id]
    sellers = {node.node_id: node.provider_id for node in before}
    with desk.session(write, at) as market:
        for sku in hello.skus:
            write.put_sku(sku)
        for node in hello.nodes:
            seller = sellers.get(node.node_id) or own
            write.put_node(node, hello.boot_id, hello.version, hello.inventory, now, seller)
        observe_machine(write, hello.machine_id, hello.instances, now)
        for sku_id in kinds_of([*before, *hello.nodes]):
            market.supply_changed(sku_id)
    write.signal("machine", hello.machine_id, now)
    wake_homeless(write, now)
    wake_waiting(write, now)


def wake_homeless(write: Writes, now: float) -> None:
    """Nodes came or went: deployments of endpoints whose kind of node is not there look for one again."""
    up = {node.sku_id for node in write.nodes() if node.state == "up"}
    for deployment in write.deployments():
        if deployment.endpoint_id and deployment.sku_id not in up:
            write.signal("deployment", deployment.deployment_id, now)
    for instance in write.instances_live():
        if instance.granted_at is None and instance.intent == "run":
            write.signal("instance", instance.instance_id, now)


@dataclass(frozen=True, slots=True)
class MachineSnapshot:
    """A machine's nodes and when its agent spoke last."""

    machine_id: str
    nodes: Sequence[Node]
    linked: bool
    seen_at: float
    instances: tuple[str, ...]


@dataclass(frozen=True)
class MachinePlan(Plan):
    """The state its nodes should have. Durable: what they sell is refunded or sold again with it."""

    durable: ClassVar[bool] = True

    snapshot: MachineSnapshot | None = None
    state: str = "up"


class MachineReconciler:
    """Judges silence: first no new work, then given up."""

    kind = "machine"

    def __init__(self, live: Live, started_at: float, desk: Desk, clock: Clock) -> None:
        self._live = live
        self._started_at = started_at
        self._desk = desk
        self._clock = clock
        """The cluster's: what the market goes by. Silence is wall time."""

    def observe(self, read: Reads, key: str) -> MachineSnapshot | None:
        """The machine's nodes; None when it has none."""
        nodes = [node for node in read.nodes() if node.machine_id == key]
        if not nodes:
            return None
        # What was before this process started says nothing about the machine: it could not have been heard.
        seen_at = max(self._started_at, *(node.seen_at for node in nodes), self._live.machines.get(key, 0.0))
        return MachineSnapshot(
            key,
            nodes,
            key in self._live.machines,
            seen_at,
            tuple(i.instance_id for i in read.instances_on(key)),
        )

    def plan(self, snapshot: MachineSnapshot, now: float) -> MachinePlan:
        """Up, unreachable or lost."""
        silent_s = now - snapshot.seen_at
        # An open link proves that the agent lives, however long a busy or suspended machine kept it silent.
        unreachable_s, lost_s = (LOST_S, math.inf) if snapshot.linked else (UNREACHABLE_S, LOST_S)
        state = "lost" if silent_s >= lost_s else "unreachable" if silent_s >= unreachable_s else "up"
        current = snapshot.nodes[0].state
        if current == "draining" and state == "up":
            state = "draining"
        wait_s = {"up": unreachable_s, "draining": unreachable_s, "unreachable": lost_s}.get(state, math.inf)
        recheck_s = None if wait_s == math.inf else max(0.5, wait_s - silent_s)
        changed = any(node.state != state for node in snapshot.nodes)
        said = (f"{current} -> {state}: its agent was last heard {silent_s:.0f} s ago",) if changed else ()
        return MachinePlan(said, changed, recheck_s, snapshot, state)

    def commit(self, plan: MachinePlan, write: Writes, now: float) -> None:
        """Write the state and what it means to the market; wake its instances when it is lost."""
        assert plan.snapshot is not None
        nodes = plan.snapshot.nodes
        with self._desk.session(write, self._clock()) as market:
            for node in nodes:
                write.set_node_state(node.node_id, plan.state)
            for sku_id in kinds_of(nodes):
                market.supply_changed(sku_id)
        if plan.state == "lost":
            gone = {node.node_id for node in nodes}
            asleep = [one.instance_id for one in write.instances_live() if not one.node_id and one.home in gone]
            for instance_id in [*plan.snapshot.instances, *asleep]:
                write.signal("instance", instance_id, now)
        wake_homeless(write, now)
        wake_waiting(write, now)

    def applied(self, plan: MachinePlan) -> None:
        """Nothing is kept in memory."""


def kinds_of(nodes: Iterable[Node]) -> list[str]:
    """The SKUs of nodes, each once, in order."""
    return list(dict.fromkeys(node.sku_id for node in nodes))
