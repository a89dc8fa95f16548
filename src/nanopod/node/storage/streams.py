"""Files at a source, and reading them from any byte on; HTTP with limits for connecting and for silence.

Connections are given `CONNECT_S_MAX` seconds, and an answer that says nothing for `READ_S_MAX` seconds is broken off:
whoever reads goes on from the last byte. Credentials go to the host they are meant for, not to one it redirects to.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Final, Protocol

from nanopod.model.addresses import is_link_local
from nanopod.node.storage.errors import Broken, StorageFailed

CONNECT_S_MAX: Final = 15.0
READ_S_MAX: Final = 30.0
DOCUMENT_BYTES_MAX: Final = 64 << 20
"""Of a listing or a token."""
_SHA256: Final = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?')
PRIVATE: Final = ("Authorization", "X-ms-version")


class Body(Protocol):
    """Bytes that arrive."""

    def read(self, amount: int = ..., /) -> bytes:
        """At most so many; b"" at the end."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that gives a file from byte `start` on. `size`: bytes of the whole file; None: not stated."""

    body: Body
    start: int
    size: int | None
    mark: str = ""
    """What the source says tells this content apart, such as an entity tag."""
    digest: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Remote:
    """One file at a source.

    `open(start, mark)` reads from a byte on; where what is there is no longer what `mark` names, from 0 on.
    """

    path: str
    """Below the storage's directory."""
    identity: str
    """What the source calls it, the source included."""
    open: Callable[[int, str], Stream]
    size: int | None = None
    mark: str = ""
    """Tells its content apart; "": only known once it is opened."""
    digest: tuple[str, str] | None = None
    """("sha256" or "md5", hex), where the source states one."""


def _check_peer(sock: socket.socket) -> None:
    """Raises `StorageFailed` for a host that is no place for models, whatever name or redirect led there."""
    if is_link_local(str(sock.getpeername()[0])):
        sock.close()
        raise StorageFailed("storage is not fetched from link-local addresses")


class _Plain(http.client.HTTPConnection):
    """Connects within one limit, then reads within another."""

    def connect(self) -> None:
        """Dial."""
        self.timeout = CONNECT_S_MAX
        super().connect()
        _check_peer(self.sock)
        self.sock.settimeout(READ_S_MAX)


class _Secure(http.client.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        """Dial."""
        self.timeout = CONNECT_S_MAX
        super().connect()
        _check_peer(self.sock)
        self.sock.settimeout(READ_S_MAX)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Secure, req)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, drops the `private` headers on another host, and keeps the headers of each answer passed."""

    def __init__(self, private: frozenset[str]) -> None:
        self.passed: list[Message] = []
        self._private = private

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.passed.append(headers)
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is None:
            return None
        if new.type not in ("http", "https"):
            raise StorageFailed(f"the source redirects to {new.type}://, which is not followed")
        if req.type == "https" and new.type != "https":
            raise StorageFailed("the source redirects from https to an unsafe address")
        if new.host != req.host:
            for name in self._private:
                new.remove_header(name.capitalize())
        return new


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer whose body is still to be read. `passed`: headers of the redirects before it."""

    status: int
    headers: Message
    body: http.client.HTTPResponse
    passed: tuple[Message, ...] = ()


def ask(
    url: str, headers: Mapping[str, str], what: str, data: bytes | None = None, also: tuple[int, ...] = ()
) -> Answer:  # fmt: skip
    """Open a URL. Raises `StorageFailed` for what is not there or not allowed, `Broken` for what may pass.

    Answers of the statuses in `also` are returned like good ones. No error names the URL's query.
    """
    redirects = Redirects(frozenset((*PRIVATE, *headers)) - {"Range", "If-Range", "Accept"})
    request = urllib.request.Request(url, data, {"User-Agent": "nanopod", **headers})
    opener = urllib.request.build_opener(_Http, _Https, redirects)
    try:
        found = opener.open(request, timeout=READ_S_MAX)
    except urllib.error.HTTPError as error:
        if error.code in also:
            return Answer(error.code, error.headers, error, tuple(redirects.passed))  # type: ignore[arg-type]
        with contextlib.closing(error):
            raise refusal(what, error.code) from None
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"{what}: {_reason(error)}") from None
    return Answer(found.status, found.headers, found, tuple(redirects.passed))


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", error)
    return f"{type(inner).__name__}: {inner}" if isinstance(inner, BaseException) else str(inner)


def refusal(what: str, status: int) -> Exception:
    """What an HTTP status means: the user's fault, or worth another try."""
    if status == 404:
        return StorageFailed(f"{what} does not exist (HTTP 404); check the URI")
    if status in (401, 403):
        return StorageFailed(f"{what} may not be read (HTTP {status}); give credentials with storage.secret")
    if status in (408, 425, 429) or status >= 500:
        return Broken(f"{what}: the source answered HTTP {status}")
    return StorageFailed(f"{what}: the source answered HTTP {status}")


def document(url: str, headers: Mapping[str, str], what: str, data: bytes | None = None) -> bytes:
    """The whole of a short answer. Raises as `ask` does."""
    answer = ask(url, headers, what, data)
    with contextlib.closing(answer.body):
        try:
            found = answer.body.read(DOCUMENT_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"{what}: {_reason(error)}") from None
    if len(found) > DOCUMENT_BYTES_MAX:
        raise StorageFailed(f"{what}: the listing is longer than {DOCUMENT_BYTES_MAX >> 20} MiB; name a longer prefix")
    return found


def stream(
    url: str, headers: Mapping[str, str], what: str, start: int, condition: str = "",
    digest: tuple[str, str] | None = None,
) -> Stream:  # fmt: skip
    """A file over HTTP from a byte on, if it is still what `condition` (see `mark_of`) names. Raises as `ask` does."""
    given = dict(headers)
    if start:
        given["Range"] = f"bytes={start}-"
        if condition:
            given["If-Range"] = condition
    answer = ask(url, given, what, also=(416,))
    if answer.status == 416:
        answer.body.close()
        answer = ask(url, headers, what)
    return of(answer, start, digest)


def of(answer: Answer, start: int, digest: tuple[str, str] | None = None) -> Stream:
    """An answer as a stream; what was asked from `start` on begins at 0 where the source does not do ranges."""
    begins = start if answer.status == 206 else 0
    length = answer.headers.get("Content-Length")
    plain = answer.headers.get("Content-Encoding", "identity") == "identity"
    size = begins + int(length) if length is not None and length.isdigit() and plain else None
    return Stream(answer.body, begins, size, mark_of(answer.headers), digest)


def mark_of(headers: Message) -> str:
    """What tells this content apart and may stand in `If-Range`: a strong entity tag, else the time of its change."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified") or ""


def stated_sha256(headers: Message) -> str | None:
    """The SHA-256 (hex) that a hub states for a large file, as its linked entity tag."""
    match = _SHA256.fullmatch(headers.get("X-Linked-ETag") or "")
    return match.group(1) if match else None
