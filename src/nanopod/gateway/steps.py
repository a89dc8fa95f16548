"""Where the steps of a graph go: the path that an endpoint answers, or another server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

import httptools
import msgspec

from nanopod.gateway import heads
from nanopod.gateway.heads import Head
from nanopod.model import unreadable
from nanopod.model.addresses import is_link_local
from nanopod.model.wire import RouteRow

CONNECT_S_MAX: Final = 5.0
READ_BYTES: Final = 65_536
_OPENAI: Final = (
    ("messages", "/v1/chat/completions"), ("prompt", "/v1/completions"), ("input", "/v1/embeddings"),
)  # fmt: skip
_INFERENCE: Final = {"v1": ("instances", "/v1/models/{}:predict"), "v2": ("inputs", "/v2/models/{}/infer")}
"""{protocol: (the field by which its requests are known, its path)}."""
_json: Final = msgspec.json.Encoder().encode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def path_for(route: RouteRow, body: bytes) -> tuple[str, bytes] | None:
    """(path, body) with which a step asks an endpoint; None when it serves no model.

    OpenAI's path follows from the body, which gets the endpoint's model when it names none.
    """
    if route.kind != "model":
        return None
    name = (route.serves or route.model_ids or (route.name,))[0]
    if inference := [one for one in route.protocols if one in _INFERENCE]:
        paths = {one: _INFERENCE[one][1].format(name) for one in inference}
        chosen = inference[0]  # an endpoint names the protocol first that it is meant for
        if len(inference) > 1:
            with contextlib.suppress(*unreadable.JSON):
                named = _fields(body)
                chosen = next((one for one in inference if _INFERENCE[one][0] in named), chosen)
        return paths[chosen], body
    if route.protocols and "openai" not in route.protocols:
        return "/", body
    try:
        fields = _fields(body)
    except unreadable.JSON:
        return "/v1/chat/completions", body
    if "model" not in fields and route.model_ids:
        body = _json({"model": route.model_ids[0], **fields})
    path = next((path for field, path in _OPENAI if field in fields), "/v1/chat/completions")
    return path, body


class _Reader:
    """What an HTTP answer says, as its bytes come."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.content_type = "application/json"
        self.framed = False
        """It says where it ends: before that, it is not whole."""
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        lowered = name.lower()
        if lowered in (b"content-length", b"transfer-encoding"):
            self.framed = True
        if lowered == b"content-type":
            self.content_type = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        self.body += body

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self.done = True


async def post_abroad(url: str, body: bytes, head: Head) -> tuple[int, bytes, str]:
    """(status, body, content type) of a POST to another server; one that cannot be reached answers 502.

    Each request has a connection of its own, and no redirect is followed. The caller limits the time.
    """
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    writer: asyncio.StreamWriter | None = None
    try:
        host, port = parts.hostname or "", parts.port or (443 if tls else 80)
        async with asyncio.timeout(CONNECT_S_MAX):
            address = await _address(host, port)
            context = ssl.create_default_context() if tls else None
            reader, writer = await asyncio.open_connection(
                address, port, ssl=context, server_hostname=host if tls else None
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        given = heads.request_id_of(head)
        lines = [
            f"POST {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}", "connection: close",
            f"content-type: {head.headers.get('content-type', 'application/json')}", f"content-length: {len(body)}",
            *([f"x-request-id: {given}"] if given else ()),
        ]  # fmt: skip
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        answer = _Reader()
        while not answer.done and (data := await reader.read(READ_BYTES)):
            answer.parser.feed_data(data)
            if len(answer.body) > heads.BODY_BYTES_MAX:
                return _told(502, f"{_place(url)} answered more than {heads.BODY_BYTES_MAX} bytes")
        status = answer.parser.get_status_code()
        if not status or (answer.framed and not answer.done):
            return _told(502, f"{_place(url)} closed the connection before its answer was whole")
        if not 200 <= status <= 599:
            return _told(502, f"{_place(url)} answered with the status {status}")
        return status, bytes(answer.body), answer.content_type
    except (OSError, TimeoutError, ValueError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        return _told(502, f"{_place(url)} cannot be reached: {error or type(error).__name__}")
    finally:
        if writer is not None:
            writer.close()


async def _address(host: str, port: int) -> str:
    """An address of a host. Link-local ones are refused: clouds answer there with credentials of the machine."""
    loop = asyncio.get_running_loop()
    found = [str(one[4][0]) for one in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    good = [one for one in found if not is_link_local(one)]
    if not good:
        raise ValueError("a graph does not reach link-local addresses")
    return good[0]


def _told(status: int, text: str) -> tuple[int, bytes, str]:
    return status, _json({"error": text}), "application/json"


def _place(url: str) -> str:
    """The address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
