"""Turns what gateways report into signals: at once for demand and samples, and as time passes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from typing import Final

from nanopod.control.endpoint import Watch
from nanopod.control.live import Live
from nanopod.control.ports import Clock, Store, Writes
from nanopod.model.errors import NanopodError
from nanopod.model.wire import Demand, Samples, WorkerState

log = logging.getLogger(__name__)

TICK_S: Final = 0.5
PENDING_MAX: Final = 10_000


class Pulse:
    """Collects keys to signal and writes them in one transaction per burst.

    Signals made from observations need not survive a crash of the machine: the observations come again. `owner_of`
    names the endpoint of an instance; `on_links` is called when the readiness of workers changed.
    """

    def __init__(
        self,
        store: Store,
        live: Live,
        watch: Watch,
        clock: Clock,
        owner_of: Callable[[str], str | None],
        on_links: Callable[[], None],
    ) -> None:
        self._store = store
        self._owner_of = owner_of
        self._live = live
        self._watch = watch
        self._clock = clock
        self._on_links = on_links
        self._pending: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()

    def demand(self, message: Demand) -> None:
        """Somebody waits."""
        now = self._clock()
        self._live.demand(message.endpoint_id, message.waiting, now)
        self._step([message.endpoint_id], now)

    def samples(self, gateway_id: str, message: Samples) -> None:
        """A second went by."""
        for sample in message.endpoints:
            self._live.sample(gateway_id, message.at, sample)
        self._step([sample.endpoint_id for sample in message.endpoints], self._clock())

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

    def _step(self, endpoint_ids: Collection[str], now: float) -> None:
        moved = [("endpoint", endpoint_id) for endpoint_id in endpoint_ids if self._watch.step(endpoint_id, now)]
        if moved:
            self.signal(moved)

    async def run(self) -> None:
        """Write signals, and watch the time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            handle = loop.call_later(TICK_S, self._wake.set)
            await self._wake.wait()
            handle.cancel()
            self._wake.clear()
            now = self._clock()
            self._pending.update(("endpoint", endpoint_id) for endpoint_id in self._watch.due(now))
            if not self._pending:
                continue
            keys = sorted(self._pending)
            self._pending.clear()

            def signal(write: Writes, keys: list[tuple[str, str]] = keys, now: float = now) -> None:
                for kind, key in keys:
                    write.signal(kind, key, now)

            try:
                await self._store.write(signal, durable=False)
            except NanopodError as error:
                log.error("pulse=blocked signals=%d reason=%s", len(keys), error)
                self._pending.update(keys)
                await asyncio.sleep(random.uniform(0.5, 1.0))
