r"""Tokenizer patterns (`\p{L}` and friends) translated for Python's `re`.

Tokenizer files carry Oniguruma patterns with Unicode properties, which `re` does not know. Property classes become
explicit ranges taken from `unicodedata`; `\s` becomes the Unicode White_Space set, which is not Python's `\s` (that one
also holds the separators U+001C to U+001F). Possessive quantifiers and `(?i:...)` mean the same in both.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""Code points with the Unicode property White_Space."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The word pattern of GPT-2, which a ByteLevel pre-tokenizer applies when `use_regex` is set."""

_LAST = 0x10FFFF
# Beyond the third plane only tags, variation selectors and private use exist: not worth a longer start.
_SCANNED = (range(0, 0x33500), range(0xE0000, 0xE0200))


@cache
def category_ranges(prefix: str) -> tuple[tuple[int, int], ...]:
    """Inclusive code point ranges whose general category starts with `prefix`, e.g. `L` or `Lu` (not for `C`)."""
    category = unicodedata.category
    out: list[tuple[int, int]] = []
    for span in _SCANNED:
        start = -1
        for code in span:
            if category(chr(code)).startswith(prefix):
                if start < 0:
                    start = code
            elif start >= 0:
                out.append((start, code - 1))
                start = -1
        if start >= 0:
            out.append((start, span.stop - 1))
    return tuple(out)


def _complement(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    out, at = [], 0
    for low, high in ranges:
        if low > at:
            out.append((at, low - 1))
        at = high + 1
    if at <= _LAST:
        out.append((at, _LAST))
    return tuple(out)


def _members(ranges: tuple[tuple[int, int], ...]) -> str:
    """Ranges as the inside of a character class."""

    def one(code: int) -> str:
        return re.escape(chr(code)) if code < 0x80 else chr(code)

    return "".join(one(low) if low == high else f"{one(low)}-{one(high)}" for low, high in ranges)


@cache
def word_ranges() -> tuple[tuple[int, int], ...]:
    r"""What Unicode calls a word character (UTS 18): Python's `\w` also holds fractions and superscripts."""
    found = [r for name in ("L", "M", "Nd", "Nl", "Pc") for r in category_ranges(name)]
    # Joiners, and the letters in circles and squares that are alphabetic although their category is a symbol's.
    found += [(0x200C, 0x200D), (0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189)]
    return tuple(sorted(found))


_SPACES = tuple((ord(c), ord(c)) for c in sorted(WHITE_SPACE))


def _property(pattern: str, at: int) -> tuple[tuple[tuple[int, int], ...], int]:
    r"""Ranges of the `\p{..}`, `\P{..}`, `\s`, `\S`, `\w` or `\W` at `at`, and the index after it."""
    letter = pattern[at + 1]
    if letter in "wW":
        return (word_ranges() if letter == "w" else _complement(word_ranges())), at + 2
    if letter in "sS":
        return (_SPACES if letter == "s" else _complement(_SPACES)), at + 2
    if pattern[at + 2 : at + 3] == "{":
        end = pattern.index("}", at)
        name = pattern[at + 3 : end]
        end += 1
    else:
        name, end = pattern[at + 2 : at + 3], at + 3
    negated = letter == "P"
    if name.startswith("^"):
        name, negated = name[1:], not negated
    if not re.fullmatch(r"[LMNPSZ][a-z]?", name):
        raise ValueError(f"unknown Unicode property {name!r} in the pattern {pattern!r}")
    ranges = category_ranges(name)
    return (_complement(ranges) if negated else ranges), end


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Translate and compile one tokenizer pattern; raises `ValueError` naming what is not understood."""
    out: list[str] = []
    at, inside = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and pattern[at + 1 : at + 2] in ("p", "P", "s", "S", "w", "W"):
            ranges, at = _property(pattern, at)
            out.append(_members(ranges) if inside else f"[{_members(ranges)}]")
            continue
        if char == "\\":
            out.append(pattern[at : at + 2])
            at += 2
            continue
        if char == "[" and not inside:
            inside = True
        elif char == "]" and inside:
            inside = False
        elif char == "[":
            char = "\\["
        out.append(char)
        at += 1
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise ValueError(f"the tokenizer pattern {pattern!r} is not understood: {error}") from error


def pattern_of(node: object) -> re.Pattern[str]:
    """The pattern of a tokenizer.json node `{"Regex": ..}` or `{"String": ..}`."""
    if isinstance(node, dict) and isinstance(node.get("Regex"), str):
        return compile_pattern(node["Regex"])
    if isinstance(node, dict) and isinstance(node.get("String"), str):
        return re.compile(re.escape(node["String"]))
    raise ValueError(f"tokenizer.json: expected a pattern with Regex or String, found {node!r}")
