"""Frames of the worker link: a 12-byte header, then a payload. Shared by the gateway and the worker; no IO.

```
length u32 | stream u32 | type u8 | flags u8 | epoch u16        big endian, then `length` payload bytes
```
Only the gateway opens streams; ids count up from 1 and are never reused on a link; stream 0 is the link itself.
TOKENS payload: choice u8, first_index u32, count u16 (big endian), `count` ids u32 little endian, then SSE bytes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Final

HEADER: Final = Struct(">IIBBH")
HEADER_BYTES: Final = 12
FRAME_BYTES_MAX: Final = 1 << 20
PROTOCOL: Final = 1
UPGRADE: Final = "nanopod-worker/1"

HELLO, WELCOME, OPEN, HEAD, DATA, END, TOKENS, RESET, WINDOW, PING, PONG, STATE, GOAWAY, RELEASE = range(1, 15)
NAMES: Final = (
    "", "HELLO", "WELCOME", "OPEN", "HEAD", "DATA", "END", "TOKENS", "RESET", "WINDOW", "PING", "PONG", "STATE",
    "GOAWAY", "RELEASE",
)  # fmt: skip
FLAG_END: Final = 1
"""On OPEN and on the gateway's DATA: the request body is complete with this frame. On HEAD: the answer is streamed."""
FLAG_OPTIONAL: Final = 128
"""A receiver that does not know the frame's type ignores it instead of closing the link."""

# RESET codes
CANCELLED, ENGINE_LOST, REFUSED, TOO_LARGE, DEADLINE, FENCED, INTERNAL = range(1, 8)
RESET_CODES: Final = {
    "cancelled": CANCELLED, "engine_lost": ENGINE_LOST, "refused": REFUSED, "too_large": TOO_LARGE,
    "deadline": DEADLINE, "fenced": FENCED, "internal": INTERNAL,
}  # fmt: skip
RESET_NAMES: Final = {code: name for name, code in RESET_CODES.items()}

_TOKENS: Final = Struct(">BIH")
_U16: Final = Struct(">H")


class ProtocolError(ValueError):
    """The peer sent something that is not this protocol; the link must close with this text."""


def pack(kind: int, stream: int, payload: bytes = b"", flags: int = 0, epoch: int = 0) -> bytes:
    """One frame as bytes."""
    assert len(payload) <= FRAME_BYTES_MAX, "frames are at most 1 MiB: cut the payload"
    return HEADER.pack(len(payload), stream, kind, flags, epoch) + payload


def pack_open(stream: int, head: bytes, body: bytes = b"", *, end: bool = True, epoch: int = 1) -> bytes:
    """An OPEN frame: u16 head length, head (JSON), first body bytes."""
    return pack(OPEN, stream, _U16.pack(len(head)) + head + body, FLAG_END if end else 0, epoch)


def unpack_open(payload: bytes) -> tuple[bytes, bytes]:
    """(head JSON, first body bytes) of an OPEN payload."""
    if len(payload) < 2:
        raise ProtocolError("OPEN is too short for its head length")
    end = 2 + _U16.unpack_from(payload)[0]
    if end > len(payload):
        raise ProtocolError("OPEN's head is longer than its payload")
    return payload[2:end], payload[end:]


def pack_tokens(stream: int, epoch: int, choice: int, first_index: int, ids: Sequence[int], sse: bytes) -> bytes:
    """A TOKENS frame: output ids from `first_index` on of one choice, and the SSE bytes that show them."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return pack(TOKENS, stream, _TOKENS.pack(choice, first_index, len(packed)) + packed.tobytes() + sse, 0, epoch)


def unpack_tokens(payload: bytes) -> tuple[int, int, array[int], bytes]:
    """(choice, first_index, ids, sse bytes) of a TOKENS payload."""
    if len(payload) < 7:
        raise ProtocolError("TOKENS is too short")
    choice, first, count = _TOKENS.unpack_from(payload)
    end = 7 + 4 * count
    if end > len(payload):
        raise ProtocolError("TOKENS holds fewer ids than it says")
    ids = array("I")
    ids.frombytes(payload[7:end])
    if sys.byteorder == "big":
        ids.byteswap()
    return choice, first, ids, payload[end:]


def pack_reset(stream: int, code: int, text: str = "", epoch: int = 0) -> bytes:
    """A RESET frame."""
    return pack(RESET, stream, _U16.pack(code) + text.encode()[:1024], 0, epoch)


def unpack_reset(payload: bytes) -> tuple[int, str]:
    """(code, text) of a RESET payload."""
    if len(payload) < 2:
        raise ProtocolError("RESET is too short")
    return _U16.unpack_from(payload)[0], payload[2:].decode(errors="replace")


Frame = tuple[int, int, int, int, bytes]
"""(type, stream, flags, epoch, payload)"""


class FrameReader:
    """Cuts a byte stream into frames. Feed it reads of any size; it keeps what is incomplete."""

    __slots__ = ("_chunks", "_kept", "_need")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._kept = 0
        self._need = HEADER_BYTES

    def feed(self, data: bytes) -> list[Frame]:
        """Frames completed by `data`. Raises `ProtocolError` for a frame above 1 MiB."""
        # Reads wait as a list until a frame can be whole: joining them one by one would copy a large frame many times.
        if self._chunks:
            self._chunks.append(data)
            self._kept += len(data)
            if self._kept < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks = []
        self._need = HEADER_BYTES
        at, size = 0, len(data)
        frames: list[Frame] = []
        unpack = HEADER.unpack_from
        while size - at >= HEADER_BYTES:
            length, stream, kind, flags, epoch = unpack(data, at)
            if length > FRAME_BYTES_MAX:
                raise ProtocolError(f"a frame of {length} bytes is above the limit of {FRAME_BYTES_MAX}")
            end = at + HEADER_BYTES + length
            if end > size:
                self._need = end - at
                break
            frames.append((kind, stream, flags, epoch, data[at + HEADER_BYTES : end]))
            at = end
        if at < size:
            self._chunks = [data[at:]]
            self._kept = size - at
        return frames
