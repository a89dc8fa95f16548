"""A gateway of a hundred lines for tests of the client: runs functions in its own process, cuts links on demand."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from nanopod.model import calls, codec, websocket

KEY = "sk_np_test"


class FakeGateway:
    """Use as `async with FakeGateway(functions) as gateway`."""

    def __init__(self, functions: dict[str, Callable[..., Any]] | None = None) -> None:
        self.functions = functions or {}
        self.started: Counter[bytes] = Counter()
        self.headers: dict[bytes, calls.Call] = {}
        self.frames: list[calls.Header] = []
        self.tasks: dict[bytes, asyncio.Task[None]] = {}
        self.answers: dict[bytes, list[bytes]] = {}
        self.credit: dict[bytes, asyncio.Semaphore] = {}
        self.writers: set[asyncio.StreamWriter] = set()
        self.clients: list[bytes] = []
        self.most_ahead = 0
        self.refuse: bytes | None = None
        self.connections = 0
        self.requests: list[tuple[str, str, bytes]] = []
        self.blobs: dict[str, bytes] = {}
        self.specs: dict[str, dict[str, Any]] = {}
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.failures: list[tuple[int, Any]] = []
        """Answers to give instead of the right ones."""
        self.fields = ""
        self.looks = 0
        self.ready_after = 0
        self.failure: dict[str, Any] | None = None

    async def __aenter__(self) -> FakeGateway:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.server.close()
        self.cut()

    def cut(self) -> None:
        """Drop every connection without a word."""
        for writer in list(self.writers):
            writer.transport.abort()
        self.writers.clear()

    def send(self, call_id: bytes, *frames: bytes) -> None:
        """To every client that is there; kept for those that come back."""
        self.answers.setdefault(call_id, []).extend(frames)
        for writer in self.writers:
            writer.write(b"".join(websocket.encode(websocket.BINARY, frame) for frame in frames))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if self.refuse is not None:
                writer.write(self.refuse)
                await writer.drain()
                return
            assert f"Authorization: Bearer {KEY}" in head
            if not head.startswith("GET /v1/link HTTP/1.1"):
                await self._manage(reader, writer, head)
                return
            key = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
            writer.write(websocket.server_response(key, calls.SUBPROTOCOL))
            parser = websocket.Parser(server=True)
            parts: dict[bytes, tuple[calls.Call, bytearray]] = {}
            while data := await reader.read(1 << 20):
                for opcode, payload in parser.feed(data):
                    if opcode == websocket.BINARY:
                        self._frame(writer, *calls.decode(payload), parts)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _manage(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        """The part of the management API that a deploy needs."""
        method, path, _ = head.split("\r\n", 1)[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        self.requests.append((method, path, body))
        status, answer = self._answer(method, path, body)
        raw = b"" if answer is None or method == "HEAD" else json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(raw)}\r\n{self.fields}\r\n".encode() + raw)
        await writer.drain()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if self.failures:
            return self.failures.pop(0)
        path, _, query = path.partition("?")
        if method == "GET" and path in self.lists:
            # Two rows a page, so that paging is always part of it.
            words = parse_qs(query)
            rows, start = self.lists[path], int(words.get("starting_after", words.get("cursor", ["0"]))[0])
            more = start + 2 < len(rows)
            return 200, {"data": rows[start : start + 2], "has_more": more, "cursor": str(start + 2) if more else None}
        if path.startswith("/v1/blobs/"):
            digest = path.rpartition("/")[2]
            if method == "HEAD":
                return (204 if digest in self.blobs else 404), None
            assert hashlib.sha256(body).hexdigest() == digest
            self.blobs[digest] = body
            return 201, {}
        if (method, path) == ("POST", "/v1/endpoints"):
            spec = json.loads(body)
            name = f"{spec['name']}:{spec['tag']}"
            known = self.specs.get(name)
            changed = (
                [] if known is None else [k for k, v in spec["fingerprints"].items() if v != known["fingerprints"][k]]
            )
            tier = 4 if known is None else max([0, *({"scale": 1, "code": 2, "image": 3}[part] for part in changed)])
            if "dry_run" not in query and tier >= 2 and spec["bundle"] and spec["bundle"] not in self.blobs:
                gone = {"type": "conflict", "message": "bundle: blob was not uploaded", "details": []}
                return 409, {"error": gone}
            if "dry_run" not in query:
                self.specs[name] = spec
            action = ("exists", "autoscale_update", "soft_update", "hard_update", "created")[tier]
            return 200, {"endpoint": self._endpoint(name), "action": action, "tier": tier, "changed": changed}
        name = path.removeprefix("/v1/endpoints/").removesuffix("/heartbeat")
        name = next((full for full in self.specs if name in (full, "endp_" + full)), None)
        if name is None:
            return 404, {"error": {"type": "not_found", "message": "no such endpoint", "details": []}}
        return 200, self._endpoint(name)

    def _endpoint(self, name: str) -> dict[str, Any]:
        self.looks += 1
        ready = int(self.looks > self.ready_after)
        spec = self.specs.get(name, {})
        return {
            "id": "endp_" + name, "name": name.partition(":")[0], "status": "ready" if ready else "waking",
            "ready_instance_count": ready, "target_instance_count": 1, "failure": self.failure,
            "fingerprints": spec.get("fingerprints"),
        }  # fmt: skip

    def _frame(self, writer: asyncio.StreamWriter, header: Any, payload: bytes, parts: dict[bytes, Any]) -> None:
        self.frames.append(header)
        if isinstance(header, calls.Hello):
            self.writers.add(writer)
            self.clients.append(header.id)
            writer.write(websocket.encode(websocket.BINARY, calls.encode(calls.Welcome(b"g" * 16, ping_s=0.5))))
        elif isinstance(header, calls.Call) and header.id in self.tasks:
            for frame in self.answers.get(header.id, []):  # known: the state or result again, never a second start
                writer.write(websocket.encode(websocket.BINARY, frame))
        elif isinstance(header, calls.Call):
            if header.size > len(payload):
                parts[header.id] = (header, bytearray(payload))
            else:
                self._start(header, payload)
        elif isinstance(header, calls.Part):
            call, buffer = parts[header.id]
            buffer += payload
            if len(buffer) >= call.size:
                self._start(call, bytes(parts.pop(header.id)[1]))
        elif isinstance(header, calls.Cancel) and header.id in self.tasks:
            self.tasks[header.id].cancel()
        elif isinstance(header, calls.Credit):
            for _ in range(header.items):
                self.credit[header.id].release()

    def _start(self, header: calls.Call, payload: bytes) -> None:
        self.headers[header.id] = header
        self.tasks[header.id] = asyncio.get_running_loop().create_task(self._run(header, payload))

    async def _run(self, header: calls.Call, payload: bytes) -> None:
        call_id = header.id
        self.started[call_id] += 1
        try:
            args, kwargs = codec.decode(payload)
            self.send(call_id, calls.encode(calls.State(call_id, state="started")))
            value = self.functions[header.function](*args, **kwargs)
            if inspect.isasyncgen(value):
                await self._items(call_id, value)
                return
            if inspect.isawaitable(value):
                value = await value
            whole = codec.encode(value)
            self.send(call_id, *calls.split(calls.Result(call_id, size=len(whole)), whole))
        except asyncio.CancelledError:
            self.send(call_id, calls.encode(calls.Error(call_id, code="cancelled", message="cancelled")))
        except Exception as error:
            whole = codec.encode_exception(error, log_tail="last words")
            frame = calls.Error(call_id, code="remote_error", message=str(error), size=len(whole))
            self.send(call_id, *calls.split(frame, whole))

    async def _items(self, call_id: bytes, items: Any) -> None:
        window = self.credit[call_id] = asyncio.Semaphore(calls.ITEM_WINDOW)
        index = 0
        async for item in items:
            await window.acquire()
            whole = codec.encode(item)
            self.send(call_id, *calls.split(calls.Item(call_id, index=index, size=len(whole)), whole))
            index += 1
        self.send(call_id, calls.encode(calls.End(call_id)))
