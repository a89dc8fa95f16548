"""A gateway's end of worker links, for tests: accepts workers on a unix socket and lets the test speak to them."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanopod.model import calls, codec, frames

WAIT_S_MAX = 20.0


@dataclass
class Answer:
    """What came on one stream so far."""

    stream: int
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    writes: set[int] = field(default_factory=set)
    """Numbers of the reads in which its frames arrived."""

    def of(self, kind: int) -> list[bytes]:
        """Payloads of one frame type."""
        return [payload for found, _, payload in self.frames if found == kind]

    @property
    def started(self) -> bool:
        return bool(self.of(frames.HEAD))

    def headers(self) -> list[Any]:
        """Decoded call frames."""
        return [calls.decode(payload)[0] for payload in self.of(frames.DATA)]

    def reset(self) -> tuple[str, str] | None:
        """(name of the code, text) when the worker reset the stream."""
        for payload in self.of(frames.RESET):
            code, text = frames.unpack_reset(payload)
            return frames.RESET_NAMES[code], text
        return None

    def value(self, module: str | None = None) -> Any:
        """The result of a call; raises the remote exception, or AssertionError for anything else."""
        parts: list[bytes] = []
        final: Any = None
        for payload in self.of(frames.DATA):
            header, part = calls.decode(payload)
            if isinstance(header, (calls.Result, calls.Error)):
                final, parts = header, [part]
            elif isinstance(header, calls.Part) and final is not None:
                parts.append(part)
        assert final is not None, f"no answer: {self.reset()}"
        data = b"".join(parts)
        assert len(data) == final.size
        if isinstance(final, calls.Error):
            if data:
                raise codec.decode_exception(data, module=module)
            raise AssertionError(f"{final.code}: {final.message}")
        return codec.decode(data, module=module)

    def items(self) -> list[Any]:
        """The items of a generator."""
        found = [calls.decode(payload) for payload in self.of(frames.DATA)]
        return [codec.decode(part) for header, part in found if isinstance(header, calls.Item)]

    @property
    def end(self) -> dict[str, Any]:
        return dict(json.loads(self.of(frames.END)[0]))

    async def until(self, test: Callable[[Answer], bool], wait_s_max: float = WAIT_S_MAX) -> None:
        """Wait until `test` holds."""
        async with asyncio.timeout(wait_s_max), self.changed:
            await self.changed.wait_for(lambda: test(self))


class Worker:
    """One linked worker."""

    def __init__(self, gateway: FakeGateway, writer: asyncio.StreamWriter) -> None:
        self.gateway = gateway
        self.writer = writer
        self.hello: dict[str, Any] = {}
        self.states: list[dict[str, Any]] = []
        self.answers: dict[int, Answer] = {}
        self.pings = 0
        self.pongs = 0
        self.closed = asyncio.Event()
        self.changed = asyncio.Condition()
        self.credit = True
        self._next = 1
        self._reads = 0

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def open(self, head: dict[str, Any], body: bytes = b"", *, end: bool = True, epoch: int = 1) -> Answer:
        """Open a stream."""
        stream = self._next
        self._next += 1
        answer = self.answers[stream] = Answer(stream)
        text = b'{"k":"call"}' if head == {"k": "call"} else json.dumps(head).encode()
        self.send(frames.pack_open(stream, text, body, end=end, epoch=epoch))
        return answer

    def call(
        self, function: str, *args: Any, call_id: bytes = b"", timeout_s: float = 60.0, **kwargs: Any
    ) -> tuple[bytes, Answer]:
        """Send a remote call; (its id, its stream)."""
        call_id = call_id or os.urandom(16)
        payload = codec.encode((args, kwargs))
        header = calls.Call(call_id, "endp_test", function, timeout_s=timeout_s, size=len(payload))
        first, *rest = calls.split(header, payload)
        answer = self.open({"k": "call"}, first, end=not rest)
        for number, part in enumerate(rest):
            last = number == len(rest) - 1
            self.send(frames.pack(frames.DATA, answer.stream, part, frames.FLAG_END if last else 0))
        return call_id, answer

    async def run(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """A remote call to its end; its value."""
        _, answer = self.call(function, *args, **kwargs)
        await self.over(answer)
        return answer.value()

    async def over(self, answer: Answer, wait_s_max: float = WAIT_S_MAX) -> Answer:
        async with asyncio.timeout(wait_s_max):
            await answer.over.wait()
        return answer

    def tell(self, answer: Answer, header: calls.Header) -> None:
        """A client's frame for a running call."""
        self.send(frames.pack(frames.DATA, answer.stream, calls.encode(header)))

    async def until(self, test: Callable[[Worker], bool], wait_s_max: float = WAIT_S_MAX) -> None:
        async with asyncio.timeout(wait_s_max), self.changed:
            await self.changed.wait_for(lambda: test(self))

    @property
    def ready(self) -> bool:
        return bool(self.states[-1]["ready"] if self.states else self.hello.get("ready"))

    async def serve(self, reader: asyncio.StreamReader, kept: bytes) -> None:
        cutter = frames.FrameReader()
        data = kept
        try:
            while True:
                self._reads += 1
                for kind, stream, flags, _, payload in cutter.feed(data):
                    await self._take(kind, stream, flags, payload)
                data = await reader.read(1 << 20)
                if not data:
                    return
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            self.closed.set()
            for answer in self.answers.values():
                async with answer.changed:
                    answer.changed.notify_all()

    async def _take(self, kind: int, stream: int, flags: int, payload: bytes) -> None:
        if kind == frames.HELLO:
            self.hello = json.loads(payload)
            welcome = {"protocol": 1, "gateway_id": "gw_test", "window_bytes": 262144, "ping_s": self.gateway.ping_s}
            self.send(frames.pack(frames.WELCOME, 0, json.dumps(welcome).encode()))
            await self.gateway.greeted(self)
        elif kind == frames.STATE:
            self.states.append(json.loads(payload))
        elif kind == frames.PING:
            self.pings += 1
            if self.gateway.answers_pings:
                self.send(frames.pack(frames.PONG, 0, payload))
        elif kind == frames.PONG:
            self.pongs += 1
        elif stream:
            answer = self.answers[stream]
            assert not answer.over.is_set(), f"{frames.NAMES[kind]} after the end of stream {stream}"
            answer.frames.append((kind, flags, payload))
            answer.writes.add(self._reads)
            if kind in (frames.DATA, frames.TOKENS) and self.credit:
                self.send(frames.pack(frames.WINDOW, stream, struct.pack(">I", len(payload))))
            if kind in (frames.END, frames.RESET):
                answer.over.set()
            async with answer.changed:
                answer.changed.notify_all()
        async with self.changed:
            self.changed.notify_all()

    def close(self) -> None:
        """Break the link."""
        self.writer.transport.abort()


class FakeGateway:
    """Listens on `path`; `status` says what each instance gets."""

    def __init__(self, path: Path, ping_s: float = 2.0) -> None:
        self.path = path
        self.ping_s = ping_s
        self.answers_pings = True
        self.status: dict[str, int] = defaultdict(lambda: 101)
        self.dials: list[dict[str, str]] = []
        self.workers: list[Worker] = []
        self._new = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeGateway:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, str(self.path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for worker in self.workers:
            worker.close()
        self.path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        lines = head.split("\r\n")
        assert lines[0] == "GET /v1/worker-link HTTP/1.1"
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        self.dials.append(headers)
        status = self.status[headers["x-nanopod-instance"]]
        if status != 101:
            writer.write(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode())
            writer.close()
            return
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: nanopod-worker/1\r\nConnection: Upgrade\r\n\r\n")
        await Worker(self, writer).serve(reader, b"")
        writer.close()

    async def greeted(self, worker: Worker) -> None:
        self.workers.append(worker)
        async with self._new:
            self._new.notify_all()

    async def worker(self, number: int = 1, wait_s_max: float = WAIT_S_MAX) -> Worker:
        """The `number`th link that was made, once it is there."""
        async with asyncio.timeout(wait_s_max), self._new:
            await self._new.wait_for(lambda: len(self.workers) >= number)
        return self.workers[number - 1]

    async def ready(self, number: int = 1, wait_s_max: float = WAIT_S_MAX) -> Worker:
        """The `number`th link, once its worker takes work."""
        worker = await self.worker(number, wait_s_max)
        await worker.until(lambda w: w.ready, wait_s_max)
        return worker
