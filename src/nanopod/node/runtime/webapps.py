"""ASGI applications on a worker: lifespan, HTTP and websockets, as the specification (3.0) says."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

from nanopod.model import frames, websocket
from nanopod.node.runtime.webexchange import Exchange, Gone
from nanopod.node.runtime.webfunctions import answer_of_error

LIFESPAN_S_MAX: Final = 600.0
LEAVE_S_MAX: Final = 5.0
"""An application that was told of a disconnect has so long to end before it is cancelled."""
PIECE_BYTES: Final = 128 << 10
FIN: Final = 128

Message = dict[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[Any]
]
_log: Final = logging.getLogger(__name__)


class Mounted:
    """One application with its lifespan. Raises from `start` what it raised there."""

    def __init__(self, name: str, maker: Callable[[], Any]) -> None:
        self.name = name
        self.app: Application | None = None
        self.state: dict[str, Any] = {}
        self._maker = maker
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    async def start(self) -> None:
        """Make it, and wait until its startup is complete."""
        app = self._maker()
        self.app = await app if inspect.isawaitable(app) else app
        if not callable(self.app):
            raise TypeError(f"@app.asgi: {self.name} returned {self.app!r}, which is no ASGI application")
        self._task = asyncio.create_task(self._lifespan(), name=f"lifespan of {self.name}")
        answer = await self._ask("lifespan.startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"{self.name} could not start: {answer.get('message') or 'its startup failed'}")

    async def stop(self, limit_s: float) -> None:
        """Its shutdown, within `limit_s` seconds."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._ask("lifespan.shutdown")
            if answer is not None and answer["type"] == "lifespan.shutdown.failed":
                _log.error("the shutdown of %s failed: %s", self.name, answer.get("message", ""))
        except TimeoutError:
            _log.error("%s did not shut down within %.1f s", self.name, limit_s)
        except Exception:
            _log.exception("the shutdown of %s failed", self.name)
        self._task.cancel()

    async def _lifespan(self) -> None:
        assert self.app is not None, "made before"
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self.app(scope, self._events.get, self._answers.put)

    async def _ask(self, event: str) -> Message | None:
        """Tell it; None when it has no lifespan. Raises what it raised after it had begun to speak."""
        task = self._task
        assert task is not None, "started before it is asked"
        if task.done():
            return None
        self._events.put_nowait({"type": event})
        answer = asyncio.ensure_future(self._answers.get())
        await asyncio.wait([answer, task], return_when=asyncio.FIRST_COMPLETED, timeout=LIFESPAN_S_MAX)
        if answer.done():
            return answer.result()
        answer.cancel()
        if not task.done():
            raise TimeoutError(f"{event} of {self.name} took longer than {LIFESPAN_S_MAX:.0f} s")
        return None  # it ended or raised without an answer: it does not know of lifespans


def scope_of(exchange: Exchange, state: dict[str, Any], mount_path: str) -> Message:
    """The connection's scope. `path` begins with `root_path`, as the specification has it."""
    opened = exchange.opened
    root = (unquote(opened.root) + mount_path.rstrip("/")).rstrip("/")
    raw = opened.root + opened.path
    path = unquote(raw)
    if path == root:
        path, raw = path + "/", raw + "/"
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in opened.headers]
    host = next((value for name, value in opened.headers if name == "host"), "")
    name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "")
    secure = opened.scheme == "https"
    scheme = ("wss" if secure else "ws") if opened.ws else opened.scheme
    return {
        "type": "websocket" if opened.ws else "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": opened.method,
        "scheme": scheme,
        "path": path,
        "raw_path": raw.encode("latin-1", "replace"),
        "query_string": opened.query.encode("latin-1", "replace"),
        "root_path": root,
        "headers": headers,
        "client": tuple(opened.client) if opened.client[0] else None,
        "server": (name or "nanopod", int(port) if port else 443 if secure else 80),
        "state": dict(state),
        "extensions": {},
    }


class HttpCycle:
    """`receive` and `send` of one HTTP request."""

    def __init__(self, exchange: Exchange, state: dict[str, Any], mount_path: str = "") -> None:
        self.scope = scope_of(exchange, state, mount_path)
        self._exchange = exchange
        self._whole = False
        """The application has seen the whole body."""
        self._status: int | None = None
        self._headers: list[tuple[str, str]] = []
        self._began = time.perf_counter_ns()
        self.complete = False

    async def receive(self) -> Message:
        """`http.request`, and `http.disconnect` once the caller left or the answer is complete."""
        exchange = self._exchange
        if self._whole or self.complete:
            if not self.complete:
                await exchange.gone.wait()
            return {"type": "http.disconnect"}
        try:
            data, more = await exchange.receive()
        except Gone:
            return {"type": "http.disconnect"}
        self._whole = not more
        return {"type": "http.request", "body": data, "more_body": more}

    async def send(self, message: Message) -> None:
        """`http.response.start` and `http.response.body`. Raises OSError once the caller left."""
        kind = message["type"]
        if kind == "http.response.start":
            if self._status is not None:
                raise RuntimeError("http.response.start was sent twice")
            self._status = int(message["status"])
            self._headers = [(_latin(name), _latin(value)) for name, value in message.get("headers", ())]
            return
        if kind != "http.response.body" or self._status is None or self.complete:
            raise RuntimeError(f"{kind} cannot be sent now")
        exchange = self._exchange
        body, more = bytes(message.get("body", b"")), bool(message.get("more_body", False))
        if exchange.gone.is_set():
            raise Gone("the caller left")
        if not exchange.began:
            if not more and not any(name.lower() == "content-length" for name, _ in self._headers):
                self._headers.append(("content-length", str(len(body))))
            exchange.head(self._status, self._headers)
        if body:
            await exchange.send(body)
        elif more:
            exchange.flush_soon()
        self.complete = not more
        if self.complete:
            # Now, not when the application returns: it may have work to do that no caller waits for.
            exchange.end((time.perf_counter_ns() - self._began) // 1000)


class SocketCycle:
    """`receive` and `send` of one websocket."""

    def __init__(self, exchange: Exchange, state: dict[str, Any], mount_path: str) -> None:
        self.scope = scope_of(exchange, state, mount_path)
        offered = next((value for name, value in exchange.opened.headers if name == "sec-websocket-protocol"), "")
        self.scope["subprotocols"] = [word.strip() for word in offered.split(",") if word.strip()]
        self.scope["extensions"] = {"websocket.http.response": {}}
        del self.scope["method"]
        self._exchange = exchange
        self._told = False
        self._parts: list[bytes] = []
        self._opcode = 0
        self._over: tuple[int, str] | None = None
        self._denial = 0
        self._sending = asyncio.Lock()
        self.accepted = False
        self.closed = False
        """This side has closed, or refused."""

    async def receive(self) -> Message:
        """`websocket.connect`, messages, `websocket.disconnect`."""
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        while self._over is None:
            try:
                piece, more = await self._exchange.receive()
            except Gone:
                self._over = (1006, "")
                break
            if not piece:
                if not more:
                    self._over = (1006, "")
                continue
            opcode = piece[0] & 15
            self._opcode = opcode or self._opcode
            self._parts.append(piece[1:])
            if piece[0] < FIN:
                continue
            data, self._parts = b"".join(self._parts), []
            if self._opcode == websocket.TEXT:
                return {"type": "websocket.receive", "text": data.decode()}
            if self._opcode == websocket.BINARY:
                return {"type": "websocket.receive", "bytes": data}
            self._over = websocket.close_code(data)
        code, reason = self._over
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        """`websocket.accept`, `.send`, `.close`, or an answer in place of an accept. Raises OSError when it is over."""
        kind, exchange = message["type"], self._exchange
        if kind == "websocket.accept" and not self.accepted and not self.closed:
            headers = [(_latin(name), _latin(value)) for name, value in message.get("headers", ())]
            exchange.head(101, headers, message.get("subprotocol") or "")
            exchange.flush_soon()
            self.accepted = True
        elif kind == "websocket.send" and self.accepted:
            if self._over is not None or self.closed:
                raise Gone("the websocket is closed")
            text = message.get("text")
            if text is not None:
                await self._send(websocket.TEXT, text.encode())
            else:
                await self._send(websocket.BINARY, bytes(message["bytes"]))
        elif kind == "websocket.close":
            await self.close(int(message.get("code") or websocket.NORMAL), message.get("reason") or "")
        elif kind == "websocket.http.response.start" and not self.accepted:
            headers = [(_latin(name), _latin(value)) for name, value in message.get("headers", ())]
            exchange.head(int(message["status"]), headers)
            self._denial = 1
        elif kind == "websocket.http.response.body" and self._denial:
            await exchange.send(bytes(message.get("body", b"")))
            self.closed = not message.get("more_body", False)
        else:
            raise RuntimeError(f"{kind} cannot be sent now")

    async def close(self, code: int, reason: str) -> None:
        """Close, or refuse with 403 what was not accepted."""
        if self.closed:
            return
        self.closed = True
        exchange = self._exchange
        if self.accepted:
            if self._over is None:
                await self._send(websocket.CLOSE, websocket.encode_close(code, reason)[2:])
        elif not exchange.began:
            exchange.head(403, [("content-length", "0")])

    async def _send(self, opcode: int, payload: bytes) -> None:
        async with self._sending:  # the pieces of a message must follow each other
            await self._send_pieces(opcode, payload)

    async def _send_pieces(self, opcode: int, payload: bytes) -> None:
        for at in range(0, len(payload) or 1, PIECE_BYTES):
            last = FIN if at + PIECE_BYTES >= len(payload) else 0
            first = opcode if at == 0 else websocket.CONTINUATION
            await self._exchange.send(bytes((first | last,)) + payload[at : at + PIECE_BYTES])


async def run_http(exchange: Exchange, mounted: Mounted, mount_path: str) -> None:
    """Answer one request with an application."""
    cycle = HttpCycle(exchange, mounted.state, mount_path)
    assert mounted.app is not None, "mounted before it is asked"
    began = time.perf_counter_ns()
    try:
        await mounted.app(cycle.scope, cycle.receive, cycle.send)
        if not cycle.complete and not exchange.gone.is_set():
            raise RuntimeError(f"{mounted.name} ended without a complete answer")
    except Exception as error:
        if exchange.gone.is_set():
            return
        answer = answer_of_error(error, mounted.name)
        if not exchange.began:
            exchange.head(answer.status, answer.headers)
            exchange.post(answer.body)
        elif not cycle.complete:
            exchange.reset(frames.INTERNAL, f"the application failed in its answer: {type(error).__name__}")
            return
    exchange.end((time.perf_counter_ns() - began) // 1000)


async def run_socket(exchange: Exchange, mounted: Mounted, mount_path: str) -> None:
    """Serve one websocket with an application."""
    cycle = SocketCycle(exchange, mounted.state, mount_path)
    assert mounted.app is not None, "mounted before it is asked"
    began = time.perf_counter_ns()
    try:
        try:
            await mounted.app(cycle.scope, cycle.receive, cycle.send)
            await cycle.close(websocket.NORMAL, "")
        except asyncio.CancelledError:
            await cycle.close(1012, "the worker ends")
            raise
        except Exception as error:
            if not exchange.gone.is_set():
                _log.exception("websocket of %s failed", mounted.name)
            if not cycle.accepted and not exchange.began:
                answer = answer_of_error(error, mounted.name)
                exchange.head(answer.status, answer.headers)
                exchange.post(answer.body)
            else:
                await cycle.close(websocket.INTERNAL, type(error).__name__)
    except Gone:
        return
    finally:
        if not exchange.gone.is_set():
            exchange.end((time.perf_counter_ns() - began) // 1000)


def _latin(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
