"""An API of recorded answers, and the command line run against it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NOW = 1_773_532_800
SKU = {"id": "isku_1", "alias": "h100", "object": "instance_sku", "num_accelerators": 8, "accelerator": "H100"}


def listed(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "cursor": None, "has_more": False, "data": list(rows)}


class Recorded:
    """An HTTP server that answers from a table and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "GET /v1/test_clock": {"object": "test_clock", "now_at": NOW, "block_s": 60, "frozen": True},
            "GET /v1/instance_skus": listed(SKU),
            "GET /v1/capacities": listed({"id": "cap_1", "name": "dev", "kind": "market"}),
        }
        self.asked: list[tuple[str, dict[str, list[str]], Any, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def answer(self) -> None:
                parts = urlsplit(self.path)
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                body = json.loads(raw) if raw and self.headers.get("content-type") == "application/json" else raw
                word = f"{self.command} {parts.path}"
                outer.asked.append((word, parse_qs(parts.query), body, dict(self.headers)))
                found = outer.answers.get(word, (404, {"error": {"type": "not_found", "message": f"no {parts.path}"}}))
                found = found.pop(0) if isinstance(found, list) else found
                found = found(body) if callable(found) else found
                status, value = found if isinstance(found, tuple) else (200, found)
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def sent(self, word: str) -> Any:
        return next(body for asked, _, body, _ in reversed(self.asked) if asked == word)

    def query(self, word: str) -> dict[str, list[str]]:
        return next(query for asked, query, _, _ in reversed(self.asked) if asked == word)
