"""Who waits for items of a shared queue: requests sleep here until an item comes, instead of asking again and again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

Place = tuple[str, str]
"""(queue id, partition)"""


class Waits:
    """Waiters by place, first come, first woken. Belongs to the event loop."""

    def __init__(self) -> None:
        self._waiting: dict[Place, OrderedDict[asyncio.Future[None], None]] = {}

    def woken(self, place: Place, count: int = 1) -> None:
        """`count` items came (back): wake as many waiters."""
        line = self._waiting.get(place)
        while line and count > 0:
            waiter, _ = line.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        if line is not None and not line:
            del self._waiting[place]

    async def wait(self, place: Place, wait_s_max: float) -> bool:
        """Sleep until woken (True) or for `wait_s_max` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(place, OrderedDict())[waiter] = None
        try:
            async with asyncio.timeout(wait_s_max):
                await waiter
            return True
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.woken(place)  # it was our turn and we do not take it
            raise
        finally:
            line = self._waiting.get(place)
            if line is not None:
                line.pop(waiter, None)
                if not line:
                    self._waiting.pop(place, None)

    def count(self, place: Place) -> int:
        """How many wait there."""
        return len(self._waiting.get(place, ()))
