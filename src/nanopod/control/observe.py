"""What agents report, written down: the phases of instances, and which of them a machine no longer knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanopod.control.ports import Writes
from nanopod.model.chain import Instance
from nanopod.model.endpoint import Failure, ObservedInstance


def observe_machine(write: Writes, machine_id: str, seen: Sequence[ObservedInstance], now: float) -> int:
    """Take in the whole truth of a machine; how many of its instances changed.

    Reports about an older epoch are of no interest: that start is already known to be over. An instance that the agent
    had acknowledged and no longer names is over, too.
    """
    reported = {observed.instance_id: observed for observed in seen}
    changed = 0
    for instance in write.instances_on(machine_id):
        values = _changes(instance, reported.get(instance.instance_id), now)
        if values:
            changed += 1
            write.set_instance(instance, **values)
            write.signal("instance", instance.instance_id, now)
            if instance.endpoint_id:
                write.signal("endpoint", instance.endpoint_id, now)
    if changed:
        write.hint("tables")
    return changed


def _never_told(instance: Instance, now: float) -> bool:
    """Of a start that is wanted no more and that no agent has acknowledged: whether no agent ever will.

    One that was still to come was told to nobody. One that is to stop for good may be over a moment early: should its
    agent have begun it, it ends it as nobody wants it, and its worker is fenced.
    """
    return instance.intent == "stop" or instance.not_before > now


def _changes(instance: Instance, seen: ObservedInstance | None, now: float) -> dict[str, Any]:
    """Columns that differ from the report."""
    if instance.phase in ("ended", "failed"):
        return {}  # this epoch is over, whatever is said about it later
    if seen is None or seen.epoch < instance.epoch:
        if instance.phase == "queued" and (instance.intent == "run" or not _never_told(instance, now)):
            return {}  # not acknowledged yet: the agent cannot know it
        if instance.intent != "run":
            return {"phase": "ended", "pid": None}
        failure = Failure("run", "its agent no longer knows it", user_fault=False)
        return {"phase": "failed", "pid": None, "failure": failure, "reason": failure.message}
    if seen.epoch > instance.epoch:
        return {}
    found: dict[str, Any] = {
        "phase": seen.phase,
        "pid": seen.pid,
        "exit_code": seen.exit_code if seen.signal is None else -seen.signal,
        "reason": seen.reason,
    }
    if instance.intent != "run" and instance.reason:
        del found["reason"]  # why it was told to stop says more than how it stops
    if seen.failure is not None:
        found["failure"] = seen.failure
    return {name: value for name, value in found.items() if getattr(instance, name) != value}
