"""Web requests of a worker: which function or application answers, how many run, and how they end with the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nanopod.model import frames
from nanopod.model.endpoint import AsgiSpec
from nanopod.model.registry import App
from nanopod.node.runtime.connection import Stream
from nanopod.node.runtime.waiting import until
from nanopod.node.runtime.webapps import LEAVE_S_MAX, Mounted, run_http, run_socket
from nanopod.node.runtime.webexchange import Exchange, WebOpened
from nanopod.node.runtime.webfunctions import WebFunctions

_decode: Final = msgspec.json.Decoder(WebOpened).decode
_log: Final = logging.getLogger(__name__)

Later = Callable[..., None]
"""`later(function, *arguments)`: run it on the event loop."""


class Web:
    """All web requests of one worker."""

    def __init__(self, later: Later) -> None:
        self.draining = True
        """Takes no requests: before it is ready, and when it drains."""
        self.active: set[Exchange] = set()
        self._later = later
        self._functions: WebFunctions | None = None
        self._mounts: dict[str, tuple[Mounted, str]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life, on the event loop ---

    async def start(self, app: App, endpoint: str, specs: tuple[AsgiSpec, ...]) -> None:
        """Make the applications, side by side; they have started up when this returns. Raises what they raised."""
        self._loop = asyncio.get_running_loop()
        self._functions = WebFunctions(app, endpoint)
        for spec in specs:
            maker = app.asgi.get(spec.name)
            if maker is None:
                there = ", ".join(app.asgi) or "none"
                raise LookupError(f"the code registers no web application {spec.name}; there are: {there}")
            self._mounts[spec.name] = (Mounted(spec.name, maker), spec.path)
        await asyncio.gather(*(mounted.start() for mounted, _ in self._mounts.values()))

    async def drain(self, limit_s: float) -> int:
        """Close websockets, let running requests end; the number of those that were given up."""
        self.draining = True
        for exchange in list(self.active):
            if exchange.opened.ws and exchange.task is not None:
                exchange.task.cancel()
        await until(lambda: not self.active, limit_s)
        left = [exchange for exchange in self.active if exchange.task is not None]
        for exchange in left:
            exchange.reset(frames.ENGINE_LOST, "the worker had to end before the request did")
            if exchange.task is not None:
                exchange.task.cancel()
        return len(left)

    async def stop(self, limit_s: float) -> None:
        """The applications' shutdown, side by side."""
        mounts, self._mounts = self._mounts, {}
        await asyncio.gather(*(mounted.stop(limit_s) for mounted, _ in mounts.values()))

    # --- frames, on the link's thread ---

    def open(self, stream: Stream, head: bytes, body: bytes, *, end: bool) -> None:
        """A new request."""
        exchange = Exchange(stream, _decode(head))
        stream.target = exchange
        self._later(self._begin, exchange, body, end)

    def data(self, exchange: Exchange, payload: bytes, *, end: bool) -> None:
        """More of its body."""
        self._later(exchange.feed, payload, end)

    def lost(self, exchange: Exchange) -> None:
        """Nobody hears the answer any more."""
        self._later(self._caller_gone, exchange)

    # --- on the event loop ---

    def _begin(self, exchange: Exchange, body: bytes, end: bool) -> None:
        loop = self._loop
        if self.draining or loop is None or self._functions is None:
            exchange.reset(frames.REFUSED, "this worker takes no requests now")
            return
        exchange.attach(loop)
        exchange.feed(body, end)
        self.active.add(exchange)
        exchange.task = loop.create_task(self._run(exchange))

    async def _run(self, exchange: Exchange) -> None:
        opened = exchange.opened
        try:
            if not opened.mount:
                assert self._functions is not None, "started before it takes requests"
                await self._functions.run(exchange)
                return
            known = self._mounts.get(opened.mount)
            if known is None:
                exchange.reset(frames.REFUSED, f"there is no web application {opened.mount} on this worker")
            elif opened.ws:
                await run_socket(exchange, *known)
            else:
                await run_http(exchange, *known)
        except Exception:
            _log.exception("web request %s failed", opened.id)
            exchange.reset(frames.INTERNAL, "the worker failed")
        finally:
            self.active.discard(exchange)
            if not exchange.ended and not exchange.gone.is_set():
                exchange.reset(frames.ENGINE_LOST, "the worker had to end before the request did")

    def _caller_gone(self, exchange: Exchange) -> None:
        """A function is cancelled at once, an application when it does not end by itself."""
        exchange.lost()
        task: asyncio.Task[Any] | None = exchange.task
        if task is None or task.done():
            return
        if exchange.opened.mount and self._loop is not None:
            self._loop.call_later(LEAVE_S_MAX, task.cancel)
        else:
            task.cancel()
