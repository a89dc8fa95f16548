"""The deployment behind the web tests: functions of every kind, two applications."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from nanopod import Batch, Deployment, current_call, enter, method

app = Deployment(name="site")
LOG = os.environ.get("WEB_SITE_LOG", os.devnull)


def note(text: str) -> None:
    """A line that the test can read."""
    with open(LOG, "a") as log:
        log.write(text + "\n")


@dataclass
class Point:
    x: float
    y: float = 0.0


@app.remote(web="POST /square", concurrency=300)
async def square(x: int) -> int:
    return x * x


@app.remote(web="GET /items/{id}", auth="public", concurrency=20)
def item(id: int, q: str = "none", tags: list[str] | None = None, exact: bool = False) -> dict[str, Any]:
    return {"id": id, "q": q, "tags": tags, "exact": exact}


@app.remote(web="DELETE /items/{id}", auth="public")
async def remove(id: int) -> tuple[None, int]:
    return None, 204


@app.remote(web="POST /norm", auth="public")
async def norm(point: Point) -> float:
    return (point.x**2 + point.y**2) ** 0.5


@app.remote(web="GET /page", auth="public", concurrency=5)
async def page(kind: str) -> Any:
    if kind == "text":
        return "plain ümlaut"
    if kind == "bytes":
        return b"\0\1\2"
    if kind == "tuple":
        return "<b>hi</b>", 203, {"content-type": "text/html", "x-own": "1"}
    if kind == "response":
        response = HTMLResponse("<i>hi</i>", 201)
        response.set_cookie("one", "1")
        response.set_cookie("two", "2")
        return response
    if kind == "split":
        return "x", 200, {"x-evil": "a\r\nset-cookie: b=1"}
    return object()


@app.remote(web="POST /fail", auth="public")
async def fail(kind: str = "value") -> None:
    if kind == "http":
        raise HTTPException(418, "short and stout", {"x-tea": "yes"})
    raise ValueError("no luck")


@app.remote(web="GET /count", auth="public", concurrency=20)
async def count(n: int, pause: float = 0.0, fail_at: int = -1) -> AsyncIterator[dict[str, int]]:
    try:
        for index in range(n):
            if index == fail_at:
                raise ValueError("half way")
            yield {"i": index}
            await asyncio.sleep(pause)
    finally:
        note(f"count ended after {n}")


@app.remote(web="GET /count-sync", auth="public")
def count_sync(n: int) -> Iterator[int]:
    yield from range(n)


@app.remote(web="POST /sleep", auth="public", timeout=1, concurrency=2)
async def sleep(seconds: float, word: str = "") -> str:
    note(f"sleep {word}")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note(f"cancelled {word}")
        raise
    return "slept"


@app.remote(web="POST /hold", auth="public", concurrency=2)
async def hold(word: str) -> str:
    """Runs until the file is there."""
    note(f"hold {word}")
    try:
        while not os.path.exists(f"{LOG}.{word}"):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note(f"cancelled {word}")
        raise
    return word


@app.remote(web="POST /size", auth="public", concurrency=5)
async def size(data: bytes) -> int:
    return len(data)


@app.remote(web="POST /me", auth="public")
def me() -> dict[str, Any]:
    call = current_call()
    assert call is not None
    time.sleep(0)
    return {"id": len(call.call_id), "function": call.function}


@app.remote(web="POST /timed", auth="public")
async def timed() -> AsyncIterator[int]:
    """Its steps must be those of one task."""
    async with asyncio.timeout(60):
        for index in range(3):
            yield index


@app.remote(web="POST /batch", auth="public", batch=Batch(4))
async def batch(x: list[int]) -> list[int]:
    return [value * 10 for value in x]


@app.remote(web="POST /climb", auth="public")
async def climb(n: int) -> int:
    """Calls itself through the fleet."""
    return 1 + int(await climb.remote.aio(n - 1)) if n else 0


@app.remote(web="POST /climb-sync", auth="public")
def climb_sync(n: int) -> int:
    return 1 + int(climb_sync.remote(n - 1)) if n else 0


@app.remote(web="GET /climbed", auth="public")
async def climbed(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield await climb.remote.aio(i)


@app.remote(web="POST /climb-batch", auth="public", batch=Batch(2), concurrency=2)
async def climb_batch(n: list[int]) -> list[int]:
    return [1 + int(await climb_batch.remote.aio(one - 1)) if one else 0 for one in n]


@app.remote(web="POST /again", auth="public", idempotent=True)
async def again(word: str) -> str:
    note(f"again {word}")
    while not os.path.exists(f"{LOG}.{word}"):
        await asyncio.sleep(0.01)
    return word


@app.cls(concurrency=2)
class Model:
    @enter()
    def load(self) -> None:
        self.factor = 3

    @method(web="GET /model/{x}", auth="public")
    def times(self, x: int) -> int:
        return self.factor * x


async def info(request: Request) -> Response:
    return JSONResponse(
        {
            "path": request.url.path,
            "root": request.scope["root_path"],
            "query": request.url.query,
            "headers": dict(request.headers),
            "client": list(request.client or ()),
            "word": request.state.word,
            "url_for": str(request.url_for("info")),
        }
    )


async def echo(request: Request) -> Response:
    async def out() -> AsyncIterator[bytes]:
        async for piece in request.stream():
            yield piece

    return StreamingResponse(out(), media_type="application/octet-stream")


async def flood(request: Request) -> Response:
    """Endless bytes, at the caller's pace."""

    async def out() -> AsyncIterator[bytes]:
        sent = 0
        try:
            while True:
                yield b"x" * 65_536
                sent += 1
                if sent % 16 == 0:
                    note(f"flood {sent}")
        finally:
            note("flood over")

    return StreamingResponse(out(), media_type="application/octet-stream")


async def raises(request: Request) -> Response:
    raise LookupError("deep inside")


async def liar(scope: Any, receive: Any, send: Any) -> None:
    """An application that promises more than it sends."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"short"})


async def chat(websocket: WebSocket) -> None:
    if websocket.query_params.get("deny"):
        await websocket.send_denial_response(PlainTextResponse("not you", 402))
        return
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol="chat" if "chat" in offered else None, headers=[(b"x-room", b"1")])
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                note(f"disconnect {message['code']}")
                return
            if message.get("text") == "bye":
                await websocket.close(4001, "told to")
                return
            if message.get("text") == "boom":
                raise RuntimeError("boom")
            if message.get("text") is not None:
                await websocket.send_text(message["text"].upper())
            else:
                await websocket.send_bytes(message["bytes"][::-1])
    except WebSocketDisconnect:
        note("disconnect")


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    note("startup")
    yield {"word": "hello"}
    note("shutdown")


@app.asgi(path="/app", auth="public", concurrency=50)
def public_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/", info, name="root"),
            Route("/info", info, name="info"),
            Route("/echo", echo, methods=["POST"]),
            Route("/flood", flood),
            Route("/raises", raises),
            Mount("/liar", liar),
            WebSocketRoute("/chat", chat),
        ],
        lifespan=lifespan,
    )


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """An application without a lifespan."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


app.asgi(bare, path="/private", name="bare")


@app.asgi(path="/locked")
async def locked() -> Starlette:
    return Starlette(routes=[WebSocketRoute("/chat", chat)])
