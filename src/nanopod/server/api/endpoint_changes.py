"""What is written when an endpoint is made, brought to a specification, taken back to a revision, or promoted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nanopod.control import rollouts
from nanopod.control.choosing import choose_sku, fitting_kinds, free_name, name_of, template_of
from nanopod.control.update import Update
from nanopod.model.chain import Deployment, Endpoint, Key, Revision
from nanopod.model.endpoint import EndpointSpec, Traffic
from nanopod.model.errors import Conflict, NotFound
from nanopod.scheduler.placement.fit import Choice, price_cap
from nanopod.server.api.context import Context
from nanopod.store.transaction import Transaction

CAPACITY: Final = "default"
REVISIONS_KEPT_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Moment:
    """`wall`: what signals, heartbeats and back-off go by; `at`: the cluster's time, which rows show."""

    wall: float
    at: float


def moment(context: Context) -> Moment:
    """Now."""
    return Moment(time.time(), context.clock())


def base_of(read: Transaction, endpoint: Endpoint | None) -> Revision | None:
    """The revision that an update is compared with: the newest, or what runs since that was rolled back."""
    newest = read.revision(endpoint.revision_id) if endpoint is not None else None
    if endpoint is None or newest is None or newest.state != rollouts.ROLLED_BACK:
        return newest
    deployment = read.deployment_of(endpoint.endpoint_id)
    return (read.revision(deployment.revision_id) if deployment else None) or newest


def create(
    context: Context, write: Transaction, key: Key, spec: EndpointSpec, ids: list[str], now: Moment
) -> Endpoint:  # fmt: skip
    """The endpoint with its first revision, a template and a deployment of the same name on the default capacity."""
    endpoint_id, revision_id, deployment_id, template_id = ids
    spec = replace(spec, traffic=rollouts.with_ids(spec, (), spec.traffic, (1, revision_id)))
    workspace_id = key.workspace_id
    capacity = write.capacity_named(workspace_id, CAPACITY)
    assert capacity is not None, "every workspace has its default capacity"
    write.add_endpoint(endpoint_id, workspace_id, spec, revision_id, now.at)
    write.heartbeat(endpoint_id, now.wall)
    write.add_revision(revision_id, endpoint_id, spec, now.at)
    base = name_of(spec.name, spec.tag)
    name = free_name(base, lambda one: write.deployment_named(workspace_id, one) is not None)
    template = template_of(write, workspace_id, name, endpoint_id, template_id, now.at)
    write.add_template(template)
    with context.desk.session(write, now.at) as market:
        choice = choose_sku(market, write, spec) if spec.kind != "graph" else Choice("")
        write.add_deployment(
            Deployment(
                *(deployment_id, endpoint_id, workspace_id, capacity.capacity_id, revision_id, 0, 0, (), 0, 0.0),
                *(now.at, now.at),
                name=name,
                sku_id=choice.sku_id,
                template_id=template_id,
            )
        )
        if choice.sku_id:
            capped = price_cap(spec.image.query, spec.scale.max_price) is not None
            market.ensure_procurement(capacity.capacity_id, choice.sku_id, capped=capped)
    announce(write, endpoint_id, "created", now)
    if choice.sku_id:
        write.tell("deployment", deployment_id, endpoint_id, f"runs on {'; '.join(choice.reasons)}", now.wall)
    notify(write, workspace_id, endpoint_id, spec.name, spec.tag, spec.kind, "created", now)
    made = write.endpoint(endpoint_id)
    assert made is not None
    return made


def quiet(found: Endpoint, base: Revision | None, newest: Revision | None, spec: EndpointSpec, update: Update) -> bool:
    """True when there is nothing to write: it is as asked for, and was not asked for again after a failure."""
    same = base is not None and newest is not None and base.revision_id == newest.revision_id
    again = found.failure is not None or newest is None or newest.failures > 0
    return update.tier == 0 and same and not again and spec.version_label == found.version_label


def apply(
    context: Context, write: Transaction, found: Endpoint, spec: EndpointSpec, update: Update, new_id: str, now: Moment
) -> Endpoint:
    """Bring an endpoint to a specification. Asking for it again after a failure is asking to try again."""
    values: dict[str, Any] = {"heartbeat_at": now.wall}
    base, newest = base_of(write, found), write.revision(found.revision_id)
    assert base is not None and newest is not None, "an endpoint has the revisions that it names"
    if update.tier:
        mark_rolled_out(context, write, found)
    if "scale" in update.changed:
        values |= {"scale": spec.scale, "scale_fingerprint": spec.fingerprints.scale, "ttl_s": spec.ttl_s}
        values["rollout"] = spec.rollout
        if update.tier < 2:
            values |= _reshared(context, write, found, newest, spec, now)
    if "stopped" in update.changed:
        values["stopped"] = spec.stopped
        if found.stopped:
            values |= {"target": -1, "scale_state": b""}  # as a new one: a worker is started to see that it can
    if "traffic" in update.changed and update.tier < 2:
        known = write.revisions_of(found.endpoint_id)
        values |= {"traffic": rollouts.with_ids(found, known, spec.traffic), **_over(write, found, values, now)}
    again = found.failure is not None or newest.failures > 0
    runs = base.revision_id
    if update.tier >= 2:
        runs = new_id
        known = write.revisions_of(found.endpoint_id)
        number = write.add_revision(new_id, found.endpoint_id, spec, now.at)
        values |= {"revision_id": new_id, **_rollout(context, write, found, spec, update, new_id)}
        traffic = rollouts.with_ids(found, known, spec.traffic, (number, new_id))
        if traffic != found.traffic:
            values["traffic"] = traffic
    elif again:
        write.set_revision(base.revision_id, failures=0, failure=None)
        if base.revision_id != found.revision_id:
            values |= {"revision_id": base.revision_id, **rollouts.over()}
    if spec.version_label != found.version_label:
        values["version_label"] = spec.version_label
        if update.tier < 2:
            write.set_revision(base.revision_id, version_label=spec.version_label)
    if update.tier or again:
        values |= {"updated_at": now.at, "failure": None}
        if found.target == 0 and (update.tier >= 2 or again):
            # It may have been stopped, or asleep: decide as for a new endpoint, which starts a worker to try it.
            values |= {"target": -1, "scale_state": b""}
    write.set_endpoint(found, **values)
    if update.tier >= 2 or again:
        # While a canary runs, the deployment goes on with the stable revision.
        stable = values.get("stable_revision_id", found.stable_revision_id)
        _renew(write, found.endpoint_id, stable or runs, spec, base, update, now)
    if remodelled(found, update):
        _remodel(write, found.endpoint_id, base, new_id)
    elif update.hardware_only:
        _keep_fitting(write, found.endpoint_id, base, new_id, spec)
    elif _swaps(base, spec, update) and not values.get("stable_revision_id"):
        _swap_bodies(write, found.endpoint_id, base, new_id)
    if update.tier >= 2:
        held = [row.revision for row in values.get("traffic", found.traffic)]
        write.prune_revisions(found.endpoint_id, REVISIONS_KEPT_MAX, held)
    before = price_cap(base.spec.image.query, found.scale.max_price)
    if before != price_cap(spec.image.query, spec.scale.max_price):
        reprice(context, write, found, now)
    if update.tier or again:
        words = "; ".join(update.reasons) if update.tier else "asked for again after a failure"
        announce(write, found.endpoint_id, f"{update.action}: {words}", now)
        notify(write, found.workspace_id, found.endpoint_id, spec.name, spec.tag, spec.kind, "updated", now)
    made = write.endpoint(found.endpoint_id)
    assert made is not None
    return made


def _rollout(
    context: Context, write: Transaction, found: Endpoint, spec: EndpointSpec, update: Update, new_id: str
) -> dict[str, Any]:
    """The columns with which a new revision begins: as a canary beside the one that serves, or with all calls."""
    deployment = write.deployment_of(found.endpoint_id)
    assert deployment is not None, "written together with the endpoint"
    serving = write.revision(deployment.revision_id)
    # A share that was stated for good holds for one that sleeps, too.
    if remodelled(found, update):
        return rollouts.over()
    stated = spec.rollout.pinned or not spec.rollout.auto_promote
    serves = serving is not None and _works(context, write, serving) and (found.target > 0 or stated)
    if rollouts.goal_of(spec.rollout) is not None and serves and not update.hardware_only and not spec.traffic:
        return rollouts.begun(deployment.revision_id, new_id, spec.rollout)
    return rollouts.over()


def _works(context: Context, write: Transaction, revision: Revision) -> bool:
    """True when a worker of a revision was ready once; what its link says may not be written down yet."""
    return revision.healthy_at is not None or any(
        context.live.ready(one.instance_id, one.epoch)
        for one in write.instances_of(revision.endpoint_id)
        if one.revision_id == revision.revision_id
    )


def mark_rolled_out(context: Context, write: Transaction, found: Endpoint) -> None:
    """Remember that the revision which serves has all calls: a later one may be pinned to it."""
    deployment = write.deployment_of(found.endpoint_id)
    serving = write.revision(deployment.revision_id) if deployment is not None else None
    if serving is None or serving.state or found.traffic or rollouts.has_canary(found):
        return
    if not _works(context, write, serving):
        return
    write.set_revision(serving.revision_id, state=rollouts.ROLLED_OUT)


def _runs(write: Transaction, endpoint_id: str, revision_id: str, now: Moment) -> None:
    """Have the deployment run another revision that there is already."""
    deployment = write.deployment_of(endpoint_id)
    assert deployment is not None, "written together with the endpoint"
    if deployment.revision_id != revision_id:
        write.set_deployment(deployment, revision_id=revision_id, fails=0, not_before=0.0)
    write.signal("deployment", deployment.deployment_id, now.wall)


def _reshared(
    context: Context, write: Transaction, found: Endpoint, newest: Revision, spec: EndpointSpec, now: Moment
) -> dict[str, Any]:  # fmt: skip
    """Columns of an endpoint whose settings alone changed: its canary gets another share, or all calls.

    A share that is stated for good (`pinned`, or not promoted by itself) and comes when the newest revision has all
    calls already takes the rest of them back to the revision that had all of them before.
    """
    rollout, goal = spec.rollout, rollouts.goal_of(spec.rollout)
    if rollouts.has_canary(found):
        if goal is None:
            _runs(write, found.endpoint_id, found.revision_id, now)
            return rollouts.promoted(rollouts.state_of(found), "promoted: its share is not limited any more")
        _runs(write, found.endpoint_id, found.stable_revision_id, now)
        return rollouts.resized(found, goal, now.wall) if goal != found.canary_percent else {}
    stated = goal is not None and goal < 100 and (rollout.pinned or not rollout.auto_promote)
    if not stated or rollout == found.rollout or found.traffic or spec.traffic or not _works(context, write, newest):
        return {}
    stable = rollouts.previous_rolled_out(write.revisions_of(found.endpoint_id), newest)
    if stable is None:
        return {}
    _runs(write, found.endpoint_id, stable.revision_id, now)
    before = 100 if found.target > 0 else 0
    return rollouts.begun(stable.revision_id, newest.revision_id, rollout, from_percent=before)


def _over(write: Transaction, found: Endpoint, values: dict[str, Any], now: Moment) -> dict[str, Any]:
    """Columns with which a canary ends, if there is one, because traffic is stated otherwise."""
    _runs(write, found.endpoint_id, found.revision_id, now)
    return rollouts.over() if rollouts.has_canary(found) or values.get("stable_revision_id") else {}


def state_traffic(
    context: Context, write: Transaction, found: Endpoint, rows: Sequence[Traffic], now: Moment
) -> Endpoint:  # fmt: skip
    """Divide an endpoint's calls by `rows` (with revision ids); none: its newest revision has all."""
    mark_rolled_out(context, write, found)
    said = ", ".join(f"{row.percent} % to {row.revision or 'the newest'}{row.tag and f' ({row.tag})'}" for row in rows)
    reason = f"traffic: {said}" if rows else "traffic: all to the newest revision"
    columns = _over(write, found, {}, now)
    write.set_endpoint(found, traffic=tuple(rows), updated_at=now.at, **columns)
    return _done(write, found, reason, now)


def _renew(
    write: Transaction, endpoint_id: str, runs: str, spec: EndpointSpec, base: Revision, update: Update, now: Moment
) -> None:
    """Have a deployment run another revision, or the same one anew; on other hardware if that asks for it."""
    deployment = write.deployment_of(endpoint_id)
    assert deployment is not None, "written together with the endpoint"
    values: dict[str, Any] = {"revision_id": runs, "fails": 0, "not_before": 0.0, "reasons": ()}
    before, image = base.spec.image, spec.image
    if (before.query, before.prefer, before.strict) != (image.query, image.prefer, image.strict):
        good = deployment.sku_id in fitting_kinds(write, spec, {deployment.sku_id}).good
        if not good or image.prefer != before.prefer:
            values["sku_id"] = ""  # its reconciler chooses anew
    write.set_deployment(deployment, **values)
    if update.tier >= 2 and deployment.template_id:
        write.set_template(deployment.template_id, updated_at=now.at)
    write.signal("deployment", deployment.deployment_id, now.wall)


def _keep_fitting(write: Transaction, endpoint_id: str, base: Revision, new_id: str, spec: EndpointSpec) -> None:
    """Workers whose node meets the new requirements run the new revision as they are: their code is the same."""
    fits = fitting_kinds(write, spec, {sku.sku_id for sku in write.skus()}).good
    kept = False
    for instance in write.instances_of(endpoint_id):
        if instance.intent == "run" and instance.revision_id == base.revision_id and instance.sku_id in fits:
            write.set_instance(instance, revision_id=new_id)
            kept = kept or instance.ready_at is not None
    if kept and base.healthy_at is not None:
        write.set_revision(new_id, healthy_at=base.healthy_at)
    write.hint("wanted")


def _swaps(base: Revision, spec: EndpointSpec, update: Update) -> bool:
    """Whether running workers of a revision can take a specification's function bodies as they are."""
    old = base.spec
    same = (old.image, old.functions, old.asgi) == (spec.image, spec.functions, spec.asgi)
    return update.tier == 2 and same and bool(spec.swap_from) and spec.swap_from == old.fingerprints.code


def _swap_bodies(write: Transaction, endpoint_id: str, base: Revision, new_id: str) -> None:
    """The ready workers of a revision are of the new one from now on; their agents give them its function bodies."""
    for instance in write.instances_of(endpoint_id):
        if instance.intent == "run" and instance.revision_id == base.revision_id and instance.ready_at is not None:
            write.set_instance(instance, revision_id=new_id)
    if base.healthy_at is not None:
        write.set_revision(new_id, healthy_at=base.healthy_at)
    write.hint("wanted")


def remodelled(found: Endpoint, update: Update) -> bool:
    """Whether the workers of an endpoint go on with other further models; those of a canary are replaced, for the
    revision beside it keeps its own."""
    return update.models_only and not rollouts.has_canary(found) and not found.traffic


def _remodel(write: Transaction, endpoint_id: str, base: Revision, new_id: str) -> None:
    """All instances of a revision are of the new one from now on; agents have their workers load and unload models."""
    for instance in write.instances_of(endpoint_id):
        if instance.intent in ("run", "hibernate") and instance.revision_id == base.revision_id:
            write.set_instance(instance, revision_id=new_id)
    if base.healthy_at is not None:
        write.set_revision(new_id, healthy_at=base.healthy_at)
    write.hint("wanted")


def reprice(context: Context, write: Transaction, found: Endpoint, now: Moment) -> None:
    """What an endpoint may pay changed, or it is gone: have its procurement pay what is allowed now."""
    deployment = write.deployment_of(found.endpoint_id)
    if deployment is not None and deployment.sku_id:
        with context.desk.session(write, now.at) as market:
            market.reprice(deployment.capacity_id, deployment.sku_id)


def roll_back(context: Context, write: Transaction, found: Endpoint, wanted: str, now: Moment) -> Endpoint:
    """Go back to a revision by name, number or id ("": the previous healthy one). Raises `NotFound`, `Conflict`."""
    deployment = write.deployment_of(found.endpoint_id)
    known = write.revisions_of(found.endpoint_id)
    newest = next(one for one in known if one.revision_id == found.revision_id)
    assert deployment is not None, "written together with the endpoint"
    mark_rolled_out(context, write, found)
    if wanted:
        target = rollouts.named(found, known, wanted)
        if target is None:
            there = ", ".join(rollouts.name_of(found, one.number) for one in known)
            raise NotFound(f"revision: {found.full_name} has no revision {wanted!r} (there are: {there})")
    else:
        target = rollouts.previous_healthy(found, deployment, known)
        if target is None:
            raise Conflict(
                f"revision: {found.full_name} has no earlier revision that was healthy; name one, or deploy a fix",
                field="revision",
            )
    if target.revision_id == found.revision_id == deployment.revision_id and not found.traffic:
        raise Conflict(f"revision: {found.full_name} runs revision {target.number} already", field="revision")
    reason = f"rolled back to revision {target.number} by request"
    if newest.revision_id != target.revision_id:
        write.set_revision(newest.revision_id, state=rollouts.ROLLED_BACK)
    write.set_revision(target.revision_id, state="", failures=0, failure=None)
    write.set_endpoint(
        found, revision_id=target.revision_id, failure=None, updated_at=now.at, version_label=target.version_label,
        traffic=(), **rollouts.gone_back(rollouts.state_of(found), newest.revision_id, reason),
    )  # fmt: skip
    update = Update("soft_update", 2)
    _renew(write, found.endpoint_id, target.revision_id, target.spec, newest, update, now)
    return _done(write, found, reason, now)


def promote(context: Context, write: Transaction, found: Endpoint, now: Moment) -> Endpoint:
    """Give the canary all calls. Raises `Conflict` when there is none."""
    deployment = write.deployment_of(found.endpoint_id)
    if found.traffic:
        return state_traffic(context, write, found, (), now)
    if not rollouts.has_canary(found) or deployment is None:
        raise Conflict(
            f"{found.full_name} has no canary to promote; deploy with configure_rollout(canary=...)", field="canary"
        )
    reason = "the canary is promoted by request"
    write.set_endpoint(
        found, failure=None, updated_at=now.at, **rollouts.promoted(rollouts.state_of(found), reason)
    )  # fmt: skip
    write.set_deployment(deployment, revision_id=found.revision_id, fails=0, not_before=0.0)
    write.signal("deployment", deployment.deployment_id, now.wall)
    return _done(write, found, reason, now)


def _done(write: Transaction, found: Endpoint, reason: str, now: Moment) -> Endpoint:
    announce(write, found.endpoint_id, reason, now)
    notify(write, found.workspace_id, found.endpoint_id, found.name, found.tag, found.kind, "updated", now)
    made = write.endpoint(found.endpoint_id)
    assert made is not None
    return replace(made)


def announce(write: Transaction, endpoint_id: str, message: str, now: Moment) -> None:
    """Add to its story, have it looked at, and have gateways told."""
    write.tell("endpoint", endpoint_id, endpoint_id, message, now.at)
    write.signal("endpoint", endpoint_id, now.wall)
    write.hint("tables")


def notify(
    write: Transaction, workspace_id: str, endpoint_id: str, name: str, tag: str, kind: str, what: str, now: Moment
) -> None:  # fmt: skip
    """Tell the workspace."""
    data = {"name": name, "tag": tag, "kind": kind}
    write.add_notice(now.at, workspace_id, f"endpoint.{what}", endpoint_id, data)
