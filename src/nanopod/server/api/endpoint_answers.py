"""What answers about endpoints look like."""

from __future__ import annotations

from typing import Literal, TypedDict

from nanopod.model.endpoint import AsgiSpec, FunctionSpec, ModelSpec, RolloutSpec, ScaleSpec
from nanopod.server.api.instances import FailureAnswer


class WorkerAnswer(TypedDict):
    """An instance in short, as its endpoint lists it; `/v1/instances/{id}` says more."""

    id: str
    object: Literal["instance"]
    workspace_id: str
    name: str | None
    endpoint_id: str | None
    deployment_id: str | None
    revision_id: str | None
    capacity_id: str
    instance_sku_id: str | None
    node_id: str | None
    status: Literal["awaiting_allocation", "running", "terminated", "failed"]
    status_reason: str | None
    phase: str
    market_phase: str | None
    early_start: bool
    priority_level: Literal["yield", "normal", "preferred", "critical"]
    tags: dict[str, str]
    ready: bool
    linked: bool
    in_flight: int
    perf: float | None
    slots: int
    epoch: int
    intent: Literal["run", "stop"]
    pid: int | None
    exit_code: int | None
    reason: str
    failure: FailureAnswer | None
    created_at: int | None
    ready_at: int | None
    ended_at: int | None


class EndpointFingerprints(TypedDict):
    """What tells whether code, image or scale changed."""

    code: str
    image: str
    scale: str


class RolloutAnswer(TypedDict):
    """How the newest rollout goes or went: `canary_calls`, `stable_calls` are [ended, failed]. `state` "": plainly."""

    state: Literal["", "canary", "promoted", "rolled_back"]
    revision_id: str | None
    stable_revision_id: str | None
    canary_percent: int
    canary_at: int | None
    canary_calls: list[int]
    stable_calls: list[int]
    reason: str


class EndpointAnswer(TypedDict):
    """An endpoint with its workers. `ready_instance_count` counts workers of its newest revision alone."""

    id: str
    object: Literal["endpoint"]
    name: str
    tag: str
    kind: Literal["function", "model"]
    workspace_id: str
    status: Literal["failed", "asleep", "waking", "updating", "scaling", "ready"]
    revision_id: str
    revision_number: int
    deployment_id: str
    serving_revision_id: str
    functions: list[FunctionSpec]
    asgi: list[AsgiSpec]
    model: ModelSpec | None
    model_ids: list[str]
    target_instance_count: int
    ready_instance_count: int
    waiting_count: int
    instances: list[WorkerAnswer]
    failure: FailureAnswer | None
    reasons: list[str]
    scale: ScaleSpec
    rollout: RolloutAnswer
    rollout_settings: RolloutSpec
    ttl_s: float | None
    version_label: str
    fingerprints: EndpointFingerprints
    created_at: int | None
    updated_at: int | None


class PutAnswer(TypedDict):
    """What came of putting an endpoint: `tier` 0 nothing, 1 settings, 2 code, 3 image, 4 a new endpoint.

    With `dry_run`: `files` that differ, `workers` that would be replaced, and the number of an `earlier_revision` that
    has the very same code and image.
    """

    endpoint: EndpointAnswer | None
    action: str
    tier: int
    changed: list[str]
    reasons: list[str]
    files: list[str]
    workers_affected: int
    workers: list[str]
    earlier_revision: int | None


class DeletedEndpoint(TypedDict):
    """An endpoint that is going."""

    id: str
    object: Literal["endpoint"]
    name: str
    tag: str
    deleted: bool


class HeartbeatAnswer(TypedDict):
    """When an endpoint was kept alive."""

    id: str
    object: Literal["endpoint"]
    ttl_s: float | None
    heartbeat_at: int


class StoryLine(TypedDict):
    """A decision with its reason; `kind` and `id` say whose."""

    at: float
    kind: str
    id: str
    message: str


class RevisionAnswer(TypedDict):
    """One revision of an endpoint; `healthy_at` is when a worker of it was ready first."""

    id: str
    object: Literal["revision"]
    endpoint_id: str
    number: int
    state: Literal["current", "stable", "canary", "failed", "rolled_back", "old"]
    version_label: str
    fingerprints: EndpointFingerprints
    bundle: str
    healthy_at: int | None
    created_at: int | None
    failure: FailureAnswer | None


class RollbackBody(TypedDict, total=False):
    """The revision to go back to, by number or id; left out: the previous healthy one."""

    revision: int | str | None
