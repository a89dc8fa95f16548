"""Turns what gateways report into signals: at once for demand and samples, and as time passes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from typing import Final

from nanopod.control.live import Live
from nanopod.control.ports import Clock, Store, Writes
from nanopod.control.scaling import Watch
from nanopod.model.errors import NanopodError
from nanopod.model.wire import Demand, Samples, WorkerState

log = logging.getLogger(__name__)

IDLE_S_MAX: Final = 1.0
"""Longest time between two looks at what is due and what can be acknowledged."""
PENDING_MAX: Final = 10_000
DEPLOYMENT_OF: Final = "deployment of"
"""With the key of an endpoint: its deployment is to be looked at."""


class Pulse:
    """Collects keys to signal and writes them in one transaction per burst.

    Signals made from observations need not survive a crash of the machine: the observations come again. `owner_of`
    names the endpoint of an instance; `on_links` is called when the readiness of workers changed; `on_acked` gets
    (gateway, time) when everything that a gateway saw up to then is stored.
    """

    def __init__(
        self,
        store: Store,
        live: Live,
        watch: Watch,
        clock: Clock,
        owner_of: Callable[[str], str | None],
        on_links: Callable[[], None],
        on_acked: Callable[[str, float], None] = lambda gateway_id, at: None,
    ) -> None:
        self._store = store
        self._owner_of = owner_of
        self._live = live
        self._watch = watch
        self._clock = clock
        self._on_links = on_links
        self._on_acked = on_acked
        self._pending: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()
        self._sleeps_until = 0.0

    def demand(self, message: Demand) -> None:
        """Somebody waits."""
        now = self._clock()
        self._live.demand(message.endpoint_id, message.waiting, now, message.revision_id)
        self._heard([message.endpoint_id], now, poke=False)
        if message.revision_id:
            self.signal([(DEPLOYMENT_OF, message.endpoint_id)])  # it alone knows what is asked for by a tag

    def samples(self, gateway_id: str, message: Samples) -> None:
        """A second went by, or a quiet endpoint has its first request. What comes again is passed over."""
        now = self._clock()
        fresh = [one.endpoint_id for one in message.endpoints if self._live.sample(gateway_id, message.at, one, now)]
        self._heard(fresh, now, poke=message.poke)

    def caught_up(self, gateway_id: str) -> None:
        """A gateway has sent again what it saw while nobody listened."""
        self._live.caught_up.add(gateway_id)

    def worker(self, gateway_id: str, message: WorkerState) -> None:
        """A worker's link changed."""
        if self._live.worker(gateway_id, message):
            self.links_changed([message.instance_id])

    def links_changed(self, instance_ids: Collection[str]) -> None:
        """The readiness of these instances changed."""
        owners = {owner for key in instance_ids if (owner := self._owner_of(key)) is not None}
        self.signal([*(("instance", key) for key in instance_ids), *(("endpoint", key) for key in owners)])
        self._on_links()

    def signal(self, keys: Collection[tuple[str, str]]) -> None:
        """Have these (kind, key) looked at."""
        if len(self._pending) < PENDING_MAX:
            self._pending.update(keys)
        self._wake.set()

    def _heard(self, endpoint_ids: Collection[str], now: float, *, poke: bool) -> None:
        moved = [("endpoint", key) for key in endpoint_ids if self._watch.heard(key, now, poke=poke)]
        if moved:
            self.signal(moved)
        elif self._watch.next_at < self._sleeps_until:
            self._wake.set()

    async def run(self) -> None:
        """Write signals, and watch the time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = self._clock()
            wait_s = min(IDLE_S_MAX, max(0.0, self._watch.next_at - now))
            self._sleeps_until = now + wait_s
            handle = loop.call_later(wait_s, self._wake.set)
            await self._wake.wait()
            handle.cancel()
            self._wake.clear()
            now = self._clock()
            self._pending.update(("endpoint", endpoint_id) for endpoint_id in self._watch.due(now))
            for gateway_id, at in self._live.acks():
                self._on_acked(gateway_id, at)
            if not self._pending:
                continue
            keys = sorted(self._pending)
            self._pending.clear()

            def signal(write: Writes, keys: list[tuple[str, str]] = keys, now: float = now) -> None:
                for kind, key in keys:
                    if kind == DEPLOYMENT_OF:
                        deployment = write.deployment_of(key)
                        kind, key = "deployment", deployment.deployment_id if deployment is not None else ""
                    if key:
                        write.signal(kind, key, now)

            try:
                await self._store.write(signal, durable=False)
            except NanopodError as error:
                log.error("pulse=blocked signals=%d reason=%s", len(keys), error)
                self._pending.update(keys)
                await asyncio.sleep(random.uniform(0.5, 1.0))
