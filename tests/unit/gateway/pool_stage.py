"""A pool with real worker links that have no socket, and a gateway that only counts: for rules of choice and load."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from nanopod.gateway.greetings import State
from nanopod.gateway.jobs import Job
from nanopod.gateway.links import WorkerLink
from nanopod.gateway.pool import Pool
from nanopod.gateway.process import Gateway
from nanopod.model.wire import RouteRow, WorkerRow, WorkerState


class Tables:
    """Of the gateway: its workers."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerRow] = {}


class Host:
    """What pools and links need of a gateway."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waiting_bytes = 0
        self.links: dict[str, WorkerLink] = {}
        self.dirty: list[Any] = []
        self.loads_changed: dict[WorkerLink, None] = {}
        self.tables = Tables()
        self.told: list[WorkerState] = []
        self.demands: list[tuple[str, int]] = []
        self.pokes: list[float] = []
        self.linked = True
        self.counters: Counter[str] = Counter()

    def demand(self, endpoint_id: str, waiting: int, revision_id: str = "") -> None:
        self.demands.append((endpoint_id, waiting))

    def became_active(self, pool: Pool, workload: float) -> bool:
        if self.linked:
            self.pokes.append(workload)
        return self.linked

    def report(self, message: WorkerState) -> None:
        self.told.append(message)


class Work(Job):
    """A job that only notes where it went."""

    __slots__ = ("prompt", "taken")

    def __init__(self, pool: Pool, workload: float = 100.0, prompt: tuple[int, ...] = (), **more: Any) -> None:
        super().__init__(pool, **more)
        self.workload = workload
        self.prompt = prompt
        self.taken: WorkerLink | None = None

    def chunks(self) -> tuple[int, ...]:
        return self.prompt

    def dispatch(self, link: WorkerLink) -> None:
        self.taken = link
        link.open(self, b"{}", b"")

    def end(self) -> None:
        """Its worker answered."""
        assert self.taken is not None
        self.taken.close_stream(self)


def pool_with(host: Host, **route: Any) -> Pool:
    """A pool of endpoint `e`, revision `r1`."""
    fields = {"kind": "model", **route}
    kind = fields.pop("kind")
    return Pool(cast(Gateway, host), RouteRow("e", "w", "n", "default", kind, "r1", **fields))


def add(pool: Pool, host: Host, name: str, *, slots: int = 8, **state: Any) -> WorkerLink:
    """A ready worker of the pool."""
    row = WorkerRow(name, "e", "r1", state.pop("epoch", 1), slots, "digest")
    host.tables.workers[name] = row
    link = WorkerLink(cast(Gateway, host), row, pool)
    link.greeted = True
    host.links[name] = link
    pool.links.append(link)
    tell(link, **state)
    return link


def tell(link: WorkerLink, **state: Any) -> None:
    """STATE of a worker."""
    link._state(State(**{"ready": True, **state}))


def send(pool: Pool, *args: Any, **more: Any) -> Work:
    """Submit a further job; it may have to wait."""
    job = Work(pool, *args, **more)
    pool.submit(job)
    return job
