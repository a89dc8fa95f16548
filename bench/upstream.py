"""What stands behind and beside the gateway in its benchmark: `python -m bench.upstream ROLE DIRECTORY`.

`http`: a model server on a free TCP port, for nginx and for direct calls. `worker`: the same answers over the worker
link. `server`: the gateway's control peer, which pushes the tables and acknowledges the meter's segments.
Tokens come as an engine with continuous batching makes them: one for every running stream in each step.
Each role prints one line of JSON when it is ready; `server` prints another one at SIGTERM: what was metered.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from nanopod.drivers.link import messages
from nanopod.model import frames
from nanopod.model.layout import Layout
from nanopod.model.wire import KeyRow, MeterAck, MeterSegment, RouteRow, Tables, WorkerRow

STEP_S = 0.005
TOKENS = 32
EVENTS = TOKENS + 1
"""Server-sent events of one stream: its tokens and `[DONE]`."""
MODEL, INSTANCE, ENDPOINT, REVISION = "bench", "inst_bench", "endp_bench", "rev_000000000001"
SLOTS = 256
PROMPT_IDS = list(range(1, 41))
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Secrets:
    """What the processes of one run share, in a file of mode 0600 in its directory."""

    key: str
    token: str
    pepper: str

    @classmethod
    def load(cls, directory: Path) -> Secrets:
        """Read them."""
        return cls(**json.loads((directory / "secrets.json").read_text()))

    def save(self, directory: Path) -> None:
        """Write them."""
        path = directory / "secrets.json"
        path.touch(0o600)
        path.write_text(json.dumps(asdict(self)))


def request_body(cell: str) -> bytes:
    """A caller's body of 250 bytes. `cell` is plain, burst or paced; the field `user` tells the model server."""
    fields = {"model": MODEL, "user": cell, "stream": cell != "plain", "max_tokens": TOKENS}
    body = json.dumps({**fields, "messages": [{"role": "user", "content": ""}]})
    words = ("Say something of some length about the sea. " * 5)[: 250 - len(body)]
    return json.dumps({**fields, "messages": [{"role": "user", "content": words}]}).encode()


def cell_of(data: bytes) -> str:
    """The cell that a request asks for."""
    return "plain" if b'"user": "plain"' in data else "burst" if b'"user": "burst"' in data else "paced"


def plain_answer() -> bytes:
    """A completion of 600 bytes."""
    prompt, whole = len(PROMPT_IDS), len(PROMPT_IDS) + TOKENS
    answer: dict[str, Any] = {
        "id": "chatcmpl-000000000000000000000000000000", "object": "chat.completion", "created": 1750000000,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": TOKENS, "total_tokens": whole}, "model": MODEL,
    }  # fmt: skip
    room = 600 - len(json.dumps(answer))
    answer["choices"][0]["message"]["content"] = ("the sea is wide and the wind is up " * 20)[:room]
    return json.dumps(answer).encode()


def events() -> list[bytes]:
    """The server-sent events of a stream; about 220 bytes each."""

    def event(index: int) -> bytes:
        choice = {"index": 0, "delta": {"content": f" word{index:02d}"}, "finish_reason": None, "logprobs": None}
        chunk = {
            "id": "chatcmpl-000000000000000000000000000000", "object": "chat.completion.chunk", "created": 1750000000,
            "model": MODEL, "system_fingerprint": "fp_000000000001", "choices": [choice],
        }  # fmt: skip
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    return [*map(event, range(TOKENS)), b"data: [DONE]\n\n"]


class Engine:
    """Steps every running stream by one token each 5 ms. A stream is a function that is told the token's number."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: dict[Callable[[int], None], int] = {}
        self._next_at = 0.0

    def start(self, emit: Callable[[int], None], *, paced: bool) -> None:
        """The first token leaves now; the others follow at the pace, or now too."""
        if not paced:
            for index in range(TOKENS):
                emit(index)
            return
        emit(0)
        if not self._running:
            self._next_at = self._loop.time() + STEP_S
            self._loop.call_at(self._next_at, self._step)
        self._running[emit] = 1

    def stop(self, emit: Callable[[int], None]) -> None:
        """Its caller left."""
        self._running.pop(emit, None)

    def _step(self) -> None:
        for emit, index in list(self._running.items()):
            emit(index)
            if index + 1 < TOKENS:
                self._running[emit] = index + 1
            else:
                del self._running[emit]
        if self._running:
            self._next_at = max(self._next_at + STEP_S, self._loop.time())
            self._loop.call_at(self._next_at, self._step)


# --- over HTTP ---


class HttpServer(asyncio.Protocol):
    """One connection of a caller or of nginx, keep-alive; requests carry a Content-Length."""

    PLAIN = plain_answer()
    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN)
    HEAD = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    CHUNKS = tuple(b"%x\r\n%b\r\n" % (len(event), event) for event in events())

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._emit: Callable[[int], None] = self._token

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller connected; asyncio has set TCP_NODELAY."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left."""
        self._engine.stop(self._emit)

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            size = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._buffer) < size:
                return
            cell = cell_of(self._buffer[end + 4 : size])
            self._buffer = self._buffer[size:]
            if cell == "plain":
                self._transport.write(self.ANSWER)
            else:
                self._transport.write(self.HEAD)
                self._engine.start(self._emit, paced=cell == "paced")

    def _token(self, index: int) -> None:
        self._transport.write(self.CHUNKS[index])
        if index == TOKENS - 1:
            self._transport.write(self.CHUNKS[TOKENS] + b"0\r\n\r\n")


async def serve_http(directory: Path) -> None:
    """The role `http`, until it is killed."""
    engine = Engine()
    server = await asyncio.get_running_loop().create_server(lambda: HttpServer(engine), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


# --- over the worker link ---


class Worker(asyncio.Protocol):
    """The same answers as frames; whatever one pass makes leaves with one write."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._loop = asyncio.get_running_loop()
        self._engine = Engine()
        self._head = b""
        self._linked = False
        self._reader = frames.FrameReader()
        self._out: list[bytes] = []
        self._streams: dict[int, Callable[[int], None]] = {}
        self._tokens = tuple(frames.pack_tokens(0, 0, 0, i, [i], event)[12:] for i, event in enumerate(events()[:-1]))
        self._done = events()[-1]
        self._plain = plain_answer()
        self._plain_head = self._json({"status": 200, "headers": {"content-type": "application/json"}})
        streamed = {"status": 200, "headers": {"content-type": "text/event-stream"}, "prompt_ids": PROMPT_IDS}
        self._stream_head = self._json(streamed)
        usage = {"prompt_tokens": len(PROMPT_IDS), "completion_tokens": TOKENS, "cached_tokens": 0}
        timings = {"compute_us": 1000, "first_token_us": 10}
        self._end = self._json({"usage": usage, "finish": ["length"], "timings": timings})
        self.closed = self._loop.create_future()

    @staticmethod
    def _json(value: Any) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Dialled: ask for the upgrade."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            f"GET /v1/worker-link HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: {frames.UPGRADE}\r\n"
            f"Authorization: Bearer {self._secrets.token}\r\nX-Nanopod-Instance: {INSTANCE}\r\n"
            "X-Nanopod-Epoch: 1\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway is gone, or did not take us."""
        if not self.closed.done():
            self.closed.set_result(self._linked)

    def data_received(self, data: bytes) -> None:
        """The answer to the upgrade, then frames."""
        if not self._linked:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head.partition(b"\r\n")[0]:
                self._transport.close()
                return
            self._linked = True
            hello = {
                "protocol": 1, "instance_id": INSTANCE, "epoch": 1, "endpoint_id": ENDPOINT, "revision": REVISION,
                "slots": SLOTS, "ready": True, "draining": False, "engine": "reference",
                "capability": {"continuation": "exact", "seed": True, "token_ids": True}, "calls": [],
            }  # fmt: skip
            self._transport.write(frames.pack(frames.HELLO, 0, self._json(hello)))
            print(json.dumps({"linked": True}), flush=True)
        for kind, stream, _, epoch, payload in self._reader.feed(data):
            if kind == frames.OPEN:
                self._open(stream, epoch, payload)
            elif kind == frames.PING:
                self._send(frames.pack(frames.PONG, 0, payload))
            elif kind == frames.RESET and stream in self._streams:
                self._engine.stop(self._streams.pop(stream))

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        self._transport.write(data)

    def _open(self, stream: int, epoch: int, payload: bytes) -> None:
        cell = cell_of(payload)
        if cell == "plain":
            self._send(
                frames.pack(frames.HEAD, stream, self._plain_head, 0, epoch)
                + frames.pack(frames.DATA, stream, self._plain, 0, epoch)
                + frames.pack(frames.END, stream, self._end, 0, epoch)
            )
            return

        def emit(index: int) -> None:
            self._send(frames.pack(frames.TOKENS, stream, self._tokens[index], 0, epoch))
            if index == TOKENS - 1:
                self._streams.pop(stream, None)
                self._send(frames.pack(frames.DATA, stream, self._done, 0, epoch))
                self._send(frames.pack(frames.END, stream, self._end, 0, epoch))

        self._send(frames.pack(frames.HEAD, stream, self._stream_head, frames.FLAG_END, epoch))
        self._streams[stream] = emit
        self._engine.start(emit, paced=cell == "paced")


async def work(directory: Path) -> None:
    """The role `worker`: dial until taken, then answer until the link ends."""
    secrets = Secrets.load(directory)
    path = str(Layout(directory).gateway_socket)
    for _ in range(200):
        try:
            _, worker = await asyncio.get_running_loop().create_unix_connection(lambda: Worker(secrets), path)
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.05)
            continue
        if await worker.closed:
            return
        await asyncio.sleep(0.05)
    raise SystemExit("the gateway did not take the worker's link within 10 s")


# --- the control peer ---


async def control(directory: Path) -> None:
    """The role `server`: one key, one endpoint, one worker; every segment is acknowledged. Ends at SIGTERM."""
    secrets = Secrets.load(directory)
    pepper = secrets.pepper.encode()
    layout = Layout(directory)
    layout.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hmac.digest(pepper, secrets.key.encode(), hashlib.sha256).hex()
    keys = {digest: KeyRow("key_bench", "wksp_bench", ("call",))}
    route = RouteRow(ENDPOINT, "wksp_bench", MODEL, "default", "model", REVISION, (MODEL,))
    row = WorkerRow(INSTANCE, ENDPOINT, REVISION, 1, SLOTS, hashlib.sha256(secrets.token.encode()).hexdigest())
    tables = Tables(1, pepper, keys, {ENDPOINT: route}, {INSTANCE: row})
    metered = {"records": 0, "tokens": 0}

    async def on_link(link: messages.MessageLink) -> None:
        link.send(tables)
        async for message in link:
            if isinstance(message, MeterSegment):
                final = [record for record in message.records if record.status == 200]
                metered["records"] += len(final)
                metered["tokens"] += sum(record.completion_tokens for record in final)
                link.send(MeterAck(message.segment_id))

    server = await messages.serve(layout.control_socket, on_link)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(json.dumps({"ready": True}), flush=True)
    await stop.wait()
    server.close()
    print(json.dumps(metered), flush=True)


ROLES = {"http": serve_http, "worker": work, "server": control}


def main() -> None:
    """Play one role."""
    import uvloop

    parser = argparse.ArgumentParser(prog="python -m bench.upstream", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("directory", type=Path, help="the run's directory, which is the gateway's data directory too")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ROLES[args.role](args.directory))


if __name__ == "__main__":
    main()
