"""A worker without an engine: speaks the worker link, makes tokens by arithmetic and runs a few tiny functions.

Started as a process (`python emulator.py --socket ...`) so that tests can kill it. The token at a position depends on the
seed and the position alone, so a continued stream can be compared with an unbroken one byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop

from nanopod.model import calls, frames

WORDS = ("red ", "blue ", "grün ", "naïve ", "日本 ", "cat ", "dog ", "sun ")


def token(seed: int, choice: int, position: int) -> int:
    """The token id at a position: a counter-based draw, as an exact engine makes it."""
    return random.Random(f"{seed}/{choice}/{position}").randrange(1000)


def text_of(token_id: int) -> str:
    return WORDS[token_id % len(WORDS)]


@dataclass
class Held:
    """A remote call this worker has: its frames are kept until they are released."""

    call: calls.Call
    payload: bytes
    started: bool = False
    done: bool = False
    frames: list[bytes] = field(default_factory=list)
    run_us: int = 0
    ok: bool = True
    stream: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    attempt: int = 1


class Emulator:
    """One worker process' worth of behaviour over one link at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.writer: asyncio.StreamWriter | None = None
        self.out: list[bytes] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.calls: dict[bytes, Held] = {}
        self.streams: dict[int, Held] = {}
        self.bodies: dict[int, tuple[dict[str, Any], list[bytes]]] = {}
        self.credit: dict[int, int] = {}
        self.runs: dict[str, int] = {}
        self.running: set[asyncio.Future[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.flushing = False

    def send(self, data: bytes) -> None:
        self.out.append(data)
        if not self.flushing:
            self.flushing = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self.flushing = False
        out, self.out = self.out, []
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(b"".join(out))

    def orders(self) -> None:
        """A line on standard input is what STATE says from now on."""
        data = os.read(0, 65536)
        if not data:
            self.loop.remove_reader(0)
        for line in data.splitlines():
            self.send(frames.pack(frames.STATE, 0, line))

    async def run(self) -> None:
        if not sys.stdin.isatty():
            with contextlib.suppress(OSError):  # nobody gives orders
                self.loop.add_reader(0, self.orders)
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self.link()
            self.writer = None
            await asyncio.sleep(0.05)

    async def link(self) -> None:
        a = self.args
        reader, writer = await asyncio.open_unix_connection(a.socket)
        writer.write(
            f"GET /v1/worker-link HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: {frames.UPGRADE}\r\n"
            f"Authorization: Bearer {a.token}\r\nX-Nanopod-Instance: {a.instance}\r\nX-Nanopod-Epoch: {a.epoch}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            if b" 410 " in head.split(b"\r\n")[0]:
                sys.exit(3)
            writer.close()
            return
        self.writer = writer
        hello = {
            "protocol": 1, "instance_id": a.instance, "epoch": a.epoch, "endpoint_id": a.endpoint, "revision": a.revision,
            "slots": a.slots, "ready": not a.late_ready, "draining": False, "engine": a.engine,
            "capability": {"continuation": a.continuation, "seed": True, "token_ids": True},
            "calls": [{"id": i.hex(), "started": h.started, "done": h.done} for i, h in self.calls.items()],
        }  # fmt: skip
        self.send(frames.pack(frames.HELLO, 0, json.dumps(hello).encode()))
        if a.late_ready:
            self.loop.call_later(
                a.late_ready,
                lambda: self.send(frames.pack(frames.STATE, 0, json.dumps({"ready": True, "slots": a.slots}).encode())),
            )
        parser = frames.FrameReader()
        while data := await reader.read(1 << 18):
            for kind, stream, flags, epoch, payload in parser.feed(data):
                self.on_frame(kind, stream, flags, epoch, payload)
        writer.close()
        for task in self.tasks.values():
            task.cancel()
        self.tasks.clear()
        self.streams.clear()

    def on_frame(self, kind: int, stream: int, flags: int, epoch: int, payload: bytes) -> None:
        if kind == frames.PING:
            self.send(frames.pack(frames.PONG, 0, payload))
        elif kind == frames.OPEN:
            head, body = frames.unpack_open(payload)
            fields = json.loads(head)
            if fields["k"] == "call":
                self.open_call(stream, flags, body, fields.get("attempt", 1))
            elif fields["k"] == "adopt":
                self.adopt(stream, bytes.fromhex(fields["id"]))
            else:
                self.bodies[stream] = (fields, [body])
                if flags & frames.FLAG_END:
                    self.open_http(stream)
        elif kind == frames.DATA and stream in self.bodies:
            self.bodies[stream][1].append(payload)
            if flags & frames.FLAG_END:
                self.open_http(stream)
        elif kind == frames.DATA and stream in self.streams:
            header, part = calls.decode(payload)
            held = self.streams[stream]
            if isinstance(header, calls.Cancel):
                held.cancelled.set()
            elif isinstance(header, calls.Part):
                held.payload += part
                if flags & frames.FLAG_END:
                    self.start_call(stream, held)
        elif kind == frames.RESET:
            task = self.tasks.pop(stream, None)
            if task is not None:
                task.cancel()
                self.note(f"reset {frames.unpack_reset(payload)[1]}")
        elif kind == frames.WINDOW and stream in self.credit:
            self.credit[stream] += int.from_bytes(payload[:4], "big")
        elif kind == frames.RELEASE:
            for at in range(0, len(payload), 16):
                self.calls.pop(payload[at : at + 16], None)
                self.note("released")

    def note(self, what: str) -> None:
        """Tests read what happened from this process's standard output."""
        print(what, flush=True)

    # --- generation ---

    def open_http(self, stream: int) -> None:
        fields, parts = self.bodies.pop(stream)
        body = json.loads(b"".join(parts))
        task = asyncio.ensure_future(self.generate(stream, fields, body))
        self.tasks[stream] = task
        self.credit[stream] = 262_144

    async def generate(self, stream: int, fields: dict[str, Any], body: dict[str, Any]) -> None:
        a, attempt = self.args, fields["attempt"]
        epoch = attempt["epoch"]
        if body.get("fail"):
            text = json.dumps({"error": {"message": "planted", "type": "x", "param": None, "code": "planted"}}).encode()
            head = {"status": body["fail"], "headers": {"content-type": "application/json"}}
            self.send(frames.pack(frames.HEAD, stream, json.dumps(head).encode(), 0, epoch))
            self.send(frames.pack(frames.DATA, stream, text) + frames.pack(frames.END, stream, b"{}"))
            return
        count, streamed = int(body.get("max_tokens") or 8), bool(body.get("stream"))
        choices = int(body.get("n") or 1)
        done = [len(ids) for ids in attempt.get("choices", [])] + [0] * choices
        if epoch > 1:
            assert attempt.get("choices") is None or attempt["prompt_ids"] == [1, 2, 3], "continued without the prompt"
        head = {
            "status": 200, "headers": {"content-type": "text/event-stream" if streamed else "application/json"},
            "prompt_ids": [1, 2, 3],
        }  # fmt: skip
        self.send(
            frames.pack(frames.HEAD, stream, json.dumps(head).encode(), frames.FLAG_END if streamed else 0, epoch)
        )
        base = {
            "id": attempt["response_id"], "object": "chat.completion.chunk", "created": attempt["created"],
            "model": body["model"], "system_fingerprint": attempt["system_fingerprint"],
        }  # fmt: skip

        def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": index, "delta": delta, "finish_reason": finish}
            return b"data: " + json.dumps({**base, "choices": [choice]}).encode() + b"\n\n"

        if streamed:
            for index in range(choices):
                self.send(frames.pack(frames.DATA, stream, chunk(index, {"role": "assistant", "content": ""})))
        for position in range(count):
            for index in range(choices):
                if position < done[index]:
                    continue
                made = token(attempt["seed"], index, position)
                sse = chunk(index, {"content": text_of(made)}) if streamed else b""
                while self.credit[stream] <= 0:
                    await asyncio.sleep(0.002)
                frame = frames.pack_tokens(stream, epoch, index, position, [made], sse)
                self.credit[stream] -= len(frame)
                self.send(frame)
            if a.delay:
                await asyncio.sleep(a.delay)
            elif position % 64 == 63:
                await asyncio.sleep(0)
        usage = {"prompt_tokens": 3, "completion_tokens": count * choices, "total_tokens": 3 + count * choices}
        if streamed:
            for index in range(choices):
                self.send(frames.pack(frames.DATA, stream, chunk(index, {}, "length")))
            if (body.get("stream_options") or {}).get("include_usage"):
                text = json.dumps({**base, "choices": [], "usage": usage}).encode()
                self.send(frames.pack(frames.DATA, stream, b"data: " + text + b"\n\n"))
            self.send(frames.pack(frames.DATA, stream, b"data: [DONE]\n\n"))
        else:
            messages = [
                {
                    "index": index, "finish_reason": "length",
                    "message": {
                        "role": "assistant",
                        "content": "".join(text_of(token(attempt["seed"], index, p)) for p in range(count)),
                    },
                }
                for index in range(choices)
            ]  # fmt: skip
            whole = {**base, "object": "chat.completion", "choices": messages, "usage": usage}
            self.send(frames.pack(frames.DATA, stream, json.dumps(whole).encode()))
        end = {
            "usage": {"prompt_tokens": 3, "completion_tokens": count * choices, "cached_tokens": 0},
            "finish": ["length"] * choices, "timings": {"compute_us": 1000, "first_token_us": 10},
        }  # fmt: skip
        self.send(frames.pack(frames.END, stream, json.dumps(end).encode()))
        self.tasks.pop(stream, None)

    # --- calls ---

    def open_call(self, stream: int, flags: int, body: bytes, attempt: int) -> None:
        header, payload = calls.decode(body)
        assert isinstance(header, calls.Call)
        held = Held(header, payload, stream=stream, attempt=attempt)
        self.streams[stream] = held
        if flags & frames.FLAG_END:
            self.start_call(stream, held)

    def start_call(self, stream: int, held: Held) -> None:
        call = held.call
        if call.function == "refuse_once" and not self.runs.get(call.id.hex()):
            self.runs[call.id.hex()] = 1
            self.send(frames.pack_reset(stream, frames.REFUSED, "full"))
            return
        self.calls[call.id] = held
        held.started = True
        if call.function == "square":
            (value,), _ = msgspec.msgpack.decode(held.payload)
            self.finish(held, msgspec.msgpack.encode(value * value), head=True)
            return
        self.note(f"start {call.function} {call.id.hex()}")
        self.send(frames.pack(frames.HEAD, stream))
        self.running.add(asyncio.ensure_future(self.run_call(held)))

    async def run_call(self, held: Held) -> None:
        call = held.call
        if call.function == "sleep":
            (seconds,), _ = msgspec.msgpack.decode(held.payload)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.cancelled.wait(), seconds)
            if held.cancelled.is_set():
                held.ok = False
                self.end(held, [calls.encode(calls.Error(call.id, "cancelled", "cancelled by the worker"))])
            else:
                self.finish(held, msgspec.msgpack.encode("slept"))
        elif call.function == "count":
            (until,), _ = msgspec.msgpack.decode(held.payload)
            for index in range(until):
                item = calls.encode(calls.Item(call.id, index), msgspec.msgpack.encode(index))
                self.send(frames.pack(frames.DATA, held.stream, item))
            self.end(held, [calls.encode(calls.End(call.id))])
        elif call.function == "refuse_once":
            self.finish(held, msgspec.msgpack.encode("taken"))
        elif call.function in ("who", "cached"):
            self.finish(held, msgspec.msgpack.encode([self.args.instance, held.attempt]))
        elif call.function == "flaky":
            (good,), _ = msgspec.msgpack.decode(held.payload)
            if held.attempt >= good:
                self.finish(held, msgspec.msgpack.encode([self.args.instance, held.attempt]))
            else:
                held.ok = False
                types = ["deployment.Flaky", "ValueError", "Exception"]
                error = calls.Error(call.id, "remote_error", "Flaky: not yet", started=True, types=types)
                self.end(held, [calls.encode(error)])
        elif call.function == "preempted":
            if held.attempt > 1:
                self.finish(held, msgspec.msgpack.encode([self.args.instance, held.attempt]))
            else:
                held.ok = False
                text = "the worker was preempted"
                self.end(held, [calls.encode(calls.Error(call.id, "worker_lost", text, started=True))])
        elif call.function == "size":
            self.finish(held, msgspec.msgpack.encode(len(held.payload)))
        elif call.function == "big":
            (size,), _ = msgspec.msgpack.decode(held.payload)
            value = b"x" * size
            self.end(held, calls.split(calls.Result(call.id, len(value)), value))

    def finish(self, held: Held, value: bytes, *, head: bool = False) -> None:
        result = calls.encode(calls.Result(held.call.id, len(value)), value)
        if head:
            self.send(frames.pack(frames.HEAD, held.stream))
        self.end(held, [result])

    def end(self, held: Held, final: list[bytes]) -> None:
        held.done, held.frames = True, final
        self.replay(held)

    def replay(self, held: Held) -> None:
        for frame in held.frames:
            self.send(frames.pack(frames.DATA, held.stream, frame))
        self.send(frames.pack(frames.END, held.stream, json.dumps({"run_us": 1500, "ok": held.ok}).encode()))
        self.streams.pop(held.stream, None)

    def adopt(self, stream: int, call_id: bytes) -> None:
        held = self.calls[call_id]
        held.stream = stream
        self.streams[stream] = held
        self.note(f"adopted {call_id.hex()}")
        if held.started:
            self.send(frames.pack(frames.HEAD, stream))
        if held.done:
            self.replay(held)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--instance", required=True)
    parser.add_argument("--epoch", type=int, default=1)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--engine", default="reference")
    parser.add_argument("--continuation", default="exact")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--late-ready", type=float, default=0.0)
    return parser.parse_args(words)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def main() -> None:
            emulator = Emulator(parse())
            parent = os.getppid()

            async def watch() -> None:
                while os.getppid() == parent:
                    await asyncio.sleep(0.5)
                os._exit(0)

            watching = asyncio.ensure_future(watch())
            await emulator.run()
            watching.cancel()

        runner.run(main())
