"""Workers and waiting jobs of one endpoint: who is taken next, and by whom. No IO.

A job waits here, never at a worker that may be reclaimed. Within a line the order is priority, then arrival; a job that
comes back (its worker refused it or was lost) keeps its place. There is a line per function (and per revision while
calls are divided among several), and lines of their own for calls that only one worker may have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from nanopod.gateway import choosing
from nanopod.gateway.jobs import Host, Job
from nanopod.gateway.lines import Entry, Line
from nanopod.gateway.prefixes import PrefixIndex
from nanopod.gateway.retrying import Budget
from nanopod.gateway.stats import Ends, RequestStats
from nanopod.model.wire import EndpointSample, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.links import WorkerLink

WAITING_MAX: Final = 16_384
WAITING_BYTES_MAX: Final = 64 << 20
PROCESS_BYTES_MAX: Final = 256 << 20
DEMAND_S: Final = 1.0
TURNS_MAX: Final = 64
"""Revisions of which it is known whose turn it is."""
LEARN: Final = 0.1
"""Weight of the newest call in the usual workload of a function."""
FUNCTIONS_LEARNED_MAX: Final = 1000


class Pool:
    """One endpoint as this process sees it."""

    __slots__ = (
        "_demanded_at", "_host", "_lines", "_pinned", "_queued", "_routed_at", "_seq", "_turns", "budget", "ends",
        "in_flight", "links", "prefixes", "route", "slowest", "stats", "strict", "usual", "wait_s_max", "waiting",
        "waiting_bytes",
    )  # fmt: skip

    def __init__(self, host: Host, route: RouteRow) -> None:
        self._host = host
        self.route = route
        self.links: list[WorkerLink] = []
        self._lines: dict[str, Line] = {}
        self._pinned: dict[str, dict[str, Line]] = {}
        """{instance id: its lines}"""
        self._queued: dict[str, list[float]] = {}
        """{revision that is asked for: [jobs that wait, their units of load]}"""
        self._turns: dict[str, choosing.Turns] = {}
        self._seq = 0
        self._demanded_at = -DEMAND_S
        self.stats = RequestStats()
        self.ends = Ends()
        self.waiting = 0
        self.waiting_bytes = 0
        self.in_flight = 0
        self.slowest = 0.0
        """Units per second of the slowest worker of which that is known; 0: it is known of none, or does not matter."""
        self.prefixes: PrefixIndex | None = None
        """What its engines have seen of prompts; None where that does not matter."""
        self.strict = False
        """Knative's rules of admission and choice hold."""
        self.routed(route)
        self.budget = Budget()
        self.usual: dict[str, float] = {}
        """What a call of a function is usually worth, by the calculators that workers ran."""

    def routed(self, route: RouteRow) -> None:
        """The tables say this of the endpoint from now on."""
        self.route = route
        self.wait_s_max = min(route.wait_s_max, route.timeout_s)
        self._routed_at = self._host.now
        self.strict = route.profile in ("knative", "coreweave")
        self.speeds_changed()
        engines = route.kind == "model" and (not route.protocols or "openai" in route.protocols)
        if not engines or route.profile != "auto":
            self.prefixes = None
        elif self.prefixes is None:
            self.prefixes = PrefixIndex()
        for link in self.links:
            link.bound()

    def speeds_changed(self) -> None:
        """A worker measured its speed, or the tables tell one."""
        known = [speed for speed in (self.route.units_per_s, *(link.perf for link in self.links)) if speed]
        self.slowest = 0.0 if self.strict else min(known, default=0.0)

    def eta_s(self) -> float:
        """Seconds until the next worker is expected to be ready; 0: not known, or overdue."""
        eta_s = self.route.eta_s
        return max(0.0, eta_s - (self._host.now - self._routed_at)) if eta_s > 0 else 0.0

    # --- load, for the autoscaler ---

    @property
    def total(self) -> int:
        """Requests and calls that are here, waiting or not."""
        return self.stats.now_in

    @property
    def requests(self) -> int:
        """Those that arrived since the last sample."""
        return self.stats.arrived

    @property
    def active(self) -> bool:
        """True while the next sample will say something."""
        return self.stats.live or self.ends.any

    def enter(self, workload: float) -> None:
        """A request or call arrived here."""
        stats = self.stats
        if stats.enter(self._host.now, workload) and self._host.became_active(self, workload):
            stats.told, stats.told_load = 1, workload

    def leave(self) -> None:
        """One that entered has its answer, or needs none any more."""
        self.stats.leave(self._host.now)

    def learn(self, function: str, workload: float) -> None:
        """A worker computed what a call was worth."""
        before = self.usual.get(function)
        if before is None:
            if len(self.usual) >= FUNCTIONS_LEARNED_MAX:
                self.usual.clear()
            self.usual[function] = workload
        else:
            self.usual[function] = before + LEARN * (workload - before)

    def sample(self) -> EndpointSample:
        """The load since the last sample; starts the next one."""
        now = self._host.now
        self.budget.called(now, self.stats.arrived)
        mean, requests, workload = self.stats.report(now)
        outcomes, served, tokens, latency = self.ends.take()
        waiting_load = oldest_s = 0.0
        if self.waiting:
            waiting_load = sum(units for _, units in self._queued.values())
            oldest_s = max(0.0, now - min(job.since for job in self._waiting()))
        return EndpointSample(
            self.route.endpoint_id, mean, requests, self.waiting, self.in_flight, workload, outcomes, waiting_load,
            oldest_s, served, tokens, latency,
        )  # fmt: skip

    def waiting_for(self, wanted: str) -> tuple[int, float]:
        """(jobs, units of load) that wait for this revision ("": for the endpoint's own)."""
        count, units = self._queued.get(wanted, (0, 0.0))
        return int(count), units

    def is_light(self) -> bool:
        """True when the slowest worker alone would do all work that is here within `max_queue_time`."""
        if self.waiting:
            return False
        links = self.links
        units = links[0].load if len(links) == 1 else sum([link.load for link in links])
        return units <= self.route.max_queue_time_s * self.slowest

    def predicted_wait_s(self, wanted: str) -> float | None:
        """Seconds that the work at a revision takes: units waiting and in service, by what its ready workers do in a
        second. None: none of them is ready, or no speed is known."""
        links, told = self.ready(wanted), self.route.units_per_s
        if not links or not (told or any(link.perf for link in links)):
            return None
        units = self.waiting_for(wanted)[1] + sum(link.load for link in links)
        return units / sum(choosing.speeds(links, told))

    # --- workers ---

    def draw(self, job: Job, key: bytes, tag: str = "") -> None:
        """Choose the job's revision: by `tag` (or `Job.tag`), where there is such a one, else by the hash of its id:
        the same one in every try, on every gateway."""
        route = self.route
        traffic = route.traffic
        if not traffic:
            return
        tag = tag or job.tag
        for row in traffic if tag else ():
            if row.tag == tag:
                job.wanted, job.tagged = row.revision, True
                job.line = f"{job.function}\0{row.revision}\0"
                return
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % 100
        for row in traffic:
            drawn -= row.percent
            if drawn < 0:
                if row.percent < 100 or row.revision != route.revision_id:
                    job.wanted = row.revision
                    job.line = f"{job.function}\0{row.revision}"
                return

    def ready(self, wanted: str = "", tagged: bool = False) -> list[WorkerLink]:
        """Workers that take work: those of the revision that is asked for, else (while none of it is ready, and it was
        not asked for by its tag) of the endpoint's own, else of any that other calls may go to."""
        usable = [link for link in self.links if link.usable]
        if wanted:
            found = [link for link in usable if link.revision_id == wanted]
            if found or tagged:
                return found
        if self.route.traffic:
            kept = {row.revision for row in self.route.traffic} - {
                row.revision for row in self.route.traffic if row.percent
            }
            usable = [link for link in usable if link.revision_id not in kept]
        revision = self.route.revision_id
        current = [link for link in usable if link.revision_id == revision]
        return current or usable

    def choose(self, job: Job) -> WorkerLink | None:
        """A worker with room for `job`: undoomed, as the job prefers, with its key, then by the profile's rule."""
        now = self._host.now
        links = self.links
        if job.pin:
            link = self._host.links.get(job.pin)
            if link is None or not (link.usable or (job.parting and link.ready and not link.draining)):
                return None
            return link if link.has_room(job, now) else None
        if len(links) == 1 and not self.route.traffic:
            link = links[0]
            return link if link.usable and link.has_room(job, now) and job.fits(link) else None
        found = [link for link in self.ready(job.wanted, job.tagged) if link.has_room(job, now) and job.fits(link)]
        if not found and not job.wanted and not self.route.traffic:
            # While an update rolls, the workers that are to be replaced help out.
            found = [link for link in links if link.usable and link.has_room(job, now) and job.fits(link)]
        if not found:
            return None
        found = [link for link in found if link.doomed_at is None] or found
        if job.preference is not None:
            found = job.preference.best(found)
        key = job.route_key
        if key:
            having = [link for link in found if key in link.keys]
            # Who must load it anew should be the one that loses least by it.
            return min(having or found, key=lambda link: (link.in_flight, len(link.keys)))
        if self.strict:
            return choosing.by_knative(found, self.container_concurrency(found), self._turns_of(job.wanted))
        if len(found) == 1:
            return found[0]
        if self.prefixes is not None:
            chunks = job.chunks()
            if chunks or any(link.queued or link.kv_use > 0 for link in found):
                index = self.prefixes
                shares = [index.of(link.instance_id, link.epoch).share(chunks) for link in found]
                return choosing.by_prefix(found, shares, self.route.units_per_s)
        return choosing.by_wait(found, self.route.units_per_s)

    def _turns_of(self, wanted: str) -> choosing.Turns:
        turns = self._turns.get(wanted)
        if turns is None:
            if len(self._turns) >= TURNS_MAX:
                self._turns.clear()
            turns = self._turns[wanted] = choosing.Turns()
        return turns

    def container_concurrency(self, links: list[WorkerLink]) -> int:
        """Requests that one worker may have at a time, 0: no limit; where nobody says so, its slots."""
        stated = self.route.concurrency
        return stated if stated >= 0 else min(link.slots for link in links)

    def _learn_prefix(self, job: Job, link: WorkerLink) -> None:
        chunks = job.chunks()
        if chunks and self.prefixes is not None:
            self.prefixes.of(link.instance_id, link.epoch).add(chunks)

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
                if self.prefixes is not None and len(self.links) > 1:
                    self._learn_prefix(job, link)
                job.dispatch(link)
                return True
        self._enqueued(job)
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

    def _enqueued(self, job: Job) -> None:
        job.waiting = True
        job.since = self._host.now
        self.waiting += 1
        self.waiting_bytes += job.bytes_held
        self._host.waiting_bytes += job.bytes_held
        queued = self._queued.get(job.wanted)
        if queued is None:
            queued = self._queued[job.wanted] = [0, 0.0]
        queued[0] += 1
        queued[1] += job.workload

    def _dequeued(self, job: Job) -> None:
        self.waiting -= 1
        self.waiting_bytes -= job.bytes_held
        self._host.waiting_bytes -= job.bytes_held
        queued = self._queued[job.wanted]
        queued[0] -= 1
        queued[1] -= job.workload
        if queued[0] <= 0:
            del self._queued[job.wanted]  # sums of floats drift: where nobody waits there is no load

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
        if self.route.traffic:
            self._poke_tags()
        if self.ready():
            return
        if self.route.failure is not None:
            for job in self.waiting_jobs():
                job.on_route_failed()
            return
        now = self._host.now
        if now - self._demanded_at >= DEMAND_S:
            self._demanded_at = now
            self._host.demand(self.route.endpoint_id, self.waiting)

    def _poke_tags(self) -> None:
        """Call for workers of revisions that are asked for by their tag, where no worker of them is ready."""
        now = self._host.now
        if now - self._demanded_at < DEMAND_S:
            return
        for name, line in self._lines.items():
            if line and name.endswith("\0"):
                revision_id = name[:-1].rpartition("\0")[2]
                if not self.ready(revision_id, True):
                    self._demanded_at = now
                    self._host.demand(self.route.endpoint_id, len(line), revision_id)

    def waiting_jobs(self) -> list[Job]:
        """Jobs that wait, first in line first."""
        entries = sorted((entry for line in self._all_lines() for entry in line.entries()), key=lambda one: one[:2])
        return [job for _, _, job in entries]

    def _all_lines(self) -> list[Line]:
        return [*self._lines.values(), *(line for own in self._pinned.values() for line in own.values())]

    def _waiting(self) -> Iterator[Job]:
        return (entry[2] for line in self._all_lines() for entry in line.entries())

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
            if self.prefixes is not None and len(self.links) > 1:
                self._learn_prefix(job, chosen)
            job.dispatch(chosen)

    def released(self, link: WorkerLink) -> None:
        """A job left its worker: its slot is free."""
        self.in_flight -= 1
        if self.waiting:
            self.pump(link)
