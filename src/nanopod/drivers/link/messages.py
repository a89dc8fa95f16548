"""Long-lived message links between the server, gateways and node agents: length-prefixed msgpack over unix sockets.

Each side may send at any time; order is kept; nothing is acknowledged here (messages are snapshots, or carry their own
acknowledgement). A peer that stops reading is cut once `backlog_bytes_max` bytes wait for it, which bounds memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from nanopod.model.wire import AnyMessage, Message

log = logging.getLogger(__name__)

_LENGTH: Final = Struct(">I")
MESSAGE_BYTES_MAX: Final = 64 << 20
BACKLOG_BYTES_MAX: Final = 64 << 20
REDIAL_S_MIN: Final = 0.05
REDIAL_S_MAX: Final = 2.0
EAGER_S: Final = 3.0

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(AnyMessage).decode


class LinkClosed(ConnectionError):
    """The peer is gone; send again after the next connection (peers resend their snapshots then)."""


class MessageLink:
    """One open link. Iterate over it for incoming messages; `send` never waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.closed = False

    def send(self, message: Message) -> None:
        """Queue `message`. Raises `LinkClosed` when the link is down or the peer stopped reading."""
        if self.closed or self._writer.is_closing():
            raise LinkClosed("the link is closed")
        if self._writer.transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
            self.close()
            raise LinkClosed("the peer does not read; the link was cut")
        data = _encode(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def drain(self) -> None:
        """Wait until most of what was sent is in the socket."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def __aiter__(self) -> AsyncIterator[AnyMessage]:
        """Messages until the peer closes. A malformed message closes the link and raises `ValueError`."""
        try:
            while True:
                try:
                    size = _LENGTH.unpack(await self._reader.readexactly(4))[0]
                    if size > MESSAGE_BYTES_MAX:
                        raise ValueError(f"a message of {size} bytes is above the limit of {MESSAGE_BYTES_MAX}")
                    data = await self._reader.readexactly(size)
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                yield _decode(data)
        finally:
            self.close()

    def close(self) -> None:
        """Close at once; idempotent."""
        self.closed = True
        with contextlib.suppress(RuntimeError):
            self._writer.close()


Handler = Callable[[MessageLink], Awaitable[None]]


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Listen on the unix socket `path` (mode 0600, an old socket file is replaced); `handler` runs per connection."""

    async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = MessageLink(reader, writer)
        try:
            await handler(link)
        finally:
            link.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(on_connect, path=str(path))
    os.chmod(path, 0o600)
    return server


async def dial_for_ever(path: Path, handler: Handler) -> None:
    """Keep a link to `path`: run `handler` on each connection, redial with jittered back-off when it ends.

    Runs until cancelled. At first, and after a connection that lasted longer than `REDIAL_S_MAX`, the other side is
    most likely just starting: for `EAGER_S` seconds it is looked for at short, even intervals.
    """
    loop = asyncio.get_running_loop()
    attempt = 0
    eager_until = loop.time() + EAGER_S
    while True:
        started = loop.time()
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError:
            pass
        else:
            link = MessageLink(reader, writer)
            try:
                await handler(link)
            except LinkClosed:
                pass
            except Exception:
                # A handler that trips over one message must not silence the link for good: say so and begin anew,
                # with whole snapshots.
                log.exception("link=%s lost: its handler failed; redialling", path.name)
            finally:
                link.close()
        now = loop.time()
        if now - started > REDIAL_S_MAX:
            attempt, eager_until = 0, now + EAGER_S
        elif now > eager_until:
            attempt += 1
        limit_s = min(REDIAL_S_MAX, REDIAL_S_MIN * 2 ** min(attempt, 10))
        await asyncio.sleep(random.uniform(REDIAL_S_MIN / 2, limit_s))
