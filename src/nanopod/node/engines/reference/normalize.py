"""Normalizers and pre-tokenizers of `tokenizer.json`: text to text, and text to words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from nanopod.node.engines.reference.patterns import GPT2, WHITE_SPACE, compile_pattern, pattern_of

Normalizer = Callable[[str], str]
PreTokenizer = Callable[[list[str], bool], list[str]]
"""Takes the words so far and whether the first of them opens the input; gives finer words."""


def _byte_chars() -> dict[int, str]:
    """The printable stand-in for each byte that byte-level vocabularies use.

    Bytes that are visible Latin-1 characters stand for themselves; the others take U+0100, U+0101, ... in order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(visible)]
    return {b: chr(b) for b in visible} | {b: chr(0x100 + n) for n, b in enumerate(hidden)}


BYTE_TO_CHAR = _byte_chars()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
_BYTE_TABLE = [BYTE_TO_CHAR[b] for b in range(256)]


def to_byte_chars(text: str) -> str:
    """UTF-8 bytes of `text`, each as its stand-in character."""
    return "".join([_BYTE_TABLE[b] for b in text.encode("utf-8", "replace")])


# --------------------------------------------------------------------------------------------------- normalizers


def _is_control(char: str) -> bool:
    return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co")


def _is_cjk(code: int) -> bool:
    """The ideograph blocks BERT surrounds with spaces."""
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B920 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def _strip_accents(text: str) -> str:
    return "".join([c for c in text if unicodedata.category(c) != "Mn"])


def _lower(text: str) -> str:
    """Character by character: the final-sigma rule of `str.lower` looks at neighbours, tokenizers do not."""
    return text.lower() if text.isascii() else "".join([c.lower() for c in text])


def _bert_normalizer(node: Mapping[str, Any]) -> Normalizer:
    clean, chinese = bool(node.get("clean_text", True)), bool(node.get("handle_chinese_chars", True))
    lower = bool(node.get("lowercase", True))
    accents = lower if node.get("strip_accents") is None else bool(node["strip_accents"])

    def run(text: str) -> str:
        if clean:
            kept = [c for c in text if c not in "\0\ufffd" and not _is_control(c)]
            text = "".join([" " if c in WHITE_SPACE else c for c in kept])
        if chinese and not text.isascii():
            text = "".join([f" {c} " if _is_cjk(ord(c)) else c for c in text])
        if accents and not text.isascii():
            text = _strip_accents(unicodedata.normalize("NFD", text))
        return _lower(text) if lower else text

    return run


def _replace(node: Mapping[str, Any]) -> Normalizer:
    pattern, content = pattern_of(node["pattern"]), str(node["content"])
    return lambda text: pattern.sub(lambda _: content, text)


def _strip(node: Mapping[str, Any]) -> Normalizer:
    left, right = bool(node.get("strip_left", True)), bool(node.get("strip_right", True))

    def run(text: str) -> str:
        text = text.lstrip(WHITE_SPACE) if left else text
        return text.rstrip(WHITE_SPACE) if right else text

    return run


def _unicode_form(form: Any) -> Normalizer:
    return lambda text: unicodedata.normalize(form, text)


def build_normalizer(node: Mapping[str, Any] | None) -> Normalizer | None:
    """The normalizer a `tokenizer.json` asks for (None: leave text as it is); raises `ValueError` naming its type."""
    if node is None:
        return None
    kind = node.get("type")
    if kind == "Sequence":
        steps = [step for n in node["normalizers"] if (step := build_normalizer(n)) is not None]

        def run_all(text: str) -> str:
            for step in steps:
                text = step(text)
            return text

        return run_all
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return _unicode_form(kind)
    simple: dict[str, Callable[[Mapping[str, Any]], Normalizer]] = {
        "BertNormalizer": _bert_normalizer,
        "Replace": _replace,
        "Strip": _strip,
        "StripAccents": lambda _: _strip_accents,
        "Lowercase": lambda _: _lower,
        "ByteLevel": lambda _: to_byte_chars,
        "Prepend": lambda n: lambda text: str(n["prepend"]) + text if text else text,
    }
    if kind not in simple:
        raise ValueError(
            f"tokenizer.json: normalizer type {kind!r} is not supported; known: Sequence, {', '.join(simple)}"
        )
    return simple[kind](node)


# ------------------------------------------------------------------------------------------------ pre-tokenizers


def split_text(text: str, pattern: re.Pattern[str], behavior: str, invert: bool) -> list[str]:
    """Cut `text` at the matches of `pattern`; what becomes of a match is `behavior` (HF names)."""
    spans: list[tuple[str, bool]] = []
    at = 0
    for match in pattern.finditer(text):
        if match.end() == match.start():
            continue
        if match.start() > at:
            spans.append((text[at : match.start()], False))
        spans.append((match.group(), True))
        at = match.end()
    if at < len(text):
        spans.append((text[at:], False))
    if invert:
        spans = [(piece, not hit) for piece, hit in spans]
    if behavior == "Removed":
        return [piece for piece, hit in spans if not hit]
    out: list[str] = []
    if behavior == "Isolated":
        return [piece for piece, _ in spans]
    if behavior == "Contiguous":
        last: bool | None = None
        for piece, hit in spans:
            if hit == last:
                out[-1] += piece
            else:
                out.append(piece)
            last = hit
        return out
    if behavior == "MergedWithPrevious":
        before = True
        for piece, hit in spans:
            if hit and not before:
                out[-1] += piece
            else:
                out.append(piece)
            before = hit
        return out
    if behavior == "MergedWithNext":
        after = True
        for piece, hit in reversed(spans):
            if hit and not after:
                out[-1] = piece + out[-1]
            else:
                out.append(piece)
            after = hit
        return out[::-1]
    raise ValueError(f"tokenizer.json: split behavior {behavior!r} is not supported")


def _each(pattern: re.Pattern[str], behavior: str, invert: bool = False) -> PreTokenizer:
    return lambda words, _: [p for word in words for p in split_text(word, pattern, behavior, invert)]


def _byte_level(node: Mapping[str, Any]) -> PreTokenizer:
    prefix, use_regex = bool(node.get("add_prefix_space", True)), bool(node.get("use_regex", True))
    pattern = compile_pattern(GPT2) if use_regex else None

    def run(words: list[str], _: bool) -> list[str]:
        out: list[str] = []
        for word in words:
            text = " " + word if prefix and not word.startswith(" ") else word
            pieces = [text] if pattern is None else split_text(text, pattern, "Isolated", False)
            out.extend(to_byte_chars(piece) for piece in pieces)
        return out

    return run


def _metaspace(node: Mapping[str, Any]) -> PreTokenizer:
    mark = str(node.get("replacement", "\u2581"))
    scheme = node.get("prepend_scheme", "always" if node.get("add_prefix_space", True) else "never")
    pattern = re.compile(re.escape(mark))
    split = bool(node.get("split", True))

    def run(words: list[str], opens: bool) -> list[str]:
        out: list[str] = []
        for number, word in enumerate(words):
            text = word.replace(" ", mark)
            wanted = scheme == "always" or (scheme == "first" and opens and number == 0)
            if wanted and not text.startswith(mark):
                text = mark + text
            out.extend(split_text(text, pattern, "MergedWithNext", False) if split else [text])
        return out

    return run


_SINCE_UNICODE_9 = (
    (0x61D, 0x61D), (0x9FD, 0x9FD), (0xA76, 0xA76), (0xC77, 0xC77), (0xC84, 0xC84), (0x1B4E, 0x1B4F), (0x1B7D, 0x1B7F),
    (0x2E43, 0x2E4F), (0x2E52, 0x2E5D), (0x10D6E, 0x10D6E), (0x10EAD, 0x10EAD), (0x10F55, 0x10F59), (0x10F86, 0x10F89),
    (0x113D4, 0x113D5), (0x113D7, 0x113D8), (0x1144B, 0x1144F), (0x1145A, 0x1145B), (0x1145D, 0x1145D),
    (0x11660, 0x1166C), (0x116B9, 0x116B9), (0x1183B, 0x1183B), (0x11944, 0x11946), (0x119E2, 0x119E2),
    (0x11A3F, 0x11A46), (0x11A9A, 0x11A9C), (0x11A9E, 0x11AA2), (0x11B00, 0x11B09), (0x11BE1, 0x11BE1),
    (0x11C41, 0x11C45), (0x11C70, 0x11C71), (0x11EF7, 0x11EF8), (0x11F43, 0x11F4F), (0x11FFF, 0x11FFF),
    (0x12FF1, 0x12FF2), (0x16D6D, 0x16D6F), (0x16E97, 0x16E9A), (0x16FE2, 0x16FE2), (0x1E5FF, 0x1E5FF),
    (0x1E95E, 0x1E95F),
)  # fmt: skip
"""Punctuation that BERT's tokenizers do not split at: their tables are those of Unicode 8."""
_NOT_BERT_PUNCTUATION = frozenset(code for first, last in _SINCE_UNICODE_9 for code in range(first, last + 1))
_BERT_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u166d\U000111c9")
"""ASCII symbols, and what was punctuation in Unicode 8 and is not any more."""


def is_bert_punctuation(char: str) -> bool:
    """ASCII symbols and the Unicode category P, as Unicode 8 has it."""
    if char in _BERT_PUNCTUATION:
        return True
    return unicodedata.category(char).startswith("P") and ord(char) not in _NOT_BERT_PUNCTUATION


def _bert_words(words: list[str], _: bool) -> list[str]:
    out: list[str] = []
    for text in words:
        start = -1
        for at, char in enumerate(text):
            space = char in WHITE_SPACE
            if space or is_bert_punctuation(char):
                if start >= 0:
                    out.append(text[start:at])
                    start = -1
                if not space:
                    out.append(char)
            elif start < 0:
                start = at
        if start >= 0:
            out.append(text[start:])
    return out


def build_pre_tokenizer(node: Mapping[str, Any] | None) -> PreTokenizer | None:
    """The pre-tokenizer a `tokenizer.json` asks for; raises `ValueError` naming its type."""
    if node is None:
        return None
    kind = node.get("type")
    if kind == "Sequence":
        steps = [step for n in node["pretokenizers"] if (step := build_pre_tokenizer(n)) is not None]

        def run_all(words: list[str], opens: bool) -> list[str]:
            for step in steps:
                words = step(words, opens)
            return words

        return run_all
    if kind == "Split":
        return _each(pattern_of(node["pattern"]), str(node["behavior"]), bool(node.get("invert", False)))
    simple: dict[str, Callable[[Mapping[str, Any]], PreTokenizer]] = {
        "ByteLevel": _byte_level,
        "Metaspace": _metaspace,
        "BertPreTokenizer": lambda _: _bert_words,
        "Whitespace": lambda _: _each(compile_pattern(r"\w+|[^\w\s]+"), "Removed", True),
        "WhitespaceSplit": lambda _: _each(compile_pattern(r"\s+"), "Removed"),
        "Punctuation": lambda n: _each(compile_pattern(r"[!-/:-@\[-`{-~\p{P}]"), str(n.get("behavior", "Isolated"))),
        "Digits": lambda n: _each(
            compile_pattern(r"\p{N}"), "Isolated" if n.get("individual_digits") else "Contiguous"
        ),
    }
    if kind not in simple:
        raise ValueError(f"tokenizer.json: pre_tokenizer type {kind!r} is not supported; known: {', '.join(simple)}")
    return simple[kind](node)
