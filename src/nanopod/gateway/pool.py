"""Workers and waiting jobs of one endpoint: who is taken next, and by whom. No IO.

A job waits here, never at a worker that may be reclaimed. Within a line the order is priority, then arrival; a job that
comes back (its worker refused it or was lost) keeps its place. There is a line per function (and per revision while a
canary runs), and lines of their own for calls that only one worker may have.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Final, Protocol

from nanopod.gateway.lines import Entry, Line
from nanopod.gateway.preferring import Preference
from nanopod.gateway.retrying import Budget
from nanopod.gateway.wheel import Timed
from nanopod.model.endpoint import DEFAULT_WORKLOAD
from nanopod.model.wire import EndpointSample, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.links import WorkerLink

WAITING_MAX: Final = 16_384
WAITING_BYTES_MAX: Final = 64 << 20
PROCESS_BYTES_MAX: Final = 256 << 20
DEMAND_S: Final = 1.0
LEARN: Final = 0.1
"""Weight of the newest call in the usual workload of a function."""
FUNCTIONS_LEARNED_MAX: Final = 1000


class Job(Timed):
    """A request or call on its way to a worker. Subclasses know what travels."""

    __slots__ = (
        "__dict__", "bytes_held", "concurrency", "epoch", "function", "link", "pool", "priority", "seq", "stream",
        "waiting", "workload",
    )  # fmt: skip

    # What few jobs have is kept in `__dict__`, so that the others neither set nor store it.
    line: str = ""
    """The line it waits in; "": its function's."""
    wanted: str = ""
    """The revision that it was drawn for; "": the endpoint's own."""
    pin: str = ""
    """The only instance that may have it; "": any."""
    route_key: str = ""
    """A worker that had this key before is preferred."""
    preference: Preference | None = None
    """Which workers are preferred to others, the key aside."""
    queue_s_max: float = float("inf")
    """A worker whose work in flight takes longer than this gets no more of it."""
    depth: int = 0
    """How many calls are above this one."""
    nested: int = 0
    """Unfinished calls that this one makes."""
    lent: bool = False
    """Its slot is lent: it waits for calls of its own."""
    slotless: bool = False
    """It needs a worker, but no slot of it."""
    parting: bool = False
    """It may go to a worker that gets no new work any more, but does not end yet."""

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
        self.workload = DEFAULT_WORKLOAD

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
    links: dict[str, WorkerLink]
    """By instance."""

    def demand(self, endpoint_id: str, waiting: int) -> None:
        """Tell the server that somebody waits at an endpoint without a ready worker."""

    def became_active(self, pool: Pool) -> None:
        """The endpoint has its first request after a quiet second: the server should know now."""


class Pool:
    """One endpoint as this process sees it."""

    __slots__ = (
        "_area", "_area_at", "_demanded_at", "_host", "_lines", "_pinned", "_revisions", "_seq", "active", "budget",
        "in_flight", "links", "requests", "route", "total", "usual", "waiting", "waiting_bytes", "workload",
    )  # fmt: skip

    def __init__(self, host: Host, route: RouteRow) -> None:
        self._host = host
        self.route = route
        self.links: list[WorkerLink] = []
        self._lines: dict[str, Line] = {}
        self._pinned: dict[str, dict[str, Line]] = {}
        """{instance id: its lines}"""
        self._revisions: dict[str, list[int]] = {}
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
        self.budget = Budget()
        self.usual: dict[str, float] = {}
        """What a call of a function is usually worth, by the calculators that workers ran."""

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

    def ended(self, revision_id: str, failed: bool) -> None:
        """A try ended on a worker of this revision; `failed`: by the revision's fault, as far as one can tell."""
        counts = self._revisions.get(revision_id)
        if counts is None:
            counts = self._revisions[revision_id] = [0, 0]
        counts[0] += 1
        counts[1] += failed
        self.active = True

    def learn(self, function: str, workload: float) -> None:
        """A worker computed what a call was worth."""
        before = self.usual.get(function)
        if before is None:
            if len(self.usual) >= FUNCTIONS_LEARNED_MAX:
                self.usual.clear()
            self.usual[function] = workload
        else:
            self.usual[function] = before + LEARN * (workload - before)

    def sample(self, span_s: float) -> EndpointSample:
        """The load since the last sample, which was `span_s` ago; starts the next one."""
        now = self._host.now
        area = self._area + self.total * (now - self._area_at)
        mean = area / span_s if span_s > 0 else float(self.total)
        ended = {revision: (count, failed) for revision, (count, failed) in self._revisions.items()}
        self._revisions = {}
        self.budget.called(now, self.requests)
        found = EndpointSample(
            self.route.endpoint_id, mean, self.requests, self.waiting, self.in_flight, self.workload, ended
        )
        self._area, self._area_at, self.requests, self.workload = 0.0, now, 0, 0.0
        self.active = self.total > 0 or found.requests > 0 or mean > 0
        return found

    # --- workers ---

    def draw(self, job: Job, key: bytes) -> None:
        """Choose the job's revision by the hash of its id: the same one in every try, on every gateway."""
        route = self.route
        if route.canary_percent <= 0 or not route.canary_revision_id:
            return
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % 100
        job.wanted = route.canary_revision_id if drawn < route.canary_percent else route.revision_id
        job.line = f"{job.function}\0{job.wanted}"

    def ready(self, wanted: str = "") -> list[WorkerLink]:
        """Workers that take work: those of the revision that is asked for, else (while none of it is ready) of the
        endpoint's own, else of any."""
        usable = [link for link in self.links if link.usable]
        if wanted:
            found = [link for link in usable if link.revision_id == wanted]
            if found:
                return found
        revision = self.route.revision_id
        current = [link for link in usable if link.revision_id == revision]
        return current or usable

    def choose(self, job: Job) -> WorkerLink | None:
        """A worker with room for `job`: undoomed, as the job prefers, with its key, the less loaded of two drawn."""
        now = self._host.now
        links = self.links
        if job.pin:
            link = self._host.links.get(job.pin)
            if link is None or not (link.usable or (job.parting and link.ready and not link.draining)):
                return None
            return link if link.has_room(job, now) else None
        if len(links) == 1:
            link = links[0]
            return link if link.usable and link.has_room(job, now) and job.fits(link) else None
        found = [link for link in self.ready(job.wanted) if link.has_room(job, now) and job.fits(link)]
        if len(found) < 2:
            return found[0] if found else None
        safe = [link for link in found if link.doomed_at is None]
        found = safe or found
        if job.preference is not None:
            found = job.preference.best(found)
        key = job.route_key
        if key:
            having = [link for link in found if key in link.keys]
            # Who must load it anew should be the one that loses least by it.
            return min(having or found, key=lambda link: (link.in_flight, len(link.keys)))
        if len(found) == 1:
            return found[0]
        one, two = random.sample(found, 2)
        if one.perf and two.perf:
            return one if (one.load + job.workload) / one.perf <= (two.load + job.workload) / two.perf else two
        return one if one.slots - one.in_flight >= two.slots - two.in_flight else two

    # --- jobs ---

    def full(self, size: int) -> bool:
        """True when a further job with `size` bytes may not wait here."""
        return (
            self.waiting >= WAITING_MAX
            or self.waiting_bytes + size > WAITING_BYTES_MAX
            or self._host.waiting_bytes + size > PROCESS_BYTES_MAX
        )

    def _lines_of(self, job: Job) -> dict[str, Line]:
        return self._pinned.setdefault(job.pin, {}) if job.pin else self._lines

    def submit(self, job: Job) -> bool:
        """Send `job` to a worker now (True) or let it wait (False). A failed route fails it at once."""
        if not job.seq:
            self._seq += 1
            job.seq = self._seq
        lines = self._pinned.get(job.pin) if job.pin else self._lines
        if not lines or not lines.get(job.line or job.function):
            link = self.choose(job)
            if link is not None:
                self.in_flight += 1
                job.dispatch(link)
                return True
        job.waiting = True
        self.waiting += 1
        self.waiting_bytes += job.bytes_held
        self._host.waiting_bytes += job.bytes_held
        lines = self._lines_of(job)
        name = job.line or job.function
        line = lines.get(name)
        if line is None:
            line = lines[name] = Line()
        line.push(job)
        self.poke()
        return False

    def withdraw(self, job: Job) -> None:
        """Take a waiting job out; it has no place any more."""
        if not job.waiting:
            return
        job.waiting = False
        job.seq = 0
        self._dequeued(job)
        if not self.waiting:
            self._lines.clear()
            self._pinned.clear()
            return
        lines = self._lines_of(job)
        line = lines.get(job.line or job.function)
        if line is not None:
            line.left()
            self._tidy(job, line)

    def _dequeued(self, job: Job) -> None:
        self.waiting -= 1
        self.waiting_bytes -= job.bytes_held
        self._host.waiting_bytes -= job.bytes_held

    def _tidy(self, job: Job, line: Line) -> None:
        """Forget a line that nobody waits in."""
        if not line:
            lines = self._lines_of(job)
            lines.pop(job.line or job.function, None)
            if job.pin and not lines:
                del self._pinned[job.pin]

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
        lines = [*self._lines.values(), *(line for own in self._pinned.values() for line in own.values())]
        entries = sorted((entry for line in lines for entry in line.entries()), key=lambda entry: entry[:2])
        return [job for _, _, job in entries]

    def pump(self, link: WorkerLink | None = None) -> None:
        """Give waiting jobs to workers with room, oldest first. A full function does not hold up the others.

        `link`: the only worker whose room may have changed; lines that belong to others are not looked at then.
        """
        if not self.waiting:
            return
        lines = list(self._lines.values())
        if self._pinned:
            of = self._pinned.values() if link is None else [self._pinned.get(link.instance_id, {})]
            lines += [line for own in of for line in own.values()]
        while lines and self.waiting:
            best: Entry | None = None
            place = 0
            for index, line in enumerate(lines):
                entry = line.head()
                if entry is not None and (best is None or entry[:2] < best[:2]):
                    best, place = entry, index
            if best is None:
                return
            job = best[2]
            chosen = self.choose(job)
            line = lines[place]
            if chosen is None:
                del lines[place]
                continue
            line.pop()
            job.waiting = False
            self._dequeued(job)
            self._tidy(job, line)
            self.in_flight += 1
            job.dispatch(chosen)

    def released(self, link: WorkerLink) -> None:
        """A job left its worker: its slot is free."""
        self.in_flight -= 1
        if self.waiting:
            self.pump(link)
