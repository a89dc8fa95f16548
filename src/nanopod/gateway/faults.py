"""Faults on purpose at the gateway: links that are cut, and callers that seem to be far away. For tests of users."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from nanopod.gateway.callers import ClientLink
from nanopod.model.wire import Fault

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

GOING_AWAY: Final = 1001


class Far(asyncio.Protocol):
    """Stands before a link's protocol and hands on what was received some seconds later, in order."""

    def __init__(self, inner: ClientLink, slowness: Slowness) -> None:
        self._inner = inner
        self._slowness = slowness
        self._waiting: deque[bytes] = deque()
        self._last_at = 0.0
        self._gone = False

    def data_received(self, data: bytes) -> None:
        """Later."""
        loop = asyncio.get_running_loop()
        self._last_at = max(self._last_at, loop.time() + self._slowness.seconds)
        self._waiting.append(data)
        loop.call_at(self._last_at, self._deliver)

    def _deliver(self) -> None:
        data = self._waiting.popleft()
        if not self._gone:
            self._inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """At once."""
        self._gone = True
        self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """At once."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """At once."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """At once."""
        self._inner.resume_writing()


class Slowness(set[ClientLink]):
    """The gateway's set of clients, while they are to be slow: who is added is put behind a `Far`.

    So a gateway that nobody made slow looks at nothing of this.
    """

    seconds: float = 0.0

    def add(self, link: ClientLink) -> None:
        """A client linked."""
        super().add(link)
        # Its transport still has to be given its protocol.
        asyncio.get_running_loop().call_soon(self.put_before, link)

    def put_before(self, link: ClientLink) -> None:
        """Put a `Far` before a link."""
        transport = link._transport
        if transport is not None and not transport.is_closing():
            transport.set_protocol(Far(link, self))


def apply(gateway: Gateway, fault: Fault) -> None:
    """Do what the server asked for."""
    if fault.kind == "slow":
        clients = gateway.clients
        if not isinstance(clients, Slowness):
            if fault.seconds <= 0:
                return
            gateway.clients = slowness = Slowness(clients)
            for link in list(slowness):
                slowness.put_before(link)
            clients = slowness
        clients.seconds = fault.seconds
    elif fault.instance_id:
        worker = gateway.links.get(fault.instance_id)
        if worker is not None:
            worker.lose("cut on purpose")
    else:
        for link in list(gateway.clients):
            link.close(GOING_AWAY, "cut on purpose")
