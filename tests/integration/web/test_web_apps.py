"""ASGI applications: HTTP with streams both ways, websockets, and what the gateway does with answers that lie."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import aiohttp
import pytest
from stage import KEY, until
from web_stage import WebStage

from nanopod.model import websocket

pytestmark = pytest.mark.integration


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


def everything(sock: socket.socket) -> bytes:
    """What comes until the other side closes or breaks off."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65_536):
            found += part
    return found


def test_the_scope_is_that_of_a_mounted_application(web: WebStage) -> None:
    given = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "10.1.2.3",
        "X-Own": "1",
        "Connection": "x-gone",
        "X-Gone": "1",
    }
    status, headers, body = web.get("/web/site/app/info?a=1&b=%20", key=KEY, headers=given)
    found = json.loads(body)
    assert status == 200
    assert (found["root"], found["path"], found["query"]) == ("/web/site/app", "/web/site/app/info", "a=1&b=%20")
    assert found["url_for"] == f"https://127.0.0.1:{web.port}/web/site/app/info"
    assert (found["word"], found["client"][0]) == ("hello", "127.0.0.1")
    seen = found["headers"]
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("10.1.2.3, 127.0.0.1", "https")
    assert (seen["x-forwarded-prefix"], seen["x-own"]) == ("/web/site", "1")
    assert seen["x-request-id"] == headers["x-request-id"]
    # The key is the gateway's own affair, other credentials are the application's.
    assert not {"authorization", "connection", "x-gone", "transfer-encoding"} & set(seen)
    body = web.get("/web/site/app/info", key=None, headers={"Authorization": "Basic abc"})[2]
    assert json.loads(body)["headers"]["authorization"] == "Basic abc"
    assert json.loads(web.get("/web/site/app", key=None)[2])["path"] == "/web/site/app/"


def test_an_application_object_without_a_lifespan(web: WebStage) -> None:
    assert web.get("/web/site/private/a%20b/c")[2] == b"/web/site/private/a b/c"
    assert web.get("/web/site/private/x", key=None)[0] == 401


def test_an_application_that_raises(web: WebStage) -> None:
    assert web.get("/web/site/app/raises", key=None)[0] == 500


def test_an_answer_that_is_not_as_long_as_it_said_is_cut(web: WebStage) -> None:
    with web.raw() as sock:
        sock.sendall(b"GET /web/site/app/liar/ HTTP/1.1\r\nHost: x\r\n\r\n")
        found = everything(sock)
    # Never a whole answer: ten bytes were promised.
    assert b"\r\n\r\n" not in found or len(found.partition(b"\r\n\r\n")[2]) < 10
    until(lambda: any(r.status == 502 for r in web.control.records), 20.0, "its record")


def test_bodies_stream_both_ways_at_once(web: WebStage) -> None:
    """Each piece comes back before the next one is sent: nothing waits for the whole body."""

    async def main() -> None:
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        came = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            for index in range(5):
                assert await answers.get()
                yield f"piece {index}".encode()

        async def read(answer: aiohttp.ClientResponse) -> bytes:
            whole = b""
            async for piece in answer.content.iter_any():
                whole += piece
                came.set()
                answers.put_nowait(piece)
            return whole

        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{web.url}/app/echo", data=pieces()) as answer,
        ):
            assert await read(answer) == b"first" + b"".join(f"piece {index}".encode() for index in range(5))

    run(main())


def test_a_large_body_goes_through_whole(web: WebStage) -> None:
    async def main() -> None:
        data = os.urandom(1 << 20) * 12
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{web.url}/app/echo", data=data) as answer:
                assert await answer.read() == data
            async with session.post(f"{web.url}/size", data=data) as answer:
                assert await answer.text() == str(len(data))

    run(main())


def test_a_slow_reader_slows_the_application(web: WebStage) -> None:
    with socket.create_connection(("127.0.0.1", web.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.sendall(b"GET /web/site/app/flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")

        def made() -> int:
            lines = [
                line for line in web.log.read_text().splitlines() if line.startswith("flood ") and line[6].isdigit()
            ]
            return int(lines[-1].split()[1]) if lines else 0

        def stands_still() -> bool:
            before = made()
            # Another request goes through meanwhile: one full stream does not hold up the link.
            for _ in range(5):
                assert web.get("/web/site/items/1", key=None)[0] == 200
            return made() == before

        until(stands_still, 30.0, "the application to wait")
        assert made() * 65_536 < 24 << 20
        for _ in range(400):
            sock.recv(65_536)
    until(lambda: web.noted("flood over"), 30.0, "the end of the stream")


def test_websockets(web: WebStage) -> None:
    async def main() -> None:
        url = f"{web.url}/app/chat"
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url, protocols=["other", "chat"], max_msg_size=1 << 25) as ws:
                assert ws.protocol == "chat"
                assert ws._response.headers["x-room"] == "1"
                await ws.send_str("grün")
                assert (await ws.receive_str()) == "GRÜN"
                big = os.urandom(3 << 20)
                await ws.send_bytes(big)
                assert (await ws.receive_bytes()) == big[::-1]
                await ws.ping(b"there?")
                await ws.send_str("")
                assert (await ws.receive_str()) == ""
                await ws.send_str("bye")
                message = await ws.receive()
                assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "told to")
            async with session.ws_connect(url) as ws:
                await ws.send_str("boom")
                assert (await ws.receive()).data == 1011
            async with session.ws_connect(url) as ws:
                await ws.close(code=3001, message=b"enough")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{url}?deny=1")
            assert refused.value.status == 402
            with pytest.raises(aiohttp.WSServerHandshakeError) as private:
                await session.ws_connect(f"{web.url}/private/x")
            assert private.value.status == 401

    run(main())
    until(lambda: web.noted("disconnect 3001"), 20.0, "the application's disconnect")
    until(
        lambda: any(r.function == "asgi:public_app" and r.status == 101 for r in web.control.records), 20.0, "a record"
    )


def test_fifty_websockets_take_turns(web: WebStage) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def talk(index: int) -> None:
                async with session.ws_connect(f"{web.url}/app/chat") as ws:
                    for turn in range(10):
                        await ws.send_str(f"a{index}.{turn}")
                        assert (await ws.receive_str()) == f"A{index}.{turn}"

            await asyncio.gather(*map(talk, range(60)))

    run(main())


def open_socket(web: WebStage) -> socket.socket:
    """A websocket by hand."""
    sock = web.raw()
    key = websocket.client_key(b"k" * 16)
    sock.sendall(
        f"GET /web/site/app/chat HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert websocket.accept_key(key).encode() in head
    assert b"sec-websocket-protocol" not in head.lower()
    return sock


def test_a_websocket_byte_by_byte(web: WebStage) -> None:
    with open_socket(web) as sock:
        parser = websocket.Parser(server=False)
        found: list[tuple[int, bytes]] = []
        # A message in fragments, sent in single bytes, with a ping between them.
        data = b"".join(
            (
                websocket.encode(websocket.TEXT, b"frag", b"mask", fin=False),
                websocket.encode(websocket.PING, b"p", b"mask"),
                websocket.encode(websocket.CONTINUATION, b"ment", b"mask"),
            )
        )
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
        while len(found) < 2:
            found += parser.feed(sock.recv(65_536))
        assert sorted(found) == [(websocket.TEXT, b"FRAGMENT"), (websocket.PONG, b"p")]
        sock.sendall(b"\x81\x01x")  # not masked
        while not parser.closed:
            found += parser.feed(sock.recv(65_536))
        assert websocket.close_code(found[-1][1])[0] == websocket.PROTOCOL_ERROR
        assert sock.recv(10) == b""


def test_a_caller_that_vanishes(web: WebStage) -> None:
    open_socket(web).close()
    until(lambda: web.noted("disconnect 1006"), 20.0, "the application's disconnect")


def test_a_websocket_reader_that_does_not_read(web: WebStage) -> None:
    """What the application sends waits for the caller, what the caller sends waits for the application."""
    with open_socket(web) as sock:
        message = websocket.encode(websocket.BINARY, b"z" * 65_536, b"mask")
        sock.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += sock.send(message[sent % len(message) :])
        assert sent < 64 << 20
        sock.settimeout(30.0)
        parser = websocket.Parser(server=False)
        whole = sent // len(message)
        got = 0
        while got < whole:
            for opcode, payload in parser.feed(sock.recv(1 << 20)):
                assert (opcode, payload) == (websocket.BINARY, b"z" * 65_536)
                got += 1
