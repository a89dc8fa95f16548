"""An engine on a loopback port, for the transformer and the explainer beside it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from nanopod.node.engines.base import Attempt, Engine, Request, Timings, Usage

HOST: Final = "127.0.0.1"
BODY_BYTES_MAX: Final = 33 << 20


class Collected:
    """Implements `base.Sink`: an answer that is kept whole."""

    cancelled = False

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.failure = ""

    def head(
        self, status: int, headers: Mapping[str, str], *, streaming: bool, prompt_ids: Sequence[int] | None = None
    ) -> None:
        """Status and headers."""
        self.status, self.headers = status, dict(headers)

    def tokens(self, choice: int, first_index: int, ids: Sequence[int], sse: bytes) -> None:
        """The bytes that stand for tokens."""
        self.parts.append(sse)

    def data(self, chunk: bytes) -> None:
        """Bytes of the body."""
        self.parts.append(chunk)

    async def drained(self) -> None:
        """Nothing is in the way."""

    def end(self, usage: Usage, finish: Sequence[str], timings: Timings) -> None:
        """It is whole."""

    def reset(self, code: str, text: str) -> None:
        """It failed."""
        self.failure = text or code


class Loopback:
    """Serves `engine` on a port of this machine's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen; `port` is set then."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _serve(self, asked: web.Request) -> web.Response:
        body = await asked.read()
        headers = {name.lower(): value for name, value in asked.headers.items()}
        path, _, query = asked.raw_path.partition("?")
        identity = headers.get("x-request-id", f"loop-{random.getrandbits(64):016x}")
        sink = Collected()
        await self._engine.handle(Request(asked.method, path, headers, body, Attempt(identity), query=query), sink)
        if sink.failure or not sink.status:
            return web.json_response({"error": sink.failure or "the model gave no answer"}, status=503)
        return web.Response(status=sink.status, body=b"".join(sink.parts), headers=sink.headers)

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await asyncio.wait_for(self._runner.cleanup(), 5.0)
