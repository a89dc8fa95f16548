"""Validation of /v1/chat/completions and /v1/completions bodies into one plain description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanopod.node.engines.reference.chat import ChatFormat, parse_messages
from nanopod.node.engines.reference.errors import ApiError
from nanopod.node.engines.reference.fields import boolean, integer, number, reject_unknown, required, token_ids
from nanopod.node.engines.reference.sampling import SamplingParams
from nanopod.node.engines.reference.tokenizer import Tokenizer

CHOICES_MAX = 64
"""Most choices (prompts times n) of one request: they run side by side."""

STOPS_MAX, STOP_CHARS_MAX = 16, 1024
TOP_LOGPROBS_MAX = 20
BIASES_MAX = 1024
COMPLETION_TOKENS_DEFAULT = 16
"""What /v1/completions makes when max_tokens is absent, as its API says."""

_IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
_UNSUPPORTED = ("tools", "functions", "function_call", "audio", "prediction", "web_search_options", "suffix")
_SHARED = {
    *("model", "stream", "stream_options", "n", "seed", "stop", "max_tokens", "temperature", "top_p", "logprobs"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens"),
    *("ignore_eos", "response_format"),
    *_UNSUPPORTED,
    *_IGNORED,
}
_CHAT = _SHARED | {
    *("messages", "max_completion_tokens", "top_logprobs", "tool_choice", "parallel_tool_calls", "modalities"),
}
_LEGACY = _SHARED | {"prompt", "echo", "best_of"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What validation must know of the model. `defaults` come from generation_config.json."""

    vocab: int
    context: int
    tokenizer: Tokenizer
    chat: ChatFormat
    defaults: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """A checked generation request."""

    kind: Literal["chat", "completion"]
    model: str | None
    """The body's `model`, echoed in the answer."""
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: tuple[int, ...]
    """Per prompt."""
    n: int
    stream: bool
    include_usage: bool
    echo: bool
    logprobs: int | None
    """Rivals to report per token; None for no log probabilities at all."""
    stops: tuple[str, ...]
    sampling: SamplingParams


def parse_generate(
    kind: Literal["chat", "completion"],
    body: Mapping[str, Any],
    facts: ModelFacts,
    *,
    seed: int,
    prompt_ids: Sequence[int] | None,
) -> GenerateSpec:
    """Check a body. `seed` serves when the body has none; `prompt_ids`, of an earlier attempt, replace a single prompt.

    Raises `ApiError` naming the field.
    """
    reject_unknown(body, _CHAT if kind == "chat" else _LEGACY)
    _reject_unsupported(body)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise ApiError("model must be a string", param="model")
    echo = boolean(body, "echo")
    prompts = _chat_prompt(body, facts) if kind == "chat" else _prompts(body, facts)
    if prompt_ids and len(prompts) == 1:
        prompts = [list(prompt_ids)]
    if not all(prompts):
        raise ApiError("the prompt must hold at least one token", param="messages" if kind == "chat" else "prompt")
    n = integer(body, "n", 1, 1, CHOICES_MAX) or 1
    if n * len(prompts) > CHOICES_MAX:
        raise ApiError(f"prompts times n may be at most {CHOICES_MAX}, found {n * len(prompts)}", param="n")
    if body.get("best_of") is not None and body["best_of"] != n:
        raise ApiError("best_of is supported only where it equals n", param="best_of")
    stream = boolean(body, "stream")
    max_tokens = [_max_tokens(kind, body, len(p), facts.context, echo) for p in prompts]
    return GenerateSpec(
        kind=kind,
        model=model,
        prompts=tuple(map(tuple, prompts)),
        max_tokens=tuple(max_tokens),
        n=n,
        stream=stream,
        include_usage=_include_usage(body, stream),
        echo=echo,
        logprobs=_logprobs(kind, body),
        stops=_stops(body),
        sampling=_sampling(body, facts, seed, min(max_tokens)),
    )


def _reject_unsupported(body: Mapping[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if body.get(name):
            raise ApiError(f"{name} is not supported by the reference engine", param=name)
    choice = body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        raise ApiError("tool_choice is not supported by the reference engine", param="tool_choice")
    modalities = body.get("modalities")
    if modalities not in (None, ["text"]):
        raise ApiError('modalities other than ["text"] are not supported by the reference engine', param="modalities")
    wanted = body.get("response_format")
    if wanted is not None and (not isinstance(wanted, dict) or wanted.get("type") != "text"):
        raise ApiError(
            "response_format other than {'type': 'text'} is not supported by the reference engine",
            param="response_format",
        )


def _chat_prompt(body: Mapping[str, Any], facts: ModelFacts) -> list[list[int]]:
    messages = parse_messages(required(body, "messages"))
    return [facts.chat.encode(messages)]


def _prompts(body: Mapping[str, Any], facts: ModelFacts) -> list[list[int]]:
    """The four shapes of `prompt`: text, texts, ids, lists of ids."""
    prompt = required(body, "prompt")
    if isinstance(prompt, str):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ApiError("prompt must be a string, a list of strings, token ids, or a list of these", param="prompt")
    if all(isinstance(item, str) for item in prompt):
        return [facts.tokenizer.encode(item, add_special=True) for item in prompt]
    if not isinstance(prompt[0], list):
        return [token_ids(prompt, "prompt", facts.vocab)]
    for item in prompt:
        if not isinstance(item, list) or not item:
            raise ApiError("prompt: every list of token ids must hold at least one", param="prompt")
        token_ids(item, "prompt", facts.vocab)
    return prompt


def _max_tokens(kind: str, body: Mapping[str, Any], prompt: int, context: int, echo: bool) -> int:
    """How many tokens one prompt may get; raises `context_length_exceeded` when they cannot fit."""
    param = "messages" if kind == "chat" else "prompt"
    low = 0 if echo else 1
    wanted = integer(body, "max_tokens", None, low, 2**31)
    if body.get("max_completion_tokens") is not None:
        wanted = integer(body, "max_completion_tokens", None, low, 2**31)
    if wanted is None:
        wanted = max(1, context - prompt) if kind == "chat" else COMPLETION_TOKENS_DEFAULT
    if prompt + wanted > context:
        raise ApiError(
            f"this model's context is {context} tokens, but the {param} take {prompt} and the completion asks for "
            f"{wanted}; shorten the {param} or lower max_tokens",
            param=param,
            code="context_length_exceeded",
        )
    return wanted


def _include_usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise ApiError("stream_options is allowed only with stream: true", param="stream_options")
    if not isinstance(options, dict):
        raise ApiError("stream_options must be an object", param="stream_options")
    for name in options:
        # Load generators ask for usage in every chunk, and are served by that of the last one.
        if name not in ("include_usage", "include_obfuscation", "continuous_usage_stats"):
            raise ApiError(f"unknown parameter {name!r} in stream_options", param=f"stream_options.{name}")
    return boolean(options, "include_usage")


def _logprobs(kind: str, body: Mapping[str, Any]) -> int | None:
    if kind == "completion":
        return integer(body, "logprobs", None, 0, TOP_LOGPROBS_MAX)
    top = integer(body, "top_logprobs", None, 0, TOP_LOGPROBS_MAX)
    if not boolean(body, "logprobs"):
        if top is not None:
            raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
        return None
    return top or 0


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > STOPS_MAX:
        raise ApiError(f"stop must be a string or a list of at most {STOPS_MAX} strings", param="stop")
    for item in stops:
        if not isinstance(item, str) or not 0 < len(item) <= STOP_CHARS_MAX:
            raise ApiError(f"stop: each string must have 1 to {STOP_CHARS_MAX} characters", param="stop")
    return tuple(stops)


def _bias(body: Mapping[str, Any], vocab: int) -> dict[int, float]:
    value = body.get("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > BIASES_MAX:
        raise ApiError(f"logit_bias must be an object with at most {BIASES_MAX} token ids", param="logit_bias")
    out = {}
    for key in value:
        if not key.isascii() or not key.isdigit() or int(key) >= vocab:
            raise ApiError(f"logit_bias: {key!r} is no token id from 0 to {vocab - 1}", param="logit_bias")
        bias = value[key]
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ApiError(f"logit_bias: the value of {key!r} must be between -100 and 100", param="logit_bias")
        out[int(key)] = float(bias)
    return out


def _sampling(body: Mapping[str, Any], facts: ModelFacts, seed: int, max_tokens: int) -> SamplingParams:
    default = facts.defaults.get
    top_k = integer(body, "top_k", int(default("top_k", 0)), -1, 2**31) or 0
    own_seed = integer(body, "seed", None, -(2**63), 2**64 - 1)
    return SamplingParams(
        temperature=number(body, "temperature", default("temperature", 1.0), 0.0, 2.0),
        top_p=number(body, "top_p", default("top_p", 1.0), 0.0, 1.0),
        top_k=max(0, top_k),
        min_p=number(body, "min_p", default("min_p", 0.0), 0.0, 1.0),
        frequency_penalty=number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=number(body, "presence_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=number(body, "repetition_penalty", default("repetition_penalty", 1.0), 0.01, 10.0),
        logit_bias=_bias(body, facts.vocab),
        min_tokens=integer(body, "min_tokens", 0, 0, max_tokens) or 0,
        ignore_eos=boolean(body, "ignore_eos"),
        seed=seed if own_seed is None else own_seed,
    )
