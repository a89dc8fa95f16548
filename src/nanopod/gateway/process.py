"""One gateway process: what it holds, its clock, and the one pass in which everything that a read caused leaves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Final, Protocol

import msgspec

from nanopod.gateway import tables
from nanopod.gateway.caching import Results
from nanopod.gateway.callers import ClientLink
from nanopod.gateway.calls import CallJob
from nanopod.gateway.graphs import Graphs
from nanopod.gateway.heads import HeadCache
from nanopod.gateway.journal import Journal
from nanopod.gateway.links import WorkerLink
from nanopod.gateway.meter import DRAIN_S, Spool
from nanopod.gateway.pool import Pool
from nanopod.gateway.recall import Kept, Recall
from nanopod.gateway.relay import DOOMED_S, Request
from nanopod.gateway.resending import Unacked
from nanopod.gateway.server import HttpConnection
from nanopod.gateway.sessions import Sessions
from nanopod.gateway.surface import Surface
from nanopod.gateway.webjob import WebJob
from nanopod.gateway.webroutes import WebTables
from nanopod.gateway.websockets import SocketSide
from nanopod.gateway.wheel import TICK_S, Wheel
from nanopod.model import websocket
from nanopod.model.endpoint import Failure
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.layout import Layout
from nanopod.model.wire import (
    AnyMessage,
    Demand,
    EndpointSample,
    Fault,
    GatewayHello,
    Message,
    MeterAck,
    MeterSegment,
    RouteRow,
    Samples,
    SamplesAck,
    Tables,
    TablesSeen,
    WorkerState,
)  # fmt: skip

DRAIN_S_MAX: Final = 10.0
SHIP_S_MAX: Final = 2.0
_log = logging.getLogger(__name__)


class ControlLink(Protocol):
    """The link to the server."""

    def send(self, message: Message) -> None:
        """Queue a message; raises `ConnectionError` when the link is down."""


class Dirty(Protocol):
    """Something with bytes to send."""

    def flush(self) -> None:
        """Send them."""


class Gateway:
    """The state of the process. Everything runs on its one loop; every entry point ends with `flush`."""

    def __init__(self, layout: Layout, gateway_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.layout = layout
        self.gateway_id = gateway_id
        self.loop = loop
        self.process_id = random.randbytes(16)
        self.now = loop.time()
        self.directory = layout.gateway / gateway_id
        spool = self.directory / "spool"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.wheel = Wheel(self.now)
        self.meter = Spool(spool, gateway_id)
        self.journal = Journal(self.directory / "journal")
        self.tables = tables.Known(tables.load(self._tables_path))
        self.heads = HeadCache()
        self.surface = Surface(self)
        self.pools: dict[str, Pool] = {}
        self.links: dict[str, WorkerLink] = {}
        self.clients: set[ClientLink] = set()
        self.connections: set[HttpConnection] = set()
        self.websockets: set[SocketSide] = set()
        self.web_tables = WebTables()
        self.calls: dict[bytes, CallJob] = {}
        self.web_calls: dict[bytes, WebJob] = {}
        """Web functions that run, by the ids that calls of theirs name as their parent."""
        self.recall = Recall(self)
        self.kept = Kept(self)
        self.results = Results()
        self.sessions = Sessions(self)
        self.graphs = Graphs()
        self.dirty: list[Dirty] = []
        self.just_started: list[CallJob] = []
        self.releasing: list[WorkerLink] = []
        self.counters: Counter[str] = Counter()
        self.waiting_bytes = 0
        self.loads_changed: dict[WorkerLink, None] = {}
        """Workers whose engine's load the server does not know yet."""
        self.unacked = Unacked()
        self.stopping = False
        self.addresses: tuple[str, ...] = ()
        self._control: ControlLink | None = None
        self._heard_at: float | None = self._saved_at()
        self._lost_at = self.now
        self._unsaved: bytes | None = None
        self._second = int(time.time())
        """The last one that was sampled."""
        self.recall.recover()

    @property
    def _tables_path(self) -> Path:
        return self.directory / "tables"

    def _saved_at(self) -> float | None:
        if self.tables.version < 0:
            return None
        with contextlib.suppress(OSError):
            return time.time() - os.stat(self._tables_path).st_mtime
        return 0.0

    # --- what everybody uses ---

    def request_id(self) -> str:
        """A new request id."""
        return f"req_{random.getrandbits(120):030x}"

    def pool(self, route: RouteRow) -> Pool:
        """The pool of an endpoint."""
        pool = self.pools.get(route.endpoint_id)
        if pool is None:
            pool = self.pools[route.endpoint_id] = Pool(self, route)
        return pool

    def flush(self) -> None:
        """End of a pass: records and journal lines first, then every byte that this pass produced."""
        if self.just_started:
            started, self.just_started = self.just_started, []
            for job in started:
                job.tell_started()
        if self.journal.pending:
            self.journal.write()
        if self.meter.pending:
            self.meter.write()
        while self.dirty:
            dirty, self.dirty = self.dirty, []
            for sender in dirty:
                sender.flush()

    # --- the server ---

    def report(self, message: WorkerState) -> None:
        """Tell the server about a worker; after a reconnection it hears everything again."""
        self._send(message)

    def demand(self, endpoint_id: str, waiting: int, revision_id: str = "") -> None:
        """Somebody waits at an endpoint, or one of its revisions, without a ready worker."""
        self._send(Demand(endpoint_id, waiting, revision_id))

    def became_active(self, pool: Pool, workload: float) -> bool:
        """First request after a quiet time: the server hears of it now, and the next sample leaves it out."""
        first = EndpointSample(pool.route.endpoint_id, 1.0, 1, pool.waiting, pool.in_flight, workload)
        poke = Samples(time.time(), [first], poke=True)
        if not self._send(poke):
            return False
        # It may be lost with the link: as any other one it is sent again until it is acknowledged.
        self.unacked.keep(poke)
        return True

    def _send(self, message: Message) -> bool:
        if self._control is None:
            return False
        try:
            self._control.send(message)
        except ConnectionError:
            self._control = None
            return False
        return True

    def linked(self, control: ControlLink) -> None:
        """The server's link is up: introduce ourselves, tell everything."""
        self._control = control
        self._send(GatewayHello(self.gateway_id, os.getpid(), self.addresses))
        for link in self.links.values():
            if link.greeted:
                self._send(link.worker_state())
        for samples in self.unacked.all():
            self._send(samples)
        for pool in self.pools.values():
            if pool.waiting and not pool.ready():
                self.demand(pool.route.endpoint_id, pool.waiting)
        self.meter.link_lost()

    def unlinked(self) -> None:
        """The server is away; serve on with the last tables."""
        if self._control is not None:
            self._control = None
            self._heard_at = 0.0
        self._lost_at = self.loop.time()

    def on_message(self, message: AnyMessage) -> None:
        """Something from the server."""
        self.now = self.loop.time()
        if isinstance(message, Tables):
            self._on_tables(message)
        elif isinstance(message, MeterAck):
            self.meter.acked(message.segment_id)
        elif isinstance(message, SamplesAck):
            self.unacked.acked(message.at)
        elif isinstance(message, Fault):
            from nanopod.gateway import faults

            faults.apply(self, message)
        self.flush()

    def table_age_s(self) -> float | None:
        """Seconds since the tables were known to be current; None before the first ones."""
        if self.tables.version < 0 or self._heard_at is None:
            return None
        if self._control is not None:
            return 0.0
        return round(self._heard_at + self.loop.time() - self._lost_at, 3)

    def _on_tables(self, message: Tables) -> None:
        self.tables = known = tables.Known(message)
        self._heard_at = 0.0
        self._unsaved = tables.encode(message)
        self.recall.recover()
        for client in list(self.clients):
            client.check_key()
        for side in list(self.websockets):
            side.check_key()
        for link in list(self.links.values()):
            row = known.workers.get(link.instance_id)
            if row is not None and row.epoch > link.epoch:
                link.lose(f"fenced: epoch {row.epoch} of this instance exists")
            elif link.greeted:
                link.row_changed(row)
        for endpoint_id, pool in list(self.pools.items()):
            route = known.routes.get(endpoint_id)
            if route is not None:
                pool.routed(route)
                pool.pump()
                pool.poke()
            elif not pool.total and not pool.links:
                del self.pools[endpoint_id]
            else:
                gone = Failure("start", "the endpoint was deleted")
                pool.routed(msgspec.structs.replace(pool.route, failure=gone))
                pool.poke()
            if pool.prefixes:
                pool.prefixes.keep(known.workers)
        self._send(TablesSeen(message.version))

    # --- time ---

    def tick(self) -> None:
        """Every 100 ms: deadlines, releases, waiting jobs; every second: samples."""
        self.now = now = self.loop.time()
        self.wheel.advance(now)
        self.journal.tidy()
        if self.releasing:
            links, self.releasing = self.releasing, []
            for link in links:
                link.flush_releases()
        for pool in list(self.pools.values()):
            if pool.waiting:
                pool.pump()
                pool.poke()
        at = time.time()
        if int(at) != self._second:
            # At the turn of the wall clock's second: each of them has one sample, and none has two.
            self._second = int(at)
            self._sample(at)
            self.kept.expire(now)
            self._leave_doomed()
        self.flush()

    def _sample(self, at: float) -> None:
        loads, self.loads_changed = self.loads_changed, {}
        for link in loads:
            if not link.closed:
                self._send(link.worker_state())
        samples = Samples(at, [pool.sample() for pool in self.pools.values() if pool.active])
        if samples.endpoints:
            self.unacked.keep(samples)
            self._send(samples)

    def _leave_doomed(self) -> None:
        """Streams leave a worker seconds before it is reclaimed."""
        soon = time.time() + DOOMED_S
        for link in list(self.links.values()):
            if link.doomed_at is not None and link.doomed_at <= soon:
                for job in link.jobs():
                    if isinstance(job, Request):
                        job.move_off("its worker is being reclaimed")
                    elif isinstance(job, CallJob) and job.moves_off:
                        job.move_off()

    async def ticking(self) -> None:
        """Drive `tick` until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.tick()
            except Exception:
                _log.exception("a deadline failed")

    async def draining(self) -> None:
        """Seal and ship the spool every 0.2 s, and save new tables, until cancelled."""
        while True:
            await asyncio.sleep(DRAIN_S)
            try:
                await self.drain()
            except OSError as error:
                _log.error("the gateway's directory: %s", error.strerror)

    async def drain(self) -> None:
        """One round of `draining`."""
        self.now = self.loop.time()
        if self.meter.failed or self.journal.failed:
            self.flush()
        await self.meter.seal()
        if self._control is not None:
            self.meter.ship(self._ship)
        data, self._unsaved = self._unsaved, None
        if data is not None:
            try:
                await self.loop.run_in_executor(None, tables.save, self._tables_path, data)
            except OSError:
                self._unsaved = self._unsaved or data
                raise

    def _ship(self, segment: MeterSegment) -> None:
        if not self._send(segment):
            raise ConnectionResetError(errno.ECONNRESET, "the server's link closed")

    # --- start and end ---

    async def listen(self, host: str, port: int) -> list[asyncio.Server]:
        """Open the TCP port and the unix socket. Raises `Conflict` or `Invalid` with the fix."""
        loop = self.loop
        try:
            tcp = await loop.create_server(lambda: HttpConnection(self), host, port, backlog=1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"port {port} on {host} is in use; stop its owner or choose another with --listen {host}:PORT "
                    "(`nanopod up --port PORT`)"
                ) from None
            raise Invalid(f"cannot listen on {host}:{port}: {error.strerror or error}", field="listen") from None
        bound = tcp.sockets[0].getsockname()[1]
        path = self.layout.gateway_socket
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        try:
            unix = await loop.create_unix_server(lambda: HttpConnection(self), str(path), backlog=1024)
        except OSError as error:
            raise Invalid(f"cannot listen on {path}: {error.strerror or error}", field="data_dir") from None
        os.chmod(path, 0o600)
        self.addresses = (f"unix:{path}", f"tcp:{host}:{bound}")
        return [tcp, unix]

    async def stop(self) -> None:
        """Let running requests end (at most 10 s), close every link, ship the spool (at most 2 s)."""
        self.stopping = True
        for connection in list(self.connections):
            connection.shut()
        for side in list(self.websockets):
            side.leave(websocket.GOING_AWAY, "the gateway is stopping")
        self.flush()
        deadline = self.loop.time() + DRAIN_S_MAX
        while self.graphs.running or any(pool.in_flight for pool in self.pools.values()):
            if self.loop.time() >= deadline:
                break
            await asyncio.sleep(0.02)
        for pool in self.pools.values():
            for job in pool.waiting_jobs():
                if isinstance(job, Request | WebJob):
                    job.stopping()
        for client in list(self.clients):
            client.close(1001, "the gateway is stopping")
        self.flush()
        deadline = self.loop.time() + SHIP_S_MAX
        while self.loop.time() < deadline:
            await self.drain()
            if not self.meter.unshipped or self._control is None:
                break
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        for link in list(self.links.values()):
            link.lose("the gateway stops")
        self.meter.close()
        self.journal.close()
