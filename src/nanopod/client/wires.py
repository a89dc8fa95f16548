"""Requests to a server over connections that are kept, and which server that is."""

from __future__ import annotations

import http.client
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

from nanopod.client.api import error_of
from nanopod.client.config import Target, find_key, find_url
from nanopod.client.twins import Abort, aborting
from nanopod.model import registry
from nanopod.model.errors import NanopodError, NoCapacity

T = TypeVar("T")
IDLE_MAX: Final = 16
TRIES_MAX: Final = 6
REQUEST_S_MAX: Final = 60.0
_RETRIED: Final = frozenset({429, 502, 503, 504})
_STALE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, http.client.CannotSendRequest)
_lock: Final = threading.Lock()


def where(url: str | None = None, key: str | None = None) -> Target:
    """The server of this process: on a worker its own cloud, without any server a local one as a deployment has."""
    mode = os.environ.get("NANOPOD_MODE", "").strip().lower()
    found = None if mode == "local" and not url else find_url(url)
    if found is not None:
        return Target(found, find_key(key, found))
    from pathlib import Path

    from nanopod.client import local

    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return local.cloud_for(Path(main).absolute().parent if main else Path.cwd()).target


def user_module() -> str:
    """The module whose classes values are made of."""
    for app in registry.apps.values():
        for function in app.functions.values():
            return function.call.__module__
    return "__main__"


class Wire:
    """Requests to one server over connections that are kept. Safe to use from several threads."""

    def __init__(self, target: Target) -> None:
        self.target = target
        parts = urlsplit(target.url)
        self._base = parts.path.rstrip("/")
        self._host, self._port, self._secure = parts.hostname or "", parts.port, parts.scheme == "https"
        self._idle: list[http.client.HTTPConnection] = []
        self._pid = os.getpid()

    def send(
        self, method: str, path: str, data: bytes | None = None, *, json: bool = False, silence_s_max: float = 0.0,
        **query: Any,
    ) -> bytes:  # fmt: skip
        """The body of the answer. Raises the error class that the answer names, `NoCapacity` when nobody answers."""
        kept = {name: value for name, value in query.items() if value is not None}
        path = self._base + path + ("?" + urlencode(kept) if kept else "")
        headers = {"Authorization": f"Bearer {self.target.key}", "Accept": "*/*"}
        if data is not None:
            headers["Content-Type"] = "application/json" if json else "application/octet-stream"
        abort = aborting.get() or Abort()
        for attempt in range(TRIES_MAX):
            last = attempt == TRIES_MAX - 1
            try:
                status, fields, raw = self._once(method, path, data, headers, silence_s_max or REQUEST_S_MAX, abort)
            except (OSError, http.client.HTTPException) as error:
                if last or abort.asked:
                    raise self._silent(error) from error
                wait_s = 0.0 if attempt == 0 and isinstance(error, _STALE) else 0.1 * 2.0**attempt
            else:
                if status < 300:
                    return raw
                asked = fields.get("retry-after", "")
                if status not in _RETRIED or last or abort.asked:
                    raise error_of(status, raw, fields)
                wait_s = float(asked) if asked.replace(".", "", 1).isdigit() else 0.1 * 2.0**attempt
            time.sleep(random.uniform(wait_s / 2, min(wait_s, 10.0)))
        raise AssertionError("unreachable: the last try returns or raises")

    def _once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], silence_s_max: float,
        abort: Abort,
    ) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
        connection = self._take(silence_s_max)
        abort.connection = connection
        good = False
        try:
            if abort.asked:
                raise ConnectionError("it was cancelled")
            connection.request(method, path, data, dict(headers))
            answer = connection.getresponse()
            raw = answer.read()
            good = not answer.will_close
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, raw
        finally:
            abort.connection = None
            if good and len(self._idle) < IDLE_MAX:
                self._idle.append(connection)
            else:
                connection.close()

    def _take(self, silence_s_max: float) -> http.client.HTTPConnection:
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()  # those are our parent's
        try:
            connection = self._idle.pop()
        except IndexError:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            return kind(self._host, self._port, timeout=silence_s_max)
        connection.timeout = silence_s_max
        if connection.sock is not None:
            connection.sock.settimeout(silence_s_max)
        return connection

    def _silent(self, error: Exception) -> NanopodError:
        return NoCapacity(
            f"cannot reach the nanopod server at {self.target.url}: {error}; is it up? See: nanopod status"
        )


_wires: Final[dict[Target, Wire]] = {}


def wire(url: str | None = None, key: str | None = None) -> Wire:
    """The connections to the server of this process, or to another one."""
    target = where(url, key)
    with _lock:
        return _wires.setdefault(target, Wire(target))


def batches(values: Iterable[T], size_of: Callable[[T], int], bytes_max: int, count_max: int) -> Iterator[list[T]]:
    """Values in groups that fit into one request each."""
    group: list[T] = []
    size = 0
    for value in values:
        own = size_of(value)
        if group and (size + own > bytes_max or len(group) >= count_max):
            yield group
            group, size = [], 0
        group.append(value)
        size += own
    if group:
        yield group
