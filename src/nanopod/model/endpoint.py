"""The chain's own nouns: what is deployed (`EndpointSpec`), what serves it (`Instance`) and why something failed.

`EndpointSpec` is what a client uploads and what a worker is started from; the server splits it into an endpoint row
(identity, scale settings) and an immutable revision (code, image). All times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

DEFAULT_WORKLOAD = 100.0
"""Units of load of one call when no calculator says otherwise."""
CALL_TIMEOUT_S = 600.0
QUEUE_TIMEOUT_S = 900.0
WAIT_S_MAX = 600.0
GPUS_MAX = 16
"""How many GPU models a call may prefer."""
PLACE_CHARS_MAX = 64
"""Of the name of a GPU model or region."""
"""Longest time a request may be parked while an endpoint wakes."""

Kind = Literal["function", "model", "machine"]
"""`machine`: an instance of a template, which runs a start-up script and has no link to a gateway."""
EngineKind = Literal["python", "reference", "command"]
Phase = Literal["queued", "preparing", "starting", "loading", "ready", "draining", "stopping", "ended", "failed"]
"""`queued`: wanted, no agent has it yet; `preparing`: bundle and environment; `starting`: the process runs; `loading`:
import, contexts, weights, benchmark; `ready`: takes work; `draining`: takes none; `ended`: gone as asked; `failed`."""
LIVE_PHASES: tuple[Phase, ...] = ("queued", "preparing", "starting", "loading", "ready", "draining", "stopping")
Stage = Literal["bundle", "environment", "import", "context", "benchmark", "engine", "start", "run"]


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """How a failed call is tried again: after `uniform(0, min(cap_s, initial_s * backoff**n))` seconds with jitter.

    `on` holds class names; one matches when any class in the exception's MRO has it, with or without its module.
    """

    max: int = 0
    """Tries after the first."""
    initial_s: float = 1.0
    backoff: float = 2.0
    cap_s: float = 60.0
    jitter: bool = True
    on: tuple[str, ...] = ("WorkerLost", "QueueTimeout")


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """When a function starts by itself: a cron line in a time zone, or every `period_s` seconds."""

    cron: str = ""
    tz: str = "UTC"
    period_s: float = 0.0
    catch_up: bool = True
    """A tick that was missed (nothing ran then) starts once, later; False skips it."""


@dataclass(frozen=True, slots=True)
class WebSpec:
    """A function behind an HTTP path below the endpoint's own."""

    method: str
    path: str
    auth: Literal["key", "public"] = "key"


@dataclass(frozen=True, slots=True)
class AsgiSpec:
    """An ASGI application mounted at `path` below the endpoint's own; `name` is what the code registered it under."""

    name: str
    path: str = "/"
    auth: Literal["key", "public"] = "key"
    concurrency: int = 100


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret whose pairs become environment variables of the workers. Version 0 in a request means the newest."""

    name: str
    version: int = 0


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume (`volume` is its name) or a bucket (`bucket` is a URL) at `path` of the worker's file system."""

    path: str
    volume: str = ""
    bucket: str = ""
    read_only: bool = False
    size_gb: float = 0.0
    region: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How a new revision takes over. `canary_percent` 0: rolling, all of it, as its workers become ready."""

    canary_percent: int = 0
    bake_s: float = 300.0
    """How long a canary runs before it is promoted by itself; 0: only by hand."""
    auto_rollback: bool = True
    max_error_percent: float = 5.0
    """A canary whose share of failed calls is this much above the stable revision's is rolled back."""
    min_calls: int = 20
    """Calls of the canary before its errors are judged."""


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """One `@app.remote` function as the gateway and the worker need to know it."""

    name: str
    kind: Literal["async", "sync", "generator", "async_generator"] = "async"
    concurrency: int = 1
    idempotent: bool = False
    timeout_s: float = CALL_TIMEOUT_S
    queue_timeout_s: float = QUEUE_TIMEOUT_S
    max_queue_time_s: float = 30.0
    benchmark: bool = False
    batch_max: int = 0
    """Calls that may run as one batch; 0: the function takes one call at a time. `concurrency` counts calls."""
    batch_wait_ms: float = 0.0
    """How long the first call of a batch waits for others while a batch runs."""
    retries: RetrySpec | None = None
    on_preempt: Literal["fail", "retry"] = "fail"
    kill_on_cancel: bool = False
    cache_ttl_s: float | None = None
    priority: int = 0
    schedule: ScheduleSpec | None = None
    web: WebSpec | None = None


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a worker's environment is made of, in the order it is applied: env, apt, pip, runs."""

    from_image: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    apt_get: tuple[str, ...] = ()
    pip_install: tuple[str, ...] = ()
    runs: tuple[str | tuple[str, ...], ...] = ()
    """A string runs by `sh -c`, a tuple as an argv; a non-zero exit fails the start."""
    copies: tuple[tuple[str, str], ...] = ()
    """(path inside the bundle, destination below the worker's root)."""
    python: str | None = None
    """None: a managed environment; "": the system's python; else the path of an interpreter or environment."""
    storage_gb: int = 50
    ports: tuple[tuple[int, str], ...] = ((3000, "tcp"),)
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Hardware requirements in wire units: {column: {op: value}}."""
    prefer: tuple[Mapping[str, Mapping[str, Any]], ...] = ()
    """Further requirements, best first: the first one that some capacity can meet is used."""
    secrets: tuple[SecretRef, ...] = ()
    volumes: tuple[VolumeMount, ...] = ()
    strict: bool = False
    """Also where no machine of the cloud has an accelerator, one that is required is waited for."""


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """Autoscaling settings; names and meaning as `configure_autoscaling` takes them."""

    cold_workers: int = 1
    max_workers: int = 16
    min_load: float = 1.0
    min_cold_load: float = 0.0
    target_util: float = 0.9
    cold_mult: float = 1.0
    """Workers there are in all, as a multiple of those that the load needs."""
    max_queue_time: float = 30.0
    target_queue_time: float = 10.0
    inactivity_timeout: float | None = None
    """Idle seconds before zero is allowed; 0: at once; None or negative: never. Zero also needs `cold_workers` and
    `min_load` to be 0."""
    target_concurrency: float | None = None
    """Requests in flight that one worker should have; None: what its slots allow, times `target_util`."""
    spot: bool = True
    """Workers may run on reclaimable time; False: on time that is held only."""
    on_demand_fallback: float = 0.0
    """Share of the workers (0 to 1) that is moved to held time while reclaimable time cannot be had."""
    max_price: float | None = None
    """Most that an hour of a node may cost, in US dollars; None: the cluster's limit."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model. `engine` reference: `source` is a directory, a packaged name or a hub id; command: `argv`.

    `argv` may contain `{port}`, `{host}` and `{model}`; the engine must speak the OpenAI API there.
    """

    model_id: str
    engine: EngineKind = "reference"
    source: str = ""
    argv: tuple[str, ...] = ()
    slots: int = 8
    ready_path: str = "/v1/models"
    start_s_max: float = 600.0


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Hex digests of the three parts of a deployment whose change decides the update tier."""

    code: str = ""
    image: str = ""
    scale: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What a client asks for. Identity is (workspace, name, tag)."""

    name: str
    tag: str = "default"
    kind: Kind = "function"
    bundle: str = ""
    """SHA-256 (hex) of the uploaded bundle; empty for models."""
    bundle_bytes: int = 0
    module: str = "deployment"
    """Module name under which the worker imports the bundled code."""
    functions: tuple[FunctionSpec, ...] = ()
    image: ImageSpec = ImageSpec()
    model: ModelSpec | None = None
    scale: ScaleSpec = ScaleSpec()
    ttl_s: float | None = None
    version_label: str = ""
    fingerprints: Fingerprints = Fingerprints()
    serializer: Literal["native", "pickle"] = "native"
    isolation: str = "process"
    asgi: tuple[AsgiSpec, ...] = ()
    rollout: RolloutSpec = RolloutSpec()
    files: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of each bundled file, so that a plan can name what differs."""
    swap_from: str = ""
    """Code fingerprint of a version from which only function bodies differ: its running workers take this one's
    without a restart. "": workers are replaced."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a start failed, in the worker's own words; shown to callers and by `nanopod endpoints get`."""

    stage: Stage
    message: str
    type_name: str = ""
    traceback: str = ""
    log_tail: str = ""
    user_fault: bool = True
    """False for infrastructure trouble, which is retried elsewhere and does not count against the revision."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything a node needs to run one instance. `epoch` fences: a newer one of the same instance wins."""

    instance_id: str
    epoch: int
    workspace_id: str
    endpoint_id: str
    revision_id: str
    node_id: str
    app: EndpointSpec
    slots: int
    join_token: str
    grace_s: float = 30.0
    lease_s: float = 60.0
    name: str = ""
    cloud_init: str = ""
    """For `app.kind == "machine"`: what to run, base64; see `model.chain.Template`."""
    image_sha256: str = ""
    """For `app.kind == "machine"`: the root file system to unpack (a blob); "": the machine's own system."""
    url: str = ""
    """Where code on the worker reaches its own cloud (`NANOPOD_URL` there); "": nowhere. Its key is the join token."""


@dataclass(frozen=True, slots=True)
class ObservedInstance:
    """What an agent says about one instance it runs or ran."""

    instance_id: str
    epoch: int
    phase: Phase
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    failure: Failure | None = None
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A decision with its reasons, newest last; what `get` commands print under "why"."""

    value: int
    reasons: Sequence[str] = ()
