"""What every API handler works with, and how an operation is declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.live import Live
from nanopod.control.ports import NewId, Secrets
from nanopod.control.tables import TablesPublisher
from nanopod.model.chain import Key
from nanopod.server.waits import Waits
from nanopod.store.blobs import BlobStore

if TYPE_CHECKING:
    from nanopod.control.market.books import Books
    from nanopod.control.market.desk import Desk
    from nanopod.control.market.ticker import Ticker
    from nanopod.server.calls.service import SpawnedCalls
    from nanopod.server.clock import ClusterClock
    from nanopod.server.faults import Faults
    from nanopod.server.feed import NewsFeed
    from nanopod.server.links import AgentLinks
    from nanopod.store.writer import GroupStore


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of the server that handlers use.

    `clock` is the cluster's (a test clock stands still); `desk` is used inside `store.write` only; `books` belongs to
    the event loop.
    """

    store: GroupStore
    blobs: BlobStore
    live: Live
    tables: TablesPublisher
    secrets: Secrets
    clock: ClusterClock
    new_id: NewId
    random_bytes: Callable[[int], bytes]
    cluster_id: str
    started_at: float
    desk: Desk
    books: Books
    ticker: Ticker
    news: NewsFeed
    agents: AgentLinks
    calls: SpawnedCalls
    faults: Faults | None = None
    """What can be broken on purpose; None in every cloud that is no test."""
    waits: Waits = field(default_factory=Waits)
    """Requests that wait for items of shared queues."""

    @property
    def block_s(self) -> int:
        """Seconds of a block of this cluster."""
        return self.desk.settings.block_s


Handler = Callable[[Context, Request, Key], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter: `kind` is its JSON type, `values` what it may be, `repeated` that it may be given often."""

    name: str
    text: str = ""
    kind: Literal["string", "integer", "number", "boolean"] = "string"
    values: tuple[str, ...] = ()
    repeated: bool = False
    required: bool = False
    least: int | None = None
    most: int | None = None
    default: Any = None
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `scope` is what a key needs for it: `admin`; `read` or more; or `call`, any at all.

    The rest is for the OpenAPI document: `answer` is the type of the answer's body (a TypedDict, dataclass or struct);
    `listed` that it is a page of those; `status` what a success answers; `errors` which refusals there are beside those
    that every operation has; `once` that it takes an Idempotency-Key; `media` what the answer is when it is not JSON.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: str = "admin"
    body: type[Any] | None = None
    query: tuple[str | Query, ...] = ()
    answer: Any = None
    listed: bool = False
    status: int = 200
    also: tuple[int, ...] = ()
    """Other statuses of success with the same body."""
    errors: tuple[int, ...] = ()
    once: bool = False
    media: str = "application/json"
    headers: Mapping[str, str] | None = None
    """Request headers that it reads, with what they mean."""
    text: str = ""
    """What there is to say beyond the summary."""
    shared: bool = False
    """A token that shows one call is enough (`server/calls/sharing.py`)."""
