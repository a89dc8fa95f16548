"""The workers of a revision as the autoscaler's planner sees them, and what its actions mean for their rows: pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nanopod.control.starts import Starts
from nanopod.model.chain import Instance
from nanopod.scheduler.autoscale.replan import PAID_S, replan
from nanopod.scheduler.autoscale.values import Phase, Replica

_PHASES: Final[Mapping[str, Phase]] = {
    "queued": "provisioning", "preparing": "provisioning", "starting": "loading", "loading": "loading",
}  # fmt: skip
UNGRANTED_S: Final = 60.0
"""One that awaits allocation is taken to be so much further from ready than one that has its time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the plan for a revision's workers depends on beside their rows."""

    ready: Collection[str] = ()
    in_flight: Mapping[str, int] = field(default_factory=dict)
    starts: Starts = field(default_factory=Starts)
    waiting: bool = False
    price: float = 0.0
    """What a second of one costs; where it costs nothing no paid minute is waited for."""
    block_end: float = 0.0
    """When the time ends that is paid for."""
    until: Mapping[str, float] = field(default_factory=dict)
    """{instance: when it is to be taken, by an earlier plan}"""


@dataclass(slots=True)
class Moves:
    """What is to be done to the workers of one revision."""

    make: int = 0
    fill: int = 0
    """To be made and hibernated."""
    wake: list[Instance] = field(default_factory=list)
    keep: list[Instance] = field(default_factory=list)
    """Were to be hibernated when they are ready, and are needed."""
    stop: list[Instance] = field(default_factory=list)
    hibernate: list[Instance] = field(default_factory=list)
    later: dict[str, float] = field(default_factory=dict)
    """{instance: when it is taken if nothing else happens}"""
    why: list[str] = field(default_factory=list)


def replica_of(instance: Instance, facts: Facts, now: float) -> Replica:
    """One worker as the planner sees it."""
    ready = instance.instance_id in facts.ready
    eta_s = 0.0
    if instance.phase == "hibernated":
        phase: Phase = "cold"
        eta_s = facts.starts.median_s("wake")
    elif instance.intent == "hibernate":
        phase = "hibernating"
    elif ready or instance.ready_at is not None:
        # One whose link broke a moment ago is nobody to replace.
        phase = "ready"
    else:
        phase = "waking" if instance.start_kind == "wake" else _PHASES.get(instance.phase, "provisioning")
        eta_s = facts.starts.remaining_s(instance, now) + (UNGRANTED_S if instance.granted_at is None else 0.0)
    return Replica(
        id=instance.instance_id,
        phase=phase,
        in_flight=facts.in_flight.get(instance.instance_id, 0),
        price=facts.price,
        born_at=facts.block_end - PAID_S,
        eta_s=eta_s,
        leaving=bool(instance.warned) and instance.intent == "run",
        reclaimed=bool(instance.warned),
        until=facts.until.get(instance.instance_id),
        filling=instance.start_kind == "fill" and instance.intent == "run",
    )


def moves(desired: int, cold: int, instances: Sequence[Instance], facts: Facts, now: float) -> Moves:
    """What brings the workers of a revision to `desired` hot and `cold` hibernated ones."""
    by_id = {one.instance_id: one for one in instances if one.intent != "stop"}
    found = Moves()
    actions = replan(desired, cold, [replica_of(one, facts, now) for one in by_id.values()], now, facts.waiting)
    for action in actions:
        one = by_id.get(action.id)
        if action.kind == "provision":
            found.make += 1
        elif action.kind == "fill":
            found.fill += 1
        elif one is None:
            continue
        elif action.kind == "wake":
            found.wake.append(one)
        elif action.kind == "keep" and one.start_kind == "fill":
            found.keep.append(one)
        elif action.kind == "cancel" and action.then == "hibernate":
            found.hibernate.append(one)
        elif action.kind in ("cancel", "trim"):
            found.stop.append(one)
        elif action.kind == "drain" and action.at > now and facts.price > 0:
            found.later[one.instance_id] = facts.block_end
        elif action.kind == "drain":
            (found.hibernate if action.then == "hibernate" else found.stop).append(one)
    for one in by_id.values():
        filled = one.start_kind == "fill" and one.intent == "run" and one.instance_id in facts.ready
        if filled and one not in found.keep:
            found.hibernate.append(one)
    return found
