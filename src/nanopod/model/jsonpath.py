"""Paths into JSON values, in the syntax of GJSON (https://github.com/tidwall/gjson/blob/master/SYNTAX.md), as
inference graphs state their conditions in it.

Understood: names and indexes (`a.0.b`), `\\` before a special character, wildcards `*` and `?` in names, `#` (how many,
or the rest of the path for each), queries `#(path op value)` and `#(...)#` with `==`, `!=`, `<`, `<=`, `>`, `>=`, `%`,
`!%` or without any, one inside another, `|` for `.`, and the parts `[@this]`, `@this`, `[path, path]`. Other modifiers
are refused when a path is read, not when it is used.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nanopod.model import unreadable
from nanopod.model.errors import Invalid

PATH_CHARS_MAX: Final = 2048
DEPTH_MAX: Final = 32
OPERATORS: Final = ("==", "!=", "<=", ">=", "!%", "<", ">", "%")
MISSING: Final = object()
"""What a path finds where there is nothing."""
_LITERAL: Final = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Name:
    """A member of an object, or an index into an array."""

    text: str
    is_pattern: bool = False


@dataclass(frozen=True, slots=True)
class Each:
    """`#`: the length of an array; with parts after it, what they find in each element."""


@dataclass(frozen=True, slots=True)
class Query:
    """`#(...)`: the first element that matches; with `all`, every one."""

    path: tuple[Part, ...]
    operator: str
    value: Any
    all: bool


@dataclass(frozen=True, slots=True)
class Several:
    """`[path, path]`: an array of what the paths find."""

    paths: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True, slots=True)
class This:
    """`@this`: the value itself."""


Part = Name | Each | Query | Several | This


def read(path: str) -> tuple[Part, ...]:
    """The parts of a path. Raises `Invalid` with the place where it cannot be read."""
    if not path or len(path) > PATH_CHARS_MAX:
        raise Invalid(f"condition: a JSON path has 1 to {PATH_CHARS_MAX} characters", field="condition")
    parts, at = _Reader(path).parts("", 0, 0)
    assert at == len(path), "only a closing sign ends a path early, and there is none to wait for"
    return parts


def find(value: Any, parts: Sequence[Part]) -> Any:
    """What a path finds in a decoded JSON value; `MISSING` for nothing."""
    for index, part in enumerate(parts):
        rest = parts[index + 1 :]
        match part:
            case This():
                continue
            case Several(paths):
                value = [one for one in (find(value, path) for path in paths) if one is not MISSING]
                continue
            case Name(text, is_pattern):
                value = _member(value, text, is_pattern)
            case Each():
                if not isinstance(value, list):
                    return MISSING
                if not rest:
                    return len(value)
                return [one for one in (find(each, rest) for each in value) if one is not MISSING]
            case Query():
                if not isinstance(value, list):
                    return MISSING
                found = [one for one in value if _matches(one, part)]
                if part.all:
                    return [one for one in (find(each, rest) for each in found) if one is not MISSING]
                value = found[0] if found else MISSING
        if value is MISSING:
            return MISSING
    return value


def exists(value: Any, path: str) -> bool:
    """True when the path finds something, `null` included."""
    return find(value, read(path)) is not MISSING


def _member(value: Any, text: str, is_pattern: bool) -> Any:
    if isinstance(value, Mapping):
        if is_pattern:
            return next((one for name, one in value.items() if fnmatch.fnmatchcase(name, text)), MISSING)
        return value.get(text, MISSING)
    if isinstance(value, list) and text.isascii() and text.isdigit() and len(text) < 19 and int(text) < len(value):
        return value[int(text)]
    return MISSING


def _matches(element: Any, query: Query) -> bool:
    found = find(element, query.path)
    if found is MISSING:
        return False
    return not query.operator or _COMPARE[query.operator](found, query.value)


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "word"
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else "other"


def _equal(one: Any, other: Any) -> bool:
    return _kind(one) == _kind(other) and one == other


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(one: Any, other: Any) -> bool:
        return _kind(one) == _kind(other) and _kind(one) in ("number", "text") and test(one, other)

    return compare


def _like(one: Any, pattern: Any) -> bool:
    return isinstance(one, str) and isinstance(pattern, str) and fnmatch.fnmatchcase(one, pattern)


_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": _equal,
    "!=": lambda one, other: not _equal(one, other),
    "<": _ordered(lambda one, other: bool(one < other)),
    "<=": _ordered(lambda one, other: bool(one <= other)),
    ">": _ordered(lambda one, other: bool(one > other)),
    ">=": _ordered(lambda one, other: bool(one >= other)),
    "%": _like,
    "!%": lambda one, pattern: isinstance(one, str) and not _like(one, pattern),
}


class _Reader:
    """Reads one path from left to right."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _wrong(self, at: int, why: str) -> Invalid:
        return Invalid(f"condition: {self._path!r} at character {at + 1}: {why}", field="condition")

    def parts(self, ends: str, at: int, depth: int) -> tuple[tuple[Part, ...], int]:
        """(parts, place of the sign among `ends` that closes them, or the end of the path)."""
        if depth > DEPTH_MAX:
            raise self._wrong(at, f"more than {DEPTH_MAX} queries inside one another")
        path = self._path
        found: list[Part] = []
        while True:
            part, at = self._part(ends, at, depth)
            found.append(part)
            if at >= len(path) or path[at] in ends:
                return tuple(found), at
            if path[at] not in ".|":
                raise self._wrong(at, f"`.` or the end is expected, not {path[at]!r}")
            at += 1

    def _part(self, ends: str, at: int, depth: int) -> tuple[Part, int]:
        path = self._path
        if path.startswith("#(", at):
            return self._query(at + 2, depth)
        if path.startswith("#", at) and (at + 1 == len(path) or path[at + 1] in ".|" + ends):
            return Each(), at + 1
        if path.startswith("[", at):
            several: list[tuple[Part, ...]] = []
            at += 1
            while True:
                parts, at = self.parts(",]", at, depth + 1)
                several.append(parts)
                if at >= len(path):
                    raise self._wrong(at, "`]` is missing")
                at += 1
                if path[at - 1] == "]":
                    break
            if several == [(This(),)]:
                return Several(((This(),),)), at
            return Several(tuple(several)), at
        if path.startswith("@", at):
            word = re.compile(r"@[a-z]*").match(path, at)
            if word is None or word[0] != "@this":
                raise self._wrong(at, f"the modifier {word[0] if word else '@'} is not offered; there is @this")
            return This(), word.end()
        return self._name(ends, at)

    def _name(self, ends: str, at: int) -> tuple[Part, int]:
        path, text, plain, begin = self._path, "", "", at
        is_pattern = False
        while at < len(path) and path[at] not in ".|" and path[at] not in ends:
            if path[at] == "\\" and at + 1 < len(path):
                at += 1
                text += f"[{path[at]}]" if path[at] in "*?[" else path[at]
            else:
                is_pattern = is_pattern or path[at] in "*?"
                text += "[[]" if path[at] == "[" else path[at]
            plain += path[at]
            at += 1
        if not plain:
            raise self._wrong(begin, "a name is missing")
        return Name(text if is_pattern else plain, is_pattern), at

    def _query(self, at: int, depth: int) -> tuple[Part, int]:
        path = self._path
        left: tuple[Part, ...] = ()
        if not path.startswith(OPERATORS, at):
            left, at = self.parts("=!<>%) ", at, depth + 1)
        while path.startswith(" ", at):
            at += 1
        operator = next((one for one in OPERATORS if path.startswith(one, at)), "")
        value: Any = None
        if operator:
            value, at = self._value(at + len(operator))
        elif path.startswith(("=", "!"), at):
            raise self._wrong(at, f"an operator is expected: {', '.join(OPERATORS)}")
        if not path.startswith(")", at):
            raise self._wrong(at, "`)` is missing")
        at += 1
        every = path.startswith("#", at)
        return Query(left, operator, value, every), at + every

    def _value(self, at: int) -> tuple[Any, int]:
        """A literal, and the place behind it."""
        while self._path.startswith(" ", at):
            at += 1
        literal = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s)]+').match(self._path, at)
        if literal is None:
            raise self._wrong(at, "a value is missing")
        try:
            value = _LITERAL(literal[0])
        except unreadable.JSON:
            value = literal[0]  # a bare word is text
        at = literal.end()
        while self._path.startswith(" ", at):
            at += 1
        return value, at
