"""Refusals that reach their caller: what is left of the request's body is read before it is answered.

A connection that is closed with bytes unread is reset, and the reset may overtake the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAINED_BYTES_MAX: Final = 8 << 20
DRAINED_S_MAX: Final = 5.0


class Drained:
    """In front of an application: reads the rest of a request that is refused, within limits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        more = True

        async def hear() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def drain() -> None:
            size = 0
            while more and size < DRAINED_BYTES_MAX:
                size += len((await hear()).get("body", b""))

        async def say(message: Message) -> None:
            if more and message["type"] == "http.response.start" and message["status"] >= 400:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(drain(), DRAINED_S_MAX)
            await send(message)

        await self._app(scope, hear, say)
