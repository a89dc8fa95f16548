"""A simulated endpoint under the product's own decisions: requests in, workers over time and waits out.

Only time and workers are simulated; every decision is `engine.decide`, every victim `replan`. A worker takes `slots`
requests at once, is ready `provision_s` after it was asked for (`wake_s`, when it was hibernated) and finishes what it
runs before it leaves. Requests wait in one queue, first come first served. Bills are by whole `bill_s` of each worker's
life, from the moment it was asked for: what it is then starts, and is billed by most sellers.

Pure: arrivals are given, so equal arrivals give equal outcomes. Times are seconds from the start of the simulation,
which is second `EPOCH` of the engine's clock, a multiple of every tick up to a minute.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.engine import decide
from nanopod.scheduler.autoscale.replan import replan
from nanopod.scheduler.autoscale.values import (
    UNKNOWN,
    Action,
    Autoscale,
    Decision,
    Observed,
    Phase,
    Replica,
    ScaleState,
    Second,
)

EPOCH: Final = 1_800_000_000
"""What the engine's clock says at the start: a multiple of 60."""
WAIT_S_MAX: Final = 600.0
"""A request that waited this long is answered with a time-out, as the gateway does."""
UNITS: Final = 100.0
"""Units of load of a request that does not say."""
UNLIMITED: Final = 1_000_000
"""Slots of a worker that has no limit."""
POINTS_MAX: Final = 2000
"""Points of a timeline; beyond, every other one is dropped."""
Watcher = Callable[[Observed, float, Decision], None]
"""Gets what was seen at an evaluation, its time as the engine's clock has it, and what was decided."""


class Arrival(msgspec.Struct, frozen=True):
    """A request: when it comes (seconds), how long a worker works on it (seconds), its units of load."""

    at: float
    service_s: float
    units: float = UNITS


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud is like. Times are seconds."""

    slots: int = 1
    """Requests that one worker takes at once; 0: any number."""
    provision_s: float = 30.0
    wake_s: float | None = None
    """None: as long as a new one."""
    bill_s: float = 60.0
    """Shortest time that is billed, and its multiples; 0: by the moment."""
    mu: float | None = None
    """Benchmarked units of load per second of one worker; None: measured as the requests go by."""
    until_s: float = 0.0
    """Go on at least this long; there is no end before the last request was answered."""

    def check(self) -> None:
        """Raises `Invalid` naming the field."""
        for name in ("slots", "provision_s", "wake_s", "bill_s", "mu", "until_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1e7:
                raise Invalid(f"{name}={value:g}: give a number from 0 to 10000000", field=name)


class Point(msgspec.Struct, frozen=True):
    """The endpoint at one moment."""

    at: int
    ready: int
    starting: int
    cold: int
    waiting: int
    in_service: int
    want: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run cost and what its callers felt. Times are seconds."""

    requests: int
    worker_s: float
    billed_s: float
    """Of hot and starting workers, in whole billing periods."""
    peak_workers: int
    starts: int
    wakes: int
    wait_mean: float
    wait_p50: float
    wait_p99: float
    wait_max: float
    late_share: float
    """Share of requests that waited longer than 10 s or got a time-out."""
    timeouts: int
    utilisation: float
    """Share of the workers' time in which their slots worked; 0 where slots have no limit."""
    evaluations: int
    timeline: tuple[Point, ...] = ()


class _Worker:
    """One simulated worker that has its node: from the moment it was asked for until it is hibernated or gone."""

    __slots__ = ("born", "busy", "filling", "id", "leaving", "ready_at", "then", "until", "wake")

    def __init__(self, number: int, now: float, ready_at: float, wake: bool, filling: bool) -> None:
        self.id = f"w{number:06d}"
        self.born = now
        self.ready_at = ready_at
        self.wake = wake
        self.filling = filling
        self.busy = 0
        self.leaving = False
        self.until: float | None = None
        self.then = ""


class World:
    """The simulated cloud of one endpoint."""

    def __init__(
        self,
        spec: Autoscale,
        conditions: Conditions,
        *,
        seen: Watcher | None = None,
    ) -> None:
        conditions.check()
        self.spec, self.conditions, self.seen = spec, conditions, seen
        self.slots = conditions.slots or UNLIMITED
        self.wake_s = conditions.provision_s if conditions.wake_s is None else conditions.wake_s
        self.state = ScaleState()
        self.workers: list[_Worker] = []
        self.cold: list[str] = []
        self.queue: deque[Arrival] = deque()
        self.finishing: list[tuple[float, int, _Worker, Arrival]] = []
        self.changes: list[tuple[float, int]] = []
        self.pending: list[Second] = []
        self.waits: list[float] = []
        self.points: list[Point] = []
        self.worker_s = self.billed_s = self.busy_s = 0.0
        self.starts = self.wakes = self.peak = self.timeouts = self.evaluations = 0
        self.number = self.stride_skip = 0
        self.stride = 1
        self.want = self.now = 0
        self.last_at = 0.0
        self.news = self.full = False
        self.waiting_units = 0.0
        self.last_end: float | None = None
        self._clear_second()

    def _clear_second(self) -> None:
        self.area, self.area_at = 0.0, getattr(self, "area_at", 0.0)
        self.came, self.came_units = 0, 0.0
        self.done, self.done_units, self.done_s = 0, 0.0, 0.0

    def present(self) -> int:
        """Requests in the queue or at a worker."""
        return len(self.queue) + len(self.finishing)

    def advance(self, now: float) -> None:
        """Account for the time since the last event."""
        self.area += self.present() * (now - self.area_at)
        self.area_at = now

    def arrive(self, arrival: Arrival) -> None:
        """A request comes; at zero the rule is asked at once."""
        now = arrival.at
        self.advance(now)
        self.came += 1
        self.came_units += arrival.units
        self.queue.append(arrival)
        self.waiting_units += arrival.units
        self.serve(now)
        if self.queue and not self.workers and self.want == 0:
            if self.spec.exact:  # what the first request reports at once, taken off its second's report again
                self.pending.append(Second(EPOCH + math.floor(now), concurrency=1.0, requests=1.0, load=arrival.units))
                self.area -= 1.0
                self.came -= 1
                self.came_units -= arrival.units
            self.scale(now)

    def serve(self, now: float, freed: _Worker | None = None) -> None:
        """Give waiting requests to free slots: the first by address where Knative's rules hold, else the emptiest.

        `freed`: the only worker of which room is news.
        """
        while self.queue:
            if self.full and freed is None:
                return
            best: _Worker | None = None
            for worker in (freed,) if self.full and freed is not None else self.workers:
                if worker.busy < self.slots and worker.ready_at <= now and not worker.leaving and not worker.filling:
                    if best is None or worker.busy < best.busy:
                        best = worker
                    if best.busy == 0 or self.spec.exact:
                        break
            if best is None:
                self.full = True
                return
            arrival = self.queue.popleft()
            self.waiting_units -= arrival.units
            waited = now - arrival.at
            self.waits.append(waited)
            if waited > WAIT_S_MAX:
                self.timeouts += 1
                continue
            best.busy += 1
            self.busy_s += arrival.service_s
            self.number += 1
            heapq.heappush(self.finishing, (now + arrival.service_s, self.number, best, arrival))

    def run_until(self, now: float) -> None:
        """Let everything end or become ready that does so by `now`."""
        while True:
            done = self.finishing[0][0] if self.finishing else math.inf
            change = self.changes[0][0] if self.changes else math.inf
            if min(done, change) > now:
                return
            if change <= done:
                heapq.heappop(self.changes)
                self.advance(change)
                self._change(change)
                continue
            at, _, worker, arrival = self.finishing[0]
            self.advance(at)
            heapq.heappop(self.finishing)
            self.done += 1
            self.done_units += arrival.units
            self.done_s += arrival.service_s
            self.last_end = at
            worker.busy -= 1
            if worker.leaving and worker.busy == 0:
                self._bury(worker, at)
            if self.full:
                self.serve(at, worker)
                self.full = bool(self.queue)
            else:
                self.serve(at)

    def _change(self, now: float) -> None:
        """Workers become ready, or leave at the end of what is paid."""
        self.news, self.full = True, False
        for worker in list(self.workers):
            if worker.filling and worker.ready_at <= now:
                worker.then = "hibernate"
                self._bury(worker, now)
            elif worker.until is not None and worker.until <= now and not worker.leaving:
                self._drain(worker, now)
        self.serve(now)

    def _drain(self, worker: _Worker, now: float) -> None:
        worker.leaving, worker.until = True, None
        if worker.busy == 0:
            self._bury(worker, now)

    def _bury(self, worker: _Worker, now: float) -> None:
        """A worker gives its node back: its time is paid."""
        self.worker_s += now - worker.born
        self.billed_s += self._bill(now - worker.born)
        self.workers.remove(worker)
        if worker.then == "hibernate":
            self.cold.append(worker.id)

    def _bill(self, life_s: float) -> float:
        period = self.conditions.bill_s
        return math.ceil(round(life_s / period, 6)) * period if period > 0 else life_s

    def tick(self, now: int) -> None:
        """A second has passed: report it, and decide where the tick or the news of the second ask for it."""
        self.now = now
        self.run_until(now)
        self.advance(now)
        self.serve(now)
        served = (self.done_units, self.done_s, self.done)
        mean = max(0.0, self.area)
        self.pending.append(Second(EPOCH + now - 1, mean, self.came, self.came_units, served=served))
        self._clear_second()
        late = bool(self.queue) and now - self.queue[0].at > self.spec.target_queue_time_s
        if now % self.spec.tick_s == 0 or (not self.spec.exact and (self.news or late)):
            self.scale(now)
            self._point(now)
        self.news = False

    def observe(self, now: float) -> Observed:
        """What the autoscaler sees now; the seconds are handed over."""
        staying = [worker for worker in self.workers if not worker.leaving and not worker.filling]
        ready = sum(worker.ready_at <= now for worker in staying)
        etas = [worker.ready_at - now for worker in staying if worker.ready_at > now]
        seconds, self.pending = tuple(self.pending), []
        return Observed(
            seconds=seconds,
            ready=ready,
            starting=len(staying) - ready,
            eta_s=min(etas, default=None),
            current=self.want,
            cold=len(self.cold),
            draining=sum(worker.leaving for worker in self.workers),
            waiting=len(self.queue),
            in_service=len(self.finishing),
            waiting_load=max(0.0, self.waiting_units),
            oldest_wait_s=now - self.queue[0].at if self.queue else 0.0,
            last_request_at=None if self.last_end is None else EPOCH + self.last_end,
            mu=self.conditions.mu,
            wake_s=self.wake_s,
            provision_s=self.conditions.provision_s,
        )

    def scale(self, now: float) -> None:
        """Ask the rule and make it so."""
        seen = self.observe(now)
        self.state, decision = decide(self.spec, self.state, seen, EPOCH + now)
        if self.seen is not None:
            self.seen(seen, EPOCH + now, decision)
        self.evaluations += 1
        self._apply(decision, now)
        self.peak = max(self.peak, len(self.workers))
        self.serve(now)

    def _apply(self, decision: Decision, now: float) -> None:
        if decision.patch and decision.want != UNKNOWN:
            self.want = decision.want
        if self.spec.exact:
            self._replicas(self.want, now)
            return
        replicas = [self._replica(worker, now) for worker in self.workers]
        replicas += [Replica(id=name, phase="cold", eta_s=self.wake_s) for name in self.cold]
        for action in replan(self.want, decision.cold, replicas, EPOCH + now, bool(self.queue)):
            self._do(action, now)

    def _replicas(self, want: int, now: float) -> None:
        """As an orchestrator does it: what is not ready goes first, then the youngest, whether it works or not."""
        staying = [worker for worker in self.workers if not worker.leaving]
        for _ in range(want - len(staying)):
            self._start(now, "")
        if want < len(staying):
            order = sorted(staying, key=lambda w: (w.ready_at <= now, -w.born, w.id))
            for worker in order[: len(staying) - want]:
                self._drain(worker, now)

    def _replica(self, worker: _Worker, now: float) -> Replica:
        phase: Phase = "ready"
        if worker.leaving:
            phase = "draining"
        elif worker.ready_at > now:
            phase = "waking" if worker.wake else "provisioning"
        return Replica(
            id=worker.id,
            phase=phase,
            in_flight=worker.busy,
            born_at=EPOCH + worker.born,
            eta_s=max(0.0, worker.ready_at - now),
            leaving=worker.leaving or worker.filling,
            until=None if worker.until is None else EPOCH + worker.until,
        )

    def _start(self, now: float, cold: str, *, filling: bool = False) -> None:
        """A worker is asked for: `cold` is the hibernated one that is woken; "": a new one."""
        ready_at = now + (self.wake_s if cold else self.conditions.provision_s)
        self.number += 1
        worker = _Worker(self.number, now, ready_at, bool(cold), filling)
        if cold:
            self.cold.remove(cold)
            self.wakes += 1
        self.starts += 1
        self.workers.append(worker)
        self.full = False  # one that starts in no time has room already
        heapq.heappush(self.changes, (ready_at, self.number))

    def _do(self, action: Action, now: float) -> None:
        if action.kind in ("provision", "fill"):
            self._start(now, "", filling=action.kind == "fill")
            return
        if action.kind == "wake":
            self._start(now, action.id)
            return
        if action.kind == "trim":
            self.cold.remove(action.id)
            return
        worker = next(worker for worker in self.workers if worker.id == action.id)
        if action.kind in ("undrain", "keep"):
            worker.leaving, worker.until, worker.then = False, None, ""
            self.full = False
        elif action.at > EPOCH + now:
            worker.until, worker.then = action.at - EPOCH, action.then
            self.number += 1
            heapq.heappush(self.changes, (worker.until, self.number))
        else:
            worker.then = action.then
            self._drain(worker, now)

    def _point(self, now: int) -> None:
        """Remember this moment; a timeline that grows too long loses every other point."""
        self.stride_skip += 1
        if self.stride_skip < self.stride:
            return
        self.stride_skip = 0
        ready = sum(worker.ready_at <= now and not worker.leaving for worker in self.workers)
        starting = sum(worker.ready_at > now for worker in self.workers)
        self.points.append(Point(now, ready, starting, len(self.cold), len(self.queue), len(self.finishing), self.want))
        if len(self.points) > POINTS_MAX:
            del self.points[::2]
            self.stride *= 2

    def play(self, arrivals: Iterable[Arrival], until: int) -> None:
        """Take the arrivals in order, then go on to second `until`. Raises `Invalid` where they are out of order."""
        for arrival in arrivals:
            if not self.last_at <= arrival.at < 1e9 or not 0 <= arrival.service_s < 1e9:
                raise Invalid(f"the request at {arrival.at:g} s: times rise and are not negative", field="at")
            self.last_at = arrival.at
            while self.now + 1 <= arrival.at:
                self.tick(self.now + 1)
            self.run_until(arrival.at)
            self.arrive(arrival)
        while self.now < until:
            self.tick(self.now + 1)

    def outcome(self, now: float) -> Outcome:
        """The figures, with all living workers paid until `now`."""
        paid = self.worker_s + sum(now - worker.born for worker in self.workers)
        billed = self.billed_s + sum(self._bill(now - worker.born) for worker in self.workers)
        waits = sorted(self.waits)
        limited = bool(self.conditions.slots)
        return Outcome(
            requests=len(waits),
            worker_s=round(paid, 1),
            billed_s=round(billed, 1),
            peak_workers=self.peak,
            starts=self.starts,
            wakes=self.wakes,
            wait_mean=round(sum(waits) / len(waits), 3) if waits else 0.0,
            wait_p50=round(rank(waits, 0.5), 3),
            wait_p99=round(rank(waits, 0.99), 3),
            wait_max=round(waits[-1], 3) if waits else 0.0,
            late_share=round(sum(wait > 10.0 for wait in waits) / len(waits), 6) if waits else 0.0,
            timeouts=self.timeouts,
            utilisation=round(self.busy_s / (paid * self.slots), 4) if paid and limited else 0.0,
            evaluations=self.evaluations,
            timeline=tuple(self.points),
        )


def rank(ordered: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def simulate(
    spec: Autoscale,
    arrivals: Iterable[Arrival],
    conditions: Conditions,
    *,
    seen: Watcher | None = None,
) -> Outcome:
    """Run all arrivals (in order of time) and the work they leave behind; deterministic.

    `seen` is called after every evaluation. Raises `Invalid` where arrivals are out of
    order or a condition is out of range.
    """
    world = World(spec, conditions, seen=seen)
    world.play(arrivals, 0)
    while world.present() or world.now < conditions.until_s:
        world.tick(world.now + 1)
    return world.outcome(world.now)
