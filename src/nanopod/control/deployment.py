"""Deployments: as many instances of the wanted revision as the target says, replaced without a gap on an update.

An update starts the new instances first; each one that becomes ready lets one old instance go, idle ones first. Where
there is no room for both, one old instance makes room at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nanopod.control.endpoint import slots_of
from nanopod.control.live import Live
from nanopod.control.ports import NewId, Plan, Reads, Writes
from nanopod.model.chain import Deployment, Instance, Revision

MAKE_MAX: Final = 100
"""Instances made in one transaction."""


@dataclass(frozen=True, slots=True)
class DeploymentSnapshot:
    """A deployment with its instances and what their links say."""

    deployment: Deployment
    revision: Revision
    instances: Sequence[Instance]
    ready: frozenset[str] = frozenset()
    in_flight: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class DeploymentPlan(Plan):
    """Instances to make and to stop."""

    snapshot: DeploymentSnapshot | None = None
    make: int = 0
    stop: tuple[Instance, ...] = ()
    why: tuple[str, ...] = ()


class DeploymentReconciler:
    """Makes and stops instances."""

    kind = "deployment"

    def __init__(self, live: Live, new_id: NewId) -> None:
        self._live = live
        self._new_id = new_id

    def observe(self, read: Reads, key: str) -> DeploymentSnapshot | None:
        """The deployment, the revision it runs and its instances."""
        deployment = read.deployment(key)
        revision = read.revision(deployment.revision_id) if deployment else None
        if deployment is None or revision is None:
            return None
        instances = read.instances_of(deployment.endpoint_id)
        return DeploymentSnapshot(
            deployment,
            revision,
            instances,
            ready=frozenset(i.instance_id for i in instances if self._live.ready(i.instance_id, i.epoch)),
            in_flight=tuple((i.instance_id, self._live.in_flight(i.instance_id, i.epoch)) for i in instances),
        )

    def plan(self, snapshot: DeploymentSnapshot, now: float) -> DeploymentPlan:
        """How many to make, which to stop."""
        deployment = snapshot.deployment
        target = deployment.target_instance_count
        running = [i for i in snapshot.instances if i.intent == "run"]
        current = [i for i in running if i.revision_id == deployment.revision_id]
        old = [i for i in running if i.revision_id != deployment.revision_id]
        stop: list[Instance] = []
        why: list[str] = []
        if target == 0:
            stop = running
            if stop:
                why.append(f"stops {len(stop)}: the target is 0")
        elif surplus := max(0, len(current) - target):
            stop = _least_missed(current, snapshot)[:surplus]
            why.append(f"stops {surplus} of {len(current)}: the target is {target}")
        if target > 0 and old:
            stop += self._replaced(snapshot, current, old, target, why)
        missing = max(0, min(MAKE_MAX, target - len(current)))
        recheck_s = None
        if missing and now < deployment.not_before:
            recheck_s = deployment.not_before - now
            why.append(f"{missing} missing, tries again in {recheck_s:.1f} s after {deployment.fails} failed starts")
            missing = 0
        elif missing and deployment.fails:
            missing = 1  # one at a time until a start succeeds
        if missing:
            why.append(f"makes {missing}: {len(current)} of {target}")
        decided = tuple(why)
        acts = bool(missing or stop)
        changes = acts or decided != deployment.reasons
        return DeploymentPlan(decided if acts else (), changes, recheck_s, snapshot, missing, tuple(stop), decided)

    def _replaced(
        self,
        snapshot: DeploymentSnapshot,
        current: Sequence[Instance],
        old: Sequence[Instance],
        target: int,
        why: list[str],
    ) -> list[Instance]:
        """Instances of earlier revisions that may go now."""
        new_ready = sum(1 for i in current if i.instance_id in snapshot.ready)
        surplus = max(0, len(old) - max(0, target - new_ready))
        if surplus:
            why.append(f"stops {surplus} of the earlier revision: {new_ready} of {target} new ones are ready")
        stopping = any(i.intent == "stop" for i in snapshot.instances)
        waits = any(i.node_id is None and i.reason for i in current)
        if not surplus and waits and not stopping:
            surplus = 1
            why.append("stops 1 of the earlier revision to make room for the new one")
        return _least_missed(old, snapshot)[:surplus]

    def commit(self, plan: DeploymentPlan, write: Writes, now: float) -> None:
        """Add and stop the instances; wake them."""
        assert plan.snapshot is not None
        deployment = plan.snapshot.deployment
        write.set_deployment(deployment, reasons=plan.why, updated_at=now)
        for reason in plan.reasons:
            write.tell("deployment", deployment.deployment_id, deployment.endpoint_id, reason, now)
        for instance in plan.stop:
            write.set_instance(instance, intent="stop")
            write.signal("instance", instance.instance_id, now)
        slots = slots_of(plan.snapshot.revision.spec)
        for _ in range(plan.make):
            instance_id = self._new_id("instance")
            write.add_instance(instance_id, deployment, deployment.revision_id, slots, now)
            write.signal("instance", instance_id, now)
        if plan.stop or plan.make:
            write.hint("tables")
        if plan.stop:
            write.hint("wanted")

    def applied(self, plan: DeploymentPlan) -> None:
        """Nothing is kept in memory."""


def _least_missed(instances: Sequence[Instance], snapshot: DeploymentSnapshot) -> list[Instance]:
    """Whom to stop first: those furthest from ready, then the least busy, then the youngest."""
    in_flight = dict(snapshot.in_flight)
    phases = ("queued", "preparing", "starting", "loading")

    def order(instance: Instance) -> tuple[bool, int, int, float, str]:
        ready = instance.instance_id in snapshot.ready
        progress = phases.index(instance.phase) if instance.phase in phases else len(phases)
        return ready, progress, in_flight.get(instance.instance_id, 0), -instance.created_at, instance.instance_id

    return sorted(instances, key=order)
