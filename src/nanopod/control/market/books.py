"""The books as the event loop sees them: a replica of every exchange, fed by what was committed.

News comes in the order of the commits and before anybody hears that his write is done, so everybody reads what he
wrote, and a preview never waits for the writer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nanopod.control.market.news import Applied, Ranked
from nanopod.control.market.quota import claim_of
from nanopod.control.market.replay import load
from nanopod.control.market.rows import wanted
from nanopod.control.ports import Reads, Store
from nanopod.market.exchange import Exchange
from nanopod.market.quota import expected_shutdown, expected_start
from nanopod.market.shape import to_schedule
from nanopod.model.chain import Instance
from nanopod.model.errors import NanopodError
from nanopod.model.schedule import BLOCK_S, Schedule

log = logging.getLogger(__name__)

RETRY_S: Final = (0.2, 1.0)
WAITING_MAX: Final = 100_000
"""News that is kept for a book while it is read again."""


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """Blocks in which a capacity's instances are expected to start and to end; holds for these claims and this book."""

    ranked: Ranked
    seq: int
    starts: Mapping[str, int | None]
    ends: Mapping[str, int | None]


class Books:
    """Exchanges by SKU. Everything here belongs to the event loop; nobody but `feed` changes an exchange."""

    def __init__(self, store: Store, block_s: int = BLOCK_S) -> None:
        self._store = store
        self._block_s = block_s
        self._exchanges: dict[str, Exchange] = {}
        self._waiting: dict[str, list[Applied]] = {}
        """News of books that are being read again."""
        self._ranked: dict[str, Ranked] = {}
        self._foreseen: dict[tuple[str, str], _Foreseen] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Read every book there is."""
        heads, live = await self._store.read(lambda read: (list(read.market_heads()), read.instances_live()))
        for capacity_id in {one.capacity_id for one in live}:
            own = [one for one in live if one.capacity_id == capacity_id and wanted(one)]
            self._ranked[capacity_id] = Ranked(capacity_id, tuple((one.sku_id, claim_of(one)) for one in own))
        for sku_id in heads:
            await self._reload(sku_id)

    # --- what committed ---

    def feed(self, items: Iterable[object]) -> None:
        """Take over what was announced."""
        for item in items:
            if isinstance(item, Applied):
                self._apply(item)
            elif isinstance(item, Ranked):
                self._ranked[item.capacity_id] = item

    def _apply(self, news: Applied) -> None:
        waiting = self._waiting.get(news.sku_id)
        if waiting is not None:
            if len(waiting) < WAITING_MAX:
                waiting.append(news)
            return
        exchange = self._exchanges.get(news.sku_id)
        if exchange is None and news.seq == 1:
            exchange = self._exchanges[news.sku_id] = Exchange(news.sku_id, news.first_block)
        if exchange is not None and news.seq <= exchange.seq:
            return
        if exchange is None or news.seq != exchange.seq + 1:
            self._read_again(news)
            return
        try:
            exchange.apply(news.event)
        except NanopodError as error:
            log.error("book=%s seq=%d replica=diverged reason=%s", news.sku_id, news.seq, error)
            self._read_again(news)

    def _read_again(self, news: Applied) -> None:
        self._waiting[news.sku_id] = [news]
        task = asyncio.get_running_loop().create_task(self._keep_reading(news.sku_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_reading(self, sku_id: str) -> None:
        while True:
            try:
                await self._reload(sku_id)
                return
            except NanopodError as error:
                log.error("book=%s replica=unread reason=%s", sku_id, error)
                await asyncio.sleep(random.uniform(*RETRY_S))

    async def _reload(self, sku_id: str) -> None:
        """Read a book from the store; what is announced meanwhile follows."""
        self._waiting.setdefault(sku_id, [])

        def read(read: Reads) -> Exchange | None:
            row = read.market_book(sku_id)
            return load(read, row) if row is not None else None

        found = await self._store.read(read)
        if found is not None:
            self._exchanges[sku_id] = found
        for news in self._waiting.pop(sku_id):
            self._apply(news)

    # --- what is asked ---

    def exchange(self, sku_id: str) -> Exchange | None:
        """The book of a SKU, to look at; None when there is none yet."""
        return self._exchanges.get(sku_id)

    def skus(self) -> list[str]:
        """The SKUs that have a book."""
        return sorted(self._exchanges)

    def schedule(self, capacity_id: str) -> dict[str, Schedule]:
        """What a capacity owns of each SKU, from the present block on."""
        found: dict[str, Schedule] = {}
        for sku_id in self.skus():
            exchange = self._exchanges[sku_id]
            holding = exchange.holdings.get(capacity_id)
            if holding is not None and (shape := holding.owned(exchange.block - 1)):
                found[sku_id] = to_schedule(shape, self._block_s)
        return found

    def expected(self, instance: Instance) -> tuple[int | None, int | None]:
        """(expected start, expected shutdown) of an instance in Unix seconds, None where none is foreseen (W2).

        A start is only expected of one that awaits allocation, a shutdown only of one that runs.
        """
        if instance.ended_at is not None or instance.intent != "run":
            return None, None
        skus = [instance.sku_id] if instance.sku_id else self.skus()
        found = [self._expected(instance, sku_id) for sku_id in skus]
        starts = [start for start, _ in found if start is not None]
        ends = [end for _, end in found if end is not None]
        return min(starts, default=None), min(ends, default=None)

    def _expected(self, instance: Instance, sku_id: str) -> tuple[int | None, int | None]:
        exchange = self._exchanges.get(sku_id)
        ranked = self._ranked.get(instance.capacity_id)
        if exchange is None or ranked is None:
            return None, None
        key = instance.capacity_id, sku_id
        known = self._foreseen.get(key)
        if known is None or known.ranked is not ranked or known.seq != exchange.seq:
            known = self._foreseen[key] = _foresee(exchange, ranked, sku_id)
        start, end = known.starts.get(instance.instance_id), known.ends.get(instance.instance_id)
        return None if start is None else start * self._block_s, None if end is None else end * self._block_s


def _foresee(exchange: Exchange, ranked: Ranked, sku_id: str) -> _Foreseen:
    claims = [claim for pinned, claim in ranked.claims if pinned == sku_id or (not pinned and not claim.running)]
    holding = exchange.holdings.get(ranked.capacity_id)
    owned = holding.owned(exchange.block - 1) if holding is not None else ()
    starts = expected_start(claims, owned, exchange.block)
    return _Foreseen(ranked, exchange.seq, starts, expected_shutdown(claims, owned, exchange.block))
