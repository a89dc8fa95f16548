"""Instances: placed on a node, started again after a crash under a new epoch, ended for good.

Every start has its own epoch, and the next one is decided only after the agent said that this one is over: two epochs
of an instance never run at once. A start that fails by the user's fault ends the instance (its deployment makes another
and the revision's failures are counted); anything else is tried again in place, then elsewhere. An instance without an
endpoint runs a script, not a worker: it is ready when its agent says so, and a crash ends it as failed.

One that is to hibernate drains like one that stops; then its row stays, without time, place or process, until it is
woken under a new epoch or its node is gone. A wake that fails ends the instance: its deployment makes a new one.

Whether an instance may run is decided by the desk (its capacity's quota); here only those it granted are placed, and
what ends is told to it in the same transaction.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from nanopod.control.live import Live
from nanopod.control.ports import Clock, Plan, Reads, Writes
from nanopod.control.telling import awaits, is_machine, owner_of, tell_instance
from nanopod.model.capacity import Node
from nanopod.model.chain import OUT_OF_TIME, Instance
from nanopod.model.endpoint import Failure
from nanopod.model.errors import Conflict
from nanopod.scheduler.placement.place import Candidate, place, refusal

if TYPE_CHECKING:
    from nanopod.control.market.desk import Desk

BACKOFF_S_MIN: Final = 1.0
BACKOFF_S_MAX: Final = 60.0
FIRST_RETRY_S: Final = 0.2
IN_PLACE_MAX: Final = 3
"""Starts on one node that may fail in a row before the instance is given up there."""
STEADY_S: Final = 10.0
"""A worker that was ready for this long starts its back-off anew."""
CRASH_BACKOFF_S_MAX: Final = 5.0
"""Longest wait after the crash of a worker that had been ready."""
ENDED_KEPT_MAX: Final = 200
"""Ended instances remembered per deployment without an endpoint."""
ROOM_RECHECK_S: Final = 5.0
QUOTA_RECHECK_S: Final = 30.0
"""A grant wakes the instance at once; this only keeps the reason of its waiting fresh."""

Step = Literal["none", "place", "wait", "restart", "ready", "hibernate", "end"]


def backoff_s(fails: int, key: str) -> float:
    """Seconds to wait after that many failures in a row: 0.2, 1, 2, 4 ... 60, within 10 % by the key's own jitter."""
    if fails <= 0:
        return 0.0
    base = FIRST_RETRY_S if fails == 1 else min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** min(fails - 2, 10))
    return base * (0.9 + 0.2 * (zlib.crc32(f"{key}/{fails}".encode()) % 1000) / 1000)


@dataclass(frozen=True, slots=True)
class InstanceSnapshot:
    """An instance with what its next step depends on."""

    instance: Instance
    node: Node | None
    candidates: Sequence[Candidate]
    """Only for an instance that is granted and not placed."""
    avoid: tuple[tuple[str, int], ...]
    """(node, failed starts of this endpoint there lately)."""
    ready: bool
    awaits: str = ""
    """Why it is not granted yet."""
    at: float = 0.0
    """The cluster's time."""
    near: frozenset[str] = frozenset()
    """Nodes with workers of another revision of its endpoint, which it may replace."""


@dataclass(frozen=True)
class InstancePlan(Plan):
    """One step of one instance. Durable: where and in which epoch it runs must never be decided twice."""

    durable: ClassVar[bool] = True

    snapshot: InstanceSnapshot | None = None
    step: Step = "none"
    node_id: str | None = None
    reason: str = ""
    failure: Failure | None = None
    blame: bool = False
    """The failure counts against the revision."""
    not_before: float = 0.0
    fails: int = 0


def candidates_of(read: Reads) -> list[Candidate]:
    """Every node with what is taken of it now."""
    used: dict[str, int] = {}
    for instance in read.instances_live():
        if instance.node_id is not None:
            used[instance.node_id] = used.get(instance.node_id, 0) + 1
    return [Candidate(node, used.get(node.node_id, 0)) for node in read.nodes()]


class InstanceReconciler:
    """Takes each instance one step on."""

    kind = "instance"

    def __init__(self, live: Live, desk: Desk, clock: Clock) -> None:
        self._live = live
        self._desk = desk
        self._clock = clock
        """The cluster's: what rows and the market show. Back-off counts the driver's time."""

    def observe(self, read: Reads, key: str) -> InstanceSnapshot | None:
        """The instance; with all nodes while it is granted and not placed."""
        instance = read.instance(key)
        if instance is None or instance.ended_at is not None:
            return None
        candidates: list[Candidate] = []
        avoid: dict[str, int] = {}
        near: set[str] = set()
        node: Node | None = None
        why = ""
        if instance.node_id is not None or instance.phase == "hibernated":
            at = instance.node_id or instance.home
            node = next((known for known in read.nodes() if known.node_id == at), None)
        elif instance.intent == "run" and instance.granted_at is None:
            why = awaits(read, instance)
        elif instance.intent == "run":
            candidates = candidates_of(read)
            near |= {instance.home} - {""}
            for other in self._siblings(read, instance):
                if other.node_id and other.phase == "failed" and other.revision_id == instance.revision_id:
                    avoid[other.node_id] = avoid.get(other.node_id, 0) + 1
                elif other.node_id and other.ended_at is None and other.revision_id != instance.revision_id:
                    near.add(other.node_id)
        linked = self._live.ready(instance.instance_id, instance.epoch)
        ready = instance.phase == "ready" if is_machine(instance) else linked
        return InstanceSnapshot(
            instance, node, candidates, tuple(sorted(avoid.items())), ready, why, self._clock(), frozenset(near)
        )  # fmt: skip

    def _siblings(self, read: Reads, instance: Instance) -> list[Instance]:
        """Instances of the same owner, those that are gone as well."""
        if instance.endpoint_id:
            return read.instances_of(instance.endpoint_id, ended=True)
        if instance.deployment_id:
            return read.instances_of_deployment(instance.deployment_id, ended=True)
        return []

    def plan(self, snapshot: InstanceSnapshot, now: float) -> InstancePlan:
        """The next step."""
        instance = snapshot.instance
        lost = snapshot.node is not None and snapshot.node.state == "lost"
        over = instance.phase in ("ended", "failed")
        if instance.intent == "hibernate":
            return self._plan_hibernation(snapshot, lost, over)
        if instance.intent == "stop":
            if instance.node_id is None or over or lost:
                reason = "its node is lost" if lost else instance.reason or "stopped as asked"
                return InstancePlan((reason,), True, None, snapshot, "end", reason=reason)
            return InstancePlan(snapshot=snapshot)
        if instance.node_id is None:
            return self._place(snapshot, now)
        if lost:
            failure = Failure("run", f"node {instance.node_id} is lost", user_fault=False)
            return InstancePlan(
                (failure.message,), True, None, snapshot, "end", reason=failure.message, failure=failure
            )
        if over:
            return self._after_failure(snapshot, now)
        if snapshot.ready and instance.ready_at is None:
            took_s = snapshot.at - instance.created_at if instance.epoch == 1 else now - instance.not_before
            if instance.start_kind == "wake" and instance.start_at is not None:
                took_s = now - instance.start_at
            return InstancePlan((f"ready after {took_s:.2f} s",), True, None, snapshot, "ready")
        return InstancePlan(snapshot=snapshot)

    def _plan_hibernation(self, snapshot: InstanceSnapshot, lost: bool, over: bool) -> InstancePlan:
        """The next step of one that is to hibernate, or does."""
        instance = snapshot.instance
        reason = ""
        if instance.phase == "hibernated":
            if snapshot.node is None or lost:
                reason = "the node that it would be woken on is gone"
        elif instance.node_id is None and instance.start_kind == "wake":
            return InstancePlan(("hibernated again: its wake was taken back",), True, None, snapshot, "hibernate")
        elif instance.node_id is None:
            reason = "it has nothing to keep: it never ran"
        elif lost:
            reason = "its node is lost"
        elif over and (instance.phase == "failed" or (instance.ready_at is None and instance.start_kind != "wake")):
            reason = instance.reason or "it never was ready"
        elif over:
            return InstancePlan(("hibernated",), True, None, snapshot, "hibernate")
        if not reason:
            return InstancePlan(snapshot=snapshot)
        return InstancePlan((reason,), True, None, snapshot, "end", reason=reason)

    def _place(self, snapshot: InstanceSnapshot, now: float) -> InstancePlan:
        instance = snapshot.instance
        if instance.granted_at is None:
            known = snapshot.awaits == instance.reason
            why = snapshot.awaits
            return InstancePlan((why,), not known, QUOTA_RECHECK_S, snapshot, "wait", reason=why)
        placement = place(instance.sku_id, snapshot.candidates, dict(snapshot.avoid), snapshot.near)
        reason = "; ".join(placement.reasons)
        if placement.node_id is None:
            known = reason == instance.reason
            return InstancePlan(
                (f"waits for room: {reason}",), not known, ROOM_RECHECK_S, snapshot, "wait", reason=reason
            )
        return InstancePlan((f"placed on {reason}",), True, None, snapshot, "place", node_id=placement.node_id)

    def _after_failure(self, snapshot: InstanceSnapshot, now: float) -> InstancePlan:
        """The agent said that this epoch is over although the instance shall run."""
        instance = snapshot.instance
        if is_machine(instance) and instance.phase == "ended" and instance.exit_code == 0:
            return InstancePlan(("done",), True, None, snapshot, "end", reason="done")  # its one command went well
        failure = instance.failure or Failure(
            "run", instance.reason or f"the worker ended (exit code {instance.exit_code})", user_fault=False
        )
        never_ready = instance.ready_at is None
        if failure.user_fault and never_ready:
            said = f"failed at {failure.stage}: {failure.message}"
            return InstancePlan((said,), True, None, snapshot, "end", reason=said, failure=failure, blame=True)
        if is_machine(instance) and not never_ready:
            said = f"failed: {failure.message}"
            return InstancePlan((said,), True, None, snapshot, "end", reason=said, failure=failure)
        if never_ready and instance.start_kind == "wake":
            said = f"could not be woken: {failure.message}"
            return InstancePlan((said,), True, None, snapshot, "end", reason=said, failure=failure)
        if never_ready:
            fails = instance.fails + 1
            wait_s = backoff_s(fails, instance.instance_id)
            if fails > IN_PLACE_MAX:
                said = f"given up on this node after {fails} starts: {failure.message}"
                return InstancePlan((said,), True, None, snapshot, "end", reason=said, failure=failure)
        else:
            # The first crash in a while is made good at once; one that crashes again and again must not spin.
            assert instance.ready_at is not None
            fails = instance.fails + 1 if now - instance.ready_at < STEADY_S else 0
            wait_s = min(CRASH_BACKOFF_S_MAX, backoff_s(fails - 1, instance.instance_id))
        said = f"starts again as epoch {instance.epoch + 1} in {wait_s:.1f} s: {failure.message}"
        return InstancePlan(
            *((said,), True, None, snapshot, "restart"),
            reason=failure.message,
            failure=failure,
            not_before=now + wait_s,
            fails=fails,
        )

    def commit(self, plan: InstancePlan, write: Writes, now: float) -> None:
        """Write the step down and wake whom it concerns."""
        assert plan.snapshot is not None
        instance = plan.snapshot.instance
        for reason in plan.reasons:
            write.tell("instance", instance.instance_id, owner_of(instance), reason, now)
        if plan.step == "place":
            self._take(plan, write)
        elif plan.step == "wait":
            write.set_instance(instance, reason=plan.reason)
            write.signal("deployment", instance.deployment_id, now)  # an earlier revision may make room
        elif plan.step == "restart":
            self._restart(plan, instance, write)
        elif plan.step == "ready":
            self._ready(instance, write, now)
        elif plan.step == "hibernate":
            self._hibernate(instance, write, now)
        elif plan.step == "end":
            self._end(plan, instance, write, now)
        if instance.endpoint_id:
            write.signal("endpoint", instance.endpoint_id, now)
            write.hint("tables")
        write.hint("wanted")

    def _take(self, plan: InstancePlan, write: Writes) -> None:
        """Take the slot, if nobody took it between the look and now."""
        assert plan.snapshot is not None
        instance = plan.snapshot.instance
        chosen = next((c for c in candidates_of(write) if c.node.node_id == plan.node_id), None)
        if chosen is None or refusal(instance.sku_id, chosen):
            raise Conflict(f"node {plan.node_id} was taken meanwhile")
        write.set_instance(instance, node_id=plan.node_id, reason="")

    def _restart(self, plan: InstancePlan, instance: Instance, write: Writes) -> None:
        write.set_instance(
            instance,
            epoch=instance.epoch + 1,
            phase="queued",
            fails=plan.fails,
            not_before=plan.not_before,
            ready_at=None,
            start_kind="provision",
            start_at=None,  # how long it takes in place says nothing about a start elsewhere
            pid=None,
            exit_code=None,
            failure=plan.failure,
            reason=plan.reason,
        )

    def _ready(self, instance: Instance, write: Writes, now: float) -> None:
        write.set_instance(instance, ready_at=now, failure=None, reason="")
        if instance.ready_at is None and (instance.epoch == 1 or instance.start_kind == "wake"):
            tell_instance(write, instance, "running", self._clock(), node=instance.node_id or "")
        revision = write.revision(instance.revision_id)
        if revision is not None:
            healthy_at = now if revision.healthy_at is None else revision.healthy_at
            write.set_revision(instance.revision_id, failures=0, failure=None, healthy_at=healthy_at)
        deployment = write.deployment(instance.deployment_id)
        if deployment is not None and deployment.fails:
            write.set_deployment(deployment, fails=0, not_before=0.0)
        if deployment is not None:
            write.signal("deployment", instance.deployment_id, now)

    def _hibernate(self, instance: Instance, write: Writes, now: float) -> None:
        """Nothing of it runs any more: its place is free, and its row waits to be woken."""
        at = self._clock()
        with self._desk.session(write, at) as market:
            write.set_instance(
                instance, phase="hibernated", node_id=None, home=instance.node_id or instance.home,
                early_until=None, warned="", pid=None, exit_code=None, failure=None, reason="", fails=0,
                hibernated_at=at,
            )  # fmt: skip
            tell_instance(write, instance, "hibernated", at, node=instance.node_id or "")
            write.signal("deployment", instance.deployment_id, now)
            market.changed(instance.capacity_id)
        wake_waiting(write, now)

    def _end(self, plan: InstancePlan, instance: Instance, write: Writes, now: float) -> None:
        """It is gone: count what there is to count, and let the market know that its place is free."""
        failed = plan.failure is not None
        at = self._clock()
        with self._desk.session(write, at) as market:
            write.set_instance(
                instance,
                phase="failed" if failed else "ended",
                failure=plan.failure or instance.failure,
                reason=plan.reason,
                ended_at=at,
            )
            if not plan.reason.startswith(OUT_OF_TIME):  # the desk has told already
                tell_instance(write, instance, "failed" if failed else "terminated", at, reason=plan.reason)
            revision = write.revision(instance.revision_id) if plan.blame else None
            if revision is not None:
                write.set_revision(instance.revision_id, failures=revision.failures + 1, failure=plan.failure)
            deployment = write.deployment(instance.deployment_id)
            if deployment is not None and failed:
                fails = deployment.fails + 1
                write.set_deployment(deployment, fails=fails, not_before=now + backoff_s(fails, instance.deployment_id))
            if deployment is not None:
                write.signal("deployment", instance.deployment_id, now)
            if instance.endpoint_id:
                write.forget_ended(instance.endpoint_id)
            elif instance.deployment_id:
                _forget_ended(write, instance.deployment_id)
            market.changed(instance.capacity_id)
        wake_waiting(write, now)

    def applied(self, plan: InstancePlan) -> None:
        """Nothing is kept in memory."""


def _forget_ended(write: Writes, deployment_id: str) -> None:
    """Keep the history of a deployment's instances short."""
    ended = [i for i in write.instances_of_deployment(deployment_id, ended=True) if i.ended_at is not None]
    for old in sorted(ended, key=lambda i: i.seq)[:-ENDED_KEPT_MAX]:
        write.delete_instance(old.instance_id)


def woken(instance: Instance, sku_id: str, now: float) -> dict[str, Any]:
    """Columns of a hibernated instance that is to run again, as a new epoch that awaits allocation."""
    return {
        "intent": "run", "phase": "queued", "epoch": instance.epoch + 1, "start_kind": "wake", "start_at": now,
        "granted_at": None, "node_id": None, "hibernated_at": None, "ready_at": None, "not_before": 0.0, "fails": 0,
        "reason": "", "failure": None, "sku_id": sku_id or instance.sku_id,
    }  # fmt: skip


def wake_waiting(write: Writes, now: float) -> None:
    """Room came free: every granted instance that waits for it looks again."""
    for other in write.instances_live():
        if other.node_id is None and other.intent == "run" and other.granted_at is not None:
            write.signal("instance", other.instance_id, now)
