"""Joins the ports of `control` to their adapters and runs the whole server; nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from nanopod.control.capacity import MachineReconciler
from nanopod.control.deployment import DeploymentReconciler
from nanopod.control.driver import Driver
from nanopod.control.endpoint import EndpointReconciler
from nanopod.control.instance import InstanceReconciler
from nanopod.control.live import Live
from nanopod.control.market.books import Books
from nanopod.control.market.desk import Desk, MarketSettings
from nanopod.control.market.drafts import (
    FEES_SETTING,
    GROUP_SETTING,
    SPOT_MAX_BUY,
    SPOT_SETTING,
    WARNINGS_SETTING,
    check_block_s,
)
from nanopod.control.market.market import fees_of
from nanopod.control.market.ticker import Ticker
from nanopod.control.pulse import Pulse
from nanopod.control.scaling import Watch
from nanopod.control.tables import TablesPublisher
from nanopod.control.wanted import WantedPusher
from nanopod.drivers.link import messages
from nanopod.market.terms import next_block
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.ids import make_id
from nanopod.model.layout import Layout
from nanopod.model.money import Rate
from nanopod.server import bundles, first_start, sweeping
from nanopod.server.api.context import Context
from nanopod.server.billing import rating
from nanopod.server.calls.service import SpawnedCalls
from nanopod.server.clock import ClusterClock, frozen_since
from nanopod.server.faults import Faults
from nanopod.server.feed import NewsFeed
from nanopod.server.links import AgentLinks, GatewayLinks
from nanopod.server.manifests.running import JobRunner
from nanopod.server.sealing import SecretAnswers
from nanopod.server.webhooks import WebhookSender
from nanopod.store.blobs import BlobStore
from nanopod.store.open import open_store
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

if TYPE_CHECKING:
    import uvicorn
    from starlette.routing import Route

log = logging.getLogger(__name__)

LOCK_S_MAX: Final = 5.0
"""A server that was just killed may hold its lock for a moment longer."""
DRAIN_S_MAX: Final = 5
LISTEN_BACKLOG: Final = 512


def new_id(kind: str) -> str:
    """A new random id of a kind of `model.ids.PREFIXES`."""
    return make_id(kind, secrets.token_bytes(21))


def lock(data: Path) -> IO[str]:
    """Take `<data>/server.lock` for this process. Raises `Conflict` when another server holds it."""
    path = data / "server.lock"
    file = open(path, "a+")  # noqa: SIM115 - held until the process ends
    limit = time.monotonic() + LOCK_S_MAX
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() > limit:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                file.close()
                raise Conflict(
                    f"another nanopod server (pid {owner}) owns {data}: stop it first with: nanopod down"
                ) from None
            time.sleep(0.05)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


@dataclass(frozen=True, slots=True)
class Options:
    """How a server is started. `test_clock` and `block_s` are decided when a cluster is made and stay.

    `early_start` None: on wall time only.
    """

    database: str | None = None
    test_clock: bool = False
    block_s: int | None = None
    early_start: bool | None = None
    vast_routes: bool = False
    """Serve the routes of Vast's Deployments API as well."""
    faults: bool = False
    """Let `POST /v1/faults` break things on purpose."""


def settings_of(write: Transaction, *, early_start: bool) -> MarketSettings:
    """The market's settings as this cluster keeps them. Raises `Invalid` for a setting that cannot be read."""
    defaults = MarketSettings()
    try:
        leads = json.loads(write.setting(WARNINGS_SETTING) or "null") or defaults.shutdown_warnings_s
        fees = fees_of(write.setting(FEES_SETTING))
        return MarketSettings(
            block_s=write.block_s,
            shutdown_warnings_s=tuple(int(lead) for lead in leads),
            group_purchase=write.setting(GROUP_SETTING) == "true",
            early_start=early_start,
            spot_max_buy=Rate.parse(write.setting(SPOT_SETTING) or SPOT_MAX_BUY, write.block_s),
            fees=fees,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"setting {WARNINGS_SETTING} or {FEES_SETTING} cannot be read: {error}") from error


class Server:
    """One server on one data directory. `run` returns when it was told to `stop` and everything is committed."""

    def __init__(self, layout: Layout, options: Options | None = None) -> None:
        self.layout = layout
        self.options = options or Options()
        self._stop = asyncio.Event()
        self._http: uvicorn.Server | None = None

    def stop(self) -> None:
        """Finish what is running, then end."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped. Raises `NanopodError` with a clear sentence when it cannot start."""
        began = time.monotonic()
        if self.options.block_s is not None:
            check_block_s(self.options.block_s)
        for directory in (self.layout.data, self.layout.run, self.layout.blobs):
            directory.mkdir(parents=True, exist_ok=True)
        self.layout.run.chmod(0o700)
        held = lock(self.layout.data)
        try:
            store = open_store(self.layout.database, self.options.database, block_s=self.options.block_s)
            try:
                await self._serve(store, began)
            finally:
                await store.close()
        finally:
            held.close()

    async def _prepare(self, store: GroupStore, now: float) -> tuple[str, int, bytes, ClusterClock, MarketSettings]:
        """Everything that is there from the first start on: (cluster id, era, pepper, clock, market settings)."""
        has_keys = bool(await store.read(lambda read: read.api_keys()))
        pepper = first_start.load_pepper(self.layout, has_keys=has_keys)
        admin_key = first_start.read_admin_key(self.layout)
        options = self.options

        def prepare(write: Transaction) -> tuple[str, int, float | None, MarketSettings]:
            fresh = write.setting("cluster_id") is None
            frozen_at = frozen_since(write, options.test_clock, fresh=fresh, now=now)
            cluster_id, era = first_start.prepare(write, pepper, admin_key, now, frozen_at)
            early = options.early_start if options.early_start is not None else frozen_at is None
            return cluster_id, era, frozen_at, settings_of(write, early_start=early)

        cluster_id, era, frozen_at, settings = await store.write(prepare)
        first_start.publish_admin_key(self.layout)
        return cluster_id, era, pepper, ClusterClock(frozen_at), settings

    async def _serve(self, store: GroupStore, began: float) -> None:
        now = time.time()
        cluster_id, era, pepper, clock, settings = await self._prepare(store, now)
        keeper = first_start.FileSecrets(pepper)
        # Machines, links, leases and gateways live on wall time; what is bought, shown and billed on the cluster's.
        live, wall = Live(), time.time
        desk, books, news = Desk(new_id, settings), Books(store, settings.block_s), NewsFeed()
        ticker = Ticker(store, desk, clock)
        watch = Watch(live, now, on_speed=lambda: tables.changed())
        pulse = Pulse(
            *(store, live, watch, wall),
            owner_of=lambda instance_id: tables.owner_of(instance_id),
            on_links=lambda: tables.changed(),
            on_acked=lambda gateway_id, at: gateways.acked(gateway_id, at),
        )
        gateways = GatewayLinks(
            store, live, pulse, current=lambda: tables.current, on_addresses=lambda: wanted.changed()
        )
        agents = AgentLinks(
            store, live, pulse, wall, renew=lambda machine_id: wanted.renew(machine_id), desk=desk,
            secrets=SecretAnswers(store, keeper).answer,
        )  # fmt: skip
        tables = TablesPublisher(store, live, gateways, keeper, wall, era)
        fallback = (f"unix:{self.layout.gateway_socket}",)
        wanted = WantedPusher(store, live, agents, keeper, wall, era, fallback)
        reconcilers = (
            EndpointReconciler(live, watch),
            DeploymentReconciler(live, new_id, desk, clock),
            InstanceReconciler(live, desk, clock),
            MachineReconciler(live, now, desk, clock),
        )
        driver = Driver(store, reconcilers, wall, owner=f"{os.getpid()}.{era}")

        spawned = SpawnedCalls(
            store, directory=self.layout.call_blobs, socket=self.layout.gateway_socket, pepper=pepper, new_id=new_id
        )

        jobs = JobRunner()

        def on_hints(topics: frozenset[str]) -> None:
            driver.hint(topics)
            if "tables" in topics:
                tables.changed()
                spawned.scheduler.endpoints_changed()
            if "wanted" in topics:
                wanted.changed()
            if topics & {"wanted", "manifests"}:
                jobs.changed()

        def on_news(items: list[object]) -> None:
            books.feed(items)
            news.publish(items)

        store.on_hints, store.on_news = on_hints, on_news
        await books.start()
        await self._wake_all(store, desk, now, clock())
        blobs = BlobStore(self.layout.blobs, self.layout.blob)
        context = Context(
            store, blobs, live, tables, keeper, clock, new_id, secrets.token_bytes, cluster_id, now,
            desk=desk, books=books, ticker=ticker, news=news, agents=agents, calls=spawned,
            faults=Faults(self.layout.faults, gateways) if self.options.faults else None,
        )  # fmt: skip
        loops = {
            "driver": driver.run(), "tables": tables.run(), "wanted": wanted.run(), "pulse": pulse.run(),
            "ticker": ticker.run(), "rating": rating.run(store, clock),
            "webhooks": WebhookSender(store, news, wall).run(), **spawned.loops(),
            "sweeping": sweeping.run(store), "bundles": bundles.run(store, blobs), "jobs": jobs.run(context),
        }  # fmt: skip
        async with _tasks(loops, self.stop):
            await self._run_until_stopped(context, gateways, lambda: (time.monotonic() - began) * 1000, era)

    async def _run_until_stopped(
        self, context: Context, gateways: GatewayLinks, start_ms: Callable[[], float], era: int
    ) -> None:
        """Listen, then let go of everybody in order."""
        control = await messages.serve(self.layout.control_socket, gateways.handle)
        agent = await messages.serve(self.layout.agent_socket, context.agents.handle)
        http = await self._listen(context)
        log.info("server=ready start_ms=%d era=%d", start_ms(), era)
        await asyncio.to_thread(context.blobs.sweep)
        await self._stop.wait()
        log.info("server=stopping")
        context.news.close()
        context.calls.close()
        self._http_stop()
        await http
        control.close()
        agent.close()
        await asyncio.gather(gateways.close(), context.agents.close())

    async def _wake_all(self, store: GroupStore, desk: Desk, now: float, at: float) -> None:
        """Everything is looked at once after a start: whatever was interrupted goes on."""

        def wake(write: Transaction) -> None:
            for endpoint in write.endpoints(deleted=True):
                write.signal("endpoint", endpoint.endpoint_id, now)
            for deployment in write.deployments():
                write.signal("deployment", deployment.deployment_id, now)
            for instance in write.instances_live():
                write.signal("instance", instance.instance_id, now)
            for machine_id in {node.machine_id for node in write.nodes()}:
                write.signal("machine", machine_id, now)
            if write.nodes() and not write.market_heads():
                _open_market(write, desk, at)

        await store.write(wake, durable=False)

    async def _listen(self, context: Context) -> asyncio.Task[None]:
        """Serve the API on its unix socket."""
        import uvicorn

        from nanopod.server.api.app import make_app

        extra: list[Route] = []
        if self.options.vast_routes:
            from nanopod.server.vast.callers import LinkCallers
            from nanopod.server.vast.routes import make_routes
            from nanopod.server.vast.state import Vast

            pepper = context.secrets.pepper
            callers = LinkCallers(self.layout.gateway_socket, pepper)
            extra = make_routes(context, callers, Vast(pepper, self.layout.data / "vast.key"))
        path = self.layout.server_socket
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(LISTEN_BACKLOG)
        config = uvicorn.Config(
            make_app(context, extra),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S_MAX,
            timeout_keep_alive=75,
        )

        class Quiet(uvicorn.Server):
            """Leaves the signals to us."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self._http = Quiet(config)
        task = asyncio.create_task(self._http.serve(sockets=[listener]))
        task.add_done_callback(lambda _: self.stop())
        while not self._http.started and not task.done():  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.001)
        return task

    def _http_stop(self) -> None:
        if self._http is not None:
            self._http.should_exit = True


def _open_market(write: Transaction, desk: Desk, at: float) -> None:
    """A cluster of an earlier version, whose instances ran without a market: they go on, on time that is bought now."""
    kinds = {node.node_id: node.sku_id for node in write.nodes()}
    with desk.session(write, at) as market:
        market.supply_changed()
        for instance in write.instances_live():
            sku_id = instance.sku_id or kinds.get(instance.node_id or "", "")
            if instance.granted_at is None or not sku_id:
                continue
            # Until the first block that can be bought it runs as one that was started early.
            write.set_instance(instance, sku_id=sku_id, early_until=next_block(at, write.block_s))
            market.ensure_procurement(instance.capacity_id, sku_id)
            market.changed(instance.capacity_id)


@contextlib.asynccontextmanager
async def _tasks(
    coroutines: dict[str, Coroutine[Any, Any, None]], on_failure: Callable[[], None]
) -> AsyncIterator[None]:
    """Run coroutines beside the body. One that fails ends the process: its supervisor starts a fresh one."""
    tasks = {name: asyncio.create_task(coroutine, name=name) for name, coroutine in coroutines.items()}

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("task=%s failed", task.get_name(), exc_info=task.exception())
            on_failure()

    for task in tasks.values():
        task.add_done_callback(done)
    try:
        yield
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
