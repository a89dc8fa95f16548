"""What the model server says: whole answers, and refusals in the shape that V1 and V2 clients read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nanopod.model import unreadable

JSON: Final[Mapping[str, str]] = {"content-type": "application/json"}
INFLATED_BYTES_MAX: Final = 128 << 20
encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers (lower case) and a whole body."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: dict(JSON))


class Refused(Exception):
    """A request that is answered with `{"error": text}`: 400, 404, 501 or 503."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def answer(self) -> Answer:
        """The refusal as it is sent."""
        return Answer(self.status, encode({"error": str(self)}))


def said(value: Any, status: int = 200) -> Answer:
    """A value as a JSON answer."""
    return Answer(status, encode(value))


def inflated(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A body without its content coding. Raises `Refused` 400."""
    coding = headers.get("content-encoding", "identity").lower()
    if coding == "identity":
        return body
    if coding not in ("gzip", "deflate"):
        raise Refused(400, f"content-encoding {coding!r} is unknown; use gzip, deflate or none")
    reader = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        found = reader.decompress(body, INFLATED_BYTES_MAX)
    except zlib.error as error:
        raise Refused(400, f"the body is not {coding}: {error}") from None
    if reader.unconsumed_tail or not reader.eof:
        raise Refused(400, f"the body is cut off, or takes more than {INFLATED_BYTES_MAX} bytes")
    return found


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, whatever its content type. Raises `Refused` 400."""
    try:
        value = msgspec.json.decode(body)
    except unreadable.JSON as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object")
    return value
