"""Endpoints: how many workers, which revision, when to give up on one, when to go away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nanopod.control import rollouts
from nanopod.control.choosing import retire_template
from nanopod.control.live import Live
from nanopod.control.ports import Plan, Reads, Writes
from nanopod.control.rollouts import FAILURES_MAX, ROLLED_BACK
from nanopod.control.scaling import Kept, Watch
from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, Failure
from nanopod.scheduler.autoscale.reasons import explain

log = logging.getLogger(__name__)

DELETED_RECHECK_S: Final = 5.0


def slots_of(spec: EndpointSpec) -> int:
    """Requests that one worker of this specification takes at once."""
    if spec.model is not None:
        return max(1, spec.model.slots)
    mounted = sum(application.concurrency for application in spec.asgi)
    return max(1, sum(function.concurrency for function in spec.functions) + mounted)


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """An endpoint with everything its plan needs. `seen` is built when the plan is made."""

    endpoint: Endpoint
    deployment: Deployment
    revision: Revision
    instances: Sequence[Instance]
    older_healthy: Revision | None
    """The newest revision before the wanted one that had a ready worker once."""
    ready: frozenset[str] = frozenset()
    """Instances that take work now."""
    serving: Revision | None = None
    """The revision that its deployment runs, where that is not the newest."""
    outcomes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """{revision: (calls that ended, those that failed, and by bucket of their latency)} since the last look."""

    @property
    def spec(self) -> EndpointSpec:
        """What its workers run."""
        return (self.serving or self.revision).spec


@dataclass(frozen=True, slots=True)
class Judged:
    """Which revision runs and why, and what of that is to be written."""

    failure: Failure | None
    revision_id: str
    stopped: bool = False
    columns: dict[str, Any] = field(default_factory=dict)
    """Of the endpoint, where its rollout moved on."""
    rolled_back: bool = False
    """The newest revision gives its place back now."""
    reason: str = ""
    recheck_s: float | None = None


@dataclass(frozen=True)
class EndpointPlan(Plan):
    """The outcome for one endpoint."""

    snapshot: EndpointSnapshot | None = None
    target: int = 0
    scale_reasons: tuple[str, ...] = ()
    cold: int = 0
    kept: Kept | None = None
    """The autoscaler's memory as of this decision."""
    failure: Failure | None = None
    revision_id: str = ""
    delete: bool = False
    purge: bool = False
    at: float = 0.0
    judged: Judged | None = None


class EndpointReconciler:
    """Sets the count and the revision of an endpoint's deployment."""

    kind = "endpoint"

    def __init__(self, live: Live, watch: Watch) -> None:
        self._live = live
        self._watch = watch

    def observe(self, read: Reads, key: str) -> EndpointSnapshot | None:
        """The endpoint, its newest revision, its instances and what is known of them."""
        endpoint = read.endpoint(key)
        deployment = read.deployment_of(key)
        revision = read.revision(endpoint.revision_id) if endpoint else None
        if endpoint is None or deployment is None or revision is None:
            self._forget(key)
            return None
        instances = read.instances_of(key)
        older = None
        if revision.failures:
            known = [one for one in read.revisions_of(key) if one.number < revision.number]
            earlier = [one for one in known if one.healthy_at is not None and one.state != ROLLED_BACK]
            older = earlier[-1] if earlier else None
        other = deployment.revision_id != revision.revision_id
        return EndpointSnapshot(
            endpoint,
            deployment,
            revision,
            instances,
            older,
            ready=frozenset(i.instance_id for i in instances if self._live.ready(i.instance_id, i.epoch)),
            serving=read.revision(deployment.revision_id) if other else None,
            outcomes=self._live.outcomes(key),
        )

    def plan(self, snapshot: EndpointSnapshot, now: float) -> EndpointPlan:
        """The count, the revision to run, and whether the endpoint lives on."""
        endpoint = snapshot.endpoint
        if endpoint.deleted_at is not None:
            return self._plan_deleted(snapshot, now)
        if endpoint.ttl_s is not None and now >= endpoint.heartbeat_at + endpoint.ttl_s:
            reason = f"no client gave a sign of life for {endpoint.ttl_s:g} s (ttl): it is taken down"
            return EndpointPlan((reason,), True, 0.0, snapshot, 0, (reason,), delete=True, at=now)
        judged = _judge_canary(snapshot, now) if rollouts.has_canary(endpoint) else _judge(snapshot)
        failure, revision_id = judged.failure, judged.revision_id
        target, cold, reasons, due = self._decide(snapshot, judged, now)
        said: list[str] = []
        if target != endpoint.target:
            said.append(f"{max(0, endpoint.target)} -> {target} workers: {'; '.join(reasons)}")
        if judged.reason:
            said.append(f"revision {snapshot.revision.number}: {judged.reason}")
        elif failure is not None and endpoint.failure is None:
            said.append(f"revision {snapshot.revision.number} failed at {failure.stage}: {failure.message}")
        if revision_id != snapshot.deployment.revision_id:
            said.append(f"runs revision {revision_id}")
        changes = (
            target != endpoint.target
            or cold != endpoint.cold
            or failure != endpoint.failure
            or revision_id != snapshot.deployment.revision_id
            or target != snapshot.deployment.target_instance_count
            or bool(judged.columns)
            or due
        )
        kept = self._watch.memory(endpoint.endpoint_id) if changes else None
        ttl_left_s = None if endpoint.ttl_s is None else endpoint.heartbeat_at + endpoint.ttl_s - now
        looks = [one for one in (ttl_left_s, judged.recheck_s) if one is not None]
        return EndpointPlan(
            *(tuple(said), changes, min(looks, default=None), snapshot, target, reasons, cold, kept),
            failure=failure,
            revision_id=revision_id,
            at=now,
            judged=judged,
        )

    def _decide(
        self, snapshot: EndpointSnapshot, judged: Judged, now: float
    ) -> tuple[int, int, tuple[str, ...], bool]:  # fmt: skip
        """(workers, hibernated workers, why, whether the memory is to be written in any case)."""
        endpoint, spec = snapshot.endpoint, snapshot.spec
        watched = self._watch.look(
            *(endpoint, spec, slots_of(spec), snapshot.instances, snapshot.deployment.sku_id, now)
        )  # fmt: skip
        rests = ""
        if endpoint.stopped:
            rests = "0: it is stopped"
        elif endpoint.kind == "graph":
            rests = "0: gateways walk a graph, it has no workers"
        elif judged.stopped:
            assert judged.failure is not None
            rests = f"0: its newest revision cannot start ({judged.failure.stage}): {judged.failure.message}"
        watched.rests = bool(rests)
        if rests:
            return 0, 0, (rests,), False
        decision = self._watch.decided(endpoint.endpoint_id, now)
        target, cold = self._watch.wanted(watched)
        due = self._watch.is_due(endpoint.endpoint_id, now)
        return target, cold, explain(watched.spec, watched.state, decision, now), due

    def _plan_deleted(self, snapshot: EndpointSnapshot, now: float) -> EndpointPlan:
        """On its way out: nothing runs any more, then nothing is left."""
        gone = not snapshot.instances
        stays = any(i.intent != "stop" for i in snapshot.instances)
        stop = not gone and (snapshot.deployment.target_instance_count != 0 or stays)
        return EndpointPlan(
            ("it is gone",) if gone else (),
            gone or stop,
            DELETED_RECHECK_S,
            snapshot,
            revision_id=snapshot.deployment.revision_id,
            purge=gone,
            at=now,
        )

    def commit(self, plan: EndpointPlan, write: Writes, now: float) -> None:
        """Write count, revision and state; wake the deployment."""
        assert plan.snapshot is not None
        endpoint, deployment = plan.snapshot.endpoint, plan.snapshot.deployment
        if plan.purge:
            write.delete_deployment(deployment.deployment_id)
            if deployment.template_id:
                write.delete_template(deployment.template_id)
            write.purge_endpoint(endpoint.endpoint_id)
            return
        for reason in plan.reasons:
            write.tell("endpoint", endpoint.endpoint_id, endpoint.endpoint_id, reason, now)
        if endpoint.deleted_at is None:
            write.set_endpoint(
                endpoint,
                target=plan.target,
                reasons=plan.scale_reasons,
                failure=plan.failure,
                cold=plan.cold,
                **({"scale_state": plan.kept.text} if plan.kept is not None else {}),
                **({"deleted_at": now} if plan.delete else {}),
                **(plan.judged.columns if plan.judged is not None else {}),
            )
        if plan.judged is not None and plan.judged.rolled_back:
            newest = plan.snapshot.revision
            write.set_revision(newest.revision_id, state=ROLLED_BACK, failure=newest.failure or plan.failure)
        back = plan.judged is not None and plan.judged.rolled_back
        moved = (
            back
            or plan.cold != endpoint.cold
            or endpoint.deleted_at is not None
            or plan.target != deployment.target_instance_count
            or plan.revision_id not in ("", deployment.revision_id)
        )
        if moved:
            write.set_deployment(
                deployment,
                target_instance_count=plan.target,
                revision_id=plan.revision_id or deployment.revision_id,
                updated_at=now,
                **({"fails": 0, "not_before": 0.0} if back else {}),
            )
            write.signal("deployment", deployment.deployment_id, now)
        if plan.judged is not None and rollouts.moves(endpoint, plan.judged.columns):
            write.signal("deployment", deployment.deployment_id, now)
            write.hint("tables")
        if plan.delete:
            retire_template(write, deployment)
            write.signal("endpoint", endpoint.endpoint_id, now)
        if plan.reasons or plan.failure != endpoint.failure:
            write.hint("tables")

    def applied(self, plan: EndpointPlan) -> None:
        """Keep the new state in memory and tell the watch."""
        assert plan.snapshot is not None
        endpoint_id = plan.snapshot.endpoint.endpoint_id
        if plan.purge or plan.delete or plan.snapshot.endpoint.deleted_at is not None:
            self._forget(endpoint_id)
            return
        self._live.taken(endpoint_id, plan.snapshot.outcomes)
        if plan.kept is not None:
            self._watch.stored(endpoint_id, plan.kept, plan.target, plan.cold, plan.at)

    def _forget(self, endpoint_id: str) -> None:
        self._watch.forget(endpoint_id)


def _judge(snapshot: EndpointSnapshot) -> Judged:
    """Whether the newest revision runs, an earlier one in its place, or none at all."""
    endpoint, revision = snapshot.endpoint, snapshot.revision
    serving = snapshot.deployment.revision_id
    if revision.state == ROLLED_BACK and serving != revision.revision_id:
        return Judged(endpoint.failure or revision.failure, serving)
    works = any(i.instance_id in snapshot.ready and i.revision_id == revision.revision_id for i in snapshot.instances)
    if works or revision.failures < FAILURES_MAX or revision.failure is None:
        return Judged(None, revision.revision_id)
    if revision.healthy_at is not None and endpoint.target == 0:
        return Judged(None, revision.revision_id)  # asleep: the next demand may try again
    if snapshot.older_healthy is None:
        # A revision that worked before may work again (its data is back, its disk has room): the back-off goes on.
        return Judged(revision.failure, revision.revision_id, stopped=revision.healthy_at is None)
    older = snapshot.older_healthy
    if not endpoint.rollout.auto_rollback:
        return Judged(revision.failure, older.revision_id)
    failed = f"it failed at {revision.failure.stage}: {revision.failure.message}"
    reason = f"rolled back to revision {older.number}: {failed}"
    columns = rollouts.gone_back(rollouts.state_of(endpoint), revision.revision_id, reason)
    return Judged(revision.failure, older.revision_id, columns=columns, rolled_back=True, reason=reason)


def _judge_canary(snapshot: EndpointSnapshot, now: float) -> Judged:
    """Whether the canary is promoted, waits or is rolled back."""
    endpoint, revision = snapshot.endpoint, snapshot.revision
    columns, state, verdict = rollouts.look(
        endpoint, revision, snapshot.instances, snapshot.ready, snapshot.outcomes, now
    )  # fmt: skip
    stable = endpoint.stable_revision_id
    if verdict.action == "promote":
        reason = f"the canary is promoted: {verdict.reason}"
        return Judged(None, revision.revision_id, columns=rollouts.promoted(state, reason), reason=reason)
    if verdict.action == "roll_back":
        reason = f"rolled back: {verdict.reason}"
        columns = rollouts.gone_back(state, revision.revision_id, reason)
        failure = rollouts.bad_canary(reason, revision)
        return Judged(failure, stable, columns=columns, rolled_back=True, reason=reason)
    return Judged(None, stable, columns=columns, recheck_s=verdict.recheck_s)
