"""Endpoints: how many workers, which revision, when to give up on one, when to go away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nanopod.control import rollouts
from nanopod.control.choosing import retire_template
from nanopod.control.live import Live, Load
from nanopod.control.ports import Plan, Reads, Writes
from nanopod.control.rollouts import FAILURES_MAX, ROLLED_BACK
from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, Failure, ScaleSpec
from nanopod.scheduler.autoscale.decide import Observed, ScaleState, decide
from nanopod.scheduler.rollout.decide import decide as judge_rollout

log = logging.getLogger(__name__)

STORE_S: Final = 10.0
"""The autoscaler's memory is stored at least this often while it changes."""
DELETED_RECHECK_S: Final = 5.0

_state: Final = msgspec.json.Decoder(ScaleState).decode
_encode: Final = msgspec.json.Encoder().encode


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
    perf: float | None = None
    state: ScaleState = field(default_factory=ScaleState)
    stored_at: float = 0.0
    serving: Revision | None = None
    """The revision that its deployment runs, where that is not the newest."""
    outcomes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """{revision: (calls that ended, those that failed)} since the last look."""

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
    state: ScaleState = field(default_factory=ScaleState)
    failure: Failure | None = None
    revision_id: str = ""
    delete: bool = False
    purge: bool = False
    stopped: bool = False
    at: float = 0.0
    look_in_s: float | None = None
    """Seconds until the count may change by the passing of time alone."""
    judged: Judged | None = None


@dataclass(slots=True)
class Watched:
    """What the pulse needs to know of an endpoint between two looks of the reconciler."""

    scale: ScaleSpec
    target: int
    ready: int
    starting: int
    slots: int
    perf: float | None
    look_at: float = float("inf")
    stopped: bool = False
    """Its newest revision cannot start: only an update brings it back, demand does not."""


@dataclass(slots=True)
class Watch:
    """Decides in memory, on every sample and demand, whether an endpoint's count would change.

    So an endpoint under steady load costs no transaction; only a changed count makes the reconciler look.
    """

    live: Live
    known: dict[str, Watched] = field(default_factory=dict)

    def step(self, endpoint_id: str, now: float) -> bool:
        """Move the endpoint's windows on; true when the reconciler should look."""
        watched = self.known.get(endpoint_id)
        load = self.live.loads.get(endpoint_id)
        if watched is None or load is None or load.state is None:
            return True
        if watched.stopped:
            return False
        seen = self.observed(endpoint_id, watched, now)
        load.state, decision = decide(watched.scale, load.state, seen, now)
        watched.look_at = now + decision.recheck_s if decision.recheck_s is not None else float("inf")
        return decision.target != watched.target

    def observed(self, endpoint_id: str, watched: Watched, now: float) -> Observed:
        """What the autoscaler sees now."""
        return self.live.observed(
            endpoint_id,
            now,
            ready=watched.ready,
            starting=watched.starting,
            slots=watched.slots,
            perf=watched.perf,
        )

    def due(self, now: float) -> list[str]:
        """Endpoints whose count would change by the passing of time alone, or whose activity is to be stored."""
        return [key for key, watched in list(self.known.items()) if self._due(key, watched, now)]

    def _due(self, key: str, watched: Watched, now: float) -> bool:
        if watched.look_at <= now and self.step(key, now):
            return True
        load = self.live.loads.get(key)
        if load is None or load.state is None or now - load.stored_at < STORE_S:
            return False
        # A server that comes back must not take an endpoint for idle that was busy a moment ago.
        return load.state.active_at - load.stored_active_at >= STORE_S


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
        links = {i.instance_id: self._live.link(i.instance_id, i.epoch) for i in instances}
        perfs = [link.perf for link in links.values() if link is not None and link.perf is not None]
        load = self._live.loads.get(key)
        return EndpointSnapshot(
            endpoint,
            deployment,
            revision,
            instances,
            older,
            ready=frozenset(key for key, link in links.items() if link is not None and link.ready),
            perf=sum(perfs) / len(perfs) if perfs else None,
            state=_remembered(endpoint, load),
            stored_at=load.stored_at if load is not None else 0.0,
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
            return EndpointPlan((reason,), True, 0.0, snapshot, 0, (reason,), snapshot.state, delete=True, at=now)
        judged = _judge_canary(snapshot, now) if rollouts.has_canary(endpoint) else _judge(snapshot)
        failure, revision_id, stopped = judged.failure, judged.revision_id, judged.stopped
        watched = self._watched(snapshot)
        seen = self._watch.observed(endpoint.endpoint_id, watched, now)
        state, decision = decide(endpoint.scale, snapshot.state, seen, now)
        target, reasons = decision.target, decision.reasons
        if stopped:
            assert failure is not None
            target, reasons = 0, (f"0: its newest revision cannot start ({failure.stage}): {failure.message}",)
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
            or failure != endpoint.failure
            or revision_id != snapshot.deployment.revision_id
            or target != snapshot.deployment.target_instance_count
            or bool(judged.columns)
            or (now - snapshot.stored_at >= STORE_S and _encode(state) != endpoint.scale_state)
        )
        ttl_left_s = None if endpoint.ttl_s is None else endpoint.heartbeat_at + endpoint.ttl_s - now
        looks = [one for one in (ttl_left_s, judged.recheck_s) if one is not None]
        return EndpointPlan(
            *(tuple(said), changes, min(looks, default=None), snapshot, target, reasons, state, failure, revision_id),
            stopped=stopped,
            at=now,
            look_in_s=decision.recheck_s,
            judged=judged,
        )

    def _plan_deleted(self, snapshot: EndpointSnapshot, now: float) -> EndpointPlan:
        """On its way out: nothing runs any more, then nothing is left."""
        gone = not snapshot.instances
        stop = not gone and snapshot.deployment.target_instance_count != 0
        return EndpointPlan(
            ("it is gone",) if gone else (),
            gone or stop,
            DELETED_RECHECK_S,
            snapshot,
            revision_id=snapshot.deployment.revision_id,
            purge=gone,
            at=now,
        )

    def _watched(self, snapshot: EndpointSnapshot) -> Watched:
        running = [i for i in snapshot.instances if i.intent == "run"]
        starting = [
            i
            for i in running
            if i.node_id and i.ready_at is None and i.phase != "failed" and i.instance_id not in snapshot.ready
        ]
        return Watched(
            scale=snapshot.endpoint.scale,
            target=snapshot.endpoint.target,
            ready=sum(1 for i in running if i.instance_id in snapshot.ready),
            starting=len(starting),
            slots=slots_of(snapshot.spec),
            perf=snapshot.perf,
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
                scale_state=_encode(plan.state),
                **({"deleted_at": now} if plan.delete else {}),
                **(plan.judged.columns if plan.judged is not None else {}),
            )
        if plan.judged is not None and plan.judged.rolled_back:
            newest = plan.snapshot.revision
            write.set_revision(newest.revision_id, state=ROLLED_BACK, failure=newest.failure or plan.failure)
        back = plan.judged is not None and plan.judged.rolled_back
        moved = (
            back
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
        load = self._live.loads.setdefault(endpoint_id, Load())
        self._live.taken(endpoint_id, plan.snapshot.outcomes)
        if load.state is None:
            load.stored_active_at = plan.snapshot.state.active_at
        load.state = plan.state
        if plan.changes:
            load.stored_at, load.stored_active_at = plan.at, plan.state.active_at
        watched = self._watched(plan.snapshot)
        watched.target = plan.target
        watched.stopped = plan.stopped
        if plan.look_in_s is not None and not plan.stopped:
            watched.look_at = plan.at + plan.look_in_s
        self._watch.known[endpoint_id] = watched

    def _forget(self, endpoint_id: str) -> None:
        self._watch.known.pop(endpoint_id, None)
        self._live.forget(endpoint_id)


def _remembered(endpoint: Endpoint, load: Load | None) -> ScaleState:
    """The autoscaler's memory: this process's own, else the stored one, else a new one."""
    if endpoint.target < 0:
        return ScaleState()  # new, or to be tried anew
    if load is not None and load.state is not None:
        return load.state
    if endpoint.scale_state:
        try:
            return _state(endpoint.scale_state)
        except msgspec.MsgspecError:
            log.warning("endpoint=%s scale_state=unreadable: it begins anew", endpoint.endpoint_id)
    return ScaleState()


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
    mine = [i for i in snapshot.instances if i.revision_id == revision.revision_id]
    ready_at = endpoint.canary_at
    if ready_at is None and any(i.instance_id in snapshot.ready for i in mine):
        ready_at = now
    before = rollouts.state_of(endpoint)
    seen = rollouts.seen_of(endpoint, revision, ready_at, snapshot.outcomes)
    state, verdict = judge_rollout(endpoint.rollout, before, seen, now)
    stable = endpoint.stable_revision_id
    if verdict.action == "promote":
        reason = f"the canary is promoted: {verdict.reason}"
        return Judged(None, revision.revision_id, columns=rollouts.promoted(state, reason), reason=reason)
    if verdict.action == "roll_back":
        reason = f"rolled back: {verdict.reason}"
        columns = rollouts.gone_back(state, revision.revision_id, reason)
        failure = rollouts.bad_canary(reason, revision)
        return Judged(failure, stable, columns=columns, rolled_back=True, reason=reason)
    columns = {}
    if state != before:
        columns["canary_state"] = rollouts.text_of(state)
    if ready_at != endpoint.canary_at:
        columns["canary_at"] = ready_at
    return Judged(None, stable, columns=columns, recheck_s=verdict.recheck_s)
