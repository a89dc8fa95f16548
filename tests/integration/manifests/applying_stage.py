"""The command line on a cloud, a plain server that services run, and files over HTTP as a store of models."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cloud import Cloud

COMMAND_S_MAX = 100.0
SERVER = """
import http.server, json, os

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        facts = {name: os.environ.get(name, "") for name in ("REV", "MODE", "TOKEN")}
        body = json.dumps({"path": self.path, **facts}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""


class Stage:
    """The cloud with its command line; files are written below a directory of the test."""

    def __init__(self, cloud: Cloud, directory: Path) -> None:
        self.cloud = cloud
        self.directory = directory
        self.server = directory / "server.py"
        self.server.write_text(SERVER)

    def nanopod(self, *words: str, text: str | None = None) -> tuple[int, str, str]:
        """(exit status, standard output, standard error) of a command."""
        done = subprocess.run(
            [sys.executable, "-m", "nanopod", *words], input=text, capture_output=True, text=True,
            timeout=COMMAND_S_MAX, env={**os.environ, **self.cloud.client_env()},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def apply(self, text: str, *words: str) -> tuple[int, list[str], str]:
        """(exit status, lines, standard error) of `apply -f -`."""
        status, out, err = self.nanopod("apply", "-f", "-", *words, text=text)
        return status, out.splitlines(), err

    def get(self, host: str, path: str = "/any", body: Any = None) -> tuple[int, dict[str, Any]]:
        """(status, JSON) of a request to a host of this cloud."""
        headers = {"Authorization": f"Bearer {self.cloud.key}", "Host": host, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.cloud.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")

    def manifest(self, kind: str, name: str) -> dict[str, Any]:
        """An applied object as the API shows it."""
        return dict(self.cloud.api("GET", f"/v1/manifests/{kind}/{name}"))

    def traffic(self, name: str) -> dict[str, int]:
        """{revision: percent} of an InferenceService."""
        status = self.manifest("isvc", name)["manifest"]["status"]
        return {row["revisionName"]: row["percent"] for row in status["components"]["predictor"]["traffic"]}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def guess_type(self, path: object) -> str:
        """What stores call model files."""
        return "application/octet-stream"


@contextlib.contextmanager
def serving_directory(directory: Path) -> Iterator[str]:
    """The address of a server of a directory's files."""
    handler = functools.partial(_Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
