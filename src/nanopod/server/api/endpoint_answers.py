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
    status: Literal["awaiting_allocation", "running", "hibernated", "terminated", "failed"]
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
    intent: Literal["run", "hibernate", "stop"]
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
    canary_percent_now: int
    canary_at: int | None
    canary_calls: list[int]
    stable_calls: list[int]
    reason: str


class StatedTraffic(TypedDict):
    """A share that was stated; `revision_id` null: the newest revision."""

    revision_id: str | None
    percent: int
    tag: str | None


class TrafficShare(TypedDict):
    """A share of the calls; `revision` is the name of the revision, `latest` that it is the newest one."""

    revision_id: str | None
    revision: str | None
    latest: bool
    percent: int
    tag: str | None


class TrafficAnswer(TypedDict):
    """How calls are divided: as it was `stated`, and as it is now (`traffic`), which also shows a canary."""

    id: str
    object: Literal["traffic"]
    name: str
    tag: str
    stated: list[TrafficShare]
    traffic: list[TrafficShare]


class MetricAnswer(TypedDict):
    """What one metric says: its mean over both windows, what a worker is to have of it, how many workers that makes.

    `target` is `utilization` (0 to 1) of `total`.
    """

    name: str
    stable: float
    panic: float
    target: float
    total: float
    utilization: float
    desired_stable: int
    desired_panic: int


class BoundsAnswer(TypedDict):
    """The fewest and the most workers (0: no limit), and which settings say so."""

    min: int
    max: int
    reasons: list[str]


class DelayAnswer(TypedDict):
    """How long a decrease waits, and the number that it holds at present (null: none)."""

    seconds: float
    holds: int | None


class ActiveAnswer(TypedDict):
    """The Active condition: `Unknown` while workers start, `False` without traffic; since when (Unix seconds)."""

    status: Literal["Unknown", "True", "False"]
    reason: str
    since: float | None


class StartTimes(TypedDict):
    """Median seconds of the newest starts by kind; null where none was measured."""

    wake: float | None
    provision: float | None


class AutoscalingAnswer(TypedDict):
    """Why it has as many workers as it has.

    `desired` is what the load asks for, before bounds; `want` what is asked for (-1: as many as there are);
    `units_per_s` the load that one worker does; `zero_after_s` the idle time after which there is none (null: never).
    """

    profile: str
    metrics: list[MetricAnswer]
    ready: int
    starting: int
    cold: int
    desired: int
    want: int
    panic_since: float | None
    bounds: BoundsAnswer
    delay: DelayAnswer
    excess_burst_capacity: float
    proxy: bool
    active: ActiveAnswer
    units_per_s: float | None
    start_s: StartTimes
    waiting: int
    oldest_wait_s: float
    zero_after_s: float | None
    reasons: list[str]
    advice: str


class EndpointAnswer(TypedDict):
    """An endpoint with its workers. `ready_instance_count` counts workers of its newest revision alone, unless it is
    pinned to an earlier one."""

    id: str
    object: Literal["endpoint"]
    name: str
    tag: str
    kind: Literal["function", "model", "graph"]
    workspace_id: str
    status: Literal["stopped", "failed", "asleep", "waking", "updating", "scaling", "ready"]
    revision_id: str
    revision_number: int
    revision_name: str
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
    autoscaling: AutoscalingAnswer | None
    rollout: RolloutAnswer
    rollout_settings: RolloutSpec
    traffic: list[StatedTraffic]
    stopped: bool
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
    name: str
    state: Literal["current", "stable", "canary", "failed", "rolled_back", "old"]
    version_label: str
    fingerprints: EndpointFingerprints
    bundle: str
    healthy_at: int | None
    created_at: int | None
    failure: FailureAnswer | None


class RollbackBody(TypedDict, total=False):
    """The revision to go back to, by name, number or id; left out: the previous healthy one."""

    revision: int | str | None
