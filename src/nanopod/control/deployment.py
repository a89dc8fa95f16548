"""Deployments of endpoints: as many instances of the wanted revision as the target says, replaced without a gap.

An update starts the new instances first; each one that becomes ready lets one old instance go, idle ones first. Where
there is no room for both, one old instance makes room at a time. Instances are made and stopped inside a session of the
desk, so that the time they need is bought, and their quota granted, with the same commit. Deployments that stand alone
are kept by the desk itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from nanopod.control import holding
from nanopod.control.choosing import choose_sku, fitting_kinds, instance_name, places_up, retired, template_of
from nanopod.control.endpoint import slots_of
from nanopod.control.live import Live
from nanopod.control.ports import Clock, NewId, Plan, Reads, Writes
from nanopod.control.rollouts import has_canary
from nanopod.control.telling import shortage, tell_instance
from nanopod.model.chain import Deployment, Instance, Revision
from nanopod.scheduler.placement.fit import NO_KIND, price_cap
from nanopod.scheduler.placement.held import HeldOrder
from nanopod.scheduler.rollout.decide import shares

if TYPE_CHECKING:
    from nanopod.control.market.desk import Desk, Market

SCARCE: Final = ("no_supply", "price_above_limit")
"""What a procurement says while time on its kind of node cannot be had: others are looked at."""
MISFIT_RECHECK_S: Final = 10.0
"""A node that would do may join at any time."""
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
    short: str = ""
    """Why its instances get no time at present, as their procurement says; "" while they do."""
    kinds: tuple[str, ...] = ()
    """Kinds of nodes (SKUs) it could run on, looked up only while it has none with a node that is up."""
    misfit: str = ""
    """Why none of the nodes that are up would do."""
    canary: Revision | None = None
    """A revision that gets `canary_percent` of the calls, and workers of its own for it."""
    canary_percent: int = 0
    cap: float | None = None
    """Most that it may pay for an hour of a node, in dollars."""
    hold: HeldOrder | None = None
    """Held time that is to be bought now."""


@dataclass(frozen=True)
class DeploymentPlan(Plan):
    """Instances to make and to stop. Durable: time is bought and sold with them."""

    durable: ClassVar[bool] = True

    snapshot: DeploymentSnapshot | None = None
    make: int = 0
    make_canary: int = 0
    stop: tuple[Instance, ...] = ()
    why: tuple[str, ...] = ()
    choose: bool = False
    """Choose the kind of node to run on."""
    adopt: bool = False
    """Make the template that an earlier version did not make."""
    hold: HeldOrder | None = None


class DeploymentReconciler:
    """Makes and stops instances."""

    kind = "deployment"

    def __init__(self, live: Live, new_id: NewId, desk: Desk, clock: Clock) -> None:
        self._live = live
        self._new_id = new_id
        self._desk = desk
        self._clock = clock
        """The cluster's: what rows and the market show. Back-off counts the driver's time."""

    def observe(self, read: Reads, key: str) -> DeploymentSnapshot | None:
        """The deployment, the revision it runs and its instances; None for one without an endpoint."""
        deployment = read.deployment(key)
        if deployment is None or not deployment.endpoint_id:
            return None
        revision = read.revision(deployment.revision_id)
        if revision is None:
            return None
        instances = read.instances_of(deployment.endpoint_id)
        waiting = any(i.granted_at is None and i.intent == "run" for i in instances)
        short = shortage(read, deployment.capacity_id, deployment.sku_id) if waiting else ""
        looks = waiting or not deployment.sku_id
        kinds, misfit = _kinds(read, deployment, revision, short) if looks else ((), "")
        endpoint = read.endpoint(deployment.endpoint_id)
        canary = read.revision(endpoint.revision_id) if endpoint is not None and has_canary(endpoint) else None
        hold = None
        if endpoint is not None and (not endpoint.scale.spot or endpoint.scale.on_demand_fallback > 0):
            block_s = self._desk.settings.block_s
            hold = holding.lacking(read, deployment, endpoint, short, SCARCE, self._clock(), block_s)
        return DeploymentSnapshot(
            deployment,
            revision,
            instances,
            ready=frozenset(i.instance_id for i in instances if self._live.ready(i.instance_id, i.epoch)),
            in_flight=tuple((i.instance_id, self._live.in_flight(i.instance_id, i.epoch)) for i in instances),
            short=short,
            kinds=kinds,
            misfit=misfit,
            canary=canary if canary is not None and canary.revision_id != deployment.revision_id else None,
            canary_percent=endpoint.canary_percent if endpoint is not None else 0,
            cap=price_cap(revision.spec.image.query, endpoint.scale.max_price) if endpoint is not None else None,
            hold=hold,
        )

    def plan(self, snapshot: DeploymentSnapshot, now: float) -> DeploymentPlan:
        """How many to make, which to stop."""
        deployment = snapshot.deployment
        running = [i for i in snapshot.instances if i.intent == "run"]
        stop: list[Instance] = []
        why: list[str] = []
        target, canaries = deployment.target_instance_count, 0
        canary_id = snapshot.canary.revision_id if snapshot.canary is not None else ""
        canary = [i for i in running if canary_id and i.revision_id == canary_id]
        if canary_id:
            ready = sum(1 for i in canary if i.instance_id in snapshot.ready)
            target, canaries = shares(target, snapshot.canary_percent, ready)
        current = [i for i in running if i.revision_id == deployment.revision_id]
        old = [i for i in running if i.revision_id not in (deployment.revision_id, canary_id)]
        if target == 0:
            stop = running
            if stop:
                why.append(f"stops {len(stop)}: the target is 0")
        else:
            for group, wanted, whose in ((current, target, ""), (canary, canaries, " of the canary")):
                if surplus := max(0, len(group) - wanted):
                    stop += _least_missed(group, snapshot)[:surplus]
                    why.append(f"stops {surplus} of {len(group)}{whose}: the target is {wanted}")
        if target > 0 and old:
            stop += self._replaced(snapshot, current, old, target, why)
        missing = max(0, min(MAKE_MAX, target - len(current)))
        extra = max(0, min(MAKE_MAX, canaries - len(canary)))
        recheck_s = None
        if snapshot.misfit and not deployment.sku_id:
            missing = extra = 0  # one that waits for any kind of node would be given one that does not do
            recheck_s = MISFIT_RECHECK_S
        if missing + extra and now < deployment.not_before:
            recheck_s = deployment.not_before - now
            why.append(
                f"{missing + extra} missing, tries again in {recheck_s:.1f} s after {deployment.fails} failed starts"
            )
            missing = extra = 0
        elif missing + extra and deployment.fails:
            missing, extra = min(1, missing), min(1, extra)  # one at a time until a start succeeds
        if missing:
            why.append(f"makes {missing}: {len(current)} of {target}")
        if extra:
            why.append(f"makes {extra} of the canary: {len(canary)} of {canaries}")
        if snapshot.misfit:
            why.append(snapshot.misfit)
        decided = tuple(why)
        acts = bool(missing or extra or stop)
        choose, adopt = bool(snapshot.kinds), not deployment.template_id
        changes = acts or choose or adopt or snapshot.hold is not None or decided != deployment.reasons
        return DeploymentPlan(
            *(decided if acts else (), changes, recheck_s, snapshot, missing, extra),
            *(tuple(stop), decided, choose, adopt, snapshot.hold),
        )

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
        # One that only waits for its first block gets its place without anybody leaving.
        waits = any(i.node_id is None and i.reason and (i.granted_at is not None or snapshot.short) for i in current)
        if not surplus and waits and not stopping:
            surplus = 1
            why.append("stops 1 of the earlier revision to make room for the new one")
        return _least_missed(old, snapshot)[:surplus]

    def commit(self, plan: DeploymentPlan, write: Writes, now: float) -> None:
        """Add and stop the instances, with what they mean to the market; wake them."""
        assert plan.snapshot is not None
        deployment = plan.snapshot.deployment
        for reason in plan.reasons:
            write.tell("deployment", deployment.deployment_id, deployment.endpoint_id, reason, now)
        makes = plan.make + plan.make_canary
        if not (makes or plan.stop or plan.choose or plan.adopt or plan.hold):
            write.set_deployment(deployment, reasons=plan.why)
            if plan.snapshot.misfit or any(why.startswith(NO_KIND) for why in deployment.reasons):
                write.hint("tables")
            return
        at = self._clock()
        with self._desk.session(write, at) as market:
            values: dict[str, Any] = {"reasons": plan.why, "updated_at": at}
            sku_id = self._choose(plan, market, write, now) if plan.choose else deployment.sku_id
            if sku_id != deployment.sku_id:
                values["sku_id"] = sku_id
            if plan.adopt:
                values["template_id"] = self._adopt(deployment, write, at)
            write.set_deployment(deployment, **values)
            for instance in plan.stop:
                write.set_instance(instance, intent="stop", reason=_stopped(instance, deployment))
                write.signal("instance", instance.instance_id, now)
            if makes:
                template_id = values.get("template_id", deployment.template_id)
                self._make(plan, write, now, replace(deployment, sku_id=sku_id, template_id=template_id))
            if sku_id and (makes or plan.choose):
                market.ensure_procurement(deployment.capacity_id, sku_id, capped=plan.snapshot.cap is not None)
            if plan.hold is not None and sku_id == deployment.sku_id:
                said = holding.buy(market, deployment, plan.hold, plan.snapshot.cap)
                write.tell("deployment", deployment.deployment_id, deployment.endpoint_id, said, now)
            market.changed(deployment.capacity_id)
        if plan.stop or makes:
            write.hint("tables")
        if plan.stop:
            write.hint("wanted")

    def _choose(self, plan: DeploymentPlan, market: Market, write: Writes, now: float) -> str:
        """Choose the kind of node; point the instances that await allocation at it."""
        assert plan.snapshot is not None
        deployment, spec = plan.snapshot.deployment, plan.snapshot.revision.spec
        endpoint = write.endpoint(deployment.endpoint_id)
        scale = endpoint.scale if endpoint is not None else None
        choice = choose_sku(market, write, spec, deployment.target_instance_count, scale)
        if not choice.sku_id or choice.sku_id == deployment.sku_id:
            return deployment.sku_id
        if deployment.sku_id in places_up(write) and not choice.at_hand:
            return deployment.sku_id  # nothing is to be had elsewhere either
        said = f"runs on {choice.sku_id}: {'; '.join(choice.reasons)}"
        write.tell("deployment", deployment.deployment_id, deployment.endpoint_id, said, now)
        gone = {instance.instance_id for instance in plan.stop}
        for instance in plan.snapshot.instances:
            if instance.granted_at is None and instance.instance_id not in gone:
                write.set_instance(instance, sku_id=choice.sku_id, reason="")
                write.signal("instance", instance.instance_id, now)
        return choice.sku_id

    def _adopt(self, deployment: Deployment, write: Writes, at: float) -> str:
        made = template_of(
            *(write, deployment.workspace_id, deployment.name, deployment.endpoint_id, self._new_id("template"), at)
        )
        write.add_template(made)
        return made.template_id

    def _make(self, plan: DeploymentPlan, write: Writes, now: float, deployment: Deployment) -> None:
        """Add the instances. They await allocation until the capacity's quota lets them run."""
        assert plan.snapshot is not None
        at = self._clock()
        wanted = [plan.snapshot.revision] * plan.make
        if plan.snapshot.canary is not None:
            wanted += [plan.snapshot.canary] * plan.make_canary
        first = write.next_number("instance", len(wanted))
        for seq, revision in enumerate(wanted, first):
            instance_id = self._new_id("instance")
            runs = replace(deployment, revision_id=revision.revision_id)
            made = new_instance(instance_id, seq, runs, slots_of(revision.spec), at)
            write.add_instance(made)
            tell_instance(write, made, "created", at)
            write.signal("instance", instance_id, now)

    def applied(self, plan: DeploymentPlan) -> None:
        """Nothing is kept in memory."""


def new_instance(instance_id: str, seq: int, deployment: Deployment, slots: int, at: float) -> Instance:
    """A new instance of an endpoint's deployment: queued, not granted, not placed."""
    return Instance(
        instance_id=instance_id,
        deployment_id=deployment.deployment_id,
        endpoint_id=deployment.endpoint_id,
        workspace_id=deployment.workspace_id,
        revision_id=deployment.revision_id,
        capacity_id=deployment.capacity_id,
        node_id=None,
        epoch=1,
        generation=0,
        intent="run",
        phase="queued",
        slots=slots,
        pid=None,
        exit_code=None,
        reason="",
        failure=None,
        fails=0,
        not_before=0.0,
        ready_at=None,
        created_at=at,
        ended_at=None,
        seq=seq,
        name=instance_name(deployment, instance_id),
        sku_id=deployment.sku_id,
        template_id=deployment.template_id,
    )


def _stopped(instance: Instance, deployment: Deployment) -> str:
    """Why an instance is told to stop."""
    if instance.revision_id != deployment.revision_id:
        return f"deployment {deployment.name} runs revision {deployment.revision_id} now"
    return f"deployment {deployment.name} wants {deployment.target_instance_count}"


def _kinds(
    read: Reads, deployment: Deployment, revision: Revision, short: str
) -> tuple[tuple[str, ...], str]:  # fmt: skip
    """(the kinds of nodes it could move to, why there is none); nothing while its own kind will do.

    Its own kind will do while one of its nodes is up and time on it can be had.
    """
    places = places_up(read)
    own = deployment.sku_id in places
    scarce = own and short.startswith(SCARCE)
    if not places or (own and not scarce):
        return (), ""
    places = {sku_id: count for sku_id, count in places.items() if sku_id not in retired(read)}
    if not places:
        return (), "" if own else "every kind of node that is up is deprecated"
    found = fitting_kinds(read, revision.spec, places)
    if own:
        return tuple(one for one in found.good if one != deployment.sku_id), ""
    return (found.good, "") if found.good else ((), found.said)


def _least_missed(instances: Sequence[Instance], snapshot: DeploymentSnapshot) -> list[Instance]:
    """Whom to stop first: those furthest from ready (awaiting ones before all), then the least busy, the youngest."""
    in_flight = dict(snapshot.in_flight)
    phases = ("queued", "preparing", "starting", "loading")

    def order(instance: Instance) -> tuple[bool, bool, int, int, int, str]:
        ready = instance.instance_id in snapshot.ready
        progress = phases.index(instance.phase) if instance.phase in phases else len(phases)
        busy = in_flight.get(instance.instance_id, 0)
        return ready, instance.granted_at is not None, progress, busy, -instance.seq, instance.instance_id

    return sorted(instances, key=order)
