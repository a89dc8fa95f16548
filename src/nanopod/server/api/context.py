"""What every API handler works with, and how an operation is declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.live import Live
from nanopod.control.ports import Clock, NewId, Secrets
from nanopod.control.tables import TablesPublisher
from nanopod.model.chain import Key
from nanopod.store.blobs import BlobStore
from nanopod.store.sqlite import SqliteStore


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of the server that handlers use."""

    store: SqliteStore
    blobs: BlobStore
    live: Live
    tables: TablesPublisher
    secrets: Secrets
    clock: Clock
    new_id: NewId
    random_bytes: Callable[[int], bytes]
    cluster_id: str
    started_at: float


Handler = Callable[[Context, Request, Key], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `scope` is what a key needs for it: `admin`; `read` or more; or `call`, any at all."""

    method: str
    path: str
    handler: Handler
    summary: str
    scope: str = "admin"
    body: type[Any] | None = None
    query: tuple[str, ...] = ()
