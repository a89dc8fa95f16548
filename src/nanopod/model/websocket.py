"""A websocket (RFC 6455) without IO: handshake texts, an encoder and an incremental parser for either side.

`Parser(server=True)` reads a client's masked frames, `Parser(server=False)` a server's bare ones. No extensions. The
caller draws the masks and the handshake key, because this room draws no randomness.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from struct import Struct
from typing import Any, Final

from nanopod.model import frames

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MESSAGE_BYTES_MAX: Final = 4 << 20
"""Largest message a parser accepts unless told otherwise; call frames are at most 1 MiB."""
NORMAL, GOING_AWAY, PROTOCOL_ERROR, INVALID_DATA, POLICY, TOO_BIG, INTERNAL, TRY_LATER = (
    1000, 1001, 1002, 1007, 1008, 1009, 1011, 1013,
)  # fmt: skip

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_U16: Final = Struct(">H")
_U64: Final = Struct(">Q")
_SHORT: Final = Struct(">BBH")
_LONG: Final = Struct(">BBQ")


class ProtocolError(frames.ProtocolError):
    """The peer broke the protocol; `code` is the status for the close frame."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` value for a `Sec-WebSocket-Key` value."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def client_key(random: bytes) -> str:
    """A `Sec-WebSocket-Key` value from 16 random bytes."""
    assert len(random) == 16, "the handshake key is made of 16 random bytes"
    return base64.b64encode(random).decode()


def is_client_key(key: str) -> bool:
    """True for a well-formed `Sec-WebSocket-Key` value (base64 of 16 bytes)."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def client_request(host: str, path: str, key: str, subprotocol: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The whole HTTP request that opens a websocket."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Protocol: {subprotocol}",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def server_response(key: str, subprotocol: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The whole 101 answer to a request with `key`."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Accept: {accept_key(key)}",
        f"Sec-WebSocket-Protocol: {subprotocol}",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def check_response(head: bytes, key: str, subprotocol: str) -> None:
    """Check a server's answer head (up to and with the empty line). Raises `ProtocolError` unless it opens the link."""
    lines = head.decode("latin-1").split("\r\n")
    status = lines[0].split(" ", 2)
    if len(status) < 2 or not status[0].startswith("HTTP/1.1") or status[1] != "101":
        raise ProtocolError(f"the server refused the websocket: {lines[0]}")
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    if found.get("upgrade", "").lower() != "websocket" or "upgrade" not in found.get("connection", "").lower():
        raise ProtocolError("the server's answer does not upgrade to a websocket")
    if found.get("sec-websocket-accept") != accept_key(key):
        raise ProtocolError("the server's Sec-WebSocket-Accept does not fit the key that was sent")
    if found.get("sec-websocket-protocol", subprotocol) != subprotocol:
        raise ProtocolError(f"the server does not speak {subprotocol}")
    if found.get("sec-websocket-extensions"):
        raise ProtocolError("the server turned on an extension that was not asked for")


_wide: Any = None
"""numpy, once it is loaded; it masks thirty times as fast."""
WIDE_BYTES: Final = 16384


def mask_with(numpy: Any) -> None:
    """Use numpy for large payloads from now on. This room does not load it: most programs never need it."""
    global _wide
    _wide = numpy


def _wide_xor(payload: bytes, start: int, size: int, mask: bytes) -> Any:
    """The part of `payload` from `start` on, masked, as an object with the buffer of a bytes object."""
    whole = size & ~3
    found = _wide.frombuffer(payload, "<u4", whole // 4, start) ^ _wide.frombuffer(mask, "<u4")
    if whole == size:
        return found
    rest = payload[start + whole : start + size]
    return found.tobytes() + bytes(byte ^ mask[index] for index, byte in enumerate(rest))


def xor(payload: bytes, mask: bytes) -> bytes:
    """`payload` masked (or unmasked) with a 4-byte `mask`."""
    size = len(payload)
    if not size:
        return payload
    if size >= WIDE_BYTES and _wide is not None:
        return bytes(_wide_xor(payload, 0, size, mask))
    # One big-integer operation runs at memory speed; a loop over bytes would cost about 50 ns for each.
    stretched = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(stretched, "little")).to_bytes(size, "little")


def head(opcode: int, size: int, *, masked: bool = False, fin: bool = True) -> bytes:
    """What comes before a payload of `size` bytes, and before its mask."""
    first = opcode | 128 if fin else opcode
    bit = 128 if masked else 0
    if size < 126:
        return bytes((first, bit | size))
    if size < 65536:
        return _SHORT.pack(first, bit | 126, size)
    return _LONG.pack(first, bit | 127, size)


def encode(opcode: int, payload: bytes, mask: bytes | None = None, *, fin: bool = True) -> bytes:
    """One frame. A client passes 4 random bytes as `mask`; a server passes None."""
    size = len(payload)
    begin = head(opcode, size, masked=mask is not None, fin=fin)
    if mask is None:
        return begin + payload
    if size >= WIDE_BYTES and _wide is not None:
        return b"".join((begin, mask, _wide_xor(payload, 0, size, mask)))
    return begin + mask + xor(payload, mask)


def encode_close(code: int = NORMAL, reason: str = "", mask: bytes | None = None) -> bytes:
    """A close frame; the reason is cut to the 123 bytes that a control frame has room for."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return encode(CLOSE, _U16.pack(code) + text, mask)


def close_code(payload: bytes) -> tuple[int, str]:
    """(status, reason) of a close frame's payload; 1005 when it has none. Raises `ProtocolError` for a wrong one."""
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise ProtocolError("a close frame holds half a status")
    code = _U16.unpack_from(payload)[0]
    if code < 1000 or code in (1004, 1005, 1006) or 1015 <= code < 3000 or code >= 5000:
        raise ProtocolError(f"{code} is not a status a peer may close with")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError("the reason in a close frame is not UTF-8", INVALID_DATA) from None


class Parser:
    """Turns received bytes into whole messages: feed it reads of any size."""

    __slots__ = ("_chunks", "_kept", "_masked", "_max", "_need", "_opcode", "_part_bytes", "_parts", "closed")

    def __init__(self, *, server: bool, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._masked = server
        self._max = message_bytes_max
        self._chunks: list[bytes] = []
        self._kept = 0
        self._need = 2
        self._opcode = 0
        self._parts: list[bytes] = []
        self._part_bytes = 0
        self.closed = False
        """True once a close frame was read: whatever follows is not looked at."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, payload) of each message and control frame that `data` completes, in order.

        The opcodes are TEXT, BINARY, CLOSE, PING and PONG. Raises `ProtocolError` for whatever RFC 6455 forbids and for
        messages above the limit; the link must then be closed with the error's `code`.
        """
        # Bytes of an unfinished frame wait as a list until the frame can be whole, so that a peer that sends single
        # bytes does not make us copy the frame once for each.
        if self._chunks:
            self._chunks.append(data)
            self._kept += len(data)
            if self._kept < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks = []
        found: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        while at < size and not self.closed:
            end = self._frame(data, at, size, found)
            if end < 0:
                self._chunks = [data[at:]]
                self._kept = size - at
                break
            at = end
        return found

    def _frame(self, data: bytes, at: int, size: int, found: list[tuple[int, bytes]]) -> int:
        """Read the frame that starts at `at`; its end, or -1 (and `_need`) when more bytes are wanted."""
        if size - at < 2:
            self._need = 2
            return -1
        first, second = data[at], data[at + 1]
        opcode = first & 15
        if first & 0x70:
            raise ProtocolError("a reserved bit is set; no extension was agreed on")
        if (second > 127) is not self._masked:
            raise ProtocolError("a client's frame is not masked" if self._masked else "a server's frame is masked")
        length = second & 127
        start = at + 2
        if length > 125:
            start += 2 if length == 126 else 8
            if opcode > 7:
                raise ProtocolError("a control frame is longer than 125 bytes")
            if size < start:
                self._need = start - at
                return -1
            wide = length == 127
            length = _U64.unpack_from(data, at + 2)[0] if wide else _U16.unpack_from(data, at + 2)[0]
            if length < (65536 if wide else 126):
                raise ProtocolError("a frame's length is not in its shortest form")
            if length + self._part_bytes > self._max:
                raise ProtocolError(f"a message is above the limit of {self._max} bytes", TOO_BIG)
        if self._masked:
            start += 4
        end = start + length
        if end > size:
            self._need = end - at
            return -1
        if self._masked and length >= WIDE_BYTES and _wide is not None:
            payload = bytes(_wide_xor(data, start, length, data[start - 4 : start]))
        else:
            payload = data[start:end]
            if self._masked and length:
                payload = xor(payload, data[start - 4 : start])
        if first == 130 and not self._opcode:
            found.append((BINARY, payload))
        else:
            self._other(opcode, first > 127, payload, found)
        return end

    def _other(self, opcode: int, fin: bool, payload: bytes, found: list[tuple[int, bytes]]) -> None:
        """Everything but a whole binary message in one frame."""
        if opcode > 7:
            if opcode > PONG:
                raise ProtocolError(f"opcode {opcode} is reserved")
            if not fin:
                raise ProtocolError("a control frame is fragmented")
            if opcode == CLOSE:
                close_code(payload)
                self.closed = True
            found.append((opcode, payload))
            return
        if opcode > BINARY:
            raise ProtocolError(f"opcode {opcode} is reserved")
        if (opcode == CONTINUATION) is (self._opcode == 0):
            raise ProtocolError("a continuation has no beginning" if opcode == 0 else "a message inside another")
        if self._part_bytes + len(payload) > self._max:
            raise ProtocolError(f"a message is above the limit of {self._max} bytes", TOO_BIG)
        if len(self._parts) >= 65536:
            raise ProtocolError("a message has more than 65536 fragments", TOO_BIG)
        self._opcode = opcode or self._opcode
        self._parts.append(payload)
        self._part_bytes += len(payload)
        if not fin:
            return
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        kind = self._opcode
        self._parts, self._part_bytes, self._opcode = [], 0, 0
        if kind == TEXT:
            try:
                whole.decode()
            except UnicodeDecodeError:
                raise ProtocolError("a text message is not UTF-8", INVALID_DATA) from None
        found.append((kind, whole))
