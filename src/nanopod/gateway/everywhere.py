"""Loading and unloading a model: every worker of the endpoint is asked, for each has a repository of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from nanopod.gateway import heads
from nanopod.gateway.families import Predict
from nanopod.gateway.graphs import Answer, Hop
from nanopod.gateway.heads import Failed, Head
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

WORKERS_MAX: Final = 1000
_running: Final[set[asyncio.Task[None]]] = set()


class Pinned(Predict):
    """For one worker alone: another one would not do in its place."""

    __slots__ = ()

    def _again(self) -> None:
        text = "a worker was lost meanwhile; the one in its place loads what the specification says: ask again"
        self._lost_for_good(heads.overloaded(text, retry_s=1))


class Everywhere:
    """The exchange of one such request. Its answer is the first refusal, else a worker's."""

    def __init__(
        self, gateway: Gateway, connection: HttpConnection, head: Head, body: bytes, key: KeyRow, route: RouteRow
    ) -> None:
        self._gw = gateway
        self._connection: HttpConnection | None = connection
        self._head = head
        self._body = body
        self._key = key
        self._route = route
        self._hops: list[Hop] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask all workers that are ready; one that is woken for it when none is. Raises `Plain`."""
        connection = self._connection
        assert connection is not None, "a request starts with its caller present"
        links = [link.instance_id for link in self._gw.pool(self._route).links if link.usable][:WORKERS_MAX]
        if not links:
            Predict(self._gw, connection, self._head, self._body, self._key, self._route).start()
            return
        connection.exchange = self
        for instance_id in links:
            hop = Hop()
            asked = Pinned(
                self._gw, cast("HttpConnection", hop), self._head, self._body, self._key, self._route
            )  # fmt: skip
            asked.pin = instance_id
            try:
                asked.start()
            except Failed as failed:
                hop.fail(failed)
            self._hops.append(hop)
        self._task = asyncio.ensure_future(self._wait())
        _running.add(self._task)
        self._task.add_done_callback(_running.discard)

    async def _wait(self) -> None:
        answers: list[Answer] = list(await asyncio.gather(*(hop.answer for hop in self._hops)))
        connection = self._connection
        if connection is None:
            return
        gw = self._gw
        gw.now = gw.loop.time()
        told = next((answer for answer in answers if not answer.good), answers[0])
        given = heads.request_id_of(self._head) or gw.request_id()
        connection.respond(told.status, told.body, content_type=told.content_type, extra=f"x-request-id: {given}\r\n")
        gw.flush()

    def caller_gone(self) -> None:
        """The caller left: what was asked for goes on, nobody hears of it."""
        self._connection = None

    def caller_resumed(self) -> None:
        """Answers are small."""

    def body_piece(self, data: bytes, end: bool) -> None:
        """Not used: bodies are read whole."""


def is_repository(path: str) -> bool:
    """True for the paths that change what workers have loaded."""
    return path.startswith("/v2/repository/models/") and path.endswith(("/load", "/unload"))
