"""A request or call on its way to a worker, as pools and links see it; what pools need of the process around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from nanopod.gateway.preferring import Preference
from nanopod.gateway.wheel import Timed
from nanopod.model.endpoint import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from nanopod.gateway.links import WorkerLink
    from nanopod.gateway.pool import Pool

TAG_HEADER: Final = "knative-serving-tag"
"""Header of a request that names a revision by its tag."""


class Job(Timed):
    """A request or call on its way to a worker. Subclasses know what travels."""

    __slots__ = (
        "__dict__", "bytes_held", "concurrency", "epoch", "function", "link", "opened_at", "pool", "priority", "seq",
        "since", "stream", "waiting", "workload",
    )  # fmt: skip

    since: float
    """When it began to wait; set when it does."""
    opened_at: float
    """When its worker got it; set then."""
    # What few jobs have is kept in `__dict__`, so that the others neither set nor store it.
    line: str = ""
    """The line it waits in; "": its function's."""
    wanted: str = ""
    """The revision that it was drawn for; "": the endpoint's own."""
    tag: str = ""
    """Names a revision by its tag; set before it is drawn."""
    tagged: bool = False
    """It was drawn by its tag: no other revision may have it."""
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

    def chunks(self) -> tuple[int, ...]:
        """The hashes of its prompt's chunks; (): it has none."""
        return ()

    def dispatch(self, link: WorkerLink) -> None:
        """Go to `link`, which has a free slot."""
        raise AssertionError("a job knows how to travel")

    def on_frame(self, kind: int, flags: int, epoch: int, payload: bytes) -> None:
        """A frame of this job's stream."""
        raise AssertionError("a job knows its frames")

    def on_link_lost(self, link: WorkerLink, reason: str) -> None:
        """The worker's link is gone, and this job's stream with it."""
        raise AssertionError("a job knows what a lost worker means")

    def on_models(self) -> None:
        """A worker said which models it has: one that this job waits for may be lacking everywhere."""

    def on_route_failed(self) -> None:
        """No worker of the endpoint can start: the route's `failure` says why."""
        raise AssertionError("a job knows how to fail")


class Host(Protocol):
    """What a pool needs of the process around it."""

    now: float
    waiting_bytes: int
    links: dict[str, WorkerLink]
    """By instance."""

    def demand(self, endpoint_id: str, waiting: int, revision_id: str = "") -> None:
        """Tell the server that somebody waits at an endpoint, or one of its revisions, without a ready worker."""

    def became_active(self, pool: Pool, workload: float) -> bool:
        """The endpoint has its first request after a quiet time: the server should know now. True: it was told."""
