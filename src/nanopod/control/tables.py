"""What gateways are told: keys, routes and workers as they are now, sent whole at each change."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nanopod.control import starts
from nanopod.control.live import Live
from nanopod.control.ports import Clock, Gateways, Reads, Secrets, Store
from nanopod.control.rollouts import involved, shares_of, traffic_of
from nanopod.control.telling import notice_of
from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import CALL_TIMEOUT_S, STOPPED, Failure
from nanopod.model.errors import NanopodError
from nanopod.model.wire import KeyRow, RouteRow, Tables, WorkerRow
from nanopod.scheduler.placement.fit import NO_KIND

log = logging.getLogger(__name__)

INTERVAL_S_MIN: Final = 0.05
"""Changes within this time after a push go out together."""
GATHER_S: Final = 0.01
RETRY_S: Final = 1.0
SETTLE_S_MAX: Final = 1.0
"""How long an answer to a change waits for the gateways; beyond that they learn of it later."""


def internal_key(pepper: bytes, workspace_id: str) -> str:
    """The key with which the server makes the spawned calls of a workspace; gateways alone know it, by its digest."""
    return hmac.digest(pepper, f"calls:{workspace_id}".encode(), "sha256").hex()


def internal_rows(pepper: bytes, workspace_ids: Iterable[str]) -> dict[str, KeyRow]:
    """Internal keys, by digest. Their scope `internal` says that `Call.on_behalf` is believed."""
    return {
        hmac.digest(pepper, internal_key(pepper, workspace_id).encode(), "sha256").hex(): KeyRow(
            "internal", workspace_id, ("internal", "call")
        )
        for workspace_id in workspace_ids
    }


def key_rows(read: Reads, now: float) -> dict[str, KeyRow]:
    """Keys that are good now, by digest."""
    return {
        key.digest: KeyRow(key.key_id, key.workspace_id, key.scopes, key.endpoints, key.expires_at)
        for key in read.api_keys()
        if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    }


def prices_of(read: Reads) -> dict[str, float]:
    """What a second of a worker costs by kind of node, in micro-dollars, as its providers offer it."""
    prices: dict[str, float] = {}
    for offer in read.offers():
        if offer.enabled:
            price = offer.floor.micro_per_block / read.block_s
            prices[offer.sku_id] = min(price, prices.get(offer.sku_id, price))
    return prices


def route_row(
    endpoint: Endpoint, deployment: Deployment, revision: Revision, instances: Sequence[Instance], live: Live,
    price: float = 0.0, known: Sequence[Revision] = (),
) -> RouteRow:  # fmt: skip
    """An endpoint as the request path sees it; `revision` is the one its deployment runs.

    `price` is what a second of one worker costs, in micro-dollars; `known` are the revisions that its calls are divided
    among.
    """
    spec = revision.spec
    timeouts = [function.timeout_s for function in spec.functions]
    failed = endpoint.failure is not None and deployment.revision_id == endpoint.revision_id
    ready = Counter(
        i.revision_id for i in instances if i.intent == "run" and live.ready(i.instance_id, i.epoch)
    )  # fmt: skip
    shares = shares_of(endpoint, known, ready, deployment.target_instance_count)
    model = spec.model
    tuning = endpoint.scale.tuning
    wait_s = endpoint.scale.max_queue_time
    lacks = next((why for why in deployment.reasons if why.startswith(NO_KIND)), "") if not deployment.sku_id else ""
    no_kind = Failure("start", f"{endpoint.full_name}: {lacks}", "NoCapacity", user_fault=False) if lacks else None
    return RouteRow(
        endpoint_id=endpoint.endpoint_id,
        workspace_id=endpoint.workspace_id,
        name=endpoint.name,
        tag=endpoint.tag,
        kind=endpoint.kind,
        revision_id=revision.revision_id,
        model_ids=(model.model_id, *(one.name for one in model.models)) if model else (),
        functions={
            one.name: replace(one, max_queue_time_s=min(one.max_queue_time_s, wait_s)) for one in spec.functions
        },
        created_at=int(endpoint.created_at),
        phase_text=phase_text(endpoint, deployment, instances, live),
        failure=_stopped(endpoint) or (endpoint.failure if failed else no_kind),
        timeout_s=max(timeouts, default=CALL_TIMEOUT_S),
        asgi=spec.asgi,
        price_micro_per_s=price,
        profile=endpoint.scale.profile,
        concurrency=-1 if tuning.container_concurrency is None else tuning.container_concurrency,
        max_queue_time_s=wait_s,
        eta_s=eta_s(endpoint.endpoint_id, instances, live),
        protocols=model.protocols if model else (),
        serves=(model.model_id, *(one.name for one in model.models)) if model else (),
        graph=spec.graph,
        traffic=traffic_of(endpoint, deployment.revision_id, shares),
        stopped=endpoint.stopped,
        units_per_s=live.units_per_s(endpoint.endpoint_id),
    )


def eta_s(endpoint_id: str, instances: Sequence[Instance], live: Live) -> float:
    """Seconds until the next of an endpoint's workers is expected to be ready; 0: none starts."""
    ready = {i.instance_id for i in instances if live.ready(i.instance_id, i.epoch)}
    return starts.eta_s(instances, live.starts(endpoint_id), time.time(), ready)


def _stopped(endpoint: Endpoint) -> Failure | None:
    """What callers of an endpoint hear that was asked to run nothing."""
    if not endpoint.stopped:
        return None
    return Failure("start", f"{endpoint.full_name} is stopped: it runs nothing until it is started again", STOPPED)


def phase_text(endpoint: Endpoint, deployment: Deployment, instances: Sequence[Instance], live: Live) -> str:
    """What a waiting caller is told; empty when there is nothing to wait for."""
    running = [i for i in instances if i.intent == "run"]
    if any(live.ready(i.instance_id, i.epoch) for i in running):
        return ""
    if endpoint.failure is not None:
        return f"the last start failed at {endpoint.failure.stage}: {endpoint.failure.message}"
    words: list[str] = []
    for phase, verb in (("preparing", "preparing"), ("starting", "starting"), ("loading", "loading")):
        if count := sum(1 for i in running if i.phase == phase):
            # One that is prepared says what it waits for, such as how much of its files is here.
            why = sorted({i.reason for i in running if i.phase == phase == "preparing" and i.reason})
            words.append(f"{verb} {_workers(count)}" + (f" ({why[0]})" if why else ""))
    queued = [i for i in running if i.phase == "queued"]
    if queued:
        reasons = sorted({i.reason for i in queued if i.reason})
        words.append(f"starting {_workers(len(queued))}" + (f" ({reasons[0]})" if reasons else ""))
    if not words and deployment.target_instance_count > 0:
        words.append(f"starting {_workers(deployment.target_instance_count)}")
        if deployment.fails:
            words[-1] += f" after {deployment.fails} failed starts"
    return ", ".join(words)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def worker_row(instance: Instance, token: str) -> WorkerRow:
    """An instance that may hold a link."""
    return WorkerRow(
        instance_id=instance.instance_id,
        endpoint_id=instance.endpoint_id,
        revision_id=instance.revision_id,
        epoch=instance.epoch,
        slots=instance.slots,
        token_digest=hashlib.sha256(token.encode()).hexdigest(),
        draining=instance.intent != "run",
        doomed_at=notice.at if (notice := notice_of(instance)) is not None else None,
    )


@dataclass(slots=True)
class _Known:
    """An endpoint's rows at the generations they were read; `idle`: its route while it has no instance."""

    generations: list[int]
    endpoint: Endpoint
    deployment: Deployment
    revision: Revision
    idle: RouteRow | None = None


def _look(read: Reads, endpoint_id: str, generations: list[int]) -> _Known | None:
    endpoint = read.endpoint(endpoint_id)
    deployment = read.deployment_of(endpoint_id)
    revision = read.revision(deployment.revision_id) if deployment else None
    if endpoint is None or deployment is None or revision is None:
        return None
    return _Known(generations, endpoint, deployment, revision)


def _divided(read: Reads, endpoint: Endpoint) -> list[Revision]:
    """The revisions that an endpoint's calls are divided among, as far as that matters."""
    if endpoint.traffic:
        return read.revisions_of(endpoint.endpoint_id)
    return [one for key in involved(endpoint) if (one := read.revision(key)) is not None]


class TablesPublisher:
    """Builds the tables and pushes them, at most every `INTERVAL_S_MIN` seconds; the first change goes almost at once.

    `era` counts the starts of this store's server, so versions rise over restarts, too.
    """

    def __init__(self, store: Store, live: Live, gateways: Gateways, secrets: Secrets, clock: Clock, era: int) -> None:
        self._store = store
        self._live = live
        self._gateways = gateways
        self._secrets = secrets
        self._clock = clock
        self._version = era << 32
        self._changed = asyncio.Event()
        self._started = 0
        self._finished = 0
        self._built = asyncio.Condition()
        self._known: dict[str, _Known] = {}
        """By endpoint, as of the last build: most of them have not changed since."""
        self.current: Tables | None = None
        """What was pushed last."""

    @property
    def version(self) -> int:
        """Of what was pushed last."""
        return self._version

    def owner_of(self, instance_id: str) -> str | None:
        """The endpoint of an instance that gateways know."""
        row = self.current.workers.get(instance_id) if self.current is not None else None
        return row.endpoint_id if row is not None else None

    def changed(self) -> None:
        """Something in the tables may have changed."""
        self._changed.set()

    async def settle(self) -> None:
        """Wait until every linked gateway serves by what is in the store now, at most `SETTLE_S_MAX` seconds."""
        ticket = self._started + 1  # a build that began before now may have missed what was just committed
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S_MAX):
                async with self._built:
                    await self._built.wait_for(lambda: self._finished >= ticket)
                await self._gateways.seen(self._version)

    def build(self, read: Reads) -> Tables:
        """The tables of one state of the store, at the next version."""
        by_endpoint: dict[str, list[Instance]] = {}
        workers: dict[str, WorkerRow] = {}
        for instance in read.instances_live():
            if not instance.endpoint_id:
                continue  # it runs a script: no request is routed to it
            by_endpoint.setdefault(instance.endpoint_id, []).append(instance)
            if instance.node_id is not None:
                token = self._secrets.join_token(instance.instance_id, instance.epoch)
                workers[instance.instance_id] = worker_row(instance, token)
        routes: dict[str, RouteRow] = {}
        prices = prices_of(read)
        before, self._known = self._known, {}
        for endpoint_id, *generations in read.endpoint_generations():
            known = before.get(endpoint_id)
            if known is None or known.generations != generations:
                known = _look(read, endpoint_id, generations)
            if known is None:
                continue
            self._known[endpoint_id] = known
            instances = by_endpoint.get(endpoint_id, [])
            if known.idle is None or instances:
                price = prices.get(known.deployment.sku_id, 0.0)
                divided = _divided(read, known.endpoint)
                row = route_row(
                    *(known.endpoint, known.deployment, known.revision, instances, self._live, price, divided)
                )
                known.idle = None if instances else row
            else:
                row = known.idle
            routes[endpoint_id] = row
        default = read.workspace_named("default")
        pepper = self._secrets.pepper
        keys = key_rows(read, self._clock()) | internal_rows(pepper, {row.workspace_id for row in routes.values()})
        return Tables(
            self._version + 1, pepper, keys, routes, workers,
            default.workspace_id if default is not None else "",
        )  # fmt: skip

    async def run(self) -> None:
        """Push until cancelled."""
        self._changed.set()
        while True:
            await self._changed.wait()
            if self.current is not None:
                await asyncio.sleep(GATHER_S)  # one decision makes several changes in a row
            self._changed.clear()
            self._started += 1
            try:
                tables = await self._store.read(self.build)
            except NanopodError as error:
                log.error("tables=not built reason=%s", error)
                self._changed.set()
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))
                continue
            differs = self.current is None or _differs(tables, self.current)
            if differs:
                self._version = tables.version
                self.current = tables
                self._gateways.push(tables)
            async with self._built:
                self._finished = self._started
                self._built.notify_all()
            if differs:
                await asyncio.sleep(INTERVAL_S_MIN - GATHER_S)


def _differs(one: Tables, other: Tables) -> bool:
    return one.keys != other.keys or one.routes != other.routes or one.workers != other.workers
