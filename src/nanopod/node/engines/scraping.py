"""What an engine says of itself on `/metrics`: how full its key-value cache is, and how many requests wait in it.

Names are those that vLLM, SGLang, TGI and llama.cpp export in the Prometheus text format. Anything else is passed over.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

import aiohttp

from nanopod.node.engines.base import Load

SCRAPE_S: Final = 1.0
SCRAPE_S_MAX: Final = 0.8
"""An engine that takes longer to answer is asked again a second later."""
ABSENT_S: Final = 30.0
"""After `ABSENT_MAX` answers without a known name, or failures, it is asked this seldom."""
ABSENT_MAX: Final = 5
TEXT_BYTES_MAX: Final = 8 << 20
_PLAIN: Final = {"accept-encoding": "identity"}
_LIMIT: Final = aiohttp.ClientTimeout(total=SCRAPE_S_MAX)
_SHARES: Final = (
    b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage", b"llamacpp:kv_cache_usage_ratio",
)  # fmt: skip
_QUEUES: Final = (
    b"vllm:num_requests_waiting", b"sglang:num_queue_reqs", b"tgi_queue_size", b"llamacpp:requests_deferred",
)  # fmt: skip
_LINE: Final = re.compile(
    rb"^(" + b"|".join((*_SHARES, *_QUEUES)) + rb')(?:\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*\})?[ \t]+([0-9.eE+-]+|NaN)',
    re.MULTILINE,
)


def read(text: bytes | bytearray) -> tuple[float, int] | None:
    """(share of the cache in use, -1 if unknown; requests that wait) of a page; None when it names neither.

    An engine of several ranks exports a line for each: the fullest cache counts, and all that wait.
    """
    share, waiting, known = -1.0, 0.0, False
    for name, value in _LINE.findall(text):
        number = float(value)
        if number != number:
            continue
        known = True
        if name in _SHARES:
            share = max(share, min(1.0, number))
        else:
            waiting += max(0.0, number)
    return (share, round(waiting)) if known else None


class Scraping:
    """Looks once a second while the engine has requests, and once more when it has none left."""

    def __init__(self, session: aiohttp.ClientSession, running: Callable[[], int]) -> None:
        self._session = session
        self._running = running
        self._share = -1.0
        self._waiting = 0
        self._absent = 0

    def load(self) -> Load:
        """As of the last look."""
        return Load(self._running(), self._waiting, self._share)

    async def look(self) -> None:
        """Ask now. What cannot be had is not known."""
        found = None
        try:
            async with self._session.get("/metrics", headers=_PLAIN, timeout=_LIMIT) as answer:
                if answer.status == 200:
                    text = bytearray()
                    async for piece in answer.content.iter_any():
                        text += piece
                        if len(text) > TEXT_BYTES_MAX:
                            break
                    found = read(text)
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        self._absent = 0 if found is not None else self._absent + 1
        self._share, self._waiting = found if found is not None else (-1.0, 0)

    async def run(self) -> None:
        """Until cancelled."""
        was_running = True
        while True:
            running = bool(self._running())
            if running or was_running:
                await self.look()
            was_running = running
            await asyncio.sleep(SCRAPE_S if self._absent < ABSENT_MAX else ABSENT_S)
