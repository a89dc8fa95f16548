"""Sends the spawned calls of one workspace, in turn and no faster than the gateway takes them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nanopod.model import calls
from nanopod.model.errors import NanopodError, NotFound
from nanopod.server.calls import wire
from nanopod.server.calls.flights import Flight
from nanopod.server.calls.link import WorkspaceLink
from nanopod.store.calls import Outgoing

log = logging.getLogger(__name__)

BATCH: Final = 64
RETRY_S: Final = (0.2, 5.0)
MakeLink = Callable[[Callable[[], None]], WorkspaceLink]
"""Gets what is to be called when the link is open."""


class Calls(Protocol):
    """What a channel asks of its dispatcher."""

    def flight(self, call_id: bytes) -> Flight | None:
        """A call without an answer."""

    def flights_of(self, workspace_id: str) -> Sequence[Flight]:
        """The calls of a workspace without an answer, oldest first."""

    async def outgoing(self, call_ids: Sequence[bytes]) -> list[Outgoing]:
        """What is sent for calls."""

    async def payload(self, one: Outgoing) -> bytes:
        """The payload of a call. Raises `NotFound` when it is gone."""

    def failed(self, flight: Flight, error: NanopodError) -> None:
        """A call cannot even be sent."""

    def room(self) -> None:
        """More calls may be claimed."""


class Channel:
    """The link of a workspace and what waits to be sent over it."""

    def __init__(
        self, workspace_id: str, owner: Calls, make_link: Callable[[Callable[[], None]], WorkspaceLink]
    ) -> None:
        self.workspace_id = workspace_id
        self._owner = owner
        self._box: deque[Outgoing | bytes] = deque()
        self._news = asyncio.Event()
        self.link = make_link(self._opened)

    @property
    def waiting(self) -> int:
        """Calls that are not sent yet."""
        return len(self._box)

    def put(self, one: Outgoing | bytes) -> None:
        """Send a call; given by its id, its payload is read first."""
        self.link.idle_since = None
        self._box.append(one)
        self._news.set()

    def cancel(self, call_id: bytes) -> None:
        """Tell the gateway to give a call up."""
        self.link.send(calls.encode(calls.Cancel(call_id, reason="cancelled by the caller")))

    def acknowledge(self, call_ids: list[bytes]) -> None:
        """The gateway may forget these results."""
        self.link.send(calls.encode(calls.Ack(b"", ids=call_ids)))

    def _opened(self) -> None:
        """A fresh connection: whatever has no answer is asked for again, under its id."""
        flights = self._owner.flights_of(self.workspace_id)
        for flight in flights:
            flight.restart()
        self._box = deque(flight.id for flight in flights)
        self._news.set()

    async def run(self) -> None:
        """Until cancelled, or until the link was idle for long."""
        link = asyncio.create_task(self.link.run(), name="calls-link")
        wait_s = RETRY_S[0]
        try:
            while not link.done():
                try:
                    await self._send_next(link)
                    wait_s = RETRY_S[0]
                except NanopodError as error:  # the database or the disk is away: what was taken is asked for again
                    log.warning("calls=not sent reason=%s", error)
                    await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
                    wait_s = min(RETRY_S[1], wait_s * 2)
            link.result()
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)

    async def _send_next(self, link: asyncio.Task[None]) -> None:
        if not self._box or not self.link.is_open:
            self._news.clear()
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait({news, link}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            return
        batch = [self._box.popleft() for _ in range(min(BATCH, len(self._box)))]
        try:
            ready = await self._whole(batch)
        except NanopodError:
            self._box.extendleft(reversed(batch))
            raise
        for one in ready:
            if not await self._send(one):
                return  # the next connection begins with all of them
        if len(self._box) < BATCH:
            self._owner.room()

    async def _whole(self, batch: list[Outgoing | bytes]) -> list[Outgoing]:
        ids = [one for one in batch if isinstance(one, bytes)]
        read = {one.call_id: one for one in await self._owner.outgoing(ids)} if ids else {}
        whole = (one if isinstance(one, Outgoing) else read.get(wire.text_of(one)) for one in batch)
        return [one for one in whole if one is not None]

    async def _send(self, one: Outgoing) -> bool:
        flight = self._owner.flight(wire.bytes_of(one.call_id))
        if flight is None or flight.answer is not None:
            return True
        if flight.withdrawn:
            # A gateway that knows it gives it up, or has its answer; one that does not starts nothing.
            self.cancel(flight.id)
            return True
        try:
            payload = await self._owner.payload(one)
        except NotFound as error:
            self._owner.failed(flight, error)
            return True
        header = wire.never_starting(one.header) if flight.only_asked else one.header
        for frame in wire.frames_of(header, payload):
            if not await self.link.drained():
                return False
            self.link.send(frame)
        if flight.items:
            self.link.send(calls.encode(calls.Credit(flight.id, items=calls.ITEM_WINDOW // 2)))
        return self.link.is_open
