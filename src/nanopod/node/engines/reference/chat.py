"""Messages to prompt ids: built-in chat families, and the model's own Jinja template where Jinja is installed.

Built-in families keep what a caller wrote apart from the special tokens, so a message cannot spell an end-of-turn
token. A foreign template is rendered in Jinja's immutable sandbox; without Jinja the family is told by the special
tokens the tokenizer has.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanopod.node.engines.reference.errors import ApiError
from nanopod.node.engines.reference.tokenizer import Tokenizer

MESSAGES_MAX = 4096
"""More messages than this are refused."""

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Pieces = list[tuple[str, bool]]
"""(text, is a special token) in order."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; content is plain text."""

    role: str
    content: str


def parse_messages(value: object) -> list[Message]:
    """The `messages` field; raises `ApiError` naming the place."""
    if not isinstance(value, list) or not value:
        raise ApiError("messages must be a list with at least one message", param="messages")
    if len(value) > MESSAGES_MAX:
        raise ApiError(f"messages may hold at most {MESSAGES_MAX}, found {len(value)}", param="messages")
    out = []
    for number, item in enumerate(value):
        where = f"messages[{number}]"
        if not isinstance(item, dict):
            raise ApiError(f"{where} must be an object", param=where)
        role = item.get("role")
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise ApiError(f"{where}.role must be one of {known}; others are not supported", param=f"{where}.role")
        if item.get("tool_calls") or item.get("function_call"):
            raise ApiError("tool calls are not supported by the reference engine", param=f"{where}.tool_calls")
        out.append(Message(_ROLES[role], _content(item.get("content"), f"{where}.content")))
    return out


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = []
        for part in value:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ApiError(f"{where}: only parts of type text are supported by the reference engine", param=where)
            texts.append(part["text"])
        return "".join(texts)
    raise ApiError(f"{where} must be a string or a list of text parts", param=where)


def _nanopod(messages: Sequence[Message]) -> Pieces:
    """The format of the packaged tiny model."""
    out: Pieces = [("<|bos|>", True)]
    for message in messages:
        out += [(f"<|{message.role}|>", True), (message.content.strip(), False)]
        if message.role == "assistant":
            out.append(("<|eos|>", True))
    return [*out, ("<|assistant|>", True)]


def _chatml(messages: Sequence[Message]) -> Pieces:
    out: Pieces = []
    for message in messages:
        out += [
            ("<|im_start|>", True),
            (f"{message.role}\n{message.content}", False),
            ("<|im_end|>", True),
            ("\n", False),
        ]
    return [*out, ("<|im_start|>", True), ("assistant\n", False)]


def _llama3(messages: Sequence[Message]) -> Pieces:
    def head(role: str) -> Pieces:
        return [("<|start_header_id|>", True), (role, False), ("<|end_header_id|>", True)]

    out: Pieces = [("<|begin_of_text|>", True)]
    for message in messages:
        out += [*head(message.role), (f"\n\n{message.content.strip()}", False), ("<|eot_id|>", True)]
    return [*out, *head("assistant"), ("\n\n", False)]


def _llama2(messages: Sequence[Message]) -> Pieces:
    out: Pieces = []
    system = "\n\n".join(m.content.strip() for m in messages if m.role == "system")
    for message in messages:
        if message.role == "user":
            lead = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
            system = ""
            out += [("<s>", True), (f"[INST] {lead}{message.content.strip()} [/INST]", False)]
        elif message.role == "assistant":
            out += [(f" {message.content.strip()} ", False), ("</s>", True)]
    return out


@dataclass(frozen=True, slots=True)
class Family:
    """A built-in chat format: the special tokens it needs, its renderer, and the tokens that end a turn."""

    name: str
    needs: tuple[str, ...]
    render: Callable[[Sequence[Message]], Pieces]
    ends: tuple[str, ...]


FAMILIES = (
    Family("nanopod", ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"), _nanopod, ("<|eos|>",)),
    Family(
        "llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _llama3, ("<|eot_id|>", "<|end_of_text|>")
    ),
    Family("chatml", ("<|im_start|>", "<|im_end|>"), _chatml, ("<|im_end|>", "<|endoftext|>")),
    Family("llama2", ("<s>", "</s>"), _llama2, ("</s>",)),
)


class _Jinja:
    """A template in Jinja's sandbox, made only when the package is there."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """Raises `ImportError` without Jinja and `ValueError` when the template does not compile."""
        sandbox = importlib.import_module("jinja2.sandbox")
        self._errors = importlib.import_module("jinja2.exceptions").TemplateError
        environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

        def refuse(text: str) -> None:
            raise self._errors(text)

        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except self._errors as error:
            raise ValueError(f"tokenizer_config.json: chat_template: {error}") from error

    def __call__(self, messages: Sequence[Message]) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return str(self._template.render(messages=turns, add_generation_prompt=True, **self._tokens))
        except self._errors as error:
            raise ApiError(f"the model's chat template refused the messages: {error}", param="messages") from error


def _source(config: Mapping[str, Any], directory: Path) -> str | None:
    """The template's text: from the config (a string, or named ones), or from `chat_template.jinja`."""
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    if value is None and (directory / "chat_template.jinja").is_file():
        value = (directory / "chat_template.jinja").read_text("utf-8")
    return value if isinstance(value, str) else None


class ChatFormat:
    """How one model wants its messages."""

    def __init__(self, tokenizer: Tokenizer, directory: Path) -> None:
        """Look at the tokenizer's special tokens and `tokenizer_config.json` in `directory`."""
        self._tokenizer = tokenizer
        self.family: Family | None = None
        self._jinja: _Jinja | None = None
        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        source = _source(config, directory)
        self.family = self._recognise(source)
        if source is not None and (self.family is None or self.family.name != "nanopod"):
            tokens = {name: _token_text(config.get(name)) for name in _TOKEN_NAMES}
            try:
                self._jinja = _Jinja(source, tokens)
            except ImportError:
                self._jinja = None

    def _recognise(self, source: str | None) -> Family | None:
        special = {t.content for t in self._tokenizer.added}
        for family in FAMILIES:
            # <s> and </s> alone do not make a chat model; its template or own bracket tokens do.
            if family.name == "llama2" and "[INST]" not in (source or "") and "[INST]" not in special:
                continue
            if special.issuperset(family.needs):
                return family
        return None

    @property
    def available(self) -> bool:
        """Whether the model can chat at all."""
        return self.family is not None or self._jinja is not None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn in the recognised family."""
        if self.family is None:
            return ()
        found = [self._tokenizer.token_id(name) for name in self.family.ends]
        return tuple(i for i in found if i is not None)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids that end where the assistant begins; raises `ApiError` for a model without a chat format."""
        if self._jinja is not None:
            return self._tokenizer.encode(self._jinja(messages))
        if self.family is None:
            raise ApiError("this model has no chat template; use /v1/completions", param="messages")
        ids: list[int] = []
        text = ""
        for piece, special in [*self.family.render(messages), ("", True)]:
            if not special:
                text += piece
                continue
            if text:
                ids.extend(self._tokenizer.encode(text, parse_special=False))
                text = ""
            token = self._tokenizer.token_id(piece) if piece else None
            if token is not None:
                ids.append(token)
        return ids


def _token_text(value: object) -> str:
    """A special token of the config: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
