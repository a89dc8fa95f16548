"""HTTP/1.1 heads: strict parsing of requests (on httptools), and the bytes of responses and errors.

A keep-alive client repeats its head to the byte, so parsed heads are cached by their bytes.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import httptools
import msgspec

from nanopod.model.errors import NanopodError

HEAD_BYTES_MAX: Final = 65_536
HEADERS_MAX: Final = 100
BODY_BYTES_MAX: Final = 32 << 20
CACHE_MAX: Final = 512
CACHED_HEAD_BYTES_MAX: Final = 4_096

REASONS: Final = {
    101: "Switching Protocols", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect",
    308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict",
    410: "Gone", 412: "Precondition Failed", 413: "Content Too Large", 415: "Unsupported Media Type",
    416: "Range Not Satisfiable", 417: "Expectation Failed", 418: "I'm a teapot", 422: "Unprocessable Content",
    426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip
_json: Final = msgspec.json.Encoder().encode
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_TOKEN: Final = re.compile(r"[!-~]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class BadRequest(ValueError):
    """The request cannot be trusted to be framed as it seems: answer `status` and close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Head:
    """A parsed request head. Header names are lower case; repeated ones are joined by a comma.

    Requests of one connection share it, so it also keeps what they would all find out about it.
    """

    __slots__ = (
        "authorization", "chunked", "expects", "headers", "http10", "keep_alive", "length", "method", "opening", "path",
        "raw_headers", "target", "upgrade", "wait_s", "way",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = ""
        self.target = ""
        self.path = ""
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.headers: dict[str, str] = {}
        self.http10 = False
        self.keep_alive = True
        self.length = 0
        self.chunked = False
        self.expects = False
        self.upgrade = ""
        self.authorization = ""
        self.way: tuple[object, Any] | None = None
        """(tables' mark, route) of requests for an endpoint, while the tables are those; see `Surface.route`."""
        self.wait_s: float | None = None
        """How long its sender can wait for a worker; None: not worked out yet."""
        self.opening: tuple[type, str, bytes] | None = None
        """(kind of request, workspace, beginning of what a worker is told); see `Request`."""

    def on_url(self, url: bytes) -> None:
        """Called by httptools."""
        self.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        self.raw_headers.append((name, value))


def parse(data: bytes) -> Head:
    """Parse a whole head, empty line included. Raises `BadRequest` for whatever could be read in two ways."""
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadRequest(400, f"malformed request: {error}") from None
    if not head.target or data.startswith(b"\r\n\r\n"):
        raise BadRequest(400, "malformed request line")
    if len(head.raw_headers) > HEADERS_MAX:
        raise BadRequest(431, f"more than {HEADERS_MAX} headers")
    if _BARE_LF.search(data) or b"\r" in data.replace(b"\r\n", b"") or b"\0" in data:
        raise BadRequest(400, "lines must end in CRLF")
    head.method = parser.get_method().decode()
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    head.http10 = version == "1.0"
    _collect(head)
    return head


def _collect(head: Head) -> None:
    """Fill in the fields that the header lines decide."""
    headers = head.headers
    for raw_name, raw_value in head.raw_headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
        if name in headers:
            if name in ("content-length", "transfer-encoding", "host", "authorization", "upgrade"):
                raise BadRequest(400, f"header {name} is repeated")
            headers[name] += ", " + value
        else:
            headers[name] = value
    if "host" not in headers and not head.http10:
        raise BadRequest(400, "a Host header is required")
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if length is not None or head.http10:
            raise BadRequest(400, "Transfer-Encoding beside Content-Length (or in HTTP/1.0) is refused")
        if coding.lower() != "chunked":
            raise BadRequest(501, "the only transfer coding is chunked")
        head.chunked = True
    elif length is not None:
        if not length.isascii() or not length.isdigit() or len(length) > 18:
            raise BadRequest(400, "Content-Length is not a number")
        head.length = int(length)
    expect = headers.get("expect")
    if expect is not None and not head.http10:
        if expect.lower() != "100-continue":
            raise BadRequest(417, "the only expectation is 100-continue")
        head.expects = True
    # The parser's own verdict is gone once a message without a body is complete.
    hop = headers.get("connection", "").lower()
    words = {word.strip() for word in hop.split(",")} if hop else ()
    head.keep_alive = "keep-alive" in words if head.http10 else "close" not in words
    if "upgrade" in words:
        head.upgrade = headers.get("upgrade", "").lower()
    head.authorization = headers.get("authorization", "")
    target = head.target
    if target.startswith("http://") or target.startswith("https://"):
        target = "/" + target.split("/", 3)[3] if target.count("/") > 2 else "/"
        head.target = target
    if not target.startswith("/") and target != "*":
        raise BadRequest(400, "the request target must be a path")
    head.path = target.partition("?")[0]


class HeadCache:
    """Heads by their bytes. Holds credentials, so it lives and dies with the process's memory only."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def parse(self, data: bytes) -> Head:
        """`parse`, remembered."""
        head = self._heads.get(data)
        if head is None:
            head = parse(data)
            if len(data) <= CACHED_HEAD_BYTES_MAX:
                if len(self._heads) >= CACHE_MAX:
                    self._heads.clear()
                self._heads[data] = head
        return head


class Chunks:
    """Incremental decoder of a chunked request body; strict, without extensions kept or trailers used."""

    __slots__ = ("_left", "_line", "_state", "done", "rest", "total")

    def __init__(self) -> None:
        self._state: Literal["size", "data", "crlf", "trailer"] = "size"
        self._line = b""
        self._left = 0
        self.total = 0
        self.done = False
        self.rest = b""
        """What followed the body."""

    def feed(self, data: bytes) -> list[bytes]:
        """Pieces of the body in `data`. Raises `BadRequest` when it is not chunked as RFC 9112 says."""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "crlf"
                continue
            end = data.find(b"\n", at)
            line = self._line + (data[at : end + 1] if end >= 0 else data[at:])
            if len(line) > 4096:
                raise BadRequest(400, "a chunk's line is too long")
            if end < 0:
                self._line = line
                break
            self._line = b""
            at = end + 1
            if not line.endswith(b"\r\n"):
                raise BadRequest(400, "lines must end in CRLF")
            self._on_line(line[:-2])
        if self.done:
            self.rest = data[at:]
        return pieces

    def _on_line(self, line: bytes) -> None:
        if self._state == "crlf":
            if line:
                raise BadRequest(400, "a chunk is longer than its size")
            self._state = "size"
        elif self._state == "trailer":
            self.done = not line
        else:
            size = line.partition(b";")[0].rstrip(b" \t")
            if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", size) or b"\r" in line:
                raise BadRequest(400, "a chunk's size is not a hexadecimal number")
            self._left = int(size, 16)
            self.total += self._left
            self._state = "data" if self._left else "trailer"


def request_id_of(head: Head) -> str | None:
    """The caller's own request id, when it is fit to be repeated."""
    given = head.headers.get("x-request-id")
    return given if given and _TOKEN.fullmatch(given) else None


def fit(headers: dict[str, str]) -> dict[str, str]:
    """A worker's headers without values that cannot be one line: they would end the answer and begin another."""
    text = "".join(headers.values())
    if text.isascii() and text.isprintable():
        return headers
    return {name: value for name, value in headers.items() if _VALUE.fullmatch(value)}


def response(
    status: int, body: bytes, *, content_type: str = "application/json", extra: str = "", close: bool
) -> bytes:
    """A whole response with a body of known length. `extra`: further header lines, each ending in CRLF."""
    reason = REASONS.get(status, "Unknown")
    end = "connection: close\r\n\r\n" if close else "\r\n"
    return (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{extra}{end}"
    ).encode("latin-1") + body


class Failed(Exception):
    """A request's own end: what the caller is told, in the shape of the OpenAI API."""

    content_type = "application/json"

    def __init__(
        self, status: int, kind: str, code: str, message: str, *, param: str | None = None, extra: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.message = message
        self.param = param
        self.extra = extra
        """Header lines, each ending in CRLF."""

    def body(self) -> bytes:
        """The JSON body."""
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return bytes(_json({"error": fields}))

    def event(self) -> bytes:
        """The same as an SSE event, for a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


class Problem(Failed):
    """The same below `/web/`: a problem document (RFC 9457) with the code as an extension."""

    content_type = "application/problem+json"

    def __init__(self, status: int, code: str, message: str, *, extra: str = "") -> None:
        super().__init__(status, "problem", code, message, extra=extra)

    def body(self) -> bytes:
        """The problem as JSON."""
        title = REASONS.get(self.status, "Error")
        return bytes(
            _json(
                {"type": "about:blank", "title": title, "status": self.status, "detail": self.message,
                 "code": self.code}
            )
        )  # fmt: skip

    def event(self) -> bytes:
        """The same as an SSE event of its own kind."""
        return b"event: error\ndata: " + self.body() + b"\n\n"


def unauthenticated() -> Failed:
    """401, the same for a missing, wrong, expired and revoked key."""
    return Failed(
        401, "invalid_request_error", "invalid_api_key",
        "Incorrect API key provided: send `Authorization: Bearer <key>` (`nanopod keys create` makes one).",
        extra='www-authenticate: Bearer error="invalid_token"\r\n',
    )  # fmt: skip


def denied(message: str) -> Failed:
    """403."""
    return Failed(403, "permission_error", "permission_denied", message)


def invalid(code: str, message: str, param: str | None = None, status: int = 400) -> Failed:
    """A request that cannot be served as it is."""
    return Failed(status, "invalid_request_error", code, message, param=param)


def overloaded(message: str, code: str = "overloaded", retry_s: int = 5) -> Failed:
    """503 with a time to come back."""
    return Failed(503, "server_error", code, message, extra=f"retry-after: {retry_s}\r\n")


def native_error(error: NanopodError) -> tuple[int, bytes, str]:
    """(status, body, header lines) of an error in the management API's shape."""
    details: list[dict[str, Any]] = []
    if error.field:
        details.append({"field": error.field, "code": error.code, "message": error.message})
    body = _json({"error": {"type": error.code, "message": error.message, "details": details}})
    extra = f"retry-after: {max(1, round(error.retry_after_s))}\r\n" if error.retry_after_s is not None else ""
    return error.status, body, extra
