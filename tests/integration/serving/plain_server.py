"""A server of another make: echoes whatever it is asked, speaks a little V1, V2 and OpenAI. Runs on PORT.

`--helper transform|explain` makes it a transformer or explainer, which asks `--predictor_host` for `--model_name`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("--helper", default="")
parser.add_argument("--predictor_host", default="")
parser.add_argument("--model_name", default="")
parser.add_argument("--gate", default="")
parser.add_argument("--prefix", default="")
args = parser.parse_args()
go = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/warm":
            print("GET /warm", file=sys.stderr, flush=True)
            self.say({}, 200 if Path(args.gate).exists() else 404)
        elif path == "/moved":
            self.say({}, 302, {"Location": "/elsewhere"})
        elif path == "/die":
            os._exit(1)
        elif path == "/key":
            self.say_bytes(self.headers.get("Authorization", "").encode(), 200, {})
        elif path == "/go":
            go.set()
            self.say({})
        elif path == "/stream":
            self.stream()
        elif args.helper and path.endswith((":predict", ":explain")):
            self.helped(json.loads(body))
        elif path.endswith(":predict"):
            self.say({"predictions": [2 * one for one in json.loads(body)["instances"]]})
        elif path.endswith("/infer"):
            self.say({"model_name": path.split("/")[3], "outputs": []})
        elif path.endswith("/config"):
            self.say({"genuine": True})
        elif path.endswith("/health/ready") or path == "/v2/health/live":
            self.say({"ready": True})
        elif args.prefix:
            self.openai(path, json.loads(body or b"{}"))
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            told = {"method": self.command, "target": self.path, "headers": headers, "body": body.decode()}
            self.say(told, 201, {"X-Own": "yes", "X-Latin": "\u00fc"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_one

    def say(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.say_bytes(json.dumps(value).encode(), status, headers or {})

    def say_bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (b"first", b"second"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
            go.wait(30)
        self.wfile.write(b"0\r\n\r\n")

    def helped(self, body: dict[str, Any]) -> None:
        if body["instances"] == ["die"]:
            os._exit(3)
        rows = [[float(number) for number in text.split(",")] for text in body["instances"]]
        url = f"http://{args.predictor_host}/v1/models/{args.model_name}:predict"
        if args.helper == "explain":
            rows = body["instances"]  # its predictor is the transformer
        asked = urllib.request.Request(url, json.dumps({"instances": rows}).encode())
        with urllib.request.urlopen(asked, timeout=30) as answer:
            found = json.load(answer)
        if args.helper == "explain":
            self.say({"explained": found["predictions"]})
        else:
            self.say({**found, "by": f"{args.helper} {args.model_name}"})

    def openai(self, path: str, body: dict[str, Any]) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if path == f"{args.prefix}/v1/models":
            self.say({"object": "list", "data": [{"id": "prefixed", "object": "model"}]})
        elif path != f"{args.prefix}/v1/chat/completions":
            self.say({"detail": "Not Found"}, 404)
        elif body.get("stream"):
            choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
            events = [{"choices": [choice]}, {"choices": [], "usage": usage}]
            data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self.say_bytes(data.encode(), 200, {"Content-Type": "text/event-stream"})
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
            self.say({"id": "1", "choices": [choice], "usage": usage})

    def log_message(self, *_: object) -> None:
        """Silent."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
