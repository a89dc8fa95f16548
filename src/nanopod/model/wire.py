"""Messages between a gateway process, the server and a node agent, over one long-lived link each.

Truth is level-triggered: tables and `Wanted` are whole snapshots with a version, so a lost link costs latency only.
The transport (length-prefixed msgpack over a unix socket) is `nanopod.drivers.link.messages`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nanopod.model.capacity import Node, Sku
from nanopod.model.endpoint import AsgiSpec, Failure, FunctionSpec, GraphSpec, InstanceSpec, ObservedInstance, Traffic


class Message(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t"):
    """Base of all messages."""


# --- rows of the tables that the server pushes to gateways ---


class KeyRow(msgspec.Struct, frozen=True):
    """A key that may be used now. The secret is known only by its HMAC."""

    key_id: str
    workspace_id: str
    scopes: tuple[str, ...] = ("admin",)
    """`admin`: everything; `call`: inference and function calls only; `read`: management reads."""
    endpoints: tuple[str, ...] | None = None
    """Endpoint names this key may call; None: all of the workspace."""
    expires_at: float | None = None


class RouteRow(msgspec.Struct, frozen=True):
    """An endpoint as the request path sees it."""

    endpoint_id: str
    workspace_id: str
    name: str
    tag: str
    kind: str
    revision_id: str
    model_ids: tuple[str, ...] = ()
    functions: dict[str, FunctionSpec] = {}
    timeout_s: float = 600.0
    wait_s_max: float = 600.0
    created_at: int = 0
    phase_text: str = ""
    """What a waiting caller is told, such as `starting 1 worker`."""
    failure: Failure | None = None
    """Set when no worker of the current revision can start: waiting calls fail with it at once."""
    asgi: tuple[AsgiSpec, ...] = ()
    price_micro_per_s: float = 0.0
    """What a second of one worker costs, in micro-dollars; 0: not known."""
    profile: str = "auto"
    """Whose rules of admission and choice hold: those of `auto` and `vast`, or of `knative` and `coreweave`."""
    concurrency: int = -1
    """Requests that one replica may have at a time (Knative's containerConcurrency); 0: no limit; -1: its slots."""
    max_queue_time_s: float = 30.0
    eta_s: float = 0.0
    """Seconds until the next replica is expected to be ready, as of these tables; 0: not known."""
    protocols: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    """Names of the models in V1 and V2 paths."""
    graph: GraphSpec | None = None
    traffic: tuple[Traffic, ...] = ()
    """Shares and tags with the revision ids filled in, each tag in a row of its own; (): all to `revision_id`. A
    revision whose rows have no percent gets calls by its tag alone."""
    stopped: bool = False
    units_per_s: float = 0.0
    """Units of load that a worker completes in a second, where it has not measured that itself; 0: not known."""


class WorkerRow(msgspec.Struct, frozen=True):
    """An instance that may hold a link. `token_digest` is the SHA-256 (hex) of its join token."""

    instance_id: str
    endpoint_id: str
    revision_id: str
    epoch: int
    slots: int
    token_digest: str
    draining: bool = False
    doomed_at: float | None = None
    latency_class: str = "lan"


# --- gateway <-> server ---


class GatewayHello(Message, frozen=True, tag="gateway_hello"):
    """A gateway process introduces itself."""

    gateway_id: str
    pid: int
    addresses: tuple[str, ...] = ()
    """Where workers may dial it: `unix:/path` or `tcp:host:port`, best first."""


class Tables(Message, frozen=True, tag="tables"):
    """Everything a gateway needs, at one version. Keys are indexed by the HMAC-SHA-256 (hex) of the whole key."""

    version: int
    pepper: bytes
    keys: dict[str, KeyRow]
    routes: dict[str, RouteRow]
    workers: dict[str, WorkerRow]
    default_workspace: str = ""
    """Id of the workspace in which names of public web paths are looked up."""


class TablesSeen(Message, frozen=True, tag="tables_seen"):
    """The gateway serves by these tables now; who changed something may be told that it holds."""

    version: int


class Demand(Message, frozen=True, tag="demand"):
    """Somebody waits at an endpoint that has no ready worker: scale from zero now."""

    endpoint_id: str
    waiting: int = 1
    revision_id: str = ""
    """The revision that is asked for by its tag and has no ready worker; "": any will do."""


class EndpointSample(msgspec.Struct, frozen=True, array_like=True):
    """One second at one endpoint, as one gateway process saw it."""

    endpoint_id: str
    concurrency: float
    """Mean number of requests in flight or waiting."""
    requests: int
    parked: int
    in_flight: int
    workload: float = 0.0
    revisions: dict[str, tuple[int, int]] = {}
    """{revision id: (calls that ended, those of them that failed)} in this second."""
    waiting_load: float = 0.0
    """Units of load of the requests that wait now."""
    oldest_wait_s: float = 0.0
    """How long the first in line has waited."""
    served: tuple[float, float, int] = (0.0, 0.0, 0)
    """(units of load, request-seconds, requests) that were completed in this second."""
    tokens: int = 0
    """Prompt and generated tokens of what was completed in this second."""
    latency: dict[str, tuple[int, ...]] = {}
    """{revision id: requests that ended in this second, by bucket of `LATENCY_BUCKETS_S`}."""


LATENCY_BUCKETS_S: tuple[float, ...] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Upper bounds in seconds; one more bucket takes what is above the last."""


class Samples(Message, frozen=True, tag="samples"):
    """Per-second signals; an endpoint that is not named saw nothing."""

    at: float
    endpoints: list[EndpointSample]
    poke: bool = False
    """It is the first request of a quiet endpoint, reported at once; the next sample leaves it out."""


class SamplesAck(Message, frozen=True, tag="samples_ack"):
    """What was sampled up to `at` (Unix seconds) is taken in: it need not be sent again."""

    at: float


class WorkerState(Message, frozen=True, tag="worker_state"):
    """A worker's link came, changed or went."""

    instance_id: str
    epoch: int
    linked: bool
    ready: bool
    in_flight: int = 0
    perf: float | None = None
    """Measured workload per second, when the worker knows it."""
    detail: str = ""
    kv_use: float = -1.0
    """Share of its key-value cache that is in use, 0 to 1; -1: its engine does not say."""
    queued: int = 0
    """Requests that wait inside its engine."""
    models: dict[str, str] = {}
    """Of a model server, {model: "" once it is ready, else why it is not}."""
    revision_id: str = ""
    """The revision whose models these are."""


class MeterRecord(msgspec.Struct, frozen=True, array_like=True):
    """One finished (or partly delivered) request. `record_id` makes posting idempotent. Times are Unix seconds."""

    record_id: str
    request_id: str
    workspace_id: str
    key_id: str
    endpoint_id: str
    revision_id: str
    instance_id: str
    kind: str
    """`chat`, `completion`, `embedding`, `call` or `web`."""
    status: int
    prompt_tokens: int
    completion_tokens: int
    compute_us: int
    t_arrival: float
    t_first: float
    t_end: float
    moves: int = 0
    function: str = ""


class MeterSegment(Message, frozen=True, tag="meter_segment"):
    """Records from a gateway's spool, oldest first."""

    segment_id: str
    records: list[MeterRecord]


class MeterAck(Message, frozen=True, tag="meter_ack"):
    """The segment is committed: the gateway may forget it."""

    segment_id: str


# --- node agent <-> server ---


class AgentHello(Message, frozen=True, tag="agent_hello"):
    """An agent introduces its machine and says what it runs."""

    machine_id: str
    boot_id: str
    version: str
    nodes: list[Node]
    skus: list[Sku]
    instances: list[ObservedInstance]
    inventory: dict[str, Any] = {}


class AgentWelcome(Message, frozen=True, tag="agent_welcome"):
    """The server's answer."""

    lease_s: float = 60.0


class ShutdownNotice(msgspec.Struct, frozen=True):
    """An instance is going to be stopped at `at` (Unix seconds), because of `reason`."""

    at: int
    reason: str


class Wanted(Message, frozen=True, tag="wanted"):
    """The whole set of instances this machine shall run; the agent converges. Older generations are refused."""

    generation: int
    instances: list[InstanceSpec]
    gateways: tuple[str, ...] = ()
    """Addresses workers dial, as in GatewayHello."""
    notices: dict[str, ShutdownNotice] = {}
    """By instance: its end that is near. One that is no longer here was cleared."""
    killed: tuple[str, ...] = ()
    """Instances whose time is over: they are stopped hard, without their grace."""


class Observed(Message, frozen=True, tag="observed"):
    """The whole truth of the machine now, sent at each change and at least every 5 s."""

    instances: list[ObservedInstance]


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Every 5 s. `load` is the 1-minute load average, memory in bytes."""

    load: float = 0.0
    memory_free: int = 0


class LogQuery(Message, frozen=True, tag="log_query"):
    """The server asks for lines of an instance's log. `after`, `before` are inclusive sequence numbers, or None."""

    request_id: str
    instance_id: str
    after: int | None = None
    before: int | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 100
    newest_first: bool = False


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """One piece of output. `at` is Unix seconds, `monotonic_ns` since the machine's boot, `stream` 1 or 2."""

    seq: int
    at: float
    monotonic_ns: int
    stream: int
    data: bytes


class LogPage(Message, frozen=True, tag="log_page"):
    """The agent's answer to a `LogQuery`; `error` when it has no such instance."""

    request_id: str
    lines: list[LogLine] = []
    error: str = ""


class ExecStart(Message, frozen=True, tag="exec_start"):
    """Run a command inside an instance. With `tty` it gets a terminal of `rows` x `cols`."""

    exec_id: str
    instance_id: str
    command: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False
    rows: int = 24
    cols: int = 80
    timeout_s: float = 3600.0


class ExecInput(Message, frozen=True, tag="exec_input"):
    """Input for a command; `eof` closes it, `resize` is (rows, cols), `signal` a signal's number."""

    exec_id: str
    data: bytes = b""
    eof: bool = False
    resize: tuple[int, int] | None = None
    signal: int | None = None


class ExecOutput(Message, frozen=True, tag="exec_output"):
    """Output of a command: `stream` 1 or 2, pieces in order."""

    exec_id: str
    stream: int
    data: bytes


class ExecExit(Message, frozen=True, tag="exec_exit"):
    """The command is over; `error` when it could not be started at all."""

    exec_id: str
    exit_code: int
    error: str = ""


class SecretQuery(Message, frozen=True, tag="secret_query"):
    """The agent asks for what an instance's secrets hold, just before it starts."""

    request_id: str
    instance_id: str


class SecretValues(Message, frozen=True, tag="secret_values"):
    """The environment variables of its secrets; `error` names what is missing."""

    request_id: str
    env: dict[str, str] = {}
    error: str = ""
    mounts: dict[str, dict[str, str]] = {}
    """By name: the pairs of secrets that open buckets and storages; they are no variables of the worker."""


class Fault(Message, frozen=True, tag="fault"):
    """The server asks a gateway to break something, in clouds for tests: `slow` (what callers send comes `seconds`
    later) or `drop_link` (of the worker `instance_id`, or of all callers)."""

    kind: str
    instance_id: str = ""
    seconds: float = 0.0


AnyMessage = (
    Fault | GatewayHello | Tables | TablesSeen | Demand | Samples | SamplesAck | WorkerState | MeterSegment | MeterAck
    | AgentHello | AgentWelcome | Wanted | Observed | Heartbeat
    | SecretQuery | SecretValues | LogQuery | LogPage | ExecStart | ExecInput | ExecOutput | ExecExit
)  # fmt: skip
