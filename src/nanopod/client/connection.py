"""One websocket to a gateway: handshake, masking, parsing. Says what arrives to its owner; knows nothing of calls."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import urlsplit

from nanopod.model import calls, websocket
from nanopod.model.errors import Denied, Invalid, NanopodError, NoCapacity, RemoteError, Unauthenticated

LINK_PATH = "/v1/link"
HANDSHAKE_BYTES_MAX = 65536
KEY_HINT = "api_key= or NANOPOD_API_KEY"
HIGH_WATER_BYTES = 1 << 20
"""Above this much unsent data, parts of large payloads wait."""


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def opened(self) -> None:
        """The websocket is open."""

    def received(self, header: calls.Header, payload: bytes) -> None:
        """A frame arrived."""

    def lost(self, error: BaseException | None) -> None:
        """The connection is gone; `error` is a `NanopodError` when trying again is of no use."""

    def writable(self) -> None:
        """There is room for more data again."""


class Address:
    """Where a URL such as `https://host:8900/base` leads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(f"{url!r} is not the URL of a server; write it as http://host:port", field="url")
        try:
            port = parts.port
        except ValueError:
            raise Invalid(f"{url!r} has an impossible port", field="url") from None
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.secure else 80)
        self.base = parts.path.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.host_header = host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class _Masks:
    """Frame masks, drawn from the system's randomness a thousand at a time: one by one costs a system call each."""

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def draw(self) -> bytes:
        at = self._at
        if at >= len(self._pool):
            self._pool, at = os.urandom(4096), 0
        self._at = at + 4
        return self._pool[at : at + 4]


class Connection(asyncio.Protocol):
    """The protocol object of one TCP connection."""

    def __init__(self, owner: Owner, address: Address, key: str) -> None:
        self._owner: Owner | None = owner
        self._address = address
        self._authorization = f"Bearer {key}"
        self._transport: asyncio.Transport | None = None
        self._handshake: bytearray | None = bytearray()
        self._nonce = websocket.client_key(os.urandom(16))
        self._parser = websocket.Parser(server=False)
        self._clock = asyncio.get_running_loop().time
        self._draw: Callable[[], bytes] = _Masks().draw
        self.heard_at = 0.0
        """When any bytes last came, on the loop's clock."""
        self.is_full = False
        """True while more than `HIGH_WATER_BYTES` wait to be sent."""

    # --- sending ---

    def send(self, *messages: bytes) -> None:
        """Send call frames, in one write."""
        if self._transport is None:
            return
        encode, draw = websocket.encode, self._draw
        if len(messages) == 1:
            self._transport.write(encode(websocket.BINARY, messages[0], draw()))
        else:
            self._transport.write(b"".join([encode(websocket.BINARY, message, draw()) for message in messages]))

    def ping(self) -> None:
        """Ask the gateway to answer."""
        if self._transport is not None:
            self._transport.write(websocket.encode(websocket.PING, b"", self._draw()))

    def close(self, code: int = websocket.NORMAL, reason: str = "") -> None:
        """Close politely; the owner hears nothing more."""
        self._owner = None
        if self._transport is not None and self._handshake is None:
            self._transport.write(websocket.encode_close(code, reason, self._draw()))
        if self._transport is not None:
            self._transport.close()

    def abort(self, error: BaseException | None) -> None:
        """Drop the connection at once and tell the owner."""
        if self._transport is not None:
            self._transport.abort()
        self._tell_lost(error)

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        # No check by its class: other event loops have transports of their own.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = {"Authorization": self._authorization}
        path = self._address.base + LINK_PATH
        transport.write(websocket.client_request(self._address.host_header, path, self._nonce, calls.SUBPROTOCOL, head))

    def data_received(self, data: bytes) -> None:
        """Cut what came into frames."""
        self.heard_at = self._clock()
        if self._handshake is not None:
            rest = self._shake(data)
            if rest is None:
                return
            data = rest
        try:
            for opcode, payload in self._parser.feed(data):
                if opcode == websocket.BINARY:
                    if self._owner is not None:
                        self._owner.received(*calls.decode(payload))
                elif opcode == websocket.PING and self._transport is not None:
                    self._transport.write(websocket.encode(websocket.PONG, payload, self._draw()))
                elif opcode == websocket.CLOSE:
                    self._closed_by_peer(payload)
        except ValueError as error:  # the websocket's or the frames' rules were broken
            self.abort(ConnectionError(f"the gateway broke the protocol: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._transport = None
        if self._handshake is not None:
            exc = exc or ConnectionError("the server closed the connection during the handshake")
        self._tell_lost(exc)

    def pause_writing(self) -> None:
        """Too much is unsent."""
        self.is_full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.is_full = False
        if self._owner is not None:
            self._owner.writable()

    def _tell_lost(self, error: BaseException | None) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.lost(error)

    def _closed_by_peer(self, payload: bytes) -> None:
        code, reason = websocket.close_code(payload)
        if self._transport is not None:
            self._transport.write(websocket.encode_close(websocket.NORMAL, "", self._draw()))
            self._transport.close()
        final: NanopodError | None = None
        if code == websocket.POLICY:
            final = Unauthenticated(f"{reason or 'the server no longer accepts this key'}; check {KEY_HINT}")
        self._tell_lost(final or ConnectionError(f"the gateway closed the link ({code} {reason})"))

    def _shake(self, data: bytes) -> bytes | None:
        """Collect the answer to the handshake; what follows it, once it is complete and good."""
        assert self._handshake is not None
        self._handshake += data
        end = self._handshake.find(b"\r\n\r\n")
        if end < 0:
            if len(self._handshake) > HANDSHAKE_BYTES_MAX:
                self.abort(ConnectionError("the server's answer to the handshake does not end"))
            return None
        head, rest = bytes(self._handshake[: end + 4]), bytes(self._handshake[end + 4 :])
        if not head.startswith(b"HTTP/1.1 101"):
            self.abort(refusal(head, rest))
            return None
        try:
            websocket.check_response(head, self._nonce, calls.SUBPROTOCOL)
        except ValueError as error:
            self.abort(RemoteError(str(error), type_name="HTTP 101"))
            return None
        self._handshake = None
        if self._owner is not None:
            self._owner.opened()
        return rest


def refusal(head: bytes, body: bytes) -> Exception:
    """What a non-101 answer means: a `NanopodError` when it is final, a `ConnectionError` when one may try again."""
    import json

    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    try:
        text = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = words[2] if len(words) > 2 else "no HTTP answer"
    if status == 401:
        return Unauthenticated(f"{text}; check {KEY_HINT}")
    if status == 403:
        return Denied(text)
    if status in (429, 500, 502, 503, 504):
        return ConnectionError(f"the server answered {status}: {text}")
    return RemoteError(f"Remote function call failed with status code {status}: {text}", type_name=f"HTTP {status}")


def unreachable(url: str, error: BaseException | None, waited_s: float) -> NoCapacity:
    """The error of calls whose gateway does not come (back)."""
    why = f": {error}" if error is not None and str(error) else ""
    return NoCapacity(
        f"cannot reach the nanopod server at {url} (tried for {waited_s:.0f} s{why}); is it up? See: nanopod status",
        retry_after_s=5.0,
    )


def mask_fast() -> None:
    """Let websockets mask large payloads with numpy, if it can be had; it is loaded beside whatever runs now."""
    global _asked_numpy
    if _asked_numpy:
        return
    _asked_numpy = True

    def load() -> None:
        try:
            import numpy
        except ImportError:
            return
        websocket.mask_with(numpy)

    if "numpy" in sys.modules:
        load()
    else:
        threading.Thread(target=load, name="nanopod-numpy", daemon=True).start()


_asked_numpy = False
