"""Adds what OpenAI's clients expect of `usage` to the answers of engines that leave it out, while they pass by."""

from __future__ import annotations

from typing import Final

import msgspec

LINE_BYTES_MAX: Final = 4 << 20
BODY_BYTES_MAX: Final = 16 << 20
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_object: Final = msgspec.json.Decoder(dict[str, object]).decode
_encode: Final = msgspec.json.Encoder().encode


def with_details(data: bytes) -> bytes:
    """A JSON answer or chunk whose usage says `prompt_tokens_details.cached_tokens`: 0 when the engine did not."""
    if b'"usage"' not in data or b'"cached_tokens"' in data:
        return data
    try:
        fields = _fields(data)
        usage = _object(fields["usage"])
    except (msgspec.MsgspecError, KeyError):
        return data
    details = usage.get("prompt_tokens_details")
    usage["prompt_tokens_details"] = {**(details if isinstance(details, dict) else {}), "cached_tokens": 0}
    return bytes(_encode({**fields, "usage": usage}))


class Details:
    """`with_details` for a body that comes in pieces; a stream's lines pass as soon as they are whole."""

    __slots__ = ("_kept", "_streaming")

    def __init__(self, streaming: bool) -> None:
        self._streaming = streaming
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        """What may be passed on now."""
        self._kept += data
        if not self._streaming:
            if len(self._kept) <= BODY_BYTES_MAX:
                return b""
            passed, self._kept = self._kept, b""
            return passed
        end = self._kept.rfind(b"\n") + 1
        if not end:
            if len(self._kept) <= LINE_BYTES_MAX:
                return b""
            end = len(self._kept)
        passed, self._kept = self._kept[:end], self._kept[end:]
        if b'"usage"' not in passed:
            return passed
        return b"\n".join(map(_line, passed.split(b"\n")))

    def rest(self) -> bytes:
        """What was held back, at the end."""
        passed, self._kept = self._kept, b""
        return _line(passed) if self._streaming else with_details(passed)


def _line(line: bytes) -> bytes:
    if not line.startswith(b"data:") or b'"usage"' not in line:
        return line
    return b"data: " + with_details(line[5:].strip())
