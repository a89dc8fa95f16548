"""Waiting for something that several threads bring about, where an event would need all of them to tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

STEP_S: Final = 0.005


async def until(test: Callable[[], bool], wait_s_max: float) -> bool:
    """Look every few milliseconds until `test` holds or the time is over; whether it holds."""
    limit = time.monotonic() + wait_s_max
    while not (held := test()) and time.monotonic() < limit:  # noqa: ASYNC110 - threads change what is tested
        await asyncio.sleep(STEP_S)
    return held
