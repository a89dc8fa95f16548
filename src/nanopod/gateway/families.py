"""Requests of V1, V2 and `http` endpoints: what travels of their heads, and errors in the shape of their family.

V1 and V2 tell errors as `{"error": text}`. A prediction may be tried again on another worker, for it changes nothing; a
request to an `http` endpoint only when its method says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from nanopod.gateway import heads
from nanopod.gateway.asked import Wishes
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.relay import Request
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

HEADER_LENGTH: Final = "inference-header-content-length"
QUESTION_WORKLOAD: Final = 1.0
"""Units of load of a question about metadata or readiness, which must not pass for a fast prediction."""
REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "transfer-encoding",
     "upgrade", "expect", "content-length", "host", "authorization", "x-request-id"}
)  # fmt: skip
"""Headers that are not passed on as they are; `authorization` is a key of this cloud."""
_SHOWN: Final = (HEADER_LENGTH, "content-encoding", "retry-after", "x-should-retry", "vary")
_NOT_SHOWN: Final = _HOP | {"content-type", "date", "server"}
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NO_WISHES: Final = Wishes()
_json: Final = msgspec.json.Encoder().encode


class Plain(Failed):
    """A refusal as V1 and V2 tell it."""

    def body(self) -> bytes:
        """`{"error": text}`."""
        return bytes(_json({"error": self.message}))


def _line(name: str, value: str) -> str:
    """A header line of a worker's answer; nothing when it is not fit to be one."""
    return f"{name}: {value}\r\n" if _NAME.fullmatch(name) and _VALUE.fullmatch(value) else ""


def _hops_of(headers: Mapping[str, str]) -> list[str]:
    """Headers that `Connection` says are for one hop alone."""
    named = headers.get("connection", "")
    return [name.strip().lower() for name in named.split(",")] if named else []


def plain(failed: Failed) -> Failed:
    """The same refusal in the shape of V1 and V2."""
    if isinstance(failed, Plain):
        return failed
    return Plain(failed.status, failed.kind, failed.code, failed.message, param=failed.param, extra=failed.extra)


def refused(status: int, text: str) -> Plain:
    """A refusal of V1 and V2."""
    return Plain(status, "invalid_request_error", "invalid_request", text)


def protocols_of(route: RouteRow) -> tuple[str, ...]:
    """The families that an endpoint answers."""
    return route.protocols or (("openai",) if route.kind == "model" else ())


class Predict(Request):
    """A request of V1 or V2."""

    __slots__ = ()
    kind: ClassVar[str] = "predict"
    """What its record is called."""

    def __init__(
        self, gateway: Gateway, connection: HttpConnection, head: Head, body: bytes, key: KeyRow, route: RouteRow
    ) -> None:  # fmt: skip
        super().__init__(gateway, connection, head, body, key, gateway.pool(route), self.kind, _NO_WISHES, False)
        if self.kind == "predict" and head.method != "POST":
            self.workload = QUESTION_WORKLOAD

    def start(self) -> None:
        """Send it off, or park it."""
        try:
            super().start()
        except Failed as failed:
            raise plain(failed) from None

    def _open_path(self) -> str:
        return self._head.target

    def _open_headers(self) -> dict[str, str]:
        given = self._head.headers
        headers = {name: value for name, value in given.items() if name not in _HOP}
        for name in _hops_of(given):
            headers.pop(name, None)
        headers.setdefault("content-type", "application/json")
        headers["x-forwarded-host"] = given.get("host", "")
        return headers

    def _worker_lines(self) -> str:
        headers = self._worker_headers
        return "".join(_line(name, headers[name]) for name in _SHOWN if name in headers)

    def _begin_stream(self, content_type: str, continuation: str | None) -> None:
        connection = self.connection
        if connection is None:
            return
        self._began = True
        reason = heads.REASONS.get(self._status, "OK")
        head = (
            f"HTTP/1.1 {self._status} {reason}\r\ncontent-type: {content_type}\r\n"
            f"{self._worker_lines()}{self._extra(continuation)}"
        )
        connection.start_stream(head.encode("latin-1"), chunked=True)

    def _fail(self, failed: Failed) -> None:
        super()._fail(plain(failed))


class Anything(Predict):
    """A request of an `http` endpoint: any method, any path, and all headers of the answer."""

    __slots__ = ()
    kind = "http"

    def _worker_lines(self) -> str:
        headers = self._worker_headers
        hidden = _NOT_SHOWN.union(_hops_of(headers))
        return "".join(_line(name, value) for name, value in headers.items() if name not in hidden)

    def _again(self) -> None:
        if self._head.method in REPEATABLE:
            super()._again()
            return
        text = "the worker was lost with the request; it is not sent again, for it may have had an effect"
        self._lost_for_good(Failed(502, "server_error", "instance_interrupted", text))
