"""What gateways and agents said since this process started: links, load, demand. Kept in memory only.

All of it is said again after every (re)connection, so losing it costs seconds and never correctness: gateways keep
their seconds until they are acknowledged, and a second is acknowledged once the autoscaler's memory that holds it is
stored.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from msgspec import structs

from nanopod.control.starts import Starts
from nanopod.control.totals import Totals
from nanopod.model.wire import EndpointSample, WorkerState

DEMAND_S: Final = 2.5
"""A demand counts as waiting for this long unless it is repeated (once a second) or a sample says otherwise."""
EARLY_MAX: Final = 2_000
"""Samples of one endpoint that wait until its autoscaler's memory was read."""
CALLED_S_MAX: Final = 3600.0
AHEAD_S: Final = 1.0
"""A gateway's clock that is further ahead than this is not believed."""
SKEW_S_MAX: Final = 60.0
"""Clocks that are all right differ by less."""


@dataclass(slots=True)
class Tally:
    """One second at an endpoint, summed over gateways."""

    concurrency: float = 0.0
    requests: int = 0
    units: float = 0.0
    tokens: int = 0
    served: tuple[float, float, int] = (0.0, 0.0, 0)
    """(units of load, request-seconds, requests) that were completed."""


@dataclass(slots=True)
class Gauge:
    """What one gateway said last of the requests it holds for an endpoint."""

    parked: int = 0
    in_flight: int = 0
    waiting_load: float = 0.0
    oldest_at: float | None = None
    """Since when the first in line waits."""


@dataclass(slots=True)
class Load:
    """What was seen at one endpoint."""

    fresh: dict[int, Tally] = field(default_factory=dict)
    """{second: what arrived in it}, not yet given to the autoscaler."""
    taken: dict[str, float] = field(default_factory=dict)
    """{gateway: time of its newest sample that was taken in}: one that is sent again counts once."""
    counted_at: dict[str, float] = field(default_factory=dict)
    """{gateway: time of its newest sample whose outcomes were counted}"""
    gauges: dict[str, Gauge] = field(default_factory=dict)
    demand: int = 0
    demand_until: float = 0.0
    ended_at: float = 0.0
    """When somebody last waited or was served, as far as is known."""
    outcomes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """{revision: (calls that ended, those that failed, and by bucket of `LATENCY_BUCKETS_S`)}, not yet taken by its
    rollout."""
    starts: Starts = field(default_factory=Starts)
    units_per_s: float = 0.0
    """How fast gateways take a worker to be that has not measured it; 0: they do not know."""
    explain: Callable[[float], dict[str, Any] | None] | None = None
    """Why the endpoint has the workers it has, as of a time; None until it was looked at."""
    known: bool = False
    """The autoscaler's memory was read: samples may be counted."""
    early: deque[tuple[str, float, EndpointSample]] = field(default_factory=lambda: deque(maxlen=EARLY_MAX))
    """Samples that came before."""
    unsaved: dict[str, deque[float]] = field(default_factory=dict)
    """{gateway: times of its samples that no stored memory holds yet, oldest first}"""

    def waiting(self, now: float) -> int:
        """Requests known to wait."""
        parked = sum(gauge.parked for gauge in self.gauges.copy().values())
        return max(parked, self.demand if now < self.demand_until else 0)

    def waiting_load(self) -> float:
        """Units of load of the requests that wait."""
        return sum(gauge.waiting_load for gauge in self.gauges.copy().values())

    def in_flight(self) -> int:
        """Requests that workers have in hand."""
        return sum(gauge.in_flight for gauge in self.gauges.copy().values())

    def oldest_wait_s(self, now: float) -> float:
        """How long the first in line has waited; 0 when nobody does."""
        since = [gauge.oldest_at for gauge in self.gauges.copy().values() if gauge.oldest_at is not None]
        return max(0.0, now - min(since)) if since else 0.0

    def take(self) -> list[tuple[int, Tally]]:
        """The seconds since it was asked last, oldest first."""
        if not self.fresh:
            return []
        found, self.fresh = sorted(self.fresh.items()), {}
        return found


@dataclass(frozen=True, slots=True)
class Link:
    """A worker's link as its gateway reported it last."""

    epoch: int
    ready: bool
    in_flight: int
    perf: float | None
    detail: str
    kv_use: float = -1.0
    queued: int = 0
    models: Mapping[str, str] = field(default_factory=dict)
    """Of a model server, {model: "" once it is ready, else why it is not}."""
    revision_id: str = ""
    """The revision whose models these are."""


class Live:
    """The observations. Written by the event loop alone; reconcilers read them in the store's threads.

    Therefore whatever those reads walk over is copied first: copying a dict's values is one step for other threads.
    """

    def __init__(self) -> None:
        self.loads: dict[str, Load] = {}
        self.links: dict[str, dict[str, Link]] = {}
        """{instance: {gateway: link}}"""
        self.gateways: dict[str, tuple[str, ...]] = {}
        """{gateway: addresses that workers dial}"""
        self.machines: dict[str, float] = {}
        """{machine whose agent is linked: when it spoke last}"""
        self.totals = Totals()
        self._called: dict[str, float] = {}
        """{revision: when it was asked for by its tag last}"""
        self.caught_up: set[str] = set()
        """Gateways that have sent again what they saw while nobody listened."""
        self._heard: dict[str, float] = {}
        """{gateway: time of its newest sample}"""
        self._acked: dict[str, float] = {}
        self._unsaved: set[str] = set()
        """Endpoints with samples that no stored memory holds yet."""
        self._early: set[str] = set()
        """Endpoints with samples that wait until their memory was read."""

    # --- told by gateways ---

    def gateway_up(self, gateway_id: str, addresses: tuple[str, ...]) -> None:
        """A gateway (re)connected: what it said before no longer counts."""
        self.gateway_down(gateway_id)
        self.gateways[gateway_id] = addresses

    def gateway_down(self, gateway_id: str) -> list[str]:
        """A gateway is gone; the instances whose link it held."""
        self.gateways.pop(gateway_id, None)
        self.caught_up.discard(gateway_id)
        self._acked.pop(gateway_id, None)
        for load in self.loads.values():
            load.gauges.pop(gateway_id, None)
        held = [instance_id for instance_id, links in self.links.items() if gateway_id in links]
        for instance_id in held:
            self._unlink(instance_id, gateway_id)
        return held

    def _unlink(self, instance_id: str, gateway_id: str) -> None:
        links = self.links.get(instance_id)
        if links is not None:
            links.pop(gateway_id, None)
            if not links:
                del self.links[instance_id]

    def demand(self, endpoint_id: str, waiting: int, now: float, revision_id: str = "") -> None:
        """Somebody waits at an endpoint without a ready worker; `revision_id`: for this revision, by its tag."""
        if revision_id:
            self._called[revision_id] = now
            for old in [key for key, at in self._called.items() if at < now - CALLED_S_MAX]:
                del self._called[old]
        load = self.loads.setdefault(endpoint_id, Load())
        load.demand = max(1, waiting)
        load.demand_until = now + DEMAND_S
        load.ended_at = max(load.ended_at, now)

    def sample(self, gateway_id: str, at: float, sample: EndpointSample, now: float | None = None) -> bool:
        """One second at one endpoint, seen by one gateway; False for one that was taken in before."""
        now = at if now is None else now
        load = self.loads.setdefault(sample.endpoint_id, Load())
        if not math.isfinite(at):
            return False
        sample = _sane(sample)
        if at <= load.taken.get(gateway_id, 0.0) - SKEW_S_MAX and load.taken[gateway_id] > now + SKEW_S_MAX >= at:
            self._rewound(load, gateway_id)
        self._heard[gateway_id] = max(at, self._heard.get(gateway_id, 0.0))
        if at > load.counted_at.get(gateway_id, 0.0):
            load.counted_at[gateway_id] = at
            self._count(load, sample, min(at, now))
        if not load.known:
            load.early.append((gateway_id, at, sample))
            self._early.add(sample.endpoint_id)
            self._gauge(load, gateway_id, sample, min(at, now))
            return True
        if at <= load.taken.get(gateway_id, 0.0):
            return False
        load.taken[gateway_id] = at
        load.unsaved.setdefault(gateway_id, deque()).append(at)
        self._unsaved.add(sample.endpoint_id)
        seen_at = min(at, now + AHEAD_S)
        second = math.floor(seen_at)
        tally = load.fresh.get(second)
        if tally is None:
            tally = load.fresh[second] = Tally()
        tally.concurrency += max(0.0, sample.concurrency)
        tally.requests += sample.requests
        tally.units += sample.workload
        tally.tokens += sample.tokens
        self._gauge(load, gateway_id, sample, seen_at)
        if sample.served[2]:
            before_units, before_s, before_count = tally.served
            units, seconds, count = sample.served
            tally.served = before_units + units, before_s + seconds, before_count + count
        return True

    def _rewound(self, load: Load, gateway_id: str) -> None:
        """A gateway's clock was far ahead and is right again: its time of then would hide all that comes."""
        for times in (load.taken, load.counted_at, load.unsaved, self._heard, self._acked):
            times.pop(gateway_id, None)

    def _count(self, load: Load, sample: EndpointSample, at: float) -> None:
        """What ended, for rollouts and for whoever watches the cloud."""
        self.totals.add(sample)
        for revision_id in {**sample.revisions, **sample.latency}:
            counts = (*sample.revisions.get(revision_id, (0, 0)), *sample.latency.get(revision_id, ()))
            load.outcomes[revision_id] = _added(load.outcomes.get(revision_id, ()), counts, 1)
            if revision_id in self._called:
                self._called[revision_id] = max(at, self._called[revision_id])

    def _gauge(self, load: Load, gateway_id: str, sample: EndpointSample, at: float) -> None:
        """What holds now: what was sent again after a while says nothing about it, and is soon followed by more."""
        oldest_at = at - sample.oldest_wait_s if sample.parked else None
        load.gauges[gateway_id] = Gauge(sample.parked, sample.in_flight, sample.waiting_load, oldest_at)
        if sample.concurrency > 0 or sample.requests or sample.parked or sample.in_flight or sample.served[2]:
            load.ended_at = max(load.ended_at, at)
        if not sample.parked:
            load.demand = 0

    def restored(self, endpoint_id: str, taken: Mapping[str, float], ended_at: float, now: float) -> Load:
        """The autoscaler's memory was read, which holds each gateway's samples up to `taken`: the others count now."""
        load = self.loads.setdefault(endpoint_id, Load())
        load.ended_at = max(load.ended_at, ended_at)
        load.taken = dict(taken)
        load.known = True
        self._early.discard(endpoint_id)
        while load.early:
            gateway_id, at, sample = load.early.popleft()
            self.sample(gateway_id, at, sample, now)
        return load

    def stored(self, endpoint_id: str, taken: Mapping[str, float]) -> None:
        """A memory that holds each gateway's samples up to `taken` is in the store."""
        load = self.loads.get(endpoint_id)
        if load is None:
            return
        for gateway_id, at in taken.items():
            waiting = load.unsaved.get(gateway_id)
            while waiting and waiting[0] <= at:
                waiting.popleft()
            if waiting is not None and not waiting:
                del load.unsaved[gateway_id]
        if not load.unsaved:
            self._unsaved.discard(endpoint_id)

    def is_unsaved(self, endpoint_id: str) -> bool:
        """True while samples of an endpoint are in no stored memory."""
        return endpoint_id in self._unsaved

    def acks(self) -> list[tuple[str, float]]:
        """(gateway, time up to which all of its samples are stored) where that has moved on since it was asked last."""
        oldest: dict[str, float] = {}
        for endpoint_id in self._unsaved:
            for gateway_id, waiting in self.loads[endpoint_id].unsaved.items():
                oldest[gateway_id] = min(waiting[0], oldest.get(gateway_id, math.inf))
        found = []
        for endpoint_id in self._early:
            for gateway_id, early_at, _ in self.loads[endpoint_id].early:
                oldest[gateway_id] = min(early_at, oldest.get(gateway_id, math.inf))
        for gateway_id in self.gateways:
            heard = self._heard.get(gateway_id)
            if heard is None:
                continue
            at = math.nextafter(oldest[gateway_id], 0.0) if gateway_id in oldest else heard
            if at > self._acked.get(gateway_id, 0.0):
                self._acked[gateway_id] = at
                found.append((gateway_id, at))
        return found

    def worker(self, gateway_id: str, state: WorkerState) -> bool:
        """A worker's link came, changed or went; true when its readiness changed."""
        before = self.ready(state.instance_id, state.epoch)
        if state.linked:
            link = Link(
                *(state.epoch, state.ready, state.in_flight, state.perf, state.detail, state.kv_use, state.queued),
                models=state.models,
                revision_id=state.revision_id,
            )
            self.links.setdefault(state.instance_id, {})[gateway_id] = link
        else:
            links = self.links.get(state.instance_id, {})
            held = links.get(gateway_id)
            if held is None or held.epoch <= state.epoch:
                self._unlink(state.instance_id, gateway_id)
        return before is not self.ready(state.instance_id, state.epoch)

    # --- asked by reconcilers ---

    @property
    def reachable(self) -> bool:
        """True while a gateway is linked."""
        return bool(self.gateways)

    def link(self, instance_id: str, epoch: int) -> Link | None:
        """The link of this start of an instance, the ready one if there are several."""
        found = [link for link in list(self.links.get(instance_id, {}).values()) if link.epoch == epoch]
        return max(found, key=lambda link: link.ready) if found else None

    def ready(self, instance_id: str, epoch: int) -> bool:
        """True when this start of an instance is linked and takes work."""
        link = self.link(instance_id, epoch)
        return link is not None and link.ready

    def in_flight(self, instance_id: str, epoch: int) -> int:
        """Requests this worker has in hand."""
        return sum(link.in_flight for link in list(self.links.get(instance_id, {}).values()) if link.epoch == epoch)

    def parked(self, endpoint_id: str) -> int:
        """Requests that wait at gateways."""
        load = self.loads.get(endpoint_id)
        return sum(gauge.parked for gauge in load.gauges.copy().values()) if load is not None else 0

    def starts(self, endpoint_id: str) -> Starts:
        """How long an endpoint's starts take."""
        load = self.loads.get(endpoint_id)
        return load.starts if load is not None else Starts()

    def units_per_s(self, endpoint_id: str) -> float:
        """What gateways are to take the speed of an endpoint's workers for; 0: not known."""
        load = self.loads.get(endpoint_id)
        return load.units_per_s if load is not None else 0.0

    def explain(self, endpoint_id: str) -> dict[str, Any] | None:
        """Why an endpoint has the workers it has; None until it was looked at."""
        load = self.loads.get(endpoint_id)
        return load.explain(time.time()) if load is not None and load.explain is not None else None

    def called(self, revision_id: str, within_s: float) -> bool:
        """True when a revision was asked for by its tag within so many seconds."""
        return time.time() - self._called.get(revision_id, -math.inf) < within_s

    def outcomes(self, endpoint_id: str) -> dict[str, tuple[int, ...]]:
        """Calls by revision since they were taken last: (ended, failed, and by bucket of `LATENCY_BUCKETS_S`)."""
        load = self.loads.get(endpoint_id)
        return dict(load.outcomes) if load is not None else {}

    def taken(self, endpoint_id: str, counts: Mapping[str, tuple[int, ...]]) -> None:
        """These outcomes are written down; those of revisions that are not in a rollout are forgotten."""
        load = self.loads.get(endpoint_id)
        if load is None:
            return
        for revision_id, one in counts.items():
            left = _added(load.outcomes.pop(revision_id, ()), one, -1)
            if any(left):
                load.outcomes[revision_id] = left

    def forget(self, endpoint_id: str) -> None:
        """The endpoint is gone."""
        self.loads.pop(endpoint_id, None)
        self.totals.forget(endpoint_id)
        self._unsaved.discard(endpoint_id)
        self._early.discard(endpoint_id)


def _added(one: tuple[int, ...], other: tuple[int, ...], sign: int) -> tuple[int, ...]:
    """Counts added up or taken away, place by place; the shorter one has zeros at its end."""
    return tuple(max(0, a + sign * b) for a, b in zip_longest(one, other, fillvalue=0))


def _sane(sample: EndpointSample) -> EndpointSample:
    """The sample with 0 in place of what is no number or below 0: one such value would stay in every sum."""
    units, seconds, count = sample.served
    values = (sample.concurrency, sample.workload, sample.waiting_load, sample.oldest_wait_s, units, seconds)
    counts = (sample.requests, sample.parked, sample.in_flight, sample.tokens, count)
    if min(values) >= 0 and math.isfinite(sum(values)) and min(counts) >= 0:
        return sample
    concurrency, workload, waiting_load, oldest_wait_s, units, seconds = (
        value if math.isfinite(value) and value > 0 else 0.0 for value in values
    )
    requests, parked, in_flight, tokens, count = (max(0, one) for one in counts)
    return structs.replace(
        sample, concurrency=concurrency, workload=workload, waiting_load=waiting_load, oldest_wait_s=oldest_wait_s,
        served=(units, seconds, count), requests=requests, parked=parked, in_flight=in_flight, tokens=tokens,
    )  # fmt: skip
