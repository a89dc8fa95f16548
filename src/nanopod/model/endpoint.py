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


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """Autoscaling settings; names and meaning as `configure_autoscaling` takes them."""

    cold_workers: int = 1
    max_workers: int = 16
    min_load: float = 1.0
    min_cold_load: float = 0.0
    target_util: float = 0.9
    cold_mult: float = 3.0
    max_queue_time: float = 30.0
    target_queue_time: float = 10.0
    inactivity_timeout: float | None = None
    """Idle seconds before zero is allowed; 0: at once; None or negative: never. Zero also needs `cold_workers` and
    `min_load` to be 0."""
    target_concurrency: float | None = None
    """Requests in flight that one worker should have; None: what its slots allow, times `target_util`."""


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
