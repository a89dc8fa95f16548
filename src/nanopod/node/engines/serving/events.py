"""Requests and answers of V1 and V2, posted to a collector as CloudEvents (binary mode over HTTP).

Nothing waits for the collector: events are dropped, and counted, when it is slower than what there is to tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import Final, Literal

import aiohttp

Mode = Literal["all", "request", "response"]
MODES: Final = ("all", "request", "response")
QUEUE_MAX: Final = 1000
POST_S_MAX: Final = 10.0
POSTERS: Final = 4
STOP_S_MAX: Final = 2.0
_TYPE: Final = "org.kubeflow.serving.inference."
_log: Final = logging.getLogger(__name__)


class Events:
    """Posts events on the loop it is started on."""

    def __init__(self, url: str, mode: Mode, service: str, source: str = "nanopod") -> None:
        self._url = url
        self._mode = mode
        self._service = service
        self._source = source
        self._queue: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue(QUEUE_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self.dropped = 0

    def start(self) -> None:
        """Begin to post."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=POST_S_MAX))
        self._tasks = [asyncio.get_running_loop().create_task(self._post()) for _ in range(POSTERS)]

    def request(self, identity: str, path: str, content_type: str, body: bytes) -> None:
        """A request came."""
        if self._mode != "response":
            self._tell("request", identity, path, content_type, body)

    def response(self, identity: str, path: str, content_type: str, body: bytes) -> None:
        """Its answer is known."""
        if self._mode != "request":
            self._tell("response", identity, path, content_type, body)

    def _tell(self, what: str, identity: str, path: str, content_type: str, body: bytes) -> None:
        headers = {
            "ce-specversion": "1.0",
            "ce-id": identity,
            "ce-type": _TYPE + what,
            "ce-source": self._source,
            "ce-time": datetime.now(UTC).isoformat(),
            "ce-inferenceservicename": self._service,
            "ce-endpoint": path,
            "content-type": content_type,
        }
        try:
            self._queue.put_nowait((headers, body))
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                _log.warning("%d events were dropped: the collector of the logger is too slow", self.dropped)

    async def _post(self) -> None:
        assert self._session is not None, "started before it posts"
        while True:
            headers, body = await self._queue.get()
            try:
                async with self._session.post(self._url, data=body, headers=headers) as answer:
                    await answer.read()
                    if answer.status >= 400:
                        _log.warning("the collector of the logger answered %d", answer.status)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.warning("the collector of the logger did not answer: %s", type(error).__name__)
            finally:
                self._queue.task_done()

    async def stop(self) -> None:
        """Post what is there, at most `STOP_S_MAX` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), STOP_S_MAX)
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()
