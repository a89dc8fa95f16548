"""What the autoscaler is told, what it remembers and what it says: plain values, all of which JSON can carry.

Times are seconds since the epoch, durations are seconds, shares are 0 to 1. A `ScaleState` is changed in place by the
functions of this room for speed; `engine.decide` works on a copy, so nothing that a caller holds changes under it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from nanopod.model.endpoint import Metric, Profile

Aggregation = Literal["linear", "weighted-exponential"]
Active = Literal["unknown", "true", "false"]
"""Status of the Active condition: `unknown` while replicas are being started, `false` without traffic."""
Phase = Literal[
    "provisioning", "loading", "benchmarking", "ready", "draining", "hibernating", "cold", "waking", "failed", "gone"
]
STARTING: Final[tuple[Phase, ...]] = ("provisioning", "loading", "benchmarking", "waking")
"""Phases of a start, the furthest from ready first; a wake is as far as its remaining time says."""
UNKNOWN: Final = -1
"""A count that nobody knows yet: of replicas that are ready, or wanted."""
VERSION: Final = 1
"""Of the stored form of `ScaleState`."""


class Autoscale(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved settings of one endpoint: every parameter has its value. Defaults are those of the profile `auto`."""

    profile: Profile = "auto"
    metrics: tuple[Metric, ...] = ("load",)
    tick_s: int = 2
    stable_s: int = 60
    panic_s: int = 12
    panic_threshold: float = 2.0
    """Raw panic wish, as a multiple of the replicas, that begins a panic."""
    container_concurrency: int = 0
    """Requests that one replica may have at a time; 0: no limit."""
    concurrency_total: float = 100.0
    concurrency_util: float = 0.85
    rps_total: float = 200.0
    rps_util: float = 0.7
    load_total: float | None = None
    """Units of load per second that one replica does, where that was stated; None: as measured."""
    load_util: float = 0.85
    """`target_util`, of the metrics load and tokens."""
    tokens_total: float | None = None
    kv_util: float = 0.9
    resource_util: float = 0.8
    """Of cpu and memory."""
    max_scale_up_rate: float = 20.0
    max_scale_down_rate: float = 2.0
    delay_s: int = 120
    """Scale-down delay."""
    grace_s: float = 30.0
    """Scale-to-zero grace period."""
    retention_s: float | None = None
    """Scale-to-zero pod retention period; None: ten times what a start takes, from 120 s to 1800 s."""
    burst: float = -1.0
    """Target burst capacity; -1: the gateway always stays in front."""
    activator_capacity: float = 100.0
    initial_scale: int = 1
    min_scale: int = 0
    max_scale: int = 0
    """0: no limit."""
    activation_scale: int = 0
    enable_scale_to_zero: bool = True
    progress_deadline_s: float = 600.0
    request_timeout_s: float = 600.0
    aggregation: Aggregation = "linear"
    freeze: bool = False
    """A silent window of a service that is scraped freezes its scale (Knative's way); else silence is zero."""
    start: Literal["stored", "knative"] = "stored"
    exact: bool = False
    """Knative's rules and nothing else: no cold tier, no idle gate, evaluated on ticks and pokes alone."""
    max_workers: int = 0
    """Of hot and cold replicas together; 0: no limit."""
    cold_workers: int = 1
    cold_mult: float = 1.0
    min_load: float = 0.0
    """Units of load per second that are always provided for."""
    min_cold_load: float = 0.0
    target_queue_time_s: float = 5.0
    max_queue_time_s: float = 30.0
    inactivity_timeout_s: float | None = None
    """Idle seconds before zero; 0: no gate; negative: never zero; None: the retention period."""
    zero_cuts_windows: bool = False
    """An endpoint that was idle for `inactivity_timeout_s` goes to zero at once, whatever windows and delay hold."""

    @property
    def hot_max(self) -> int:
        """Most hot replicas; 0: no limit."""
        if self.max_scale and self.max_workers and not self.exact:
            return min(self.max_scale, self.max_workers)
        return self.max_scale if self.exact else self.max_scale or self.max_workers


class Second(msgspec.Struct, frozen=True, array_like=True):
    """What one reporter saw in one second; several for the same second add up. None: it has nothing to say about it."""

    at: int
    """The second, as whole seconds since the epoch."""
    concurrency: float = 0.0
    """Mean requests at once, those that wait included."""
    requests: float = 0.0
    """Requests that arrived."""
    load: float = 0.0
    """Units of load that arrived."""
    kv: float | None = None
    """`load.kv_value` of the ready replicas."""
    tokens: float | None = None
    """Prompt and generated tokens of the engines."""
    cpu: float | None = None
    memory: float | None = None
    """Sum of used/requested over the ready replicas."""
    served: tuple[float, float, int] = (0.0, 0.0, 0)
    """(units of load, request-seconds, requests) that were completed in this second."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen since the last call. Counts are as of now."""

    seconds: tuple[Second, ...] = ()
    """Only what was not handed over before: each increment counts once."""
    ready: int = 0
    """Replicas that take requests, without leaving ones; `UNKNOWN`: they could not be counted."""
    starting: int = 0
    """Replicas on their way to be ready, without leaving ones."""
    eta_s: float | None = None
    """Smallest remaining time of a start; None: nothing starts, or nobody knows."""
    current: int = UNKNOWN
    """Replicas that are asked for at present; `UNKNOWN`: as many as are ready or starting."""
    cold: int = 0
    """Hibernated replicas there are."""
    draining: int = 0
    """Draining replicas that could be taken back."""
    waiting: int = 0
    """Requests that wait."""
    in_service: int = 0
    """Requests that replicas have in hand."""
    waiting_load: float = 0.0
    """Units of load of those that wait."""
    oldest_wait_s: float = 0.0
    last_request_at: float | None = None
    """When the newest request ended; None: not known."""
    reachable: bool = True
    """Requests can get to it: False for a revision without traffic and tag."""
    linked: bool = True
    """A gateway is linked: while none is, silence says nothing and nothing is decreased."""
    caught_up: bool = True
    """Every gateway has sent again what it saw while this process was away."""
    probed: bool = True
    """A probe found the gateway in front; ours always is."""
    hardware: str = ""
    """What the replicas run on, as the key of measured speeds."""
    mu: float | None = None
    """Benchmarked units of load per second of one replica; None: no benchmark."""
    tokens_per_s: float | None = None
    """Benchmarked tokens per second of one replica; None: no benchmark."""
    wake_s: float | None = None
    provision_s: float | None = None
    """Measured medians of starts by kind; None: none was measured since the last call."""


class WindowState(msgspec.Struct, array_like=True):
    """One window of `windows`: ring of one-second sums."""

    window_s: int
    buckets: list[float]
    first: int = UNKNOWN
    """Second of the first write of the present run; `UNKNOWN`: never written."""
    last: int = UNKNOWN
    total: float = 0.0
    """Running sum of `buckets`, drift included."""


class Pair(msgspec.Struct, array_like=True):
    """The stable and the panic window of one metric."""

    stable: WindowState
    panic: WindowState


class DelayState(msgspec.Struct, array_like=True):
    """The delay window of `delay`: a falling sequence of (tick index, count) as two flat arrays."""

    size: int
    tick_s: int
    indices: list[int] = []
    counts: list[int] = []


class ServedState(msgspec.Struct, array_like=True):
    """What was completed in the last ten minutes, by slots of ten seconds, oldest first."""

    slots: list[int] = []
    """Index of each slot: second // 10."""
    units: list[float] = []
    seconds: list[float] = []
    requests: list[int] = []
    peaks: list[float] = []
    """Highest concurrency in each slot."""


class ScaleState(msgspec.Struct, kw_only=True):
    """Everything the engine remembers of one endpoint. `UNKNOWN` and None: not yet."""

    version: int = VERSION
    created_at: float | None = None
    """None before the first decision."""
    windows: dict[str, Pair] = {}
    """By metric."""
    delay: DelayState | None = None
    """None: there is no delay window."""
    served: ServedState = msgspec.field(default_factory=ServedState)
    panic_since: float | None = None
    max_panic: int = 0
    desired: int = UNKNOWN
    """The last valid wish, before bounds."""
    ebc: int = 0
    """Excess burst capacity."""
    want: int = UNKNOWN
    """The last scale that was known."""
    cold: int = 0
    active: Active = "unknown"
    active_since: float = 0.0
    active_reason: str = ""
    attained: bool = False
    """The initial scale was reached once."""
    proxy: bool = True
    proxied_since: float | None = None
    request_at: float = 0.0
    """When something was last in hand or waited."""
    evaluated_at: float = 0.0
    held_at: float | None = None
    """When it was restored, until it is up to date again: no decrease before."""
    pending: list[Second] = []
    """Seconds that arrived since it was restored."""
    settled: bool = False
    """Without news nothing changes before the deadline that was given."""
    mu: dict[str, float] = {}
    """Measured units per second, by hardware."""
    wake_s: float | None = None
    provision_s: float | None = None
    rechecks: list[float] = []
    """Moments after which the passing of time alone may change the outcome."""

    def copy(self) -> ScaleState:
        """A state of its own: changing one does not change the other."""
        twin = msgspec.structs.replace(self)
        twin.windows = {name: Pair(_twin(one.stable), _twin(one.panic)) for name, one in self.windows.items()}
        if self.delay is not None:
            twin.delay = DelayState(self.delay.size, self.delay.tick_s, self.delay.indices[:], self.delay.counts[:])
        old = self.served
        twin.served = ServedState(old.slots[:], old.units[:], old.seconds[:], old.requests[:], old.peaks[:])
        twin.pending = self.pending[:]
        twin.mu = dict(self.mu)
        twin.rechecks = self.rechecks[:]
        return twin


def _twin(one: WindowState) -> WindowState:
    return WindowState(one.window_s, one.buckets[:], one.first, one.last, one.total)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one metric said in a decision."""

    name: Metric
    stable: float
    panic: float
    target: float
    total: float
    desired_stable: int
    desired_panic: int


class Decision(msgspec.Struct, kw_only=True):
    """The outcome of one evaluation. `reasons` are written by `reasons.explain`, when somebody asks."""

    valid: bool
    """False: nothing to decide on; everything stays as it is."""
    desired: int
    """Before bounds; `UNKNOWN` before the first valid evaluation."""
    want: int
    """Hot replicas; `UNKNOWN`: as many as there are."""
    cold: int
    """Hibernated replicas."""
    patch: bool
    """`want` differs from what is asked for now and is to be applied."""
    ebc: int
    active: Active
    active_reason: str
    proxy: bool
    activators: int
    start_probe: bool
    """A probe that the gateway is in front is to be started: every second, for at most 45 s."""
    next_at: float | None
    """When to evaluate next if nothing happens; None: not before something happens."""
    rechecks: tuple[float, ...] = ()
    """Moments at which the rules of zero are to be looked at again."""
    held: bool = False
    """A decrease was not made: no gateway is linked, or the process was away a moment ago."""
    measured: tuple[Measured, ...] = ()
    dropped: tuple[str, ...] = ()
    """Metrics that are asked for and have nothing to say."""
    recommended: int = UNKNOWN
    """The wish of this moment, before the delay."""
    bounded: str = ""
    """What set `want` in place of `desired`: the name of a setting or rule; "": nothing did."""
    backlog: float = 0.0
    """Units per second that waiting requests add to the load."""
    mu: float | None = None
    zero_at: float | None = None
    """When zero is reached if nothing happens; None: never, or it is there."""


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as `replan` sees it."""

    id: str
    phase: Phase
    in_flight: int = 0
    prefix: float = 0.0
    """How warm its prefix cache is: more is warmer."""
    price: float = 0.0
    born_at: float = 0.0
    eta_s: float = 0.0
    """Of a start: remaining time; of a cold one: predicted time of a wake."""
    leaving: bool = False
    """It has a reclaim notice, or was told to go: it no longer counts."""
    reclaimed: bool = False
    """Its machine is taken away: it cannot be taken back."""
    filling: bool = False
    """A start that is to be hibernated once it has been ready: it does not count as hot."""
    until: float | None = None
    """It is to be taken at this time, by an earlier plan; None: it is not."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do. `undrain` takes back, `keep` drops a plan to take it (or to hibernate it once it is ready),
    `cancel` ends a start, `drain` takes it from rotation and then hibernates or destroys it (`then`), `fill` provisions
    one to be hibernated, `trim` destroys a cold one."""

    kind: Literal["undrain", "keep", "wake", "provision", "cancel", "drain", "fill", "trim"]
    id: str = ""
    """The replica; "": a new one."""
    at: float = 0.0
    """When: now, or the end of its paid minute, until which it stays in rotation."""
    then: Literal["", "hibernate", "destroy"] = ""
