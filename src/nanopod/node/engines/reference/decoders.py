"""Decoders of `tokenizer.json` (tokens back to text) and the per-token byte view that streaming needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from nanopod.node.engines.reference.normalize import CHAR_TO_BYTE
from nanopod.node.engines.reference.patterns import pattern_of

Decoder = Callable[[list[str]], list[str]]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def byte_level_bytes(token: str) -> bytes:
    """Bytes of one token of a byte-level vocabulary; a token with other characters stands for its own UTF-8."""
    try:
        return bytes([CHAR_TO_BYTE[c] for c in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def _byte_level(tokens: list[str]) -> list[str]:
    return [b"".join(map(byte_level_bytes, tokens)).decode("utf-8", "replace")]


def _byte_fallback(tokens: list[str]) -> list[str]:
    """Runs of byte tokens become text where they are valid UTF-8, one replacement character per byte where not."""
    out: list[str] = []
    run = bytearray()

    def flush() -> None:
        if run:
            try:
                out.append(run.decode("utf-8"))
            except UnicodeDecodeError:
                out.extend("\ufffd" * len(run))
            run.clear()

    for token in tokens:
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            run.append(int(match.group(1), 16))
        else:
            flush()
            out.append(token)
    flush()
    return out


def _strip(node: Mapping[str, Any]) -> Decoder:
    content, start, stop = str(node["content"]), int(node.get("start", 0)), int(node.get("stop", 0))

    def one(token: str) -> str:
        left, right = 0, len(token)
        while left < min(start, right) and token[left] == content:
            left += 1
        end = right
        while right > left and end - right < stop and token[right - 1] == content:
            right -= 1
        return token[left:right]

    return lambda tokens: [one(token) for token in tokens]


def _replace(node: Mapping[str, Any]) -> Decoder:
    pattern, content = pattern_of(node["pattern"]), str(node["content"])
    return lambda tokens: [pattern.sub(lambda _: content, token) for token in tokens]


def _metaspace(node: Mapping[str, Any]) -> Decoder:
    mark = str(node.get("replacement", "\u2581"))
    scheme = node.get("prepend_scheme", "always" if node.get("add_prefix_space", True) else "never")

    def run(tokens: list[str]) -> list[str]:
        out = [token.replace(mark, " ") for token in tokens]
        if out and scheme != "never" and tokens[0].startswith(mark):
            out[0] = tokens[0].replace(mark, "")
        return out

    return run


def _word_piece(node: Mapping[str, Any]) -> Decoder:
    prefix, cleanup = str(node.get("prefix", "##")), bool(node.get("cleanup", True))

    def run(tokens: list[str]) -> list[str]:
        out = []
        for number, token in enumerate(tokens):
            text = token
            if number:
                text = token[len(prefix) :] if token.startswith(prefix) else " " + token
            if cleanup:
                for old, new in _CLEANUP:
                    text = text.replace(old, new)
            out.append(text)
        return out

    return run


def build_decoder(node: Mapping[str, Any] | None) -> Decoder:
    """The decoder of a `tokenizer.json` (none: tokens joined by spaces); raises `ValueError` naming its type."""
    if node is None:
        return lambda tokens: [" ".join(tokens)]
    kind = node.get("type")
    if kind == "Sequence":
        steps = [build_decoder(n) for n in node["decoders"]]

        def run(tokens: list[str]) -> list[str]:
            for step in steps:
                tokens = step(tokens)
            return tokens

        return run
    simple: dict[str, Callable[[Mapping[str, Any]], Decoder]] = {
        "ByteLevel": lambda _: _byte_level,
        "ByteFallback": lambda _: _byte_fallback,
        "Fuse": lambda _: lambda tokens: ["".join(tokens)],
        "Strip": _strip,
        "Replace": _replace,
        "Metaspace": _metaspace,
        "WordPiece": _word_piece,
    }
    if kind not in simple:
        raise ValueError(
            f"tokenizer.json: decoder type {kind!r} is not supported; known: Sequence, {', '.join(simple)}"
        )
    return simple[kind](node)


def _flatten(node: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [leaf for n in node["decoders"] for leaf in _flatten(n)]
    return [node]


def token_bytes_of(node: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    """How many bytes each token adds in the MIDDLE of a text: the streaming view of a decoder.

    Output always follows a prompt, so rules for the first token of a text (dropping its leading space) do not apply.
    """
    leaves = _flatten(node)
    kinds = {leaf.get("type") for leaf in leaves}
    if "ByteLevel" in kinds:
        return byte_level_bytes
    if "WordPiece" in kinds:
        return lambda token: token[2:].encode() if token.startswith("##") else b" " + token.encode()
    marks = [str(leaf.get("replacement", "\u2581")) for leaf in leaves if leaf.get("type") == "Metaspace"]
    replaces = [_replace(leaf) for leaf in leaves if leaf.get("type") == "Replace"]
    bytes_known = "ByteFallback" in kinds

    def run(token: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(token) if bytes_known else None
        if match:
            return bytes([int(match.group(1), 16)])
        for mark in marks:
            token = token.replace(mark, " ")
        for replace in replaces:
            token = replace([token])[0]
        return token.encode("utf-8", "replace")

    return run
