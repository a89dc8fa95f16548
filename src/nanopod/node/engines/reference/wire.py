"""OpenAI-shaped answers: SSE chunks and JSON bodies of one generation request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nanopod.node.engines.base import Usage
from nanopod.node.engines.reference.requests import GenerateSpec
from nanopod.node.engines.reference.sampling import TokenLogprob
from nanopod.node.engines.reference.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}

_encode = msgspec.json.encode


def usage_object(usage: Usage) -> dict[str, Any]:
    """The `usage` object of the API."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Wire:
    """Bytes for one request. Every method is a pure function of its arguments and the request's identity."""

    def __init__(
        self, spec: GenerateSpec, tokenizer: Tokenizer, *, response_id: str, created: int, model: str, fingerprint: str
    ) -> None:
        """Identity fields are those the gateway chose once."""
        self._chat = spec.kind == "chat"
        self._legacy_top = spec.logprobs
        self._tokenizer = tokenizer
        self._usage_field = {"usage": None} if spec.include_usage else {}
        kind = "chat.completion" if self._chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": response_id,
            "object": kind + (".chunk" if self._chat and spec.stream else ""),
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint or None,
        }
        # The part every chunk shares is encoded once.
        self._lead = b"data: " + _encode(self._head)[:-1] + b","

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._lead + _encode({"choices": [choice], **self._usage_field})[1:] + b"\n\n"

    def opening(self, index: int, echo: str, echoed: Sequence[TokenLogprob | None], ids: Sequence[int]) -> bytes:
        """What precedes the first token: the role chunk of a chat, the echoed prompt of a completion."""
        if self._chat:
            return self._chunk(
                {
                    "index": index,
                    "delta": {"role": "assistant", "content": "", "refusal": None},
                    "logprobs": None,
                    "finish_reason": None,
                }
            )
        if not echo:
            return b""
        logprobs = self.prompt_logprobs(ids, echoed) if echoed else None
        return self._chunk({"index": index, "text": echo, "logprobs": logprobs, "finish_reason": None})

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        """One chunk of output text."""
        if self._chat:
            choice = {"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}
        else:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        return self._chunk(choice)

    def closing(self, index: int, finish: str) -> bytes:
        """The chunk that carries a choice's finish_reason."""
        part: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk({"index": index, **part, "logprobs": None, "finish_reason": finish})

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that carries the usage."""
        return self._lead + _encode({"choices": [], "usage": usage_object(usage)})[1:] + b"\n\n"

    def body(self, choices: Sequence[tuple[int, str, dict[str, Any] | None, str]], usage: Usage) -> bytes:
        """The whole JSON answer; choices are (index, text, logprobs, finish_reason)."""
        out: list[dict[str, Any]] = []
        for index, text, logprobs, finish in choices:
            if self._chat:
                message = {"role": "assistant", "content": text, "refusal": None}
                out.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
            else:
                out.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
        return _encode({**self._head, "choices": out, "usage": usage_object(usage)})

    # ---------------------------------------------------------------------------------------------- log probabilities

    def logprobs(self, entries: Sequence[TokenLogprob], offsets: Sequence[int], base: int) -> dict[str, Any] | None:
        """Log probabilities of output tokens; `offsets` (+ `base`) are their places in the text."""
        if self._legacy_top is None:
            return None
        if self._chat:
            return {"content": [self._chat_entry(entry) for entry in entries], "refusal": None}
        return {
            "tokens": [self._legacy_name(e.token) for e in entries],
            "token_logprobs": [e.logprob for e in entries],
            "top_logprobs": [self._legacy_rivals(e) for e in entries] if self._legacy_top else None,
            "text_offset": [base + offset for offset in offsets[: len(entries)]],
        }

    def prompt_logprobs(self, ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """Log probabilities of an echoed prompt; nothing precedes its first token, which has none."""
        offsets, at = [], 0
        for token in ids:
            offsets.append(at)
            at += len(self._tokenizer.token_bytes(token).decode("utf-8", "replace"))
        tops = [None if e is None else self._legacy_rivals(e) for e in entries]
        return {
            "tokens": [self._legacy_name(token) for token in ids],
            "token_logprobs": [None if e is None else e.logprob for e in entries],
            "top_logprobs": tops if self._legacy_top else None,
            "text_offset": offsets,
        }

    def _chat_entry(self, entry: TokenLogprob) -> dict[str, Any]:
        return {
            **self._chat_token(entry.token, entry.logprob),
            "top_logprobs": [self._chat_token(token, logprob) for token, logprob in entry.top],
        }

    def _chat_token(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token) or self._tokenizer.token_name(token).encode()
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    def _legacy_name(self, token: int) -> str:
        """Tokens are keys here, so half a character is spelt out rather than replaced."""
        raw = self._tokenizer.token_bytes(token) or self._tokenizer.token_name(token).encode()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _legacy_rivals(self, entry: TokenLogprob) -> dict[str, float]:
        rivals = {self._legacy_name(token): logprob for token, logprob in entry.top}
        rivals.setdefault(self._legacy_name(entry.token), entry.logprob)
        return rivals
