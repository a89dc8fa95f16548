"""Passes the boundaries of blocks as time goes by, or as a test clock is told to."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, Protocol

from nanopod.control.market.desk import Desk
from nanopod.control.market.drafts import CLOCK_SETTING
from nanopod.control.ports import Store, Writes
from nanopod.market.terms import DURATION_S_MAX, next_block
from nanopod.model.errors import Conflict, Invalid, NanopodError

log = logging.getLogger(__name__)

RETRY_S: Final = (0.5, 2.0)
SLEEP_S_MAX: Final = 30.0
"""Longest sleep between two looks at the clock: a machine may have been suspended."""
LATE_S: Final = 0.001


class TickClock(Protocol):
    """The cluster's clock."""

    @property
    def frozen(self) -> bool: ...
    def __call__(self) -> float: ...
    def set(self, now_at: float) -> None: ...


class Ticker:
    """Has the desk pass what is due, in transactions short enough that others get their turn."""

    def __init__(self, store: Store, desk: Desk, clock: TickClock) -> None:
        self._store = store
        self._desk = desk
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Pass boundaries until cancelled. A store that cannot be written delays them; none is left out."""
        while True:
            try:
                async with self._one_at_a_time:
                    await self._catch_up(self._clock())
            except Exception as error:
                # Time that stands still is bad; an API that is away because of it would be worse.
                known = isinstance(error, NanopodError)
                log.error("boundary=delayed reason=%s", error, exc_info=None if known else error)
                await asyncio.sleep(random.uniform(*RETRY_S))
                continue
            await self._sleep()

    async def _sleep(self) -> None:
        if self._clock.frozen:
            await asyncio.sleep(SLEEP_S_MAX)
            return
        now, block_s = self._clock(), self._desk.settings.block_s
        await asyncio.sleep(min(SLEEP_S_MAX, max(0.0, next_block(now, block_s) * block_s - now) + LATE_S))

    async def _catch_up(self, now: float) -> None:
        def boundary(write: Writes) -> bool:
            return self._desk.boundary(write, now)

        while await self._store.write(boundary):
            pass  # others had their turn in between

    async def advance(self, to_at: int) -> None:
        """Move a test clock on to `to_at` (Unix seconds), passing every boundary on the way.

        Raises `Conflict` on a cluster without a test clock, `Invalid` for a time that is past or too far ahead.
        """
        if not self._clock.frozen:
            raise Conflict("this cluster lives on wall time; make one with: nanopod up --test-clock --data-dir NEW")
        async with self._one_at_a_time:
            now = self._clock()
            if to_at < now:
                raise Invalid(f"to_at: {to_at} is before {now:.0f}; a clock does not go back", field="to_at")
            if to_at - now > DURATION_S_MAX:
                raise Invalid(f"to_at: at most {DURATION_S_MAX} s are advanced at once", field="to_at")
            block_s = self._desk.settings.block_s
            more = True
            while more:

                def step(write: Writes) -> bool:
                    due = self._desk.boundary(write, float(to_at))
                    heads = [one.block for one in self._desk.floor.exchanges.values()]
                    reached = float(to_at) if not due else float((min(heads) - 1) * block_s)
                    write.put_setting(CLOCK_SETTING, repr(reached))
                    return due

                more = await self._store.write(step)
                self._clock.set(await self._store.read(lambda read: float(read.setting(CLOCK_SETTING) or to_at)))
            log.info("clock=advanced to=%d", to_at)
