"""Requests of a node or a worker to its server's API: over the socket on its machine, else over the network."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nanopod.model.errors import NanopodError, NoCapacity, by_code

TRIES_MAX: Final = 6
REQUEST_S_MAX: Final = 60.0
_RETRIED: Final = frozenset({401, 429, 502, 503, 504})
"""401: an instance may be quicker than the news of it inside the server."""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=REQUEST_S_MAX)
        self._path = path

    def connect(self) -> None:
        """Dial the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Cloud:
    """The server, asked with the join token of an instance. Blocking; each request has its own connection."""

    def __init__(self, path: Path, url: str, token: str) -> None:
        self._token = token
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._dial: Callable[[], http.client.HTTPConnection]
        if path.exists() or not url:
            self._dial = lambda: _Unix(str(path))
        else:
            self._dial = lambda: kind(parts.hostname or "", parts.port, timeout=REQUEST_S_MAX)

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """A request with JSON; the answer. Raises the error class that the answer names."""
        data = None if body is None else json.dumps(body).encode()
        found = json.loads(self.send(method, path, data) or b"{}")
        assert isinstance(found, dict), "the API answers with objects"
        return found

    def send(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """A request; the body of the answer. Raises the error class that it names, `NoCapacity` when nobody answers."""
        headers = {"Authorization": f"Bearer {self._token}"}
        for attempt in range(TRIES_MAX):
            last = attempt == TRIES_MAX - 1
            try:
                connection = self._dial()
                with contextlib.closing(connection):
                    connection.request(method, path, data, headers)
                    answer = connection.getresponse()
                    raw = answer.read()
            except (OSError, http.client.HTTPException) as error:
                if last:
                    raise NoCapacity(f"the server cannot be reached: {error}") from error
            else:
                if answer.status < 300:
                    return raw
                if answer.status not in _RETRIED or last:
                    raise _error(answer.status, raw)
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2.0**attempt)
        raise AssertionError("unreachable: the last try returns or raises")


def _error(status: int, raw: bytes) -> NanopodError:
    code, message = "", ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(raw)["error"]
        code, message = str(said.get("type", "")), str(said["message"])
    names = {404: "not_found", 401: "authentication_error", 403: "forbidden"}
    classes = by_code()
    cls = classes.get(code) or classes.get(names.get(status, "")) or NanopodError
    return cls(message or f"the server answered HTTP {status}")
