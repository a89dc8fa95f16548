"""The management API over HTTP: one blocking request at a time, retried with back-off, errors as their classes."""

from __future__ import annotations

import http.client
import json
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from nanopod.client.config import Target
from nanopod.model.errors import NanopodError, NoCapacity, RemoteError, by_code

TRIES_MAX: Final = 5
REQUEST_S_MAX: Final = 60.0
STREAM_SILENCE_S_MAX: Final = 90.0
"""A stream that says nothing for so long, not even that it lives, is given up."""
RETRY_S_MAX: Final = 30.0
"""Longest single wait that a server's Retry-After is granted."""
KEY_HINT: Final = "api_key= or NANOPOD_API_KEY"
_RETRIED: Final = frozenset({429, 502, 503, 504})
_STATUS_CODES: Final = {
    400: "unprocessable_entity",
    401: "authentication_error", 402: "payment_required", 403: "forbidden", 404: "not_found", 409: "conflict",
    422: "unprocessable_entity", 429: "too_many_requests", 503: "service_unavailable",
}  # fmt: skip


class Api:
    """One server. Safe to use from several threads: every request has its own connection."""

    def __init__(self, target: Target, *, tries_max: int = TRIES_MAX, request_s_max: float = REQUEST_S_MAX) -> None:
        self.target = target
        self._tries_max = tries_max
        self._request_s_max = request_s_max
        self._base = urlsplit(target.url).path.rstrip("/")

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET as JSON."""
        return self.request("GET", path, query=query)

    def post(
        self, path: str, body: Any = None, *, retry: bool = True, once: bool = False, **query: Any
    ) -> dict[str, Any]:
        """POST as JSON. `retry=False` where sending twice would do something twice; `once` sends an Idempotency-Key,
        so that a repeat is answered with what the first one made."""
        headers = {"Idempotency-Key": secrets.token_urlsafe(16)} if once else {}
        return self.request("POST", path, body=body, query=query, retry=retry, headers=headers)

    def patch(self, path: str, body: Any, **query: Any) -> dict[str, Any]:
        """PATCH as JSON: fields that are left out stay as they are."""
        return self.request("PATCH", path, body=body, query=query)

    def put(self, path: str, body: Any, **query: Any) -> dict[str, Any]:
        """PUT as JSON."""
        return self.request("PUT", path, body=body, query=query)

    def delete(self, path: str, **query: Any) -> dict[str, Any]:
        """DELETE."""
        return self.request("DELETE", path, query=query)

    def raw(self, method: str, path: str, data: bytes | None = None, *, accept: str = "*/*", **query: Any) -> bytes:
        """A request whose body or answer is not JSON. Raises as `request` does."""
        headers = {"Accept": accept} | ({"Content-Type": "application/octet-stream"} if data is not None else {})
        status, fields, found = self._send(method, path + _query(query), data, headers)
        if status >= 300:
            raise error_of(status, found, fields)
        return found

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

    def upload(self, digest: str, data: bytes, path: str = "/v1/blobs/") -> bool:
        """Put a blob in the store behind `path` unless it is there; True when bytes were sent."""
        path += digest
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
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None, retry: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """One request. Raises the error class that the answer names, or `NoCapacity` when nobody answers."""
        path += _query(query or {})
        data = None if body is None else json.dumps(body).encode()
        sent = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data is not None else {})
        status, fields, raw = self._send(method, path, data, {**sent, **(headers or {})}, retry=retry)
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

    def subscribe(
        self, path: str, *, last_event_id: str = "", **query: Any
    ) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """GET server-sent events as (id, event); (id, None) for a sign of life. Ends when the server closes.

        Raises `NoCapacity` when the connection breaks, or is silent for longer than `STREAM_SILENCE_S_MAX`.
        """
        connection = self._connection(STREAM_SILENCE_S_MAX)
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        try:
            connection.request("GET", self._base + path + _query(query), None, self._headers(headers))
            answer = connection.getresponse()
            if answer.status >= 300:
                raise error_of(answer.status, answer.read(), dict(answer.getheaders()))
            lines: list[str] = []
            for line in answer:
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                if text.startswith("data:"):
                    lines.append(text[5:].strip())
                elif text.startswith("id:"):
                    last_event_id = text[3:].strip()
                elif text.startswith(":"):
                    yield last_event_id, None
                elif not text and lines:
                    yield last_event_id, json.loads("\n".join(lines))
                    lines = []
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

    def _connection(self, silence_s_max: float | None = None) -> http.client.HTTPConnection:
        parts, limit_s = urlsplit(self.target.url), silence_s_max or self._request_s_max
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=limit_s)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=limit_s)

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.target.key}", **more}

    def _silent(self, error: Exception) -> NoCapacity:
        return NoCapacity(
            f"cannot reach the nanopod server at {self.target.url}: {error}; is it up? See: nanopod status"
        )


def segment(text: str) -> str:
    """An id or name as one segment of a path."""
    return quote(text, safe=":")


def _query(words: Mapping[str, Any]) -> str:
    """`?a=1&b=2&b=3` without what is None; a list repeats its name."""
    kept = {name: value for name, value in words.items() if value is not None and value != []}
    return "?" + urlencode(kept, doseq=True) if kept else ""


def error_of(status: int, raw: bytes, headers: Mapping[str, str]) -> NanopodError:
    """The error that an answer describes: its class by code, type or status; with field and Retry-After."""
    whole: Any = None
    try:
        whole = json.loads(raw)
        body = whole["error"]
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
    error.__dict__["http_status"] = status
    error.__dict__["body"] = whole
    return error


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:500].decode("utf-8", "replace").strip()
