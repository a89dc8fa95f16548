"""Web requests while workers come, go and die."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Coroutine
from typing import Any

import aiohttp
import pytest
from stage import KEY, digest, until
from web_stage import WebStage

pytestmark = pytest.mark.integration


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(100):
            await work

    asyncio.run(limited())


def test_from_cold_to_drained(own_web: WebStage) -> None:
    """One worker's whole life: requests wait for it, use it, and end well when it drains."""
    web = own_web
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def post(word: str, path: str, body: Any) -> threading.Thread:
        def send() -> None:
            answers[word] = web.get(path, method="POST", body=body)

        thread = threading.Thread(target=send)
        thread.start()
        return thread

    waiting = [
        post("square", "/web/site/square", {"x": 12}),
        post("size", "/web/site/size", b"\1" * (5 << 20)),
        post("echo", "/web/site/app/echo", b"\2" * (3 << 20)),
    ]
    until(lambda: web.control.demands, 20.0, "a call for a worker")
    assert web.control.demands[0].endpoint_id == "endp_site"
    limited = web.get("/web/site/square", method="POST", body={"x": 1}, headers={"X-Nanopod-Wait-S": "0.2"})
    assert (limited[0], json.loads(limited[2])["code"]) == (504, "queue_timeout")
    assert not answers
    worker = web.site_worker()
    for thread in waiting:
        thread.join(60)
    assert answers["square"][2] == b"144"
    assert answers["size"][2] == str(5 << 20).encode()
    assert answers["echo"][2] == b"\2" * (3 << 20)
    assert web.noted("startup")

    async def drain() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{web.url}/app/chat") as ws:
            await ws.send_str("a")
            await ws.receive_str()
            running = post("hold", "/web/site/hold?word=last", None)
            await asyncio.to_thread(until, lambda: web.noted("hold last"), 20.0, "the start")
            worker.send_signal(signal.SIGTERM)
            message = await ws.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)
            later = post("later", "/web/site/square", {"x": 3})
            web.release("last")
            await asyncio.to_thread(running.join, 30)
            assert answers["hold"][2] == b"last"
            await asyncio.to_thread(worker.wait, 30)
            assert web.noted("shutdown")
            await asyncio.to_thread(web.site_worker, "inst_second")
            await asyncio.to_thread(later.join, 30)
            assert answers["later"][2] == b"9"

    run(drain())


def test_a_worker_is_killed_in_the_middle(own_web: WebStage) -> None:
    web = own_web
    worker = web.site_worker(env={"NANOPOD_DEBUG": "1"})
    assert "in fail\n" in json.loads(web.get("/web/site/fail", method="POST")[2])["traceback"]

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            events = await session.get(f"{web.url}/count?n=1000000&pause=0.01")
            flood = await session.get(f"{web.url}/app/flood")
            socket = await session.ws_connect(f"{web.url}/app/chat")
            assert (await events.content.readline()).startswith(b"data:")
            assert len(await flood.content.readexactly(100_000)) == 100_000
            held = asyncio.ensure_future(session.post(f"{web.url}/hold?word=killed"))
            again = asyncio.ensure_future(session.post(f"{web.url}/again?word=more"))
            for line in ("hold killed", "again more"):
                await asyncio.to_thread(until, lambda line=line: web.noted(line), 20.0, "the start")
            worker.kill()
            # Functions say so in their stream; an application's answer is cut, so that nobody takes it for whole.
            text = await events.text()
            assert text.rstrip().splitlines()[-2] == "event: error"
            assert "its worker was lost" in text
            with pytest.raises(aiohttp.ClientPayloadError):
                await flood.read()
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1011)
            answer = await held
            assert answer.status == 502
            assert (await answer.json(content_type=None))["code"] == "worker_lost"
            # Only what its author allowed is run again.
            web.release("more")
            await asyncio.to_thread(web.site_worker, "inst_second")
            assert await (await again).text() == "more"
            assert [web.log.read_text().count(line) for line in ("hold killed", "again more")] == [1, 2]

    run(main())


def test_a_worker_that_hangs_is_given_up_and_unsent_bodies_go_elsewhere(own_web: WebStage) -> None:
    """A function whose body was not whole cannot have started: it runs on the next worker."""
    web = own_web
    first = web.site_worker()
    data = b"x" * 700_000
    with web.raw() as sock:
        sock.settimeout(60.0)
        head = f"POST /web/site/size HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode() + data[:600_000])
        until(lambda: web.health().get("in_flight", 0) >= 1, 20.0, "the dispatch")
        first.kill()
        web.site_worker("inst_second")
        sock.sendall(data[600_000:])
        found = b""
        while part := sock.recv(65_536):
            found += part
    assert found.endswith(b"\r\n\r\n700000")


def test_a_revoked_key_and_a_stopping_gateway_end_websockets(own_web: WebStage) -> None:
    web = own_web
    web.site_worker()

    async def main() -> None:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
            locked = await session.ws_connect(f"{web.url}/locked/chat")
            await locked.send_str("a")
            assert await locked.receive_str() == "A"
            del web.keys[digest(KEY)]
            await asyncio.to_thread(web.push)
            message = await locked.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"{web.url}/locked/chat")
            async with session.ws_connect(f"{web.url}/app/chat") as ws:
                await ws.send_str("a")
                await ws.receive_str()
                status = asyncio.ensure_future(asyncio.to_thread(web.terminate_gateway))
                message = await ws.receive()
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            assert await status == 0

    run(main())
