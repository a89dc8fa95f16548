"""Workers and waiting jobs of one endpoint: who is taken next, and by whom. No IO.

A job waits here, never at a worker that may be reclaimed. Within a function the order is priority, then arrival; a job
that comes back (its worker refused it or was lost) keeps its place.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, Final, Protocol

from nanopod.gateway.wheel import Timed
from nanopod.model.wire import EndpointSample, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.links import WorkerLink

WAITING_MAX: Final = 10_000
WAITING_BYTES_MAX: Final = 64 << 20
PROCESS_BYTES_MAX: Final = 256 << 20
DEMAND_S: Final = 1.0


class Job(Timed):
    """A request or call on its way to a worker. Subclasses know what travels."""

    __slots__ = (
        "bytes_held", "concurrency", "epoch", "function", "link", "pool", "priority", "seq", "stream", "waiting",
    )  # fmt: skip

    def __init__(self, pool: Pool, function: str = "", concurrency: int = 1 << 30, priority: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.function = function
        self.concurrency = concurrency
        """Calls of this function that one worker may have at a time."""
        self.priority = priority
        self.seq = 0
        self.bytes_held = 0
        self.epoch = 0
        self.link: WorkerLink | None = None
        self.stream = 0
        self.waiting = False

    def fits(self, link: WorkerLink) -> bool:
        """False when this job may not go to this worker."""
        return True

    def dispatch(self, link: WorkerLink) -> None:
        """Go to `link`, which has a free slot."""
        raise AssertionError("a job knows how to travel")

    def on_frame(self, kind: int, flags: int, epoch: int, payload: bytes) -> None:
        """A frame of this job's stream."""
        raise AssertionError("a job knows its frames")

    def on_link_lost(self, link: WorkerLink, reason: str) -> None:
        """The worker's link is gone, and this job's stream with it."""
        raise AssertionError("a job knows what a lost worker means")

    def on_route_failed(self) -> None:
        """No worker of the endpoint can start: the route's `failure` says why."""
        raise AssertionError("a job knows how to fail")


class Host(Protocol):
    """What a pool needs of the process around it."""

    now: float
    waiting_bytes: int

    def demand(self, endpoint_id: str, waiting: int) -> None:
        """Tell the server that somebody waits at an endpoint without a ready worker."""

    def became_active(self, pool: Pool) -> None:
        """The endpoint has its first request after a quiet second: the server should know now."""


class Pool:
    """One endpoint as this process sees it."""

    __slots__ = (
        "_area", "_area_at", "_demanded_at", "_heaps", "_host", "_seq", "active", "in_flight", "links", "requests",
        "route", "total", "waiting", "waiting_bytes", "workload",
    )  # fmt: skip

    def __init__(self, host: Host, route: RouteRow) -> None:
        self._host = host
        self.route = route
        self.links: list[WorkerLink] = []
        self._heaps: dict[str, list[tuple[int, int, Job]]] = {}
        self._seq = 0
        self._demanded_at = -DEMAND_S
        self._area = 0.0
        self._area_at = host.now
        self.waiting = 0
        self.waiting_bytes = 0
        self.in_flight = 0
        self.total = 0
        self.requests = 0
        self.workload = 0.0
        self.active = False

    # --- load, for the autoscaler ---

    def enter(self, workload: float) -> None:
        """A request or call arrived here."""
        now = self._host.now
        self._area += self.total * (now - self._area_at)
        self._area_at = now
        self.total += 1
        self.requests += 1
        self.workload += workload
        if not self.active:
            self.active = True
            self._host.became_active(self)

    def leave(self) -> None:
        """One that entered has its answer, or needs none any more."""
        now = self._host.now
        self._area += self.total * (now - self._area_at)
        self._area_at = now
        self.total -= 1

    def sample(self, span_s: float) -> EndpointSample:
        """The load since the last sample, which was `span_s` ago; starts the next one."""
        now = self._host.now
        area = self._area + self.total * (now - self._area_at)
        mean = area / span_s if span_s > 0 else float(self.total)
        found = EndpointSample(self.route.endpoint_id, mean, self.requests, self.waiting, self.in_flight, self.workload)
        self._area, self._area_at, self.requests, self.workload = 0.0, now, 0, 0.0
        self.active = self.total > 0 or found.requests > 0 or mean > 0
        return found

    # --- workers ---

    def ready(self) -> list[WorkerLink]:
        """Workers that take work: those of the current revision, or of an older one while none of it is ready."""
        usable = [link for link in self.links if link.usable]
        revision = self.route.revision_id
        current = [link for link in usable if link.revision_id == revision]
        return current or usable

    def choose(self, job: Job) -> WorkerLink | None:
        """A worker with room for `job`: undoomed first, then the less loaded of two drawn at random."""
        links = self.links
        now = self._host.now
        if len(links) == 1:
            link = links[0]
            return link if link.usable and link.has_room(job, now) and job.fits(link) else None
        found = [link for link in self.ready() if link.has_room(job, now) and job.fits(link)]
        if len(found) < 2:
            return found[0] if found else None
        safe = [link for link in found if link.doomed_at is None]
        found = safe or found
        if len(found) == 1:
            return found[0]
        one, two = random.sample(found, 2)
        return one if one.in_flight <= two.in_flight else two

    # --- jobs ---

    def full(self, size: int) -> bool:
        """True when a further job with `size` bytes may not wait here."""
        return (
            self.waiting >= WAITING_MAX
            or self.waiting_bytes + size > WAITING_BYTES_MAX
            or self._host.waiting_bytes + size > PROCESS_BYTES_MAX
        )

    def submit(self, job: Job) -> bool:
        """Send `job` to a worker now (True) or let it wait (False). A failed route fails it at once."""
        if not job.seq:
            self._seq += 1
            job.seq = self._seq
        if not self._heaps.get(job.function):
            link = self.choose(job)
            if link is not None:
                self.in_flight += 1
                job.dispatch(link)
                return True
        job.waiting = True
        self.waiting += 1
        self.waiting_bytes += job.bytes_held
        self._host.waiting_bytes += job.bytes_held
        heapq.heappush(self._heaps.setdefault(job.function, []), (-job.priority, job.seq, job))
        self.poke()
        return False

    def withdraw(self, job: Job) -> None:
        """Take a waiting job out (its place in the heap is dropped when it comes up)."""
        if job.waiting:
            job.waiting = False
            self._dequeued(job)
            if not self.waiting:
                self._heaps.clear()

    def _dequeued(self, job: Job) -> None:
        self.waiting -= 1
        self.waiting_bytes -= job.bytes_held
        self._host.waiting_bytes -= job.bytes_held

    def poke(self) -> None:
        """Call for a worker (at most once a second) while jobs wait and none is ready; fail them if none can start."""
        if not self.waiting:
            return
        if any(link.usable for link in self.links):
            return
        if self.route.failure is not None:
            for job in self.waiting_jobs():
                job.on_route_failed()
            return
        now = self._host.now
        if now - self._demanded_at >= DEMAND_S:
            self._demanded_at = now
            self._host.demand(self.route.endpoint_id, self.waiting)

    def waiting_jobs(self) -> list[Job]:
        """Jobs that wait, first in line first."""
        entries = sorted((entry for heap in self._heaps.values() for entry in heap), key=lambda entry: entry[:2])
        return [job for _, _, job in entries if job.waiting]

    def pump(self) -> None:
        """Give waiting jobs to workers with room, oldest first. A full function does not hold up the others."""
        if not self.waiting:
            return
        blocked: set[str] = set()
        while self.waiting:
            best: tuple[int, int, Job] | None = None
            for function, heap in self._heaps.items():
                while heap and not heap[0][2].waiting:
                    heapq.heappop(heap)
                if heap and function not in blocked and (best is None or heap[0][:2] < best[:2]):
                    best = heap[0]
            if best is None:
                return
            job = best[2]
            link = self.choose(job)
            if link is None:
                blocked.add(job.function)
                continue
            heapq.heappop(self._heaps[job.function])
            job.waiting = False
            self._dequeued(job)
            self.in_flight += 1
            job.dispatch(link)

    def released(self) -> None:
        """A job left its worker: its slot is free."""
        self.in_flight -= 1
        if self.waiting:
            self.pump()
