"""Endpoints, deployments and instances as they are shown to users, with why they are as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanopod.control.live import Live
from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import Failure


def whole(at: float | None) -> int | None:
    """A time as the API shows it: whole seconds."""
    return int(at) if at is not None else None


def failure_view(failure: Failure | None) -> dict[str, Any] | None:
    """A failure as JSON."""
    if failure is None:
        return None
    return {name: getattr(failure, name) for name in failure.__dataclass_fields__}


def instance_view(instance: Instance, live: Live) -> dict[str, Any]:
    """One instance; `phase` is `ready` only while it is linked and takes work."""
    link = live.link(instance.instance_id, instance.epoch) if instance.ended_at is None else None
    ready = link is not None and link.ready
    phase = instance.phase
    if ready and phase in ("starting", "loading", "ready"):
        phase = "draining" if instance.intent == "stop" else "ready"
    elif phase == "ready":
        phase = "loading"
    return {
        "id": instance.instance_id,
        "object": "instance",
        "workspace_id": instance.workspace_id,
        "endpoint_id": instance.endpoint_id,
        "deployment_id": instance.deployment_id,
        "revision_id": instance.revision_id,
        "capacity_id": instance.capacity_id,
        "node_id": instance.node_id,
        "status": _market_status(instance),
        "phase": phase,
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


def _market_status(instance: Instance) -> str:
    if instance.ended_at is not None:
        return "failed" if instance.phase == "failed" else "terminated"
    return "awaiting_allocation" if instance.node_id is None else "running"


def status_of(
    endpoint: Endpoint, deployment: Deployment, current: int, ready: int, ready_old: int, running: int
) -> str:
    """`failed`, `asleep`, `waking`, `updating`, `scaling` or `ready`.

    `current`, `ready`: instances of the newest revision, and those of them that take work; `ready_old`: of earlier
    revisions; `running`: all that shall run.
    """
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
    reasons = [*endpoint.reasons, *deployment.reasons]
    reasons += sorted({f"an instance waits: {i.reason}" for i in running if i.node_id is None and i.reason})
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
        "deployment_id": deployment.deployment_id,
        "serving_revision_id": deployment.revision_id,
        "functions": list(spec.functions),
        "model": spec.model,
        "model_ids": [spec.model.model_id] if spec.model else [],
        "target_instance_count": max(0, endpoint.target),
        "ready_instance_count": len(ready_new),
        "instances": [instance_view(instance, live) for instance in instances],
        "failure": failure_view(endpoint.failure),
        "reasons": reasons,
        "scale": endpoint.scale,
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


def deployment_view(
    deployment: Deployment, endpoint: Endpoint | None, instances: Sequence[Instance], live: Live
) -> dict[str, Any]:
    """One deployment."""
    ready = sum(1 for i in instances if i.intent == "run" and live.ready(i.instance_id, i.epoch))
    name = endpoint.full_name if endpoint else None
    return {
        "id": deployment.deployment_id,
        "object": "deployment",
        "kind": "generic",
        "name": name,
        "workspace_id": deployment.workspace_id,
        "endpoint_id": deployment.endpoint_id,
        "endpoint": name,
        "capacity_id": deployment.capacity_id,
        "revision_id": deployment.revision_id,
        "target_instance_count": deployment.target_instance_count,
        "instance_count": sum(1 for i in instances if i.intent == "run"),
        "ready_instance_count": ready,
        "instances": [i.instance_id for i in instances],
        "reasons": list(deployment.reasons),
        "status": {"state": "warning" if deployment.fails else "info", "message": "; ".join(deployment.reasons)},
        "created_at": whole(deployment.created_at),
        "updated_at": whole(deployment.updated_at),
    }
