"""Steps of graphs that other servers answer."""

from __future__ import annotations

import asyncio

import pytest

from nanopod.gateway.heads import Head
from nanopod.gateway.steps import post_abroad

ANSWERS = {
    "/length": b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nhi",
    "/chunks": b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n you\r\n0\r\n\r\n",
    "/close": b"HTTP/1.1 500 Oh\r\n\r\nuntil the end",
    "/moved": b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n",
    "/short": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi",
    "/nothing": b"",
    "/odd": b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
    "/upgrade": b"HTTP/1.1 101 Up\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nraw",
    "/junk": b"this is not HTTP\r\n\r\n",
}


async def _asked(path: str) -> tuple[tuple[int, bytes, str], bytes]:
    seen = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n"))
        seen.extend(await reader.readexactly(7))
        writer.write(ANSWERS[path])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        head = Head()
        head.headers = {"content-type": "application/x-own", "x-request-id": "req-1"}
        return await post_abroad(f"http://127.0.0.1:{port}{path}?a=b", b"payload", head), bytes(seen)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/length", (200, b"hi", "text/plain")),
        ("/close", (500, b"until the end", "application/json")),
        ("/moved", (302, b"", "application/json")),
    ],
)
def test_whatever_way_an_answer_ends(path: str, answer: tuple[int, bytes, str]) -> None:
    found, seen = asyncio.run(_asked(path))
    assert found == answer
    assert seen.startswith(f"POST {path}?a=b HTTP/1.1\r\nhost: 127.0.0.1:".encode())
    assert b"content-type: application/x-own\r\n" in seen
    assert b"x-request-id: req-1\r\n" in seen
    assert seen.endswith(b"\r\n\r\npayload")


def test_chunks_are_joined() -> None:
    ANSWERS["/chunks"] = ANSWERS["/chunks"].replace(b"3\r\n you", b"4\r\n you")
    assert asyncio.run(_asked("/chunks"))[0] == (201, b"hi you", "application/json")


def test_what_cannot_be_reached_says_so_without_secrets() -> None:
    for url in ("http://user:password@127.0.0.1:1/x?token=s", "http://169.254.169.254/latest", "http://[fe80::1]/"):
        status, body, _ = asyncio.run(post_abroad(url, b"", Head()))
        assert status == 502
        assert b"password" not in body
        assert b"token" not in body
    assert b"link-local" in asyncio.run(post_abroad("http://169.254.169.254/", b"", Head()))[1]
    status, body, _ = asyncio.run(_asked("/junk"))[0]
    assert status == 502


@pytest.mark.parametrize("path", ["/short", "/nothing", "/odd", "/upgrade"])
def test_an_answer_that_is_not_whole_or_none_is_no_answer(path: str) -> None:
    status, body, _ = asyncio.run(_asked(path))[0]
    assert status == 502
    assert b"error" in body


@pytest.mark.parametrize("host", ["[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]"])
def test_link_local_addresses_in_disguise(host: str) -> None:
    assert b"link-local" in asyncio.run(post_abroad(f"http://{host}/", b"", Head()))[1]
    assert asyncio.run(post_abroad("http://127.0.0.1:99999/", b"", Head()))[0] == 502
