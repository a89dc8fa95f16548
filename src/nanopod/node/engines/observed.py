"""Reads usage and finish reasons out of an OpenAI-shaped answer while it passes by."""

from __future__ import annotations

from typing import Any, Final

import msgspec

BODY_BYTES_MAX: Final = 16 << 20
LINE_BYTES_MAX: Final = 1 << 20


class Choice(msgspec.Struct):
    """Of an answer or a chunk."""

    index: int = 0
    finish_reason: str | None = None


class TokenDetails(msgspec.Struct):
    """Of a prompt."""

    cached_tokens: int | None = None


class Counts(msgspec.Struct):
    """The `usage` object."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None


class Answer(msgspec.Struct):
    """What is read of an answer or a chunk; everything else is passed over."""

    choices: list[Choice] = []
    usage: Counts | None = None


_decode: Final = msgspec.json.Decoder(Answer).decode


class Seen:
    """Feed it the answer's bytes, read the counts at the end. Never raises: foreign answers may be anything."""

    def __init__(self, streaming: bool) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._finish: dict[int, str] = {}
        self._streaming = streaming
        self._kept = b""
        self._too_long = False

    @property
    def finish(self) -> list[str]:
        """One reason per choice; of a whole answer these are known once all of it was fed."""
        if not self._streaming and self._kept:
            self._read(self._kept)
            self._kept = b""
        return [reason for _, reason in sorted(self._finish.items())]

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        if not self._streaming:
            if len(self._kept) + len(chunk) > BODY_BYTES_MAX:
                self._kept, self._too_long = b"", True
            if not self._too_long:
                self._kept += chunk
                # Looked at whenever it could be complete, so that the counts are right without asking for `finish`.
                if chunk.rstrip().endswith(b"}"):
                    self._read(self._kept)
            return
        *lines, self._kept = (self._kept + chunk).split(b"\n")
        if len(self._kept) > LINE_BYTES_MAX:
            self._kept = b""
        for line in lines:
            if line.startswith(b"data:") and (b'"usage"' in line or b'"finish_reason"' in line):
                self._read(line[5:].strip())

    def _read(self, data: bytes) -> None:
        try:
            answer: Any = _decode(data)
        except msgspec.MsgspecError:
            return
        if answer.usage is not None:
            self.prompt_tokens = answer.usage.prompt_tokens or 0
            self.completion_tokens = answer.usage.completion_tokens or 0
            if answer.usage.prompt_tokens_details is not None:
                self.cached_tokens = answer.usage.prompt_tokens_details.cached_tokens or 0
        for choice in answer.choices:
            if choice.finish_reason is not None:
                self._finish[choice.index] = choice.finish_reason
