"""An OpenAI-compatible server of the standard library that streams slowly, run as a model's command by tests.

usage: slow_server.py PORT MODEL [VERSION [SECONDS]]

A chat stream of `max_tokens` words has one every `delay_ms` milliseconds; each says its number. Nothing of it can be
continued elsewhere. An answer that is not streamed says the version, SECONDS late.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

PORT, MODEL = int(sys.argv[1]), sys.argv[2]
VERSION = sys.argv[3] if len(sys.argv) > 3 else "one"
LATE_S = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0


def event(index: int, text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": VERSION, "choices": [choice]}
    data = b"data: " + json.dumps(body).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(status: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def chat(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    count, delay_s = int(body.get("max_tokens") or 3), body.get("delay_ms", 0) / 1000
    if not body.get("stream"):
        message = {"role": "assistant", "content": VERSION}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        await asyncio.sleep(delay_s + LATE_S)
        writer.write(answer("200 OK", {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}))
        return
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for index in range(count):
        writer.write(event(index, f"{index} ", "stop" if index + 1 == count else None))
        await writer.drain()
        await asyncio.sleep(delay_s)
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            lines = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            body = await reader.readexactly(int(lines.get("content-length", 0)))
            if method == "GET" and path == "/v1/models":
                writer.write(answer("200 OK", {"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
            elif path == "/v1/chat/completions":
                await chat(writer, json.loads(body))
            else:
                writer.write(answer("404 Not Found", {"error": {"message": f"no {path}"}}))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, backlog=1024)
    async with server:
        await server.serve_forever()


asyncio.run(main())
