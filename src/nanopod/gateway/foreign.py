"""Streams of engines that are not ours: the gateway always asks them for usage, and shows it only to who asked."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from nanopod.model import unreadable

EVENT_BYTES_MAX: Final = 4 << 20


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: dict[str, Any] | None = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode


def with_usage(body: bytes) -> bytes:
    """A streaming request's body with `stream_options.include_usage` set; unchanged when it is not an object."""
    try:
        fields = _decode(body)
    except unreadable.JSON:
        return body
    options = fields.get("stream_options")
    fields["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return _encode(fields)


class Events:
    """Cuts a foreign engine's stream into events, remembers its usage and counts its chunks."""

    __slots__ = ("_drop", "_kept", "count", "usage")

    def __init__(self, *, drop_usage: bool) -> None:
        self._drop = drop_usage
        self._kept = b""
        self.count = 0
        """Events with choices so far: what a stream without its end is taken to have delivered, in tokens."""
        self.usage: tuple[int, int, int] = (0, 0, 0)
        """(prompt, completion, cached) tokens as the engine reported them."""

    def feed(self, data: bytes) -> list[bytes]:
        """Whole events to be passed on, each with its empty line."""
        self._kept += data.replace(b"\r\n", b"\n")
        if b"\n\n" not in self._kept:
            if len(self._kept) > EVENT_BYTES_MAX:
                raise ValueError(f"an event of the engine is above {EVENT_BYTES_MAX} bytes")
            return []
        *events, self._kept = self._kept.split(b"\n\n")
        return [event + b"\n\n" for event in events if self._keep(event)]

    def rest(self) -> bytes:
        """What was left without an empty line at the stream's end."""
        kept, self._kept = self._kept, b""
        return kept

    def _keep(self, event: bytes) -> bool:
        if not event.startswith(b"data:") or event.endswith(b"[DONE]"):
            return True
        if b'"usage"' not in event:
            self.count += 1
            return True
        try:
            chunk = _decode_chunk(event[5:].strip())
        except unreadable.JSON:
            return True
        if chunk.usage:
            details = chunk.usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens", 0) if isinstance(details, dict) else 0
            found = (chunk.usage.get("prompt_tokens"), chunk.usage.get("completion_tokens"), cached)
            if all(isinstance(value, int) for value in found):
                self.usage = (int(found[0] or 0), int(found[1] or 0), int(found[2] or 0))
        if chunk.choices:
            self.count += 1
            return True
        return not self._drop
