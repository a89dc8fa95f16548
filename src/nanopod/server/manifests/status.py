"""An applied object with its status, in the shapes that KServe's and Knative's own clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from nanopod.control import rollouts
from nanopod.model.chain import Applied, Endpoint, Instance, Revision
from nanopod.model.endpoint import Traffic
from nanopod.scheduler.placement.fit import NO_KIND

_TRUE: Final = "True"
_FALSE: Final = "False"
_UNKNOWN: Final = "Unknown"


@dataclass(frozen=True, slots=True)
class Served:
    """What is known of the endpoint of a service. `shares`: how requests are divided now, by revision id."""

    endpoint: Endpoint
    revisions: Sequence[Revision]
    instances: Sequence[Instance]
    ready: Mapping[str, int]
    """Ready workers by revision id."""
    reasons: Sequence[str]
    shares: Sequence[Traffic]
    serving: str
    """The revision that gets what no share says otherwise."""
    url: str
    models: Sequence[Mapping[str, str]] = ()
    """What each ready worker says of its models: {model: "" once it is ready, else why it is not}."""

    def name_of(self, revision_id: str) -> str:
        """`NAME-NNNNN` of a revision; "" when it is gone."""
        found = next((one for one in self.revisions if one.revision_id == revision_id), None)
        return rollouts.name_of(self.endpoint, found.number) if found is not None else ""


def shown(applied: Applied, served: Served | None) -> dict[str, Any]:
    """The object with its metadata filled in and its `status`. `served` of a TrainedModel is its service's."""
    document: dict[str, Any] = json.loads(applied.document)
    meta = dict(document.get("metadata") or {})
    meta |= {
        "namespace": applied.namespace,
        "uid": applied.manifest_id,
        "generation": applied.generation,
        "resourceVersion": str(applied.generation),
        "creationTimestamp": _time(applied.created_at),
    }
    made = {**document, "metadata": meta}
    status = _status(applied, served)
    return {**made, "status": status} if status else made


def _status(applied: Applied, served: Served | None) -> dict[str, Any]:
    match applied.kind:
        case "InferenceService" | "LLMInferenceService":
            return _inference_service(applied, served)
        case "Service":
            return _knative_service(applied, served)
        case "InferenceGraph":
            return _graph(applied, served)
        case "TrainedModel":
            return _trained_model(applied, served)
        case "PersistentVolumeClaim":
            spec = document_spec(applied)
            return {"phase": "Bound", "accessModes": spec.get("accessModes") or []}
    return {
        key: value for key, value in applied.status.items() if key in ("conditions", "succeeded", "failed", "active")
    }


def document_spec(applied: Applied) -> Mapping[str, Any]:
    """`spec` of a stored object."""
    found = json.loads(applied.document).get("spec")
    return found if isinstance(found, dict) else {}


def _time(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(kind: str, status: str, at: float, reason: str = "", message: str = "") -> dict[str, Any]:
    made = {"type": kind, "status": status, "lastTransitionTime": _time(at)}
    return made | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


@dataclass(frozen=True, slots=True)
class _State:
    status: str
    reason: str = ""
    message: str = ""


def _state(applied: Applied, served: Served | None) -> _State:
    """Whether the newest revision of a service can answer: it has ready workers, or may be at zero."""
    after = applied.status.get("after")
    if after:
        return _State(_FALSE, "WaitingForJob", f"it starts after Job {', '.join(after)} succeeded")
    if served is None:
        return _State(_UNKNOWN, "NoModels", "no TrainedModel names it yet")
    endpoint, ready = served.endpoint, sum(served.ready.values())
    if endpoint.stopped:
        return _State(_FALSE, "Stopped", "it is asked to run nothing")
    if endpoint.failure is not None:
        return _State(_FALSE, "RevisionFailed", endpoint.failure.message)
    newest = next((one for one in served.revisions if one.revision_id == endpoint.revision_id), None)
    if newest is not None and newest.healthy_at is not None:
        if ready:
            return _State(_TRUE)
        if endpoint.target == 0:
            return _State(_TRUE, "NoTraffic", "it is at zero, and starts with the next request")
    lacking = next((text for text in served.reasons if NO_KIND in text), "")
    if lacking:
        return _State(_FALSE, "Unschedulable", lacking)
    # What the autoscaler says comes first, what keeps workers from starting after it.
    return _State(_UNKNOWN, "RevisionMissing" if ready else "Deploying", "; ".join(served.reasons[-2:]))


def _latest(served: Served) -> tuple[str, str, str]:
    """Names of the newest revision, the newest that is or was ready, and the one that was rolled out last."""
    endpoint = served.endpoint
    healthy = [one for one in served.revisions if one.healthy_at is not None and one.state != rollouts.ROLLED_BACK]
    newest = max(healthy, key=lambda one: one.number, default=None)
    whole = next((one.revision for one in served.shares if one.percent == 100), "") or served.serving
    return (
        served.name_of(endpoint.revision_id),
        served.name_of(newest.revision_id) if newest is not None else "",
        served.name_of(whole),
    )


def _traffic(served: Served) -> list[dict[str, Any]]:
    """How requests are divided, with the tags and their addresses."""
    rows = served.shares or (Traffic(served.serving, 100),)
    made = []
    for row in rows:
        revision = row.revision or served.endpoint.revision_id
        latest = revision == served.endpoint.revision_id
        one: dict[str, Any] = {
            "revisionName": served.name_of(revision),
            "latestRevision": latest,
            "percent": row.percent,
        }
        if row.tag:
            one |= {"tag": row.tag, "url": served.url.replace("://", f"://{row.tag}-", 1)}
        made.append(one)
    return made


def _inference_service(applied: Applied, served: Served | None) -> dict[str, Any]:
    state = _state(applied, served)
    at = served.endpoint.updated_at if served is not None else applied.updated_at
    names = ["Ready", "PredictorReady", "PredictorRouteReady", "LatestDeploymentReady", "IngressReady"]
    spec = document_spec(applied)
    names += ["TransformerReady"] if spec.get("transformer") else []
    conditions = [
        _condition(name, _TRUE, at)
        if name == "IngressReady" and served is not None
        else _condition(name, state.status, at, state.reason, state.message)
        for name in names
    ]
    for name, message in (applied.status.get("conditions") or {}).items():
        conditions.append(_condition(name, _FALSE, at, "NotAvailable", message))
    if spec.get("explainer") and not any(one["type"] == "ExplainerReady" for one in conditions):
        conditions.append(_condition("ExplainerReady", state.status, at, state.reason, state.message))
    made: dict[str, Any] = {"conditions": conditions, "observedGeneration": applied.generation}
    if served is None:
        return made
    created, ready, rolled = _latest(served)
    component = {
        "url": served.url, "latestCreatedRevision": created, "latestReadyRevision": ready,
        "latestRolledoutRevision": rolled, "traffic": _traffic(served),
    }  # fmt: skip
    load = {_TRUE: "Loaded", _FALSE: "FailedToLoad"}.get(state.status, "Pending")
    copies = sum(served.ready.values())
    return {
        **made,
        "url": served.url,
        "address": {"url": served.url},
        "components": {"predictor": component},
        "deploymentMode": "Serverless",
        "modelStatus": {
            "copies": {"failedCopies": 0, "totalCopies": copies},
            "states": {"activeModelState": load, "targetModelState": load},
            "transitionStatus": "UpToDate" if state.status == _TRUE else "InProgress",
        },
    }


def _knative_service(applied: Applied, served: Served | None) -> dict[str, Any]:
    state = _state(applied, served)
    at = served.endpoint.updated_at if served is not None else applied.updated_at
    names = ("Ready", "ConfigurationsReady", "RoutesReady")
    made: dict[str, Any] = {
        "conditions": [_condition(name, state.status, at, state.reason, state.message) for name in names],
        "observedGeneration": applied.generation,
    }
    if served is None:
        return made
    created, ready, _ = _latest(served)
    return {
        **made,
        "url": served.url,
        "address": {"url": served.url},
        "latestCreatedRevisionName": created,
        "latestReadyRevisionName": ready,
        "traffic": _traffic(served),
    }


def _graph(applied: Applied, served: Served | None) -> dict[str, Any]:
    stopped = served is None or served.endpoint.stopped
    at = served.endpoint.updated_at if served is not None else applied.updated_at
    made: dict[str, Any] = {
        "conditions": [_condition("Ready", _FALSE if stopped else _TRUE, at, "Stopped" if stopped else "")],
        "observedGeneration": applied.generation,
    }
    return made | ({"url": served.url} if served is not None else {})


def _trained(name: str, served: Served) -> _State | None:
    """Whether the workers of a service have a model; None while none of them says so."""
    said = [one.get(name, "loading") for one in served.models]
    if not said:
        return None
    lacking = [why for why in said if why]
    if not lacking:
        return _State(_TRUE)
    bad = next((why for why in lacking if why not in ("loading", "ready: loading")), "")
    if len(lacking) < len(said):
        return _State(_TRUE, "Partly", f"{len(lacking)} of {len(said)} workers do not have it: {bad or 'loading'}")
    if bad:
        return _State(_FALSE, "ModelFailed", bad)
    return _State(_UNKNOWN, "ModelLoading", "its workers load it")


def _trained_model(applied: Applied, served: Served | None) -> dict[str, Any]:
    service = _state(applied, served)
    state = (_trained(applied.name, served) if served is not None else None) or service
    at = served.endpoint.updated_at if served is not None else applied.updated_at
    made: dict[str, Any] = {
        "conditions": [
            _condition("Ready", state.status, at, state.reason, state.message),
            _condition("InferenceServiceReady", service.status, at, service.reason, service.message),
            _condition("FrameworkSupported", _TRUE, at),
            _condition("IsMMSPredictor", _TRUE, at),
        ],
        "observedGeneration": applied.generation,
    }
    return made | ({"url": f"{served.url}/v1/models/{applied.name}:predict"} if served is not None else {})
