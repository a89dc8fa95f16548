"""One HTTP request without blocking the event loop, for waits that last long: no thread sits on each of them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from nanopod.client.config import Target
from nanopod.client.connection import Address
from nanopod.model.errors import NoCapacity

CONNECT_S_MAX: Final = 10.0
AT_ONCE_MAX: Final = 64
"""Requests of one event loop that wait at the same time; others take turns with them."""
HEAD_BYTES_MAX: Final = 65536
Answer = tuple[int, dict[str, str], bytes]
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def turns() -> asyncio.Semaphore:
    """What the requests of the running loop take turns by."""
    loop = asyncio.get_running_loop()
    found = _turns.get(loop)
    if found is None:
        found = _turns[loop] = asyncio.Semaphore(AT_ONCE_MAX)
    return found


def is_crowded() -> bool:
    """True when requests of this loop wait for their turn."""
    return turns().locked()


async def ask(
    target: Target, method: str, path: str, *, accept: str = "application/json", body: bytes | None = None,
    wait_s_max: float = 60.0, **query: Any,
) -> Answer:  # fmt: skip
    """(status, headers by lower-case name, body) of one request. Raises `NoCapacity` when nobody answers in time."""
    words = {name: value for name, value in query.items() if value is not None}
    async with turns():
        try:
            async with asyncio.timeout(wait_s_max):
                return await _ask(target, method, path + ("?" + urlencode(words) if words else ""), accept, body)
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            what = str(error) or "no answer in time"
            raise NoCapacity(
                f"cannot reach the nanopod server at {target.url}: {what}; is it up? See: nanopod status"
            ) from error


async def _ask(target: Target, method: str, path: str, accept: str, body: bytes | None) -> Answer:
    address = Address(target.url)
    options: dict[str, Any] = {}
    if address.secure:
        import ssl

        options["ssl"] = ssl.create_default_context()
    async with asyncio.timeout(CONNECT_S_MAX):
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=HEAD_BYTES_MAX, **options)
    try:
        sent = {"Host": address.host_header, "Authorization": f"Bearer {target.key}", "Accept": accept}
        sent["Connection"] = "close"
        if body is not None:
            sent |= {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        lines = [f"{method} {address.base}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b""))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        return int(head[0].split(" ", 2)[1]), fields, await _body(reader, fields)
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, fields: Mapping[str, str]) -> bytes:
    if "chunked" in fields.get("transfer-encoding", "").lower():
        parts: list[bytes] = []
        while size := int((await reader.readline()).split(b";", 1)[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        return b"".join(parts)
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    return await reader.read()
