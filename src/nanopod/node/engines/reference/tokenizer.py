"""Own loader of Hugging Face `tokenizer.json`: text to ids and back, for byte-level BPE, SentencePiece-style BPE, BERT.

The stages are those of the file: added tokens are cut out, the rest is normalized, pre-tokenized, turned into ids, and
the post-processor adds its special tokens. Offsets are not kept; nothing here needs them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanopod.node.engines.reference.decoders import build_decoder, token_bytes_of
from nanopod.node.engines.reference.normalize import build_normalizer, build_pre_tokenizer
from nanopod.node.engines.reference.patterns import WHITE_SPACE, compile_pattern
from nanopod.node.engines.reference.subwords import build_model

_CUT_CHARS_PER_TOKEN = 16
"""Characters read at first per token wanted, so that the far end of a very long text is left alone."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched as a whole before anything else looks at the text."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _Cutter:
    """Finds added tokens: leftmost, then longest."""

    def __init__(self, tokens: Sequence[tuple[str, AddedToken]]) -> None:
        self._by_text = dict(tokens)
        ordered = sorted((text for text in self._by_text if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def cut(self, text: str) -> list[tuple[str, int]]:
        """Pieces of `text`: (piece, -1) for ordinary text, ("", id) for an added token."""
        if self._pattern is None:
            return [(text, -1)] if text else []
        out: list[tuple[str, int]] = []
        at = 0
        for match in self._pattern.finditer(text):
            start, stop = match.span()
            token = self._by_text[match.group()]
            if start < at or (token.single_word and _touches_word(text, start, stop)):
                continue
            if token.lstrip:
                start = max(at, len(text[:start].rstrip(WHITE_SPACE)))
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip(WHITE_SPACE))
            if start > at:
                out.append((text[at:start], -1))
            out.append(("", token.id))
            at = stop
        if at < len(text):
            out.append((text[at:], -1))
        return out


def _touches_word(text: str, start: int, stop: int) -> bool:
    word = compile_pattern(r"\w")
    return bool((start > 0 and word.match(text, start - 1)) or word.match(text, stop))


@dataclass(frozen=True, slots=True)
class _Template:
    """Special ids around a single sequence."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def _template(node: Mapping[str, Any] | None) -> _Template:
    """What the post-processor puts around one sequence; raises `ValueError` naming an unknown type."""
    if node is None:
        return _Template()
    kind = node.get("type")
    if kind == "ByteLevel":
        return _Template()
    if kind == "Sequence":
        before: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
        for part in map(_template, node["processors"]):
            before, after = part.before + before, after + part.after
        return _Template(before, after)
    if kind in ("BertProcessing", "RobertaProcessing"):
        return _Template((int(node["cls"][1]),), (int(node["sep"][1]),))
    if kind == "TemplateProcessing":
        sides: tuple[list[int], list[int]] = ([], [])
        seen = 0
        for item in node["single"]:
            if "Sequence" in item:
                seen = 1
            else:
                sides[seen].extend(node["special_tokens"][item["SpecialToken"]["id"]]["ids"])
        return _Template(tuple(sides[0]), tuple(sides[1]))
    raise ValueError(f"tokenizer.json: post_processor type {kind!r} is not supported")


class Tokenizer:
    """One loaded `tokenizer.json`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Build from the parsed file; raises `ValueError` naming the part that is not supported."""
        self._model = build_model(document["model"])
        self._normalize = build_normalizer(document.get("normalizer"))
        self._pre = build_pre_tokenizer(document.get("pre_tokenizer"))
        self._template = _template(document.get("post_processor"))
        self._decode = build_decoder(document.get("decoder"))
        self.added = [_added(node) for node in document.get("added_tokens") or []]
        self._raw = _Cutter([(t.content, t) for t in self.added if not t.normalized])
        self._raw_plain = _Cutter([(t.content, t) for t in self.added if not t.normalized and not t.special])
        normalized = [(self._normalized(t.content), t) for t in self.added if t.normalized]
        self._cooked = _Cutter(normalized)
        self._cooked_plain = _Cutter([(text, t) for text, t in normalized if not t.special])
        self.special_ids = frozenset(t.id for t in self.added if t.special)
        names: dict[int, str] = {token: name for name, token in self._model.vocab.items()}
        names.update({t.id: t.content for t in self.added})
        self._names = names
        self._token_bytes = token_bytes_of(document.get("decoder"))
        self._added_ids = {t.id for t in self.added}
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Load `path`; raises `ValueError` naming the file."""
        try:
            return cls(json.loads(path.read_bytes()))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a tokenizer.json this engine understands: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self._names, default=-1) + 1

    def _normalized(self, text: str) -> str:
        return text if self._normalize is None else self._normalize(text)

    def token_id(self, content: str) -> int | None:
        """The id of the token written `content`, if there is one."""
        for token in self.added:
            if token.content == content:
                return token.id
        return self._model.vocab.get(content)

    def token_name(self, token: int) -> str:
        """The vocabulary's name of `token`, empty for an id without one."""
        return self._names.get(token, "")

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of `text`. With `add_special` the post-processor's tokens come around it.

        `parse_special=False` reads the spelling of a special token as ordinary text, for text that a caller wrote.
        """
        raw, cooked = (self._raw, self._cooked) if parse_special else (self._raw_plain, self._cooked_plain)
        out = list(self._template.before) if add_special else []
        opens = True
        for piece, token in raw.cut(text):
            if token >= 0:
                out.append(token)
            else:
                for part, inner in cooked.cut(self._normalized(piece)):
                    if inner >= 0:
                        out.append(inner)
                    else:
                        words = [part] if self._pre is None else self._pre([part], opens)
                        for word in words:
                            out.extend(self._model.encode_word(word))
                    opens = False
            opens = False
        if add_special:
            out.extend(self._template.after)
        return out

    def frame(self, ids: Sequence[int], tokens_max: int) -> list[int]:
        """`ids` with the post-processor's tokens around them, cut so that the whole has at most `tokens_max`."""
        before, after = self._template.before, self._template.after
        return [*before, *ids[: max(0, tokens_max - len(before) - len(after))], *after]

    def encode_cut(self, text: str, tokens_max: int) -> list[int]:
        """Ids of `text` in the post-processor's frame, at most `tokens_max` of them."""
        size = tokens_max * _CUT_CHARS_PER_TOKEN
        ids = self.encode(text[:size])
        # Twice the tokens needed: whatever the cut did to the last word lies beyond what is kept.
        while len(ids) < 2 * tokens_max and size < len(text):
            size *= 4
            ids = self.encode(text[:size])
        return self.frame(ids, tokens_max)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of a whole id sequence; unknown ids are left out."""
        names = [self._names[i] for i in ids if i in self._names and not (skip_special and i in self.special_ids)]
        return "".join(self._decode(names))

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes `token` adds to running text; nothing for special and unknown ids."""
        found = self._bytes.get(token)
        if found is None:
            name = self._names.get(token)
            if name is None or token in self.special_ids:
                found = b""
            elif token in self._added_ids:
                found = name.encode("utf-8", "replace")
            else:
                found = self._token_bytes(name)
            self._bytes[token] = found
        return found


def _added(node: Mapping[str, Any]) -> AddedToken:
    return AddedToken(
        id=int(node["id"]),
        content=str(node["content"]),
        single_word=bool(node.get("single_word", False)),
        lstrip=bool(node.get("lstrip", False)),
        rstrip=bool(node.get("rstrip", False)),
        normalized=bool(node.get("normalized", not node.get("special", False))),
        special=bool(node.get("special", False)),
    )
