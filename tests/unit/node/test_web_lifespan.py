"""Applications start and stop as they say, and a websocket's messages stay whole."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from nanopod.model import websocket
from nanopod.node.runtime.webapps import Mounted, SocketCycle
from nanopod.node.runtime.webexchange import Exchange, Gone, WebOpened


def speaker(log: list[str], *, startup: str = "complete", hang: bool = False) -> Any:
    """An application that answers its lifespan."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        scope["state"]["word"] = "kept"
        while True:
            event = (await receive())["type"]
            log.append(event)
            if event == "lifespan.startup":
                await send({"type": f"lifespan.startup.{startup}", "message": "no disk"})
            elif hang:
                await asyncio.sleep(600)
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return

    return app


def test_startup_and_shutdown() -> None:
    async def main() -> None:
        log: list[str] = []

        async def make() -> Any:
            return speaker(log)

        mounted = Mounted("app", make)
        await mounted.start()
        assert mounted.state == {"word": "kept"}
        assert log == ["lifespan.startup"]
        await mounted.stop(10.0)
        assert log == ["lifespan.startup", "lifespan.shutdown"]

    asyncio.run(main())


def test_a_startup_that_fails() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="app could not start: no disk"):
            await Mounted("app", lambda: speaker([], startup="failed")).start()
        with pytest.raises(TypeError, match="no ASGI application"):
            await Mounted("app", lambda: 7).start()
        with pytest.raises(ZeroDivisionError):
            await Mounted("app", lambda: 1 // 0).start()

    asyncio.run(main())


def test_an_application_that_knows_no_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError(scope["type"])

    async def main() -> None:
        mounted = Mounted("app", lambda: app)
        await mounted.start()
        await mounted.stop(1.0)

    asyncio.run(main())


def test_a_shutdown_that_hangs_is_left() -> None:
    async def main() -> None:
        log: list[str] = []
        mounted = Mounted("app", lambda: speaker(log, hang=True))
        await mounted.start()
        await mounted.stop(0.05)
        assert log[-1] == "lifespan.shutdown"

    asyncio.run(main())


class Sent:
    """An exchange that keeps what is sent, and lets others run between two pieces."""

    def __init__(self) -> None:
        self.opened = WebOpened(headers=[("host", "x:80"), ("sec-websocket-protocol", "a, b")], ws=True)
        self.gone = asyncio.Event()
        self.began = False
        self.pieces: list[bytes] = []

    def head(self, status: int, headers: Any, subprotocol: str = "") -> None:
        self.began = True
        self.pieces.append(b"head %d %s" % (status, subprotocol.encode()))

    def flush_soon(self) -> None: ...

    async def send(self, data: bytes) -> None:
        self.pieces.append(data)
        await asyncio.sleep(0)


def test_messages_of_two_tasks_do_not_mix() -> None:
    async def main() -> None:
        exchange = Sent()
        cycle = SocketCycle(cast(Exchange, exchange), {}, "/ws")
        assert cycle.scope["subprotocols"] == ["a", "b"]
        assert await cycle.receive() == {"type": "websocket.connect"}
        with pytest.raises(RuntimeError):
            await cycle.send({"type": "websocket.send", "text": "early"})
        await cycle.send({"type": "websocket.accept", "subprotocol": "b"})
        one, two = b"1" * 400_000, "2" * 400_000
        await asyncio.gather(
            cycle.send({"type": "websocket.send", "bytes": one}), cycle.send({"type": "websocket.send", "text": two})
        )
        first, *pieces = exchange.pieces
        assert first == b"head 101 b"
        whole: list[tuple[int, bytes]] = []
        opcode, parts = 0, b""
        for piece in pieces:
            assert (piece[0] & 15 == websocket.CONTINUATION) is bool(opcode)
            opcode, parts = opcode or piece[0] & 15, parts + piece[1:]
            if piece[0] & 128:
                whole.append((opcode, parts))
                opcode, parts = 0, b""
        assert whole == [(websocket.BINARY, one), (websocket.TEXT, two.encode())]
        await cycle.send({"type": "websocket.close", "code": 4000})
        assert websocket.close_code(exchange.pieces[-1][1:]) == (4000, "")
        with pytest.raises(Gone):
            await cycle.send({"type": "websocket.send", "text": "late"})

    asyncio.run(main())


def test_a_refused_websocket_is_403() -> None:
    async def main() -> None:
        exchange = Sent()
        cycle = SocketCycle(cast(Exchange, exchange), {}, "/ws")
        await cycle.receive()
        await cycle.send({"type": "websocket.close"})
        assert exchange.pieces == [b"head 403 "]

    asyncio.run(main())
