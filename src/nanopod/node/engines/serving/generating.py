"""Models that generate, by transformers: OpenAI's chat completions and completions, whole or as a stream.

One request at a time, as transformers' `generate` has it; requests wait in the order they came. Models that the
reference engine can load go there instead, and a real load belongs to an engine made for it (engine `command`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.node.engines.base import Caps, Card, Load, Request, Sink, Timings, Usage
from nanopod.node.engines.serving.answers import JSON, Refused, json_object
from nanopod.node.engines.serving.formats import flag, number

TOKENS_DEFAULT: Final = 16
SSE: Final = {"content-type": "text/event-stream; charset=utf-8"}
_encode: Final = msgspec.json.Encoder().encode
_log: Final = logging.getLogger(__name__)


def _usage(usage: Usage) -> dict[str, Any]:
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


class TransformersEngine:
    """Implements `base.Engine` with `AutoModelForCausalLM` (or its sequence-to-sequence sibling)."""

    exited: asyncio.Future[str] | None = None

    def __init__(self, model_id: str, directory: Path, options: Mapping[str, str], *, slots: int) -> None:
        self.caps = Caps(max_concurrency=max(1, slots))
        self._model_id = model_id
        self._directory = directory
        self._options = options
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._waiting = 0
        self._model: Any = None
        self._tokenizer: Any = None

    async def start(self) -> Card:
        """Load the model and make one token."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._load)
        return Card(self._model_id, int(time.time()), extra={"engine": "transformers"})

    def _load(self) -> None:
        import torch
        import transformers

        torch.set_num_threads(number(self._options, "nthread", 1))
        local = {"local_files_only": True, "trust_remote_code": flag(self._options, "trustremotecode")}
        config = transformers.AutoConfig.from_pretrained(str(self._directory), **local)
        kind = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(self._directory), **local)
        self._model = getattr(transformers, kind).from_pretrained(str(self._directory), **local)
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._generated(self._tokenizer("Hi", return_tensors="pt"), {"max_new_tokens": 1, "do_sample": False}, None)

    def load(self) -> Load:
        """Requests running and waiting."""
        return Load(min(1, self._waiting), max(0, self._waiting - 1))

    async def stop(self, grace_s: float) -> None:
        """What runs is given up with the process."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request; a caller that left stops its generation at the next token."""
        chat = request.path == "/v1/chat/completions"
        gone = threading.Event()
        self._waiting += 1
        try:
            if not chat and request.path != "/v1/completions":
                raise Refused(404, f"{request.path} is not offered by this model; it generates text")
            fields = json_object(request.body)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self._answer, request, fields, chat, sink, gone)
        except Refused as refused:
            error = {"message": str(refused), "type": "invalid_request_error", "param": None, "code": "invalid_value"}
            sink.head(refused.status, JSON, streaming=False)
            sink.data(_encode({"error": error}))
            sink.end(Usage(), [], Timings())
        finally:
            gone.set()
            self._waiting -= 1

    # --- on the thread ---

    def _answer(self, request: Request, fields: dict[str, Any], chat: bool, sink: Sink, gone: threading.Event) -> None:
        began = time.perf_counter()
        given = self._prompt(fields, chat)
        prompt_tokens = int(given["input_ids"].shape[-1])
        settings = self._settings(fields, request.attempt.seed)
        attempt = request.attempt
        identity = attempt.response_id or f"{'chatcmpl' if chat else 'cmpl'}-{attempt.request_id}"
        head = {
            "id": identity,
            "object": _object(chat, _streams(fields)),
            "created": attempt.created or int(time.time()),
            "model": str(fields.get("model") or self._model_id),
            "system_fingerprint": attempt.system_fingerprint,
        }  # fmt: skip
        if _streams(fields):
            sink.head(200, SSE, streaming=True)
            made, finish = self._stream(given, settings, head, chat, sink, gone)
            usage = Usage(prompt_tokens, made)
            options = fields.get("stream_options")
            if isinstance(options, dict) and options.get("include_usage"):
                sink.data(b"data: " + _encode({**head, "choices": [], "usage": _usage(usage)}) + b"\n\n")
            sink.data(b"data: [DONE]\n\n")
        else:
            ids = self._generated(given, settings, None, gone)
            made = len(ids)
            finish = "length" if made >= settings["max_new_tokens"] else "stop"
            usage = Usage(prompt_tokens, made)
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
            sink.head(200, JSON, streaming=False)
            sink.data(_encode({**head, "choices": [choice], "usage": _usage(usage)}))
        sink.end(usage, [finish], Timings(int((time.perf_counter() - began) * 1e6), 0))

    def _prompt(self, fields: Mapping[str, Any], chat: bool) -> Any:
        if not chat:
            prompt = fields.get("prompt")
            if isinstance(prompt, list) and len(prompt) == 1:
                prompt = prompt[0]
            if not isinstance(prompt, str) or not prompt:
                raise Refused(400, "prompt must be one text that is not empty")
            return self._tokenizer(prompt, return_tensors="pt")
        messages = fields.get("messages")
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages) or not messages:
            raise Refused(400, "messages must be a list of {role, content}")
        if getattr(self._tokenizer, "chat_template", None):
            try:
                text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except Exception as error:
                raise Refused(400, f"messages do not fit the model's chat template: {error}") from error
            return self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        lines = [f"{one.get('role')}: {one.get('content')}" for one in messages]
        return self._tokenizer("\n".join([*lines, "assistant:"]), return_tensors="pt")

    def _settings(self, fields: Mapping[str, Any], seed: int) -> dict[str, Any]:
        import torch

        most = fields.get("max_completion_tokens") or fields.get("max_tokens") or TOKENS_DEFAULT
        if type(most) is not int or most < 1:
            raise Refused(400, "max_tokens must be a whole number from 1 up")
        temperature = fields.get("temperature")
        temperature = 1.0 if temperature is None else temperature
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
            raise Refused(400, "temperature must be a number from 0 to 2")
        settings: dict[str, Any] = {"max_new_tokens": most, "do_sample": temperature > 0}
        if temperature > 0:
            own = fields.get("seed")
            torch.manual_seed((own if type(own) is int else seed) & (2**63 - 1))
            settings |= {"temperature": float(temperature), "top_p": float(fields.get("top_p") or 1.0)}
        if fields.get("ignore_eos"):
            settings["min_new_tokens"] = most
        elif fields.get("min_tokens"):
            settings["min_new_tokens"] = min(most, int(fields["min_tokens"]))
        return settings

    def _generated(
        self, given: Any, settings: Mapping[str, Any], streamer: Any, gone: threading.Event | None = None
    ) -> list[int]:
        """Output ids of one prompt."""
        import torch
        import transformers

        given = given.to(self._model.device)

        def left(ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((ids.shape[0],), gone is not None and gone.is_set(), device=ids.device)

        with torch.inference_mode():
            found = self._model.generate(
                **given, **settings, streamer=streamer,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
                stopping_criteria=transformers.StoppingCriteriaList([left]),
            )[0]  # fmt: skip
        start = 0 if self._model.config.is_encoder_decoder else given["input_ids"].shape[-1]
        ids: list[int] = found[start:].tolist()
        ends = {self._tokenizer.eos_token_id}
        return ids[:-1] if ids and ids[-1] in ends else ids

    def _stream(
        self, given: Any, settings: Mapping[str, Any], head: Mapping[str, Any], chat: bool, sink: Sink,
        gone: threading.Event,
    ) -> tuple[int, str]:  # fmt: skip
        """Send pieces as they are made; (tokens, finish reason)."""
        import transformers

        streamer = transformers.TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        made: list[int] = []

        def work() -> None:
            try:
                made.extend(self._generated(given, settings, streamer, gone))
            except Exception:
                _log.exception("a generation failed")
            finally:
                with contextlib.suppress(Exception):
                    streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        for piece in self._pieces(streamer):
            said = {"delta": {"content": piece}} if chat else {"text": piece}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
            sink.data(b"data: " + _encode({**head, "choices": [choice]}) + b"\n\n")
        thread.join()
        finish = "length" if len(made) >= settings["max_new_tokens"] else "stop"
        ended: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        last = {"index": 0, **ended, "logprobs": None, "finish_reason": finish}
        sink.data(b"data: " + _encode({**head, "choices": [last]}) + b"\n\n")
        return len(made), finish

    @staticmethod
    def _pieces(streamer: Any) -> Iterator[str]:
        for piece in streamer:
            if piece:
                yield piece


def _object(chat: bool, streams: bool) -> str:
    if not chat:
        return "text_completion"
    return "chat.completion.chunk" if streams else "chat.completion"


def _streams(fields: Mapping[str, Any]) -> bool:
    return fields.get("stream") is True
