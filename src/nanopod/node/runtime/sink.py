"""The engine's side of a stream: an answer becomes HEAD, TOKENS, DATA, END or RESET frames, from any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nanopod.model import frames
from nanopod.node.engines.base import Timings, Usage
from nanopod.node.runtime.connection import Stream

_json: Final = msgspec.json.Encoder().encode
IDS_MAX: Final = 4096
"""Token ids in one frame."""


class StreamSink:
    """Implements `base.Sink` for one stream of the link."""

    __slots__ = ("_cancelled", "_stream", "is_over")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._cancelled = False
        self.is_over = False
        """The answer is complete, or was given up."""

    @property
    def cancelled(self) -> bool:
        """True once nobody hears any more."""
        return self._cancelled

    def cancel(self) -> None:
        """The caller left or the link broke."""
        self._cancelled = True

    def head(
        self, status: int, headers: Mapping[str, str], *, streaming: bool, prompt_ids: Sequence[int] | None = None
    ) -> None:
        """HEAD."""
        fields: dict[str, Any] = {"status": status, "headers": dict(headers)}
        if prompt_ids is not None:
            fields["prompt_ids"] = list(prompt_ids)
        stream = self._stream
        flags = frames.FLAG_END if streaming else 0
        stream.post(frames.pack(frames.HEAD, stream.id, _json(fields), flags, stream.epoch))
        if streaming:
            stream.connection.flush()

    def tokens(self, choice: int, first_index: int, ids: Sequence[int], sse: bytes) -> None:
        """TOKENS."""
        stream = self._stream
        for at in range(0, max(1, len(ids)), IDS_MAX):
            part = ids[at : at + IDS_MAX]
            # The bytes that show the ids go with the last of them.
            shown = sse if at + IDS_MAX >= len(ids) else b""
            frame = frames.pack_tokens(stream.id, stream.epoch, choice, first_index + at, part, shown)
            stream.post(frame, len(frame) - frames.HEADER_BYTES)
        stream.connection.flush()

    def data(self, chunk: bytes) -> None:
        """DATA."""
        self._stream.data(chunk)
        self._stream.connection.flush()

    async def drained(self) -> None:
        """Until the link took everything."""
        if self._stream.is_waiting:
            await self._stream.drained()

    def end(self, usage: Usage, finish: Sequence[str], timings: Timings) -> None:
        """END."""
        fields = {
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cached_tokens": usage.cached_tokens,
            },
            "finish": list(finish),
            "timings": {"compute_us": timings.compute_us, "first_token_us": timings.first_token_us},
        }
        self.is_over = True
        stream = self._stream
        stream.post(frames.pack(frames.END, stream.id, _json(fields), 0, stream.epoch), last=True)
        stream.connection.flush()

    def reset(self, code: str, text: str) -> None:
        """RESET."""
        self.is_over = True
        self._stream.reset(frames.RESET_CODES.get(code, frames.INTERNAL), text)
        self._stream.connection.flush()
