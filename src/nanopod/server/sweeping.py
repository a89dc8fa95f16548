"""Forgets what expired: entries of shared dictionaries and items of shared queues that nobody used for days."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Final

from nanopod.model.errors import NanopodError
from nanopod.store.writer import GroupStore

log = logging.getLogger(__name__)

PERIOD_S: Final = 60.0
ROWS_MAX: Final = 500
"""Of each kind in one step, so that nobody waits long for the writer."""


async def run(store: GroupStore) -> None:
    """Sweep until cancelled."""
    while True:
        await asyncio.sleep(PERIOD_S * random.uniform(0.8, 1.2))
        try:
            gone = ROWS_MAX
            while gone >= ROWS_MAX:
                gone = await sweep(store, time.time())
        except NanopodError as error:
            log.warning("sweep=not done reason=%s", error)


async def sweep(store: GroupStore, now: float) -> int:
    """One step; the larger of the numbers of entries and items that went."""
    return await store.write(
        lambda write: max(write.sweep_dicts(now, ROWS_MAX), write.sweep_queues(now, ROWS_MAX)), durable=False
    )
