"""The management API over HTTP: one blocking request at a time, retried with back-off, errors as their classes."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from nanopod.client.config import Target
from nanopod.model.errors import NanopodError, NoCapacity, RemoteError, by_code

TRIES_MAX: Final = 5
REQUEST_S_MAX: Final = 60.0
RETRY_S_MAX: Final = 30.0
"""Longest single wait that a server's Retry-After is granted."""
KEY_HINT: Final = "api_key= or NANOPOD_API_KEY"
_RETRIED: Final = frozenset({429, 502, 503, 504})
_STATUS_CODES: Final = {
    401: "authentication_error", 402: "payment_required", 403: "forbidden", 404: "not_found", 409: "conflict",
    422: "unprocessable_entity", 429: "too_many_requests", 503: "service_unavailable",
}  # fmt: skip


class Api:
    """One server. Safe to use from several threads: every request has its own connection."""

    def __init__(self, target: Target, *, tries_max: int = TRIES_MAX) -> None:
        self.target = target
        self._tries_max = tries_max
        self._base = urlsplit(target.url).path.rstrip("/")

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET as JSON."""
        return self.request("GET", path, query=query)

    def post(self, path: str, body: Any = None, *, retry: bool = True, **query: Any) -> dict[str, Any]:
        """POST as JSON. `retry=False` where sending twice would do something twice."""
        return self.request("POST", path, body=body, query=query, retry=retry)

    def delete(self, path: str) -> dict[str, Any]:
        """DELETE."""
        return self.request("DELETE", path)

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """All rows of a list, over its pages."""
        cursor: str | None = None
        while True:
            page = self.get(path, **query, **({"cursor": cursor} if cursor else {}))
            yield from page.get("data", [])
            following = page.get("cursor")
            if not page.get("has_more") or not following or following == cursor:
                return
            cursor = following

    def upload(self, digest: str, data: bytes) -> bool:
        """Put a blob in the store unless it is there; True when bytes were sent."""
        path = f"/v1/blobs/{digest}"
        status, _, _ = self._send("HEAD", path, None, {})
        if status < 300:
            return False
        headers = {"Content-Type": "application/octet-stream"}
        status, _, raw = self._send("PUT", path, data, headers)
        if status in (401, 403):
            raise error_of(status, raw, {})
        if status >= 300:
            raise RemoteError(f"S3 upload failed: HTTP {status} - {_message(raw)}", type_name=f"HTTP {status}")
        return True

    def request(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None, retry: bool = True
    ) -> dict[str, Any]:
        """One request. Raises the error class that the answer names, or `NoCapacity` when nobody answers."""
        words = {name: value for name, value in (query or {}).items() if value is not None}
        if words:
            path += "?" + urlencode(words)
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data is not None else {})
        status, fields, raw = self._send(method, path, data, headers, retry=retry)
        if status >= 300:
            raise error_of(status, raw, fields)
        try:
            found = json.loads(raw) if raw else {}
        except ValueError:
            raise RemoteError(f"{self.target.url} answered {method} {path} with something that is not JSON") from None
        return found if isinstance(found, dict) else {"data": found}

    def stream(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """POST and read server-sent events until `[DONE]`."""
        connection = self._connection()
        try:
            connection.request(
                "POST", self._base + path, json.dumps(body), self._headers({"Content-Type": "application/json"})
            )
            answer = connection.getresponse()
            if answer.status >= 300:
                raise error_of(answer.status, answer.read(), dict(answer.getheaders()))
            for line in answer:
                text = line.decode("utf-8", "replace").strip()
                if text == "data: [DONE]":
                    return
                if text.startswith("data:"):
                    yield json.loads(text[5:])
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from error
        finally:
            connection.close()

    # --- one request ---

    def _send(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], *, retry: bool = True
    ) -> tuple[int, dict[str, str], bytes]:
        tries = self._tries_max if retry else 1
        for attempt in range(tries):
            last = attempt == tries - 1
            wait_s = random.uniform(0.01, min(5.0, 0.1 * 2.0**attempt))
            try:
                status, fields, raw = self._once(method, path, data, headers)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    raise self._silent(error) from error
            else:
                if status not in _RETRIED or last:
                    return status, fields, raw
                asked = fields.get("retry-after", "")
                if asked.replace(".", "", 1).isdigit():
                    if float(asked) > RETRY_S_MAX:
                        return status, fields, raw
                    wait_s += float(asked)
            time.sleep(wait_s)
        raise AssertionError("unreachable: the last try returns or raises")

    def _once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection()
        try:
            connection.request(method, self._base + path, data, self._headers(headers))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.target.url)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=REQUEST_S_MAX)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=REQUEST_S_MAX)

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.target.key}", **more}

    def _silent(self, error: Exception) -> NoCapacity:
        return NoCapacity(
            f"cannot reach the nanopod server at {self.target.url}: {error}; is it up? See: nanopod status"
        )


def segment(text: str) -> str:
    """An id or name as one segment of a path."""
    return quote(text, safe=":")


def error_of(status: int, raw: bytes, headers: Mapping[str, str]) -> NanopodError:
    """The error that an answer describes: its class by code, type or status; with field and Retry-After."""
    try:
        body = json.loads(raw)["error"]
        body = body if isinstance(body, dict) else {"message": str(body)}
    except (ValueError, KeyError, TypeError):
        body = {}
    details = [row for row in body.get("details") or [] if isinstance(row, dict)]
    message = str(body.get("message") or _message(raw) or f"HTTP {status}")
    hints = [
        f"{row.get('field')}: {row.get('message')}" for row in details if row.get("message") not in (None, message)
    ]
    if hints:
        message += " (" + "; ".join(hints) + ")"
    classes = by_code()
    names = [body.get("code"), body.get("type"), _STATUS_CODES.get(status)]
    cls = next((classes[name] for name in names if name in classes), RemoteError)
    if status == 401 and KEY_HINT not in message:
        message += f"; check {KEY_HINT}"
    if cls is RemoteError:
        error: NanopodError = RemoteError(f"HTTP {status}: {message}", type_name=f"HTTP {status}")
    else:
        error = cls(message)
    error.field = next((str(row["field"]) for row in details if row.get("field")), body.get("param"))
    asked = headers.get("retry-after", "")
    error.retry_after_s = float(asked) if asked.replace(".", "", 1).isdigit() else None
    error.__dict__["details"] = details
    return error


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:500].decode("utf-8", "replace").strip()
