"""A small OpenAI-compatible server of the standard library alone, run as a model's command by tests.

usage: openai_server.py PORT [--load SECONDS] [--die SECONDS] [--name MODEL] [--embeddings]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--load", type=float, default=0.0)
parser.add_argument("--die", type=float, default=0.0)
parser.add_argument("--name", default="served")
parser.add_argument("--embeddings", action="store_true")
parser.add_argument("--child", action="store_true")
options = parser.parse_args()
began = time.monotonic()
hung_up = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": options.name}]})
        elif self.path == "/hung-up":
            self.reply(200, hung_up)
        else:
            self.reply(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if time.monotonic() - began < options.load:
            self.reply(503, {"error": {"message": "loading"}})
        elif body["model"] != options.name:
            self.reply(404, {"error": {"message": f"unknown model {body['model']}"}})
        elif self.path == "/v1/embeddings" and options.embeddings:
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            self.reply(200, {"object": "list", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}})
        elif self.path == "/v1/chat/completions" and not options.embeddings:
            self.chat(body)
        else:
            self.reply(404, {"error": {"message": "no such path"}})

    def chat(self, body: dict[str, Any]) -> None:
        words = ["Hello", " there", ", it", " is", " raining"][: body.get("max_tokens", 5)]
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": 3}}
        if body["messages"][0]["content"] == "fail":
            self.reply(400, {"error": {"message": "bad request"}})
            return
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            self.reply(200, {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        global hung_up
        try:
            for word in words:
                self.event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
                time.sleep(float(body.get("user", "0.02")))
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": usage})
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")
        except OSError:
            hung_up += 1

    def event(self, value: Any) -> None:
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def main() -> None:
    print("loading weights", flush=True)
    if options.die:
        time.sleep(options.die)
        print("RuntimeError: out of imaginary memory", file=sys.stderr, flush=True)
        os._exit(3)
    if options.child and os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        time.sleep(1)


main()
