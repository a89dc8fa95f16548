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
STOPPED = "Stopped"
"""Type of the `Failure` that requests to an endpoint meet that was asked to run nothing."""
PLACE_CHARS_MAX = 64
"""Of the name of a GPU model or region."""
"""Longest time a request may be parked while an endpoint wakes."""

Kind = Literal["function", "model", "machine", "graph"]
"""`machine`: an instance of a template, which runs a start-up script and has no link to a gateway; `graph`: an
inference graph, which gateways walk themselves and which has no workers."""
EngineKind = Literal["python", "reference", "command", "server"]
"""`server`: our own model server for `ModelSpec.format`."""
Protocol = Literal["openai", "v1", "v2", "http"]
"""Families of paths that a model answers: OpenAI's, KServe's V1 and V2, or any path at all."""
Phase = Literal[
    "queued", "preparing", "starting", "loading", "ready", "draining", "stopping", "hibernated", "ended", "failed"
]
"""`queued`: wanted, no agent has it yet; `preparing`: bundle and environment; `starting`: the process runs; `loading`:
import, contexts, weights, benchmark; `ready`: takes work; `draining`: takes none; `hibernated`: it holds no time and no
process, and is woken before a new one is made; `ended`: gone as asked; `failed`."""
LIVE_PHASES: tuple[Phase, ...] = (
    "queued", "preparing", "starting", "loading", "ready", "draining", "stopping", "hibernated",
)  # fmt: skip
Profile = Literal["auto", "vast", "knative", "coreweave"]
Metric = Literal["concurrency", "rps", "load", "kv", "tokens", "cpu", "memory"]
Stage = Literal["bundle", "storage", "environment", "import", "context", "benchmark", "engine", "start", "run"]


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
    keys: tuple[tuple[str, str], ...] = ()
    """(environment variable, key of the secret): only these pairs, by these names; (): all pairs by their own."""


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
    pinned: bool = False
    """The previous rolled-out revision keeps all calls while `canary_percent` is 0; the new one waits, tagged."""
    auto_promote: bool = True
    """A canary whose bake time is over is promoted; False: only by another specification or by hand."""
    max_slowdown_percent: float = 0.0
    """A canary whose median latency is this much above the stable revision's is rolled back; 0: not judged."""
    duration_s: float = 0.0
    """Over how long the calls move to a revision that takes over; 0: at once."""
    tag_routing: bool = False
    """The newest revision answers to the tag `latest`, the one before to `prev`, whatever their share."""


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
class Tuning:
    """Parameters of the autoscaler that were stated; None and "" stand for the profile's own value.

    Names and meanings are Knative's. Times are seconds, shares are 0 to 1 unless the name says percentage.
    """

    metrics: tuple[Metric, ...] = ()
    container_concurrency: int | None = None
    """Requests that one replica may have at a time; 0: no limit; None: the slots of the worker."""
    target: float | None = None
    target_utilization: float | None = None
    tick_s: float | None = None
    stable_window_s: float | None = None
    panic_window_s: float | None = None
    panic_window_percentage: float | None = None
    panic_threshold_percentage: float | None = None
    max_scale_up_rate: float | None = None
    max_scale_down_rate: float | None = None
    scale_down_delay_s: float | None = None
    grace_s: float | None = None
    """Scale-to-zero grace period."""
    retention_s: float | None = None
    """Scale-to-zero pod retention period."""
    target_burst_capacity: float | None = None
    initial_scale: int | None = None
    activation_scale: int | None = None
    min_scale: int | None = None
    max_scale: int | None = None
    """0: no limit. The smaller of this and `max_workers` counts."""
    enable_scale_to_zero: bool | None = None
    progress_deadline_s: float | None = None
    request_timeout_s: float | None = None
    aggregation: Literal["", "linear", "weighted-exponential"] = ""
    missing_data: Literal["", "zero", "knative-freeze"] = ""
    start: Literal["", "stored", "knative"] = ""


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """Autoscaling settings; names and meaning as `configure_autoscaling` takes them."""

    cold_workers: int = 1
    max_workers: int = 16
    """0: no limit."""
    min_load: float = 1.0
    min_cold_load: float = 0.0
    target_util: float = 0.9
    cold_mult: float = 1.0
    """Workers there are in all, as a multiple of those that the load needs."""
    max_queue_time: float = 30.0
    target_queue_time: float = 10.0
    inactivity_timeout: float | None = None
    """Idle seconds before zero; 0: as soon as nobody waits; negative: never; None: by the retention period, else ten
    times what a start takes. Zero also needs `min_load` and `min_scale` to be 0."""
    target_concurrency: float | None = None
    """Requests in flight that one worker should have; None: what its slots allow, times `target_util`."""
    spot: bool = True
    """Workers may run on reclaimable time; False: on time that is held only."""
    on_demand_fallback: float = 0.0
    """Share of the workers (0 to 1) that is moved to held time while reclaimable time cannot be had."""
    max_price: float | None = None
    """Most that an hour of a node may cost, in US dollars; None: the cluster's limit."""
    profile: Profile = "auto"
    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """Files that are fetched to `path` of the worker before it starts. `secret` names what opens them.

    `allow`, `ignore`: patterns (fnmatch) on the path below `uri`; `options`: settings of the scheme by their
    environment names, such as `S3_ENDPOINT`; nothing in them is secret.
    """

    uri: str
    path: str = "/mnt/models"
    secret: str = ""
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A further model of a model server that holds several."""

    name: str
    format: str
    storage: StorageSpec
    memory_bytes: int = 0
    """What is reserved for it."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model. `engine` reference: `source` is a directory, a packaged name or a hub id; command: `argv`;
    server: our own server for `format`, on the files of `storage`.

    `argv` may contain `{port}`, `{host}` and `{model}` (`{{port}}` is the word itself); the engine must speak one of
    `protocols` there.
    """

    model_id: str
    engine: EngineKind = "reference"
    source: str = ""
    argv: tuple[str, ...] = ()
    slots: int = 8
    ready_path: str = "/v1/models"
    start_s_max: float = 600.0
    format: str = ""
    """`sklearn`, `xgboost`, `lightgbm`, `onnx`, `pytorch` (TorchScript) or `huggingface`; "": the engine knows."""
    protocols: tuple[Protocol, ...] = ("openai",)
    storage: tuple[StorageSpec, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the model server: `--name value` arguments of a manifest, without the dashes."""
    models: tuple[LoadedModel, ...] = ()
    """Models besides `model_id`."""
    transformer: tuple[str, ...] = ()
    """Command of a transformer that requests pass through first; it gets `--predictor_host` and `--model_name`."""
    explainer: tuple[str, ...] = ()
    """Command that answers `:explain`; (): there is none."""
    port: int = 0
    """Port that the command listens on; 0: it is told one in `PORT`."""


@dataclass(frozen=True, slots=True)
class GraphStep:
    """A step of a graph node: exactly one of `service`, `url` and `node` says who answers."""

    name: str = ""
    service: str = ""
    """An endpoint of the same workspace."""
    url: str = ""
    node: str = ""
    data: Literal["$request", "$response"] = "$request"
    condition: str = ""
    """A JSON path (GJSON syntax) on what the step gets."""
    weight: int = 0
    """Of a splitter, in percent."""
    dependency: Literal["Soft", "Hard"] = "Soft"
    map_predictions: bool = False
    """`predictions` of the answer before become `instances` of this step's request."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """How the steps of one node are taken."""

    router: Literal["Sequence", "Splitter", "Ensemble", "Switch"]
    steps: tuple[GraphStep, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """An inference graph; it begins at the node `root`."""

    nodes: Mapping[str, GraphNode]
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """A share of an endpoint's requests. `revision`: a revision id; "": the newest that is ready."""

    revision: str = ""
    percent: int = 100
    tag: str = ""


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
    graph: GraphSpec | None = None
    traffic: tuple[Traffic, ...] = ()
    """Shares of the requests by revision, as a Knative Service states them; (): the newest gets all, by `rollout`."""
    manifest: str = ""
    """Kind of the manifest it was made from, such as `InferenceService`; "": it was not."""
    stopped: bool = False
    """It keeps its specification and runs nothing."""
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
    drain_s: float = 0.0
    """How long requests that run may go on once it is told to stop."""

    @property
    def stop_s(self) -> float:
        """Seconds that it has when it is told to stop: its grace, or for its requests to end and what follows."""
        return max(self.grace_s, self.drain_s + self.grace_s / 2) if self.drain_s > 0 else self.grace_s


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
