"""The one writer of every book. It lives in the server and is used inside `store.write` functions only.

Those run one after another, so nothing here is locked. Memory follows the disk: an exchange whose log ends elsewhere,
or whose session failed, is forgotten and made again from its log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from nanopod.control.market import passing
from nanopod.control.market.drafts import Fee, MarketSettings, OrderDraft, TransferDraft
from nanopod.control.market.floor import Floor
from nanopod.control.market.market import Market
from nanopod.control.ports import NewId, Writes

__all__ = ["Desk", "Fee", "Market", "MarketSettings", "OrderDraft", "TransferDraft"]

BLOCKS_MAX: Final = 100_000
BUDGET_S: Final = 0.05
"""Longest time that one transaction may pass boundaries for, in seconds."""


class Desk:
    """Keeps the books. Not for the event loop: what it reads and writes is one transaction."""

    def __init__(
        self, new_id: NewId, settings: MarketSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.floor = Floor(new_id)
        self._monotonic = monotonic

    @contextmanager
    def session(self, write: Writes, now: float) -> Iterator[Market]:
        """A market at `now` (Unix seconds). On a clean exit what follows is settled and everything is written down."""
        self.floor.check(write)
        market = Market(self.floor, self.settings, write, now)
        try:
            yield market
            market.settle()
            market.save()
            self.settings = market.settings
        except BaseException:
            if market.touched:
                self.floor.drop(market.touched)
            raise

    def boundary(
        self, write: Writes, now: float, blocks_max: int = BLOCKS_MAX, budget_s: float = BUDGET_S
    ) -> bool:  # fmt: skip
        """Pass the boundaries that are due at `now`, one by one (R24), also after downtime. True when more are due.

        At most `blocks_max` of them, and for about `budget_s` seconds. Times in which nothing is due are jumped over.
        """
        with self.session(write, now) as market:
            began = self._monotonic()
            return passing.catch_up(market, now, blocks_max, lambda: self._monotonic() - began > budget_s)
