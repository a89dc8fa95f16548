"""A plain JSON echo over HTTP, in a process of its own: what the time of a call is measured against.

`python -m nanopod.client.echo` prints its port and serves until its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque

HEAD_BYTES_MAX = 65536


class EchoServer(asyncio.Protocol):
    """Answers each POST with the JSON that was sent, over kept connections."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Requests, whole or in pieces."""
        self._data += data
        while (found := taken(self._data)) is not None:
            body, self._data = found
            answer = json.dumps(json.loads(body)).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
            assert self._transport is not None
            self._transport.write(head + answer)


class EchoClient(asyncio.Protocol):
    """One kept connection; requests one after another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._waiting: deque[asyncio.Future[bytes]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers, whole or in pieces."""
        self._data += data
        while (found := taken(self._data)) is not None:
            body, self._data = found
            self._waiting.popleft().set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """No more answers."""
        while self._waiting:
            self._waiting.popleft().set_exception(exc or ConnectionError("the echo ended"))

    async def ask(self, value: object) -> object:
        """Send a value and take it back."""
        body = json.dumps(value).encode()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        assert self._transport is not None
        head = b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)
        return json.loads(await future)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


def taken(data: bytes) -> tuple[bytes, bytes] | None:
    """(body of the first whole message, what follows it), or None while it is not whole. Raises ValueError."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEAD_BYTES_MAX:
            raise ValueError("the head of a message is too long")
        return None
    length = 0
    for line in data[:end].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    start = end + 4
    return (data[start : start + length], data[start + length :]) if len(data) >= start + length else None


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoServer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    closed: asyncio.Future[None] = loop.create_future()

    def heard() -> None:
        if not os.read(0, 4096) and not closed.done():
            closed.set_result(None)

    loop.add_reader(0, heard)
    await closed
    server.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
