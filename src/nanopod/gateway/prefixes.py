"""Which worker has seen the beginning of a prompt: its key-value cache may hold it, so it answers sooner.

Prompts are cut into chunks of 64 tokens (256 characters where no tokenizer is at hand). The hash of a chunk covers all
chunks before it, so a worker that has the n-th has what leads to it. What a worker has is what was sent to it, the
31,250 newest chunks: an estimate, which costs nothing when it is wrong but a prompt that is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from nanopod.model import unreadable

OBJECTS_MAX: Final = 20_000
"""Objects, or lists, of a body: one with more is no conversation, and reading it would hold up all others."""
CHUNK_TOKENS: Final = 64
CHUNK_CHARS: Final = 256
CHUNKS_MAX: Final = 256
"""Of one prompt; what is behind them is not looked at."""
KEPT_MAX: Final = 31_250
"""Chunks that are remembered for each worker."""
_TEXT_CHARS_MAX: Final = CHUNK_CHARS * CHUNKS_MAX


class _Prompt(msgspec.Struct):
    """What of a request's body the model reads, in the order in which it does."""

    model: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    messages: Any = None
    prompt: Any = None
    input: Any = None


_decode: Final = msgspec.json.Decoder(_Prompt).decode


def chain(seed: int, pieces: Iterable[object]) -> tuple[int, ...]:
    """The hash of each chunk with all before it. Hashes differ from process to process."""
    found: list[int] = []
    for piece in pieces:
        seed = hash((seed, piece))
        found.append(seed)
    return tuple(found)


def chunks_of(body: bytes, workspace_id: str) -> tuple[int, ...]:
    """The chunks of an OpenAI request's prompt, for this workspace and the model or adapter that it names.

    (): nothing in it fills a chunk, or it cannot be read.
    """
    if body.count(b"{") > OBJECTS_MAX or body.count(b"[") > OBJECTS_MAX:
        return ()
    try:
        fields = _decode(body)
    except unreadable.JSON:
        return ()
    seed = hash((workspace_id, str(fields.model)))
    prompt = fields.prompt if fields.prompt is not None else fields.input
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        whole = len(prompt) // CHUNK_TOKENS * CHUNK_TOKENS
        stops = range(0, min(whole, CHUNK_TOKENS * CHUNKS_MAX), CHUNK_TOKENS)
        return chain(seed, (str(prompt[at : at + CHUNK_TOKENS]) for at in stops))
    text = _text(fields, prompt)
    whole = min(len(text) // CHUNK_CHARS, CHUNKS_MAX) * CHUNK_CHARS
    return chain(seed, (text[at : at + CHUNK_CHARS] for at in range(0, whole, CHUNK_CHARS)))


def _text(fields: _Prompt, prompt: Any) -> str:
    """The prompt as one text, as long as it is looked at."""
    if isinstance(prompt, str):
        return prompt
    parts: list[str] = []
    size = 0
    tools = bytes(fields.tools)
    if tools:
        parts.append(tools.decode(errors="replace"))
        size = len(parts[0])
    turns = fields.messages if isinstance(fields.messages, list) else prompt if isinstance(prompt, list) else []
    for turn in turns:
        if size >= _TEXT_CHARS_MAX:
            break
        is_message = isinstance(turn, dict)
        part = f"{turn.get('role')}\n{_content(turn.get('content'))}\n" if is_message else f"{turn}\n"
        parts.append(part)
        size += len(part)
    return "".join(parts)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in content)
    return str(content)


class Seen:
    """The chunks that were sent to one worker, the newest ones of them."""

    __slots__ = ("_chunks", "_limit")

    def __init__(self, limit: int = KEPT_MAX) -> None:
        self._chunks: dict[int, None] = {}
        self._limit = limit

    def add(self, chunks: Sequence[int]) -> None:
        """A prompt was sent. Its beginning is forgotten last: without it the rest cannot be found."""
        known = self._chunks
        for chunk in reversed(chunks):
            known.pop(chunk, None)
            known[chunk] = None
        while len(known) > self._limit:
            del known[next(iter(known))]

    def share(self, chunks: Sequence[int]) -> float:
        """Share of a prompt, from its beginning, that was sent here before; 0 to 1."""
        known = self._chunks
        count = 0
        for chunk in chunks:
            if chunk not in known:
                break
            count += 1
        return count / len(chunks) if chunks else 0.0

    def __len__(self) -> int:
        return len(self._chunks)


class PrefixIndex:
    """What each worker of one endpoint has seen. A worker that starts anew (a higher epoch) has seen nothing."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, Seen]] = {}

    def of(self, instance_id: str, epoch: int) -> Seen:
        """The chunks of this worker."""
        found = self._seen.get(instance_id)
        if found is None or found[0] != epoch:
            found = self._seen[instance_id] = (epoch, Seen())
        return found[1]

    def keep(self, instance_ids: Iterable[str]) -> None:
        """Forget all workers but these."""
        gone = self._seen.keys() - set(instance_ids)
        for instance_id in gone:
            del self._seen[instance_id]

    def __len__(self) -> int:
        return len(self._seen)
