"""How spawned calls look outside the process: ids as text, requests that hold many calls, results as frames."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from struct import Struct as Packer
from typing import Final

from msgspec.structs import replace

from nanopod.model import calls
from nanopod.model.errors import Invalid, NotFound

PREFIX: Final = "call_"
ID_BYTES: Final = 16
CALLS_MAX: Final = 10_000
"""Calls in one request."""
REQUEST_BYTES_MAX: Final = 64 << 20
_LENGTH: Final = Packer(">I")
_ID: Final = re.compile(r"(?:call_)?([0-9a-f]{32})")


def text_of(call_id: bytes) -> str:
    """A call id as text: `call_` and 32 hexadecimal digits."""
    return PREFIX + call_id.hex()


def bytes_of(text: str) -> bytes:
    """The 16 bytes of a call id."""
    return bytes.fromhex(text.removeprefix(PREFIX))


def check_id(text: str) -> str:
    """A call id from a path, in its full form. Raises `NotFound` for what cannot be one."""
    found = _ID.fullmatch(text)
    if found is None:
        raise NotFound(f"there is no call {text!r}: ids look like {PREFIX}0123... with 32 hexadecimal digits")
    return PREFIX + found[1]


def prefixed(frames: Iterable[bytes]) -> bytes:
    """Frames, each behind its length as u32 big-endian."""
    return b"".join(part for frame in frames for part in (_LENGTH.pack(len(frame)), frame))


def pieces(data: bytes) -> Iterator[bytes]:
    """The inverse of `prefixed`. Raises `Invalid` for bytes that end too early."""
    at, size = 0, len(data)
    while at < size:
        if size - at < 4:
            raise Invalid("the body ends inside a length; each call is u32 length and frame", field="body")
        end = at + 4 + _LENGTH.unpack_from(data, at)[0]
        if end > size:
            raise Invalid(f"the call at byte {at} is longer than the body; send it whole", field="body")
        yield data[at + 4 : end]
        at = end


def parsed(data: bytes) -> list[tuple[calls.Call, bytes]]:
    """The calls of a request: (header, whole payload). Raises `Invalid`."""
    found: list[tuple[calls.Call, bytes]] = []
    for frame in pieces(data):
        try:
            header, payload = calls.decode(frame)
        except ValueError as error:
            raise Invalid(f"call {len(found)}: {error}", field="body") from None
        if not isinstance(header, calls.Call):
            raise Invalid(f"call {len(found)}: the frame is a {type(header).__name__}, not a Call", field="body")
        if len(header.id) != ID_BYTES:
            raise Invalid(f"call {len(found)}: id has {len(header.id)} bytes instead of {ID_BYTES}", field="id")
        found.append((header, payload))
        if len(found) > CALLS_MAX:
            raise Invalid(f"more than {CALLS_MAX} calls in one request; send them in several", field="body")
    if not found:
        raise Invalid("the body holds no call; send u32 length and frame for each", field="body")
    return found


def never_starting(header: bytes) -> bytes:
    """A call's header with a deadline that has passed: a gateway answers with what it knows of the call's id, and
    starts none that it does not know."""
    found = calls.decode(header)[0]
    assert isinstance(found, calls.Call), "only calls are kept"
    return calls.encode(replace(found, deadline_at=1.0))


def frames_of(header: bytes, payload: bytes) -> list[bytes]:
    """What is sent to start a call. `header` is its encoded Call; its `size` is set where there are several parts."""
    if len(payload) <= calls.PART_BYTES:
        return [header + payload]
    found = calls.decode(header)[0]
    assert isinstance(found, calls.Call), "only calls are kept"
    frames = [header + payload[: calls.PART_BYTES]]
    for at in range(calls.PART_BYTES, len(payload), calls.PART_BYTES):
        frames.append(calls.encode(calls.Part(found.id), payload[at : at + calls.PART_BYTES]))
    return frames
