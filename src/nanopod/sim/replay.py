"""Replay requests against the scaling rule: the decisions are the product's own, time and workers are simulated.

A worker takes `slots` requests at once, is ready `wake_s` after it was asked for, and finishes what it runs before it
leaves. Requests wait in one queue, first come first served. The rule is asked once a second, as in the product, and at
once when somebody waits at zero.
"""

from __future__ import annotations

import csv
import heapq
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nanopod.model.endpoint import ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.decide import Observed, ScaleState, decide

WAIT_S_MAX = 600.0
"""A request that waited this long is answered with a time-out, as the gateway does."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it comes (seconds) and how long a worker works on it (seconds)."""

    at: float
    service_s: float


@dataclass(slots=True)
class Worker:
    """One simulated worker."""

    born: float
    ready_at: float
    busy: int = 0
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay cost and what its callers felt. Times are seconds."""

    requests: int
    worker_s: float
    peak_workers: int
    wakes: int
    wait_p50: float
    wait_p99: float
    late_share: float
    """Share of requests that waited longer than 10 s or got a time-out."""
    timeouts: int
    utilisation: float
    """Share of the paid worker time in which its slots worked."""


@dataclass(slots=True)
class World:
    """The simulated cloud of one endpoint."""

    spec: ScaleSpec
    slots: int
    wake_s: float
    workers: list[Worker] = field(default_factory=list)
    queue: deque[Arrival] = field(default_factory=deque)
    finishing: list[tuple[float, int, Worker]] = field(default_factory=list)
    state: ScaleState = field(default_factory=ScaleState)
    waits: list[float] = field(default_factory=list)
    worker_s: float = 0.0
    busy_s: float = 0.0
    wakes: int = 0
    peak: int = 0
    timeouts: int = 0
    sequence: int = 0
    area: float = 0.0
    area_at: float = 0.0
    """Integral of the requests present, for the mean concurrency of the running second."""

    def present(self) -> int:
        """Requests in the queue or at a worker."""
        return len(self.queue) + len(self.finishing)

    def advance(self, now: float) -> None:
        """Account for the time since the last event."""
        self.area += self.present() * (now - self.area_at)
        self.area_at = now

    def arrive(self, arrival: Arrival) -> None:
        """A request comes; at zero the rule is asked at once."""
        self.advance(arrival.at)
        self.queue.append(arrival)
        self.serve(arrival.at)
        if self.queue and not self.workers:
            self.scale(arrival.at, ())

    def serve(self, now: float) -> None:
        """Give waiting requests to free slots, fullest worker last."""
        while self.queue:
            free = [w for w in self.workers if w.ready_at <= now and w.busy < self.slots and not w.leaving]
            if not free:
                return
            worker = min(free, key=lambda w: w.busy)
            arrival = self.queue.popleft()
            waited = now - arrival.at
            self.waits.append(waited)
            if waited > WAIT_S_MAX:
                self.timeouts += 1
                continue
            worker.busy += 1
            self.busy_s += arrival.service_s
            self.sequence += 1
            heapq.heappush(self.finishing, (now + arrival.service_s, self.sequence, worker))

    def finish_until(self, now: float) -> None:
        """Let everything end that ends by `now`."""
        while self.finishing and self.finishing[0][0] <= now:
            at, _, worker = self.finishing[0]
            self.advance(at)
            heapq.heappop(self.finishing)
            worker.busy -= 1
            if worker.leaving and worker.busy == 0:
                self.bury(worker, at)
            self.serve(at)

    def bury(self, worker: Worker, now: float) -> None:
        """A worker is gone: its time is paid."""
        self.worker_s += now - worker.born
        self.workers.remove(worker)

    def tick(self, now: float) -> None:
        """One second has passed: report its mean concurrency and follow the rule."""
        self.finish_until(now)
        self.advance(now)
        self.serve(now)
        sample = (int(now) - 1, self.area)
        self.area = 0.0
        self.scale(now, (sample,))

    def scale(self, now: float, samples: tuple[tuple[int, float], ...]) -> None:
        """Ask the rule and make it so."""
        staying = [w for w in self.workers if not w.leaving]
        ready = sum(w.ready_at <= now for w in staying)
        seen = Observed(
            samples=samples,
            waiting=len(self.queue),
            in_flight=len(self.finishing),
            ready=ready,
            starting=len(staying) - ready,
            slots=self.slots,
        )
        self.state, decision = decide(self.spec, self.state, seen, now)
        for _ in range(decision.target - len(staying)):
            self.workers.append(Worker(now, now + self.wake_s))
            self.wakes += 1
        # Idle ones leave first, and of those the newest.
        surplus = sorted(staying, key=lambda w: (w.busy, -w.born))[: max(0, len(staying) - decision.target)]
        for worker in surplus:
            worker.leaving = True
            if worker.busy == 0:
                self.bury(worker, now)
        self.peak = max(self.peak, len(self.workers))

    def outcome(self, now: float) -> Outcome:
        """The figures, with all living workers paid until `now`."""
        paid = self.worker_s + sum(now - w.born for w in self.workers)
        ordered = sorted(self.waits)
        late = sum(wait > 10.0 for wait in ordered)
        return Outcome(
            requests=len(ordered),
            worker_s=round(paid, 1),
            peak_workers=self.peak,
            wakes=self.wakes,
            wait_p50=round(_rank(ordered, 0.5), 3),
            wait_p99=round(_rank(ordered, 0.99), 3),
            late_share=round(late / len(ordered), 6) if ordered else 0.0,
            timeouts=self.timeouts,
            utilisation=round(self.busy_s / (paid * self.slots), 4) if paid else 0.0,
        )


def _rank(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def replay(spec: ScaleSpec, arrivals: Iterable[Arrival], *, slots: int, wake_s: float) -> Outcome:
    """Run all arrivals (in order of time) and the work they leave behind; deterministic."""
    world = World(spec, slots, wake_s)
    now = 0.0
    for arrival in arrivals:
        while now + 1.0 <= arrival.at:
            now += 1.0
            world.tick(now)
        world.finish_until(arrival.at)
        world.arrive(arrival)
    while world.present():
        now += 1.0
        world.tick(now)
    return world.outcome(now)


def synthetic_day(hours: float, rate: float, service_s: float, seed: int) -> Iterator[Arrival]:
    """Poisson arrivals that follow a day's curve: quiet at night, busy at noon, and one burst of five minutes.

    `rate` is the mean in requests per second; service times are exponential with mean `service_s`.
    """
    rng = random.Random(seed)
    length = hours * 3600.0
    burst = rng.uniform(0.3, 0.7) * length
    now = 0.0
    ceiling = rate * 6.0
    while True:
        now += rng.expovariate(ceiling)
        if now >= length:
            return
        wave = max(0.0, 1.0 - math.cos(2 * math.pi * now / length))
        intensity = rate * wave * (3.0 if burst <= now < burst + 300 else 1.0)
        if rng.random() < intensity / ceiling:
            yield Arrival(now, rng.expovariate(1.0 / service_s))


def azure_trace(path: Path, limit: int | None = None) -> Iterator[Arrival]:
    """Arrivals of a CSV with TIMESTAMP, ContextTokens, GeneratedTokens (the public Azure LLM inference traces).

    Service time: 0.15 s, 0.3 ms per context token, 35 ms per further token. Raises `Invalid` naming a bad line.
    """
    first: datetime | None = None
    with open(path, newline="") as source:
        for number, row in enumerate(csv.DictReader(source)):
            if limit is not None and number >= limit:
                return
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                context, generated = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, ValueError) as error:
                raise Invalid(
                    f"{path}, line {number + 2}: {error}; expected TIMESTAMP,ContextTokens,GeneratedTokens"
                ) from error
            first = first or at
            yield Arrival((at - first).total_seconds(), 0.15 + 0.0003 * context + 0.035 * max(0, generated - 1))
