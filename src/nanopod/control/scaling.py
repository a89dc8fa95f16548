"""The autoscaler's memory of every endpoint, and when it is evaluated: on ticks, and at once when that matters.

Everything here happens in the event loop. An endpoint without news that has settled is parked: nothing looks at it
before its next deadline, or before somebody asks for it. An evaluation moves the memory on; what it decided is written
by the endpoint's reconciler, together with the memory that it was decided on.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from nanopod.control.explaining import view
from nanopod.control.live import Live, Load
from nanopod.control.starts import Starts, starting
from nanopod.model.chain import Endpoint, Instance
from nanopod.model.endpoint import EndpointSpec, ScaleSpec
from nanopod.scheduler.autoscale.engine import overdue, poked, step
from nanopod.scheduler.autoscale.load import kv_value, most_mu
from nanopod.scheduler.autoscale.restart import restore
from nanopod.scheduler.autoscale.settings import resolve
from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, Decision, Observed, ScaleState, Second

log = logging.getLogger(__name__)

STORE_S: Final = 10.0
"""The memory is stored at least this often while it changes."""
RETURN_S: Final = 10.0
"""A gateway that is known from before this process is waited for this long before its silence means anything."""
VERSION: Final = 1
SPEED_CHANGE: Final = 0.1
"""Gateways hear of another speed of the workers when it differs by more than this share: they get all tables anew."""


class Memory(msgspec.Struct, kw_only=True):
    """What is stored of an endpoint's scaling."""

    version: int = 0
    state: ScaleState = msgspec.field(default_factory=ScaleState)
    taken: dict[str, float] = {}
    """{gateway: time of its newest sample in it}"""
    starts: Starts = msgspec.field(default_factory=Starts)
    request_at: float = 0.0
    """When somebody last waited or was served."""


_decode: Final = msgspec.json.Decoder(Memory).decode
_encode: Final = msgspec.json.Encoder().encode
Mark = tuple[int, int, str, str, bool, bool]


@dataclass(frozen=True, slots=True)
class Kept:
    """A memory as it is to be stored: `text` its column, `taken` which samples are in it, `mark` its decision."""

    text: bytes
    taken: dict[str, float]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Counts:
    """Workers as of the last evaluation, without leaving ones."""

    ready: int = 0
    starting: int = 0
    cold: int = 0


@dataclass(slots=True)
class Watched:
    """An endpoint with its autoscaler's memory, as this process has it."""

    scale: ScaleSpec
    spec: Autoscale
    shape: tuple[int, bool]
    """(slots of a worker, whether it is a language model)."""
    state: ScaleState
    starts: Starts
    target: int
    """Workers that are asked for now; -1: not decided yet."""
    cold: int
    instances: Sequence[Instance] = ()
    hardware: str = ""
    counts: Counts = Counts()
    rests: bool = False
    """It runs nothing whatever is asked of it: it is stopped, or cannot start."""
    decision: Decision | None = None
    next_at: float = math.inf
    stored_at: float = 0.0
    mark: Mark | None = None
    """What was stored last, as far as a change of it is to be stored at once."""
    kv_second: int = 0
    said_second: int = 0
    awaited: frozenset[str] = frozenset()
    """Gateways that the restored memory knows: their seconds may still be missing."""


@dataclass(slots=True)
class Watch:
    """Evaluates endpoints; `began_at` is when this process started (Unix seconds), and `on_speed` is called when
    gateways should hear of another speed of workers."""

    live: Live
    began_at: float = 0.0
    on_speed: Callable[[], None] = lambda: None
    known: dict[str, Watched] = field(default_factory=dict)
    _heap: list[tuple[float, str]] = field(default_factory=list)

    # --- rows ---

    def look(
        self,
        endpoint: Endpoint,
        spec: EndpointSpec,
        slots: int,
        instances: Sequence[Instance],
        hardware: str,
        now: float,
    ) -> Watched:
        """An endpoint as its rows are now; the first look takes its memory from them. True rows, so it may be called
        however often."""
        key = endpoint.endpoint_id
        watched = self.known.get(key)
        shape = (slots, is_llm(spec))
        if watched is None or (endpoint.target < 0 <= watched.target):
            watched = self.known[key] = self._begin(endpoint, shape, watched, instances, now)
        elif watched.scale != endpoint.scale or watched.shape != shape:
            watched.scale, watched.shape = endpoint.scale, shape
            watched.spec = resolve(endpoint.scale, *shape)
        watched.target, watched.cold = endpoint.target, endpoint.cold
        watched.instances, watched.hardware = instances, hardware
        watched.starts.learn(instances)
        return watched

    def _begin(
        self,
        endpoint: Endpoint,
        shape: tuple[int, bool],
        before: Watched | None,
        instances: Sequence[Instance],
        now: float,
    ) -> Watched:
        """The memory of an endpoint that is new here, or is to be tried anew."""
        memory = Memory() if endpoint.target < 0 else restored(endpoint)
        if before is not None:
            memory.starts = before.starts
        load = self.live.loads.get(endpoint.endpoint_id)
        if load is None or not load.known:
            load = self.live.restored(endpoint.endpoint_id, memory.taken, memory.request_at, now)
        load.starts = memory.starts
        key = endpoint.endpoint_id
        load.explain = lambda now: view(self.known[key], self.live.loads[key], now) if key in self.known else None
        spec, state = resolve(endpoint.scale, *shape), memory.state
        if memory.version and before is None:
            ready = sum(one.intent == "run" and one.ready_at is not None for one in instances)
            state = restore(spec, state, ready, now)
        elif endpoint.target >= 0 and before is None:
            # Nothing is remembered of what was decided before: it is gone on with as it is.
            state.attained, state.want, state.cold = True, endpoint.target, endpoint.cold
            state.active = "true" if endpoint.target else "false"
        gateways = (
            frozenset(key for key, at in memory.taken.items() if at > now - 600) if before is None else frozenset()
        )
        return Watched(
            *(endpoint.scale, spec, shape, state, memory.starts, endpoint.target),
            *(endpoint.cold,),
            stored_at=now,
            mark=mark_of(state) if memory.version and before is None else None,
            awaited=gateways,
        )

    def forget(self, endpoint_id: str) -> None:
        """The endpoint is gone."""
        self.known.pop(endpoint_id, None)
        self.live.forget(endpoint_id)

    def stored(self, endpoint_id: str, kept: Kept, target: int, cold: int, now: float) -> None:
        """A memory and what was decided on it are in the store."""
        watched = self.known.get(endpoint_id)
        if watched is None:
            return
        watched.stored_at, watched.mark = now, kept.mark
        watched.target, watched.cold = target, cold
        self.live.stored(endpoint_id, kept.taken)

    # --- evaluations ---

    def evaluate(self, endpoint_id: str, now: float) -> Decision:
        """Evaluate an endpoint that was looked at, now."""
        watched = self.known[endpoint_id]
        load = self.live.loads.setdefault(endpoint_id, Load(known=True))
        seen = self._observed(watched, load, now)
        watched.decision = step(watched.spec, watched.state, seen, now)
        self._tell_speed(watched, load, seen)
        self._schedule(endpoint_id, watched, watched.decision.next_at)
        return watched.decision

    def _tell_speed(self, watched: Watched, load: Load, seen: Observed) -> None:
        """What gateways predict waits by. What is not known any more stays as it was."""
        spec = watched.spec
        if spec.exact:
            return  # Knative's rules refuse nobody for a predicted wait
        known = spec.load_total or seen.mu or most_mu(watched.state.served, spec.container_concurrency)
        if known and abs(known - load.units_per_s) > SPEED_CHANGE * load.units_per_s:
            load.units_per_s = known
            self.on_speed()

    def decided(self, endpoint_id: str, now: float) -> Decision:
        """The decision to apply: a fresh one, but the last one where only ticks and pokes may evaluate."""
        watched = self.known[endpoint_id]
        if watched.spec.exact and watched.decision is not None:
            return watched.decision
        return self.evaluate(endpoint_id, now)

    def wanted(self, watched: Watched) -> tuple[int, int]:
        """(hot, hibernated) workers to ask for by the last decision."""
        decision, before = watched.decision, max(0, watched.target)
        if watched.rests:
            return 0, 0
        if watched.target < 0:
            # As with Knative, what a new one begins with is nobody's decision.
            spec = watched.spec
            first = max(spec.initial_scale, spec.min_scale, decision.want if decision is not None else 0)
            return (min(first, spec.hot_max) if spec.hot_max else first), watched.cold
        if decision is None or not decision.valid:
            return before, watched.cold
        return (decision.want if decision.patch and decision.want != UNKNOWN else before), decision.cold

    def memory(self, endpoint_id: str) -> Kept:
        """What is to be stored of an endpoint, as of its last evaluation."""
        watched, load = self.known[endpoint_id], self.live.loads[endpoint_id]
        memory = Memory(
            version=VERSION, state=watched.state, taken=load.taken, starts=watched.starts, request_at=load.ended_at
        )
        return Kept(_encode(memory), dict(load.taken), mark_of(watched.state))

    def is_due(self, endpoint_id: str, now: float) -> bool:
        """True when the last evaluation is to be written: what it decided differs, or the memory is too old."""
        watched = self.known[endpoint_id]
        if watched.rests:
            return False
        if self.wanted(watched) != (watched.target, watched.cold) or watched.mark != mark_of(watched.state):
            return True
        return now - watched.stored_at >= STORE_S and self.live.is_unsaved(endpoint_id)

    def heard(self, endpoint_id: str, now: float, *, poke: bool) -> bool:
        """A sample or a demand came; true when the reconciler is to look."""
        watched, load = self.known.get(endpoint_id), self.live.loads.get(endpoint_id)
        if watched is None or load is None:
            return True
        if watched.rests:
            load.take()
            self.live.stored(endpoint_id, load.taken)
            return False
        if self._presses(watched, load, now, poke=poke):
            self.evaluate(endpoint_id, now)
            return self.is_due(endpoint_id, now)
        tick_s = watched.spec.tick_s
        self._schedule(endpoint_id, watched, min(watched.next_at, (now // tick_s + 1) * tick_s))
        return False

    def _presses(self, watched: Watched, load: Load, now: float, *, poke: bool) -> bool:
        """True when it is to be evaluated at once: its first request, or somebody who waits for too long."""
        spec, state, waiting = watched.spec, watched.state, load.waiting(now)
        if poked(spec, state, 1.0 if poke or (waiting and not spec.exact) else 0.0):
            return True
        return overdue(spec, state, load.oldest_wait_s(now), now)

    def due(self, now: float) -> list[str]:
        """Evaluate whatever is due; the endpoints that the reconciler is to look at."""
        found: set[str] = set()
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            watched = self.known.get(key)
            if watched is None or watched.next_at != at:
                continue
            watched.next_at = math.inf
            if watched.rests:
                continue
            try:
                self.evaluate(key, now)
            except Exception:
                # One endpoint's state that nobody foresaw must not stop all others from scaling.
                log.exception("endpoint=%s not evaluated", key)
                self._schedule(key, watched, now + STORE_S)
                continue
            if self.is_due(key, now):
                found.add(key)
            elif self.live.is_unsaved(key):
                self._schedule(key, watched, min(watched.next_at, max(now + 1.0, watched.stored_at + STORE_S)))
        return sorted(found)

    @property
    def next_at(self) -> float:
        """When something is due next, Unix seconds; infinite when nothing is."""
        return self._heap[0][0] if self._heap else math.inf

    def _schedule(self, key: str, watched: Watched, at: float | None) -> None:
        if at is None:
            watched.next_at = math.inf
        elif at != watched.next_at or math.isinf(watched.next_at):
            watched.next_at = at
            heapq.heappush(self._heap, (at, key))

    # --- what is seen ---

    def _observed(self, watched: Watched, load: Load, now: float) -> Observed:
        """What the engine is to know of an endpoint now; takes the seconds that it was not given before."""
        running = [one for one in watched.instances if one.intent == "run" and not one.warned]
        ready = {one.instance_id for one in running if self.live.ready(one.instance_id, one.epoch)}
        started = starting(running, ready)
        # One whose link broke a moment ago comes back sooner than another could start.
        left = [0.0 if one.ready_at is not None else watched.starts.remaining_s(one, now) for one in started]
        perfs = self._perfs(running)
        measured = watched.starts.measured()
        cold = sum(one.phase == "hibernated" for one in watched.instances)
        watched.counts = Counts(len(ready), len(started), cold)
        return Observed(
            seconds=(*self._seconds(watched, load, now), *self._kv(watched, ready, now)),
            ready=len(ready),
            starting=len(started),
            eta_s=min(left) if left else None,
            current=watched.target if watched.target >= 0 else UNKNOWN,
            cold=cold,
            waiting=load.waiting(now),
            in_service=load.in_flight(),
            waiting_load=load.waiting_load(),
            oldest_wait_s=load.oldest_wait_s(now),
            last_request_at=load.ended_at or None,
            linked=self.live.reachable,
            caught_up=self._caught_up(watched, now),
            hardware=watched.hardware,
            mu=sum(perfs) / len(perfs) if perfs else None,
            wake_s=measured["wake"],
            provision_s=measured["provision"],
        )

    def _seconds(self, watched: Watched, load: Load, now: float) -> Iterable[Second]:
        tokens = "tokens" in watched.spec.metrics
        fresh = load.take()
        if watched.spec.freeze and self.live.reachable:
            # Gateways say nothing of seconds without a request. Where silence freezes the count, zeros are to be said.
            end, known = math.floor(now), {at for at, _ in fresh}
            first = max(watched.said_second + 1, end - watched.spec.stable_s)
            yield from (Second(at) for at in range(first, end) if at not in known)
            watched.said_second = end - 1
        for at, tally in fresh:
            yield Second(
                at, tally.concurrency, tally.requests, tally.units,
                tokens=float(tally.tokens) if tokens else None, served=tally.served,
            )  # fmt: skip

    def _kv(self, watched: Watched, ready: set[str], now: float) -> list[Second]:
        """What the engines say of their caches, for each second since they were asked last: it holds until they say
        something else."""
        if "kv" not in watched.spec.metrics:
            return []
        links = [self.live.link(i.instance_id, i.epoch) for i in watched.instances if i.instance_id in ready]
        said = [(link.kv_use, link.queued) for link in links if link is not None and link.kv_use >= 0]
        if not said:
            return []
        second, value = math.floor(now), kv_value(said)
        first = max(watched.kv_second + 1, second - watched.spec.tick_s + 1)
        watched.kv_second = second
        return [Second(at, kv=value) for at in range(first, second + 1)]

    def _perfs(self, running: Sequence[Instance]) -> list[float]:
        links = [self.live.link(one.instance_id, one.epoch) for one in running]
        return [link.perf for link in links if link is not None and link.perf is not None and link.perf > 0]

    def _caught_up(self, watched: Watched, now: float) -> bool:
        """True when no gateway can still send seconds from before this process."""
        if watched.awaited:
            if not watched.awaited <= self.live.caught_up and now < self.began_at + RETURN_S:
                return False
            watched.awaited = frozenset()
        return True


def is_llm(spec: EndpointSpec) -> bool:
    """True for a model that answers in tokens."""
    return spec.model is not None and "openai" in spec.model.protocols


def restored(endpoint: Endpoint) -> Memory:
    """The stored memory of an endpoint; a new one where there is none that can be read."""
    if endpoint.scale_state:
        try:
            found = _decode(endpoint.scale_state)
            if found.version == VERSION:
                return found
        except msgspec.MsgspecError:
            pass
        log.warning("endpoint=%s scale_state=unreadable: it begins anew", endpoint.endpoint_id)
    return Memory()


def mark_of(state: ScaleState) -> Mark:
    """What is to be stored at once when it changes: decision, condition, panic."""
    return (
        state.want, state.cold, state.active, state.active_reason, state.panic_since is not None, state.attained,
    )  # fmt: skip
