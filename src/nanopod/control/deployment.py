"""Deployments of endpoints: as many instances of the wanted revision as the target says, replaced without a gap.

An update starts the new instances first; each one that becomes ready lets one old instance go, idle ones first. Where
there is no room for both, one old instance makes room at a time. Instances are made and stopped inside a session of the
desk, so that the time they need is bought, and their quota granted, with the same commit. Deployments that stand alone
are kept by the desk itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from nanopod.control import holding
from nanopod.control.choosing import SCARCE, choose_sku, instance_name, kinds_for, places_up, template_of
from nanopod.control.endpoint import slots_of
from nanopod.control.groups import Group, groups
from nanopod.control.instance import woken
from nanopod.control.live import Live
from nanopod.control.ports import Clock, NewId, Plan, Reads, Writes
from nanopod.control.replicas import Facts, Moves, moves
from nanopod.control.rollouts import involved, shares_of
from nanopod.control.telling import shortage, tell_instance
from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import Profile
from nanopod.scheduler.placement.fit import NO_KIND, price_cap
from nanopod.scheduler.placement.held import HeldOrder
from nanopod.scheduler.rollout.traffic import Share

if TYPE_CHECKING:
    from nanopod.control.market.desk import Desk, Market

MISFIT_RECHECK_S: Final = 10.0
"""A node that would do may join at any time."""
ASKED_RECHECK_S: Final = 10.0
"""How often revisions that only a tag reaches are looked at, to see whether they are still called for."""
ASKED_S: Final = 60.0
"""A worker of such a revision stays for so long after its last call."""
EXACT: Final[tuple[Profile, ...]] = ("knative", "coreweave")
MAKE_MAX: Final = 100
"""Instances made in one transaction."""


@dataclass(frozen=True, slots=True)
class DeploymentSnapshot:
    """A deployment with its instances and what their links say."""

    deployment: Deployment
    revision: Revision
    instances: Sequence[Instance]
    ready: frozenset[str] = frozenset()
    short: str = ""
    """Why its instances get no time at present, as their procurement says; "" while they do."""
    kinds: tuple[str, ...] = ()
    """Kinds of nodes (SKUs) it could run on, looked up only while it has none with a node that is up."""
    misfit: str = ""
    """Why none of the nodes that are up would do."""
    shares: tuple[Share, ...] = ()
    """What each revision has of the calls and workers; (): the deployment's has all."""
    revisions: Mapping[str, Revision] = field(default_factory=dict)
    """Of the shares, by id."""
    asked: frozenset[str] = frozenset()
    """Revisions that were called for by a tag lately."""
    rests: bool = False
    """It runs nothing whatever the target: it is stopped, deleted, or a graph."""
    cold: int = 0
    """Hibernated instances wanted besides those that run."""
    facts: Facts = field(default_factory=Facts)
    cap: float | None = None
    """Most that it may pay for an hour of a node, in dollars."""
    hold: HeldOrder | None = None
    """Held time that is to be bought now."""


@dataclass(frozen=True)
class DeploymentPlan(Plan):
    """Instances to make and to stop. Durable: time is bought and sold with them."""

    durable: ClassVar[bool] = True

    snapshot: DeploymentSnapshot | None = None
    make: tuple[tuple[Revision, int], ...] = ()
    """How many instances of which revision."""
    fill: int = 0
    """Instances to make and to hibernate as soon as they are ready."""
    wake: tuple[Instance, ...] = ()
    hibernate: tuple[Instance, ...] = ()
    keep: tuple[Instance, ...] = ()
    """Were to be hibernated when they are ready, and stay."""
    stop: tuple[Instance, ...] = ()
    later: Mapping[str, float] = field(default_factory=dict)
    """{instance: when it is taken if nothing else happens}: their time is paid for until then."""
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
        self._later: dict[str, Mapping[str, float]] = {}
        """By deployment: who is to be taken, and when."""

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
        kinds, misfit = kinds_for(read, deployment, revision, short) if looks else ((), "")
        endpoint = read.endpoint(deployment.endpoint_id)
        ready = frozenset(i.instance_id for i in instances if self._live.ready(i.instance_id, i.epoch))
        shares: tuple[Share, ...] = ()
        revisions: dict[str, Revision] = {}
        if endpoint is not None and endpoint.deleted_at is None:
            shares, revisions = _shares(read, endpoint, deployment, instances, ready)
        asked = self._asked(shares, instances)
        hold = None
        if endpoint is not None and (not endpoint.scale.spot or endpoint.scale.on_demand_fallback > 0):
            block_s = self._desk.settings.block_s
            hold = holding.lacking(read, deployment, endpoint, short, SCARCE, self._clock(), block_s)
        return DeploymentSnapshot(
            deployment,
            revision,
            instances,
            ready=ready,
            short=short,
            kinds=kinds,
            misfit=misfit,
            shares=shares,
            revisions=revisions,
            asked=asked,
            rests=endpoint is None or endpoint.stopped or endpoint.kind == "graph" or endpoint.deleted_at is not None,
            cold=endpoint.cold if endpoint is not None else 0,
            facts=self._facts(read, deployment, instances, ready, endpoint.scale.profile if endpoint else "auto"),
            cap=price_cap(revision.spec.image.query, endpoint.scale.max_price) if endpoint is not None else None,
            hold=hold,
        )

    def _facts(
        self,
        read: Reads,
        deployment: Deployment,
        instances: Sequence[Instance],
        ready: frozenset[str],
        profile: Profile,
    ) -> Facts:
        """What is known of its workers beside their rows."""
        at, now, block_s = self._clock(), time.time(), read.block_s
        paid = ready and profile not in EXACT  # by Knative's rules nobody stays for the rest of a minute
        prices = [
            offer.floor.micro_per_block
            for offer in (read.offers() if paid else ())
            if offer.enabled and offer.sku_id == deployment.sku_id
        ]
        return Facts(
            ready=ready,
            in_flight={i.instance_id: self._live.in_flight(i.instance_id, i.epoch) for i in instances},
            starts=self._live.starts(deployment.endpoint_id),
            waiting=self._live.parked(deployment.endpoint_id) > 0,
            price=min(prices, default=0) / block_s,
            block_end=now + block_s - at % block_s,
            until=self._later.get(deployment.deployment_id, {}),
        )

    def _asked(self, shares: Sequence[Share], instances: Sequence[Instance]) -> frozenset[str]:
        """Revisions without a share that calls named by their tag lately, or still do."""
        found = set()
        for share in shares:
            if share.tags and not share.workers:
                own = [i for i in instances if i.revision_id == share.revision_id]
                busy = any(self._live.in_flight(i.instance_id, i.epoch) for i in own)
                if busy or self._live.called(share.revision_id, ASKED_S):
                    found.add(share.revision_id)
        return frozenset(found)

    def plan(self, snapshot: DeploymentSnapshot, now: float) -> DeploymentPlan:
        """How many to make, which to stop."""
        deployment = snapshot.deployment
        running = [i for i in snapshot.instances if i.intent == "run"]
        stop: list[Instance] = []
        why: list[str] = []
        wanted: list[Group] = []
        if not snapshot.rests:
            wanted = groups(
                *(deployment, snapshot.revision, running, snapshot.shares, snapshot.revisions, snapshot.asked)
            )
        main, wanted = wanted[:1], wanted[1:]
        if main and main[0].revision.revision_id != deployment.revision_id:
            main, wanted = [], [*main, *wanted]
        # Where all calls go to others, its own are as of an earlier revision: they stay until the others are ready.
        away = bool(snapshot.shares and wanted and not main)
        kept = {group.revision.revision_id for group in wanted} | (set() if away else {deployment.revision_id})
        old = [i for i in running if i.revision_id not in kept]
        stays = sum(i.revision_id == deployment.revision_id for i in running) if away else 0
        moved = self._main(snapshot, main[0].want if main else stays, now, why)
        stop += moved.stop
        if away:
            moved.wake, moved.fill = [], 0
        for group in wanted:
            if group.surplus:
                stop += _least_missed(group.running, snapshot)[: group.surplus]
                why.append(f"stops {group.surplus} of {len(group.running)}{group.whose}: the target is {group.want}")
        if old and (main or wanted):
            stop += self._replaced(snapshot, [*main, *wanted], old, why)
        elif old:
            stop += old
            why.append(f"stops {len(old)}: {'it runs nothing' if snapshot.rests else 'the target is 0'}")
        lacks = [(group, min(MAKE_MAX, group.missing)) for group in wanted if group.missing]
        if main and moved.make:
            lacks.insert(0, (main[0], min(MAKE_MAX, moved.make)))
        recheck_s = ASKED_RECHECK_S if any(one.tags and not one.workers for one in snapshot.shares) else None
        if moved.later:
            recheck_s = min(max(0.1, min(moved.later.values()) - now), recheck_s or math.inf)
        lacks, wake, fill, wait_s = self._allowed(snapshot, lacks, moved, now, why)
        recheck_s = recheck_s if wait_s is None else wait_s
        if wake:
            why.append(f"wakes {len(wake)}: {len(main[0].running) if main else 0} of {main[0].want if main else 0}")
        for group, count in lacks:
            why.append(f"makes {count}{group.whose}: {len(group.running)} of {group.want}")
        if fill:
            why.append(f"makes {fill} to hibernate: {snapshot.cold} are to be at hand")
        if snapshot.misfit:
            why.append(snapshot.misfit)
        decided = tuple(why)
        acts = bool(lacks or stop or wake or fill or moved.hibernate or moved.keep)
        choose, adopt = bool(snapshot.kinds), not deployment.template_id
        changes = acts or choose or adopt or snapshot.hold is not None or decided != deployment.reasons
        return DeploymentPlan(
            *(decided if acts else (), changes, recheck_s, snapshot),
            make=tuple((group.revision, count) for group, count in lacks),
            fill=fill,
            wake=tuple(wake),
            hibernate=tuple(moved.hibernate),
            keep=tuple(moved.keep),
            stop=tuple(stop),
            later=moved.later,
            why=decided,
            choose=choose,
            adopt=adopt,
            hold=snapshot.hold,
        )

    def _allowed(
        self, snapshot: DeploymentSnapshot, lacks: list[tuple[Group, int]], moved: Moves, now: float, why: list[str]
    ) -> tuple[list[tuple[Group, int]], list[Instance], int, float | None]:
        """(who may be made, who may be woken, how many to hibernate, seconds until more may be): of what is missing."""
        deployment, wake = snapshot.deployment, moved.wake
        if snapshot.misfit and not deployment.sku_id:
            # One that waits for any kind of node would be given one that does not do.
            return [], [], 0, MISFIT_RECHECK_S
        if not deployment.fails:
            return lacks, wake, min(1, moved.fill), None
        missing = sum(count for _, count in lacks) + len(wake)
        wait_s = deployment.not_before - now
        if missing and wait_s > 0:
            why.append(f"{missing} missing, tries again in {wait_s:.1f} s after {deployment.fails} failed starts")
            return [], [], 0, wait_s
        # One at a time until a start succeeds.
        mine = deployment.revision_id if wake else ""
        return [(group, 1) for group, _ in lacks if group.revision.revision_id != mine], wake[:1], 0, None

    def _main(self, snapshot: DeploymentSnapshot, want: int, now: float, why: list[str]) -> Moves:
        """What becomes of the workers of the revision that it runs; hibernated ones of any other end."""
        deployment = snapshot.deployment
        mine = [i for i in snapshot.instances if i.revision_id == deployment.revision_id]
        asleep = [i for i in snapshot.instances if i.intent == "hibernate"]
        if snapshot.rests:
            running = [i for i in mine if i.intent == "run"]
            if running:
                why.append(f"stops {len(running)}: it runs nothing")
            return Moves(stop=[*running, *asleep])
        stale = [i for i in asleep if i.revision_id != deployment.revision_id or _elsewhere(i, deployment)]
        kept = [i for i in mine if i not in stale]
        found = moves(want, snapshot.cold, kept, snapshot.facts, now)
        running_count = sum(i.intent == "run" for i in kept)
        if found.hibernate:
            why.append(f"hibernates {len(found.hibernate)} of {running_count}: the target is {want}")
        if gone := [i for i in found.stop if i.intent == "run"]:
            why.append(f"stops {len(gone)} of {running_count}: the target is {want}")
        if trimmed := len(found.stop) - len(gone):
            why.append(f"ends {trimmed} hibernated: {snapshot.cold} are to be at hand")
        if found.later:
            why.append(f"{len(found.later)} to go when their paid time ends: the target is {want}")
        if stale:
            why.append(f"ends {len(stale)} hibernated of another revision or kind of node")
        found.stop += stale
        return found

    def _replaced(
        self, snapshot: DeploymentSnapshot, wanted: Sequence[Group], old: Sequence[Instance], why: list[str]
    ) -> list[Instance]:
        """Instances of earlier revisions that may go now."""
        target = max(snapshot.deployment.target_instance_count, sum(1 for group in wanted if group.want))
        current = [i for group in wanted for i in group.running]
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
        makes = bool(plan.make)
        makes = makes or bool(plan.fill)
        moves = makes or plan.stop or plan.wake or plan.hibernate or plan.keep
        if not (moves or plan.choose or plan.adopt or plan.hold):
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
            for instance in plan.hibernate:
                write.set_instance(instance, intent="hibernate", reason=_stopped(instance, deployment))
                write.signal("instance", instance.instance_id, now)
            for instance in plan.keep:
                write.set_instance(instance, start_kind="provision")
            for instance in plan.wake:
                write.set_instance(instance, **woken(instance, sku_id, now))
                write.signal("instance", instance.instance_id, now)
            if makes:
                template_id = values.get("template_id", deployment.template_id)
                self._make(plan, write, now, replace(deployment, sku_id=sku_id, template_id=template_id))
            if sku_id and (makes or plan.wake or plan.choose):
                market.ensure_procurement(deployment.capacity_id, sku_id, capped=plan.snapshot.cap is not None)
            if plan.hold is not None and sku_id == deployment.sku_id:
                said = holding.buy(market, deployment, plan.hold, plan.snapshot.cap)
                write.tell("deployment", deployment.deployment_id, deployment.endpoint_id, said, now)
            market.changed(deployment.capacity_id)
        if plan.stop or plan.hibernate or plan.wake or makes:
            write.hint("tables")
        if plan.stop or plan.hibernate:
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
            if instance.granted_at is None and instance.intent == "run" and instance.instance_id not in gone:
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
        wanted = [revision for revision, count in plan.make for _ in range(count)]
        filled = len(wanted)
        wanted += [plan.snapshot.revision] * plan.fill
        first = write.next_number("instance", len(wanted))
        for seq, revision in enumerate(wanted, first):
            instance_id = self._new_id("instance")
            runs = replace(deployment, revision_id=revision.revision_id)
            made = new_instance(instance_id, seq, runs, slots_of(revision.spec), at)
            kind: Literal["provision", "fill"] = "fill" if seq - first >= filled else "provision"
            made = replace(made, start_at=now, start_kind=kind)
            write.add_instance(made)
            tell_instance(write, made, "created", at)
            write.signal("instance", instance_id, now)

    def applied(self, plan: DeploymentPlan) -> None:
        """Remember who is to be taken later."""
        assert plan.snapshot is not None
        key = plan.snapshot.deployment.deployment_id
        self._later.pop(key, None)
        if plan.later:
            self._later[key] = plan.later


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


def _shares(
    read: Reads, endpoint: Endpoint, deployment: Deployment, instances: Sequence[Instance], ready: Collection[str]
) -> tuple[tuple[Share, ...], dict[str, Revision]]:
    """What each revision of an endpoint has, and those revisions; nothing while one has all."""
    if endpoint.traffic:
        known = read.revisions_of(endpoint.endpoint_id)
    else:
        known = [one for key in involved(endpoint) if (one := read.revision(key)) is not None]
    counts: dict[str, int] = {}
    for instance in instances:
        if instance.intent == "run" and instance.instance_id in ready:
            counts[instance.revision_id] = counts.get(instance.revision_id, 0) + 1
    found = shares_of(endpoint, known, counts, deployment.target_instance_count)
    return found, {one.revision_id: one for one in known}


def _stopped(instance: Instance, deployment: Deployment) -> str:
    """Why an instance is told to stop."""
    if instance.revision_id != deployment.revision_id:
        return f"deployment {deployment.name} runs revision {deployment.revision_id} now"
    return f"deployment {deployment.name} wants {deployment.target_instance_count}"


def _elsewhere(instance: Instance, deployment: Deployment) -> bool:
    """True for one that is pinned to another kind of node than its deployment runs on."""
    return bool(instance.sku_id and deployment.sku_id) and instance.sku_id != deployment.sku_id


def _least_missed(instances: Sequence[Instance], snapshot: DeploymentSnapshot) -> list[Instance]:
    """Whom to stop first: those furthest from ready (awaiting ones before all), then the least busy, the youngest."""
    in_flight = snapshot.facts.in_flight
    phases = ("queued", "preparing", "starting", "loading")

    def order(instance: Instance) -> tuple[bool, bool, int, int, int, str]:
        ready = instance.instance_id in snapshot.ready
        progress = phases.index(instance.phase) if instance.phase in phases else len(phases)
        busy = in_flight.get(instance.instance_id, 0)
        return ready, instance.granted_at is not None, progress, busy, -instance.seq, instance.instance_id

    return sorted(instances, key=order)
