"""Payloads that are too large for a call's frames: they wait in the server under their digest, a reference travels.

A reference begins with two bytes that neither msgpack nor a pickled payload begins with; its rest is msgpack.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from nanopod.model.codec import PICKLED
from nanopod.model.errors import Invalid, SerializationError

SPILLED: Final = PICKLED + b"\0"
"""How a reference begins."""
SPILL_BYTES_MAX: Final = 256 << 20
"""Largest payload."""
PATH: Final = "/v1/spills/"
"""Where the server keeps them, each under its SHA-256 (hex)."""


class Reference(msgspec.Struct, frozen=True):
    """What travels in place of a payload of `size` bytes."""

    sha256: str
    size: int


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Reference).decode


def refer(payload: bytes, what: str) -> Reference:
    """The reference of a payload; `what` is its name in an error. Raises `Invalid` for one that is too large."""
    if len(payload) > SPILL_BYTES_MAX:
        raise Invalid(
            f"{what} would be {len(payload) >> 20} MiB; at most {SPILL_BYTES_MAX >> 20} MiB travel: keep it in a "
            "volume or bucket, and pass its path",
            field="args" if what.startswith("the arguments") else None,
        )
    return Reference(hashlib.sha256(payload).hexdigest(), len(payload))


def encode(reference: Reference) -> bytes:
    """The bytes that travel."""
    return SPILLED + _encode(reference)


def decode(data: bytes) -> Reference | None:
    """The reference in a payload; None when it is the payload itself. Raises `SerializationError` for half of one."""
    if data[:2] != SPILLED:
        return None
    try:
        found = _decode(memoryview(data)[2:])
    except msgspec.MsgspecError as error:
        raise SerializationError(f"the received reference to a large payload cannot be read: {error}") from error
    if len(found.sha256) != 64 or any(digit not in "0123456789abcdef" for digit in found.sha256):
        raise SerializationError("the received reference to a large payload names no SHA-256")
    return found


def check(reference: Reference, payload: bytes) -> bytes:
    """`payload` itself. Raises `SerializationError` when it is not the one that was meant."""
    if len(payload) != reference.size or hashlib.sha256(payload).hexdigest() != reference.sha256:
        raise SerializationError(
            f"the large payload {reference.sha256} arrived damaged ({len(payload)} of {reference.size} bytes)"
        )
    return payload
