"""Capacities and nodes: who is there, and how much time on them is granted.

Until there is a market, the cluster's own nodes are granted to every market capacity without a price: as many nodes of
each kind as are here, open-ended. The schedule is a real one, and instances count against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nanopod.control.instance import wake_waiting
from nanopod.control.live import Live
from nanopod.control.ports import Plan, Reads, Writes
from nanopod.model.capacity import Capacity, Node
from nanopod.model.schedule import BLOCK_S, Entry, Schedule, Window

HISTORY_S: Final = 24 * 3600
UNREACHABLE_S: Final = 10.0
"""A machine whose agent has been unlinked for this long gets no new instances."""
LOST_S: Final = 60.0
"""Unlinked for this long it is given up: its leases are over and whatever still runs there is fenced. A linked one that
says nothing for this long gets no new instances."""


@dataclass(frozen=True, slots=True)
class CapacitySnapshot:
    """A capacity and all nodes."""

    capacity: Capacity
    nodes: Sequence[Node]


@dataclass(frozen=True)
class CapacityPlan(Plan):
    """The schedules it should have."""

    snapshot: CapacitySnapshot | None = None
    by_sku: dict[str, Schedule] = field(default_factory=dict)


class CapacityReconciler:
    """Grants the cluster's own nodes."""

    kind = "capacity"

    def observe(self, read: Reads, key: str) -> CapacitySnapshot | None:
        """The capacity with all nodes; None for one that does not hold time by itself."""
        capacity = read.capacity(key)
        if capacity is None or capacity.kind != "market":
            return None
        return CapacitySnapshot(capacity, read.nodes())

    def plan(self, snapshot: CapacitySnapshot, now: float) -> CapacityPlan:
        """As many nodes of each kind as there are."""
        counts: dict[str, int] = {}
        for node in snapshot.nodes:
            counts[node.sku_id] = counts.get(node.sku_id, 0) + (node.state != "lost")
        wanted = dict(snapshot.capacity.by_sku)
        said: list[str] = []
        for sku_id in sorted({*counts, *wanted}):
            schedule, count = wanted.get(sku_id, Schedule()), counts.get(sku_id, 0)
            if schedule.nodes_at(now) != count or schedule.next_change(now) is not None:
                wanted[sku_id] = from_now_on(schedule, count, now)
                said.append(f"{count} nodes of {sku_id} from now on")
        return CapacityPlan(tuple(said), bool(said), None, snapshot, wanted)

    def commit(self, plan: CapacityPlan, write: Writes, now: float) -> None:
        """Write the schedules; wake instances that wait for room."""
        assert plan.snapshot is not None
        write.set_capacity_schedules(plan.snapshot.capacity, plan.by_sku, now)
        wake_waiting(write, now)

    def applied(self, plan: CapacityPlan) -> None:
        """Nothing is kept in memory."""


def from_now_on(schedule: Schedule, count: int, now: float) -> Schedule:
    """What was until the present block, then `count` nodes without an end."""
    start = math.floor(now / BLOCK_S) * BLOCK_S
    kept: list[Entry] = []
    for entry in schedule.entries:
        end = entry.window.end_at
        if entry.window.start_at >= start or (end is not None and end <= now - HISTORY_S):
            continue
        kept.append(Entry(Window(entry.window.start_at, start if end is None else min(end, start)), entry.node_count))
    return Schedule.of([*kept, Entry(Window(start, None), count)])


@dataclass(frozen=True, slots=True)
class MachineSnapshot:
    """A machine's nodes and when its agent spoke last."""

    machine_id: str
    nodes: Sequence[Node]
    linked: bool
    seen_at: float
    instances: tuple[str, ...]
    capacities: tuple[str, ...]


@dataclass(frozen=True)
class MachinePlan(Plan):
    """The state its nodes should have."""

    snapshot: MachineSnapshot | None = None
    state: str = "up"


class MachineReconciler:
    """Judges silence: first no new work, then given up."""

    kind = "machine"

    def __init__(self, live: Live, started_at: float) -> None:
        self._live = live
        self._started_at = started_at

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
            tuple(c.capacity_id for c in read.capacities()),
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
        """Write the state; wake capacities and, when it is lost, its instances."""
        assert plan.snapshot is not None
        for node in plan.snapshot.nodes:
            write.set_node_state(node.node_id, plan.state)
        for capacity_id in plan.snapshot.capacities:
            write.signal("capacity", capacity_id, now)
        if plan.state == "lost":
            for instance_id in plan.snapshot.instances:
                write.signal("instance", instance_id, now)
        wake_waiting(write, now)

    def applied(self, plan: MachinePlan) -> None:
        """Nothing is kept in memory."""
