"""Endpoints, deployments and instances as they are shown to users, with why they are as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nanopod.control import rollouts
from nanopod.control.live import Live
from nanopod.control.telling import AWAITS, is_machine
from nanopod.model.chain import Deployment, Endpoint, Instance, Revision, Template
from nanopod.model.endpoint import Failure

_MARKET_PHASES: Final = {
    "queued": "placing",
    "preparing": "pulling",
    "starting": "booting",
    "loading": "booting",
    "ready": "ready",
    "draining": "draining",
    "stopping": "stopping",
}
"""The market's words for what an instance does; nothing once it is gone."""
_CODES: Final = ("insufficient_balance", "price_above_limit", "no_supply", "kept_manual", "disabled")
"""What may stand in an instance's way, as a procurement's status begins."""


def whole(at: float | None) -> int | None:
    """A time as the API shows it: whole seconds."""
    return int(at) if at is not None else None


def failure_view(failure: Failure | None) -> dict[str, Any] | None:
    """A failure as JSON."""
    if failure is None:
        return None
    return {name: getattr(failure, name) for name in failure.__dataclass_fields__}


def instance_view(instance: Instance, live: Live) -> dict[str, Any]:
    """One instance; the `phase` of a worker is `ready` only while it is linked and takes work.

    `market_phase` says the same in the market's words, null while it awaits allocation and once it is gone.
    """
    link = live.link(instance.instance_id, instance.epoch) if instance.ended_at is None else None
    phase = instance.phase
    if is_machine(instance):
        ready = phase == "ready" and instance.ended_at is None
    else:
        ready = link is not None and link.ready
        if ready and phase in ("starting", "loading", "ready"):
            phase = "ready" if instance.intent == "run" else "draining"
        elif phase == "ready":
            phase = "loading"
    status = market_status(instance)
    return {
        "id": instance.instance_id,
        "object": "instance",
        "workspace_id": instance.workspace_id,
        "name": instance.name or None,
        "endpoint_id": instance.endpoint_id or None,
        "deployment_id": instance.deployment_id or None,
        "revision_id": instance.revision_id or None,
        "capacity_id": instance.capacity_id,
        "instance_sku_id": instance.sku_id or None,
        "node_id": instance.node_id,
        "status": status,
        "status_reason": instance.reason or None,
        "phase": phase,
        "market_phase": _MARKET_PHASES.get(phase) if status == "running" else None,
        "early_start": status == "running" and instance.early_until is not None,
        "priority_level": instance.priority,
        "tags": dict(instance.tags),
        "ready": ready,
        "linked": link is not None,
        "in_flight": link.in_flight if link else 0,
        "perf": link.perf if link else None,
        "slots": instance.slots,
        "epoch": instance.epoch,
        "intent": instance.intent,
        "pid": instance.pid,
        "exit_code": instance.exit_code,
        "reason": instance.reason,
        "failure": failure_view(instance.failure),
        "created_at": whole(instance.created_at),
        "ready_at": whole(instance.ready_at),
        "ended_at": whole(instance.ended_at),
    }


def market_status(instance: Instance) -> str:
    """`awaiting_allocation` until its capacity's quota lets it run, then `running`, then `terminated` or `failed`;
    `hibernated` while it holds no time and waits to be woken."""
    if instance.ended_at is not None:
        return "failed" if instance.phase == "failed" else "terminated"
    if instance.out_of_time:
        return "terminated"
    if instance.phase == "hibernated":
        return "hibernated"
    return "awaiting_allocation" if instance.granted_at is None else "running"


def status_of(
    endpoint: Endpoint, deployment: Deployment, current: int, ready: int, ready_old: int, running: int
) -> str:
    """`stopped`, `failed`, `asleep`, `waking`, `updating`, `scaling` or `ready`.

    `current`, `ready`: instances of the newest revision, and those of them that take work; `ready_old`: of earlier
    revisions; `running`: all that shall run.
    """
    if endpoint.stopped:
        return "stopped"
    if endpoint.kind == "graph":
        return "ready"
    if endpoint.failure is not None and not ready and not ready_old:
        return "failed"
    if not ready and not ready_old:
        return "asleep" if endpoint.target == 0 and not current else "waking"
    if deployment.revision_id == endpoint.revision_id and (ready_old or running > current) and endpoint.target > 0:
        return "updating"
    return "ready" if running == endpoint.target and ready + ready_old >= endpoint.target else "scaling"


def endpoint_view(
    endpoint: Endpoint, deployment: Deployment, revision: Revision, instances: Sequence[Instance], live: Live
) -> dict[str, Any]:
    """One endpoint. `ready_instance_count` counts workers of its newest revision alone: while an update rolls out,
    the others still serve, but whoever waits for the new code must not be told that it is there."""
    running = [i for i in instances if i.intent == "run"]
    ready = [i for i in running if live.ready(i.instance_id, i.epoch)]
    ready_new = [i for i in ready if i.revision_id == endpoint.revision_id]
    current = [i for i in running if i.revision_id == endpoint.revision_id]
    spec = revision.spec
    rollout = rollouts.state_of(endpoint)
    why = [f"rollout: {rollout.reason}"] if rollout.reason else []
    reasons = [*why, *endpoint.reasons, *deployment.reasons, *_waits(running)]
    return {
        "id": endpoint.endpoint_id,
        "object": "endpoint",
        "name": endpoint.name,
        "tag": endpoint.tag,
        "kind": endpoint.kind,
        "workspace_id": endpoint.workspace_id,
        "status": status_of(
            endpoint, deployment, len(current), len(ready_new), len(ready) - len(ready_new), len(running)
        ),
        "revision_id": endpoint.revision_id,
        "revision_number": revision.number,
        "revision_name": rollouts.name_of(endpoint, revision.number),
        "deployment_id": deployment.deployment_id,
        "serving_revision_id": deployment.revision_id,
        "functions": list(spec.functions),
        "asgi": list(spec.asgi),
        "model": spec.model,
        "model_ids": [spec.model.model_id] if spec.model else [],
        "target_instance_count": max(0, endpoint.target),
        "ready_instance_count": len(ready_new if rollouts.newest_serves(endpoint) else ready),
        "waiting_count": live.parked(endpoint.endpoint_id),
        "instances": [instance_view(instance, live) for instance in instances],
        "failure": failure_view(endpoint.failure),
        "reasons": reasons,
        "scale": endpoint.scale,
        "autoscaling": live.explain(endpoint.endpoint_id),
        "rollout": rollout_view(endpoint),
        "traffic": [
            {"revision_id": row.revision or None, "percent": row.percent, "tag": row.tag or None}
            for row in endpoint.traffic
        ],
        "stopped": endpoint.stopped,
        "rollout_settings": endpoint.rollout,
        "ttl_s": endpoint.ttl_s,
        "version_label": endpoint.version_label,
        "fingerprints": {
            "code": spec.fingerprints.code,
            "image": spec.fingerprints.image,
            "scale": endpoint.scale_fingerprint,
        },
        "created_at": whole(endpoint.created_at),
        "updated_at": whole(endpoint.updated_at),
    }


def rollout_view(endpoint: Endpoint) -> dict[str, Any]:
    """How the newest rollout goes or went."""
    state = rollouts.state_of(endpoint)
    return {
        "state": state.phase,
        "revision_id": state.revision_id or None,
        "stable_revision_id": endpoint.stable_revision_id or None,
        "canary_percent": endpoint.canary_percent,
        "canary_percent_now": rollouts.percent_of(endpoint) if rollouts.has_canary(endpoint) else 0,
        "canary_at": whole(endpoint.canary_at),
        "canary_calls": list(state.canary),
        "stable_calls": list(state.stable),
        "reason": state.reason,
    }


def revision_view(endpoint: Endpoint, deployment: Deployment, revision: Revision) -> dict[str, Any]:
    """One revision of an endpoint."""
    prints = revision.spec.fingerprints
    return {
        "id": revision.revision_id,
        "object": "revision",
        "endpoint_id": revision.endpoint_id,
        "number": revision.number,
        "name": rollouts.name_of(endpoint, revision.number),
        "state": rollouts.revision_state(endpoint, deployment, revision),
        "version_label": revision.version_label,
        "fingerprints": {"code": prints.code, "image": prints.image, "scale": prints.scale},
        "bundle": revision.spec.bundle,
        "healthy_at": whole(revision.healthy_at),
        "created_at": whole(revision.created_at),
        "failure": failure_view(revision.failure),
    }


def deployment_view(
    deployment: Deployment, endpoint: Endpoint | None, instances: Sequence[Instance], live: Live
) -> dict[str, Any]:
    """One deployment. `reasons` say why it has as many instances as it has."""
    wanted = [i for i in instances if i.intent == "run"]
    ready = sum(1 for i in wanted if _is_ready(i, live))
    reasons = [*deployment.reasons, *_waits(wanted)]
    return {
        "id": deployment.deployment_id,
        "object": "deployment",
        "kind": deployment.kind,
        "name": deployment.name,
        "workspace_id": deployment.workspace_id,
        "endpoint_id": deployment.endpoint_id or None,
        "endpoint": endpoint.full_name if endpoint else None,
        "capacity_id": deployment.capacity_id,
        "instance_sku_id": deployment.sku_id or None,
        "instance_template_id": deployment.template_id or None,
        "instance_name_template": deployment.instance_name_template or None,
        "enabled": deployment.enabled,
        "revision_id": deployment.revision_id or None,
        "target_instance_count": deployment.target_instance_count,
        "instance_count": len(wanted),
        "running_instance_count": sum(1 for i in wanted if market_status(i) == "running"),
        "ready_instance_count": ready,
        "instances": [i.instance_id for i in instances],
        "reasons": reasons,
        "status": deployment_status(deployment, wanted),
        "tags": dict(deployment.tags),
        "created_at": whole(deployment.created_at),
        "updated_at": whole(deployment.updated_at),
    }


def deployment_status(deployment: Deployment, wanted: Sequence[Instance]) -> dict[str, str]:
    """`{state, code, message}`; the message begins with the code, so that programs need not read on.

    `wanted` are its instances that shall run.
    """
    target = deployment.target_instance_count
    running = sum(1 for i in wanted if market_status(i) == "running")
    have = f"{running} of {target} instances run"
    if not deployment.enabled:
        return _status("info", "disabled", f"{have}; it is not kept at its number while it is disabled")
    waits = _waits(wanted)
    for text in waits:
        for code in _CODES:
            if f"{AWAITS}{code}" in text:
                return _status("warning", code, f"{have}; {'; '.join(waits)}")
    if deployment.fails:
        words = "; ".join([*deployment.reasons, *waits]) or "the last start failed"
        return _status("warning", "failing", f"{have}, {deployment.fails} failed starts in a row; {words}")
    awaiting = sum(1 for i in wanted if market_status(i) == "awaiting_allocation")
    if awaiting and not waits:
        waits = [f"{awaiting} await allocation"]
    return _status("info", "running", "; ".join([have, *deployment.reasons, *waits]))


def _status(state: str, code: str, words: str) -> dict[str, str]:
    return {"state": state, "code": code, "message": f"{code}: {words}"}


def _waits(wanted: Sequence[Instance]) -> list[str]:
    """Why instances that shall run do not: each reason once, with how many it holds back."""
    counts: dict[str, int] = {}
    for instance in wanted:
        if instance.reason and (instance.node_id is None or instance.phase == "preparing"):
            counts[instance.reason] = counts.get(instance.reason, 0) + 1
    return [f"{'an instance waits' if n == 1 else f'{n} instances wait'}: {why}" for why, n in sorted(counts.items())]


def _is_ready(instance: Instance, live: Live) -> bool:
    if is_machine(instance):
        return instance.phase == "ready"
    return live.ready(instance.instance_id, instance.epoch)


def template_view(template: Template, *, cloud_init: bool = False) -> dict[str, Any]:
    """One instance template; its start-up script only on demand."""
    shown: dict[str, Any] = {
        "id": template.template_id,
        "object": "instance_template",
        "name": template.name,
        "workspace_id": template.workspace_id,
        "image_id": template.image_id or None,
        "cloud_init_user_data_used": bool(template.cloud_init),
        "endpoint_id": template.endpoint_id or None,
        "tags": dict(template.tags),
        "created_at": whole(template.created_at),
        "updated_at": whole(template.updated_at),
    }
    if cloud_init:
        shown["cloud_init_user_data"] = template.cloud_init or None
    return shown
