"""The link to the gateway for the spawned calls of one workspace: an SDK client whose calls outlive every connection.

It dials again while anybody needs it. Whoever owns it hears when it is open (and then sends every open call again,
under its id), and every frame that comes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nanopod import __version__
from nanopod.client.connection import Address, Connection
from nanopod.model import calls
from nanopod.model.errors import NanopodError

log = logging.getLogger(__name__)

DIAL_S_MAX: Final = 10.0
BACK_OFF_S: Final = (0.05, 2.0)
IDLE_S_MAX: Final = 10.0
"""A link that nobody needs is closed after so long."""
PING_S: Final = 15.0
OnOpen = Callable[[], None]
OnFrame = Callable[[calls.Header, bytes], None]


class WorkspaceLink:
    """Frames to and from the gateway at `socket`, as the owner of `key`."""

    def __init__(self, socket: Path, key: str, on_open: OnOpen, on_frame: OnFrame) -> None:
        self._socket = socket
        self._key = key
        self._on_open = on_open
        self._on_frame = on_frame
        self._client_id = os.urandom(16)
        self._connection: Connection | None = None
        self._settled: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._batch: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self.is_open = False
        self.gateway_id = b""
        """Of the gateway process that is linked now, or was last."""
        self.idle_since: float | None = None

    # --- sending ---

    def send(self, frame: bytes) -> None:
        """Send a frame with the others of this turn of the loop; nothing happens while the link is down."""
        if not self.is_open:
            return
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(frame)

    def _flush(self) -> None:
        if self._batch and self._connection is not None and self.is_open:
            batch = list(self._batch)
            self._batch.clear()
            self._connection.send(*batch)

    async def drained(self) -> bool:
        """Wait until more may be sent; False when the link went down meanwhile."""
        self._flush()
        while self.is_open and self._connection is not None and self._connection.is_full:
            self._room.clear()
            await self._room.wait()
        return self.is_open

    # --- what the connection tells ---

    def opened(self) -> None:
        """The websocket is open."""
        if self._connection is not None:
            self._connection.send(calls.encode(calls.Hello(self._client_id, sdk=f"server {__version__}")))

    def received(self, header: calls.Header, payload: bytes) -> None:
        """A frame of the gateway."""
        if isinstance(header, calls.Welcome):
            self.is_open = True
            self.gateway_id = header.id
            if self._settled is not None and not self._settled.done():
                self._settled.set_result(None)
            self._on_open()
            return
        self._on_frame(header, payload)

    def lost(self, error: BaseException | None) -> None:
        """The connection is gone."""
        self.is_open = False
        self._connection = None
        self._batch.clear()
        self._lost.set()
        self._room.set()
        if self._settled is not None and not self._settled.done():
            self._settled.set_exception(error or ConnectionError("the gateway closed the connection"))

    def writable(self) -> None:
        """There is room to send again."""
        self._room.set()

    # --- its life ---

    async def run(self) -> None:
        """Hold a connection until cancelled, or idle for `IDLE_S_MAX`."""
        try:
            for attempt in itertools.count():
                try:
                    await self._dial()
                except (NanopodError, OSError, TimeoutError) as error:
                    if attempt in (5, 50):
                        log.warning("calls=not linked attempts=%d reason=%s", attempt, error)
                    base, cap = BACK_OFF_S
                    await asyncio.sleep(0.01 + random.uniform(0.0, min(cap, base * 2.0 ** min(attempt, 10))))
                    continue
                if await self._hold():
                    return
        finally:
            self._close()

    async def _dial(self) -> None:
        self._close()
        self._lost.clear()
        self._settled = self._loop.create_future()
        self._connection = connection = Connection(self, Address("http://gateway"), self._key)
        try:
            async with asyncio.timeout(DIAL_S_MAX):
                await self._loop.create_unix_connection(lambda: connection, str(self._socket))
                await self._settled
        finally:
            settled, self._settled = self._settled, None
            if settled.done() and not settled.cancelled():
                settled.exception()  # raised above, or nobody is left to hear it

    async def _hold(self) -> bool:
        """Until the connection is lost (False), or was idle for long enough (True)."""
        while self.is_open:
            try:
                async with asyncio.timeout(PING_S if self.idle_since is None else IDLE_S_MAX / 4):
                    await self._lost.wait()
            except TimeoutError:
                connection, now = self._connection, self._loop.time()
                if self.idle_since is not None and now - self.idle_since > IDLE_S_MAX:
                    return True
                if connection is not None:
                    if now - connection.heard_at > 3 * PING_S:
                        connection.abort(ConnectionError("the gateway answers no ping"))
                    else:
                        connection.ping()
        return False

    def _close(self) -> None:
        self._flush()
        self.is_open = False
        if self._connection is not None:
            self._connection.close(reason="the server closes this link")
        self._connection = None
        self._room.set()
