"""A source for tests: files over HTTP as web servers, buckets of Google and Azure, and hubs give them; with ranges.

It counts what it sends and breaks what it is told to break.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Site(ThreadingHTTPServer):
    """Files by their whole path below the source."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        """{path: content type}"""
        self.token = ""
        """What `Authorization` must be, if anything."""
        self.asked: list[tuple[str, str]] = []
        """(path, its Range)"""
        self.sent = 0
        self.cut: list[int] = []
        """Of the next answers: after how many bytes each breaks off."""
        self.status: list[int] = []
        """Of the next answers: what they are instead."""
        self.wrong_digests = False
        self.ranges = True
        self.gate: threading.Event | None = None
        """Bodies wait for it after their first half."""
        self.headers_seen: list[dict[str, str]] = []
        self.page = 1000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site, parts = self.server, urlsplit(self.path)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        site.asked.append((path, self.headers.get("Range", "")))
        site.headers_seen.append(dict(self.headers.items()))
        if site.status:
            self._say(site.status.pop(0), b"")
        elif site.token and self.headers.get("Authorization") != site.token and "/cdn/" not in path:
            self._say(401, b"")
        elif path.startswith("/storage/v1/b/"):
            self._google(path, query)
        elif path.startswith("/api/models/"):
            self._hub(path)
        elif "/resolve/" in path:
            self._resolve(path)
        elif query.get("comp") == "list":
            self._azure(path, query)
        else:
            self._file(path.removeprefix("/cdn").lstrip("/"))

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _google(self, path: str, query: dict[str, str]) -> None:
        bucket, _, name = path.removeprefix("/storage/v1/b/").partition("/o")
        if query.get("alt") == "media":
            return self._file(f"{bucket}{name}")
        keys = [key for key in sorted(self.server.files) if key.startswith(f"{bucket}/{query['prefix']}")]
        start = int(query.get("pageToken", 0))
        rows = []
        for key in keys[start : start + self.server.page]:
            data = b"wrong" if self.server.wrong_digests else self.server.files[key]
            md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
            size = str(len(self.server.files[key]))
            rows.append({"name": key.partition("/")[2], "size": size, "md5Hash": md5, "generation": md5[:4]})
        found: dict[str, object] = {"items": rows}
        if start + self.server.page < len(keys):
            found["nextPageToken"] = str(start + self.server.page)
        self._say(200, json.dumps(found).encode())

    def _hub(self, path: str) -> None:
        name, _, _revision = path.removeprefix("/api/models/").partition("/revision/")
        rows = []
        for key, data in sorted(self.server.files.items()):
            if key.startswith(f"{name}/"):
                row: dict[str, object] = {"rfilename": key.removeprefix(f"{name}/"), "size": len(data)}
                if key.endswith(".safetensors"):
                    data = b"wrong" if self.server.wrong_digests else data
                    row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                rows.append(row)
        if not rows:
            return self._say(404, b"")
        self._say(200, json.dumps({"sha": "c0ffee", "siblings": rows}).encode())

    def _resolve(self, path: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        key = f"{name}/{rest.partition('/')[2]}"
        port = self.server.server_address[1]
        if key.endswith(".safetensors"):  # large files are somewhere else, where the token means nothing
            return self._say(302, b"", Location=f"http://localhost:{port}/cdn/{key}")
        self._file(key)

    def _azure(self, path: str, query: dict[str, str]) -> None:
        container = path.strip("/")
        rows = ""
        for key, data in sorted(self.server.files.items()):
            if key.startswith(f"{container}/{query['prefix']}"):
                md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
                rows += (
                    f"<Blob><Name>{escape(key.partition('/')[2])}</Name><Properties><Etag>{md5[:6]}</Etag>"
                    f"<Content-Length>{len(data)}</Content-Length><Content-MD5>{md5}</Content-MD5></Properties></Blob>"
                )
        body = f"<?xml version='1.0'?><EnumerationResults><Blobs>{rows}</Blobs><NextMarker/></EnumerationResults>"
        self._say(200, body.encode())

    def _file(self, key: str) -> None:
        site = self.server
        data = site.files.get(key)
        if data is None:
            return self._say(404, b"")
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        start = 0
        asked = self.headers.get("Range", "")
        fits = self.headers.get("If-Range", tag).strip('"')[:4] == tag.strip('"')[:4] or key.count("/") > 1
        end = len(data)
        partial = bool(asked and site.ranges and fits)
        if partial:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else end
            if start >= len(data):
                return self._say(416, b"")
        body = data[start:end]
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", site.kinds.get(key, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", tag)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if site.cut and len(body) > site.cut[0]:
            body = body[: site.cut.pop(0)]
            self.close_connection = True
        try:
            half = len(body) // 2
            for piece in (body[:half], body[half:]):
                for at in range(0, len(piece), 65_536):
                    self.wfile.write(piece[at : at + 65_536])
                    site.sent += len(piece[at : at + 65_536])
                self.wfile.flush()
                if site.gate is not None and piece is not body[half:]:
                    site.gate.wait(60)
        except OSError:
            self.close_connection = True


@contextmanager
def site() -> Iterator[Site]:
    """A source on a port of its own."""
    made = Site()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        if made.gate is not None:
            made.gate.set()
        made.shutdown()
        made.server_close()
        thread.join(5)
