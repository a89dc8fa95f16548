"""YAML and JSON text as documents in which every key knows its line and column.

Values are those of JSON: dates stay text, as do times of the form `12:30`. Anchors, aliases and merge keys work; what
they expand to is limited. Nothing here can run code or recurse deeper than `DEPTH_MAX`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.constructor import SafeConstructor
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from yaml.nodes import ScalarNode
from yaml.resolver import Resolver

TEXT_BYTES_MAX: Final = 2 << 20
"""Of one file."""
DOCUMENTS_MAX: Final = 1000
NODES_MAX: Final = 200_000
"""Of one file, with what its aliases stand for."""
DEPTH_MAX: Final = 64
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_SEXAGESIMAL: Final = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"
_KEPT_TEXT: Final = frozenset({_TAG + "timestamp", _TAG + "merge", _TAG + "value"})

Mark = tuple[int, int]
"""Line and column, from 1."""


class Unreadable(Exception):
    """Text that is no YAML, or not of a form that an object can have. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file. `marks`: line and column of each key and item, by its path (`spec.containers[0].image`)."""

    source: str
    index: int
    """Its number in the file, from 0."""
    data: Mapping[str, Any]
    marks: Mapping[str, Mark] = field(repr=False)

    def mark(self, path: str) -> Mark:
        """Where a path is, or the nearest thing around it that is there."""
        while path not in self.marks and path:
            cut = max(path.rfind("."), path.rfind("["), path.rfind("]") if not path.endswith("]") else -1)
            path = path[: max(cut, 0)]
        return self.marks.get(path, (0, 0))


def step(path: str, name: str) -> str:
    """The path of a member: `spec.image`, or `metadata.annotations["a.b/c"]` where a name has other characters."""
    if not _PLAIN.fullmatch(name):
        return f'{path}["{name}"]'
    return f"{path}.{name}" if path else name


def read_documents(text: str, source: str) -> list[Document]:
    """The objects of a file; empty documents are left out and a `List` is its items.

    Raises `Unreadable` with the place.
    """
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise Unreadable(f"the file is larger than {TEXT_BYTES_MAX >> 20} MiB; split it")
    found: list[Document] = []
    try:
        for value, marks in _compose(yaml.parse(text.removeprefix("\ufeff"), Loader=_LOADER)):
            if value is None:
                continue
            if not isinstance(value, dict):
                line, column = marks[""]
                kind = "a list" if isinstance(value, list) else f"the value {value!r}"
                raise Unreadable(f"a document must be an object with apiVersion and kind, not {kind}", line, column)
            found += _items(source, len(found), value, marks)
            if len(found) > DOCUMENTS_MAX:
                raise Unreadable(f"the file has more than {DOCUMENTS_MAX} documents; split it")
    except yaml.MarkedYAMLError as error:
        raise _told(error) from None
    except (yaml.YAMLError, ValueError) as error:
        line = _line_of(text, getattr(error, "position", None))
        raise Unreadable(f"not YAML: {_first_line(error)}", line, 1 if line else 0) from None
    return found


def _line_of(text: str, position: int | None) -> int:
    return text.count("\n", 0, position) + 1 if position is not None else 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["it cannot be read"])[0]


def _told(error: yaml.MarkedYAMLError) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    words = ", ".join(part for part in (error.context, error.problem) if part)
    hint = ""
    if mark is not None and "\\t" in (error.problem or ""):
        hint = "; YAML is indented with blanks, not tabs"
    return Unreadable(f"not YAML: {words}{hint}", mark.line + 1 if mark else 0, mark.column + 1 if mark else 0)


def _items(source: str, index: int, value: dict[str, Any], marks: dict[str, Mark]) -> Iterator[Document]:
    """The document itself, or the members of a `List`."""
    if value.get("kind") != "List" or not isinstance(value.get("items"), list):
        yield Document(source, index, value, marks)
        return
    for number, item in enumerate(value["items"]):
        prefix = f"items[{number}]"
        line, column = marks[prefix]
        if not isinstance(item, dict):
            raise Unreadable(f"{prefix} must be an object", line, column)
        own = {
            path.removeprefix(prefix).removeprefix("."): mark
            for path, mark in marks.items()
            if path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))
        }
        yield Document(source, index + number, item, own)


# --- from events to values ---


@dataclass(slots=True)
class _Node:
    """A value that is being put together, with the marks below it by relative path."""

    value: Any
    marks: dict[str, Mark]
    mark: Mark
    size: int = 1
    anchor: str | None = None
    key: str | None = None
    key_mark: Mark = (0, 0)
    merges: list[dict[str, Any]] = field(default_factory=list)


class _Scalars:
    """What a scalar means."""

    def __init__(self) -> None:
        self._resolver, self._constructor = Resolver(), SafeConstructor()

    def value(self, event: ScalarEvent) -> Any:
        """JSON's values of it."""
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolver.resolve(ScalarNode, event.value, event.implicit)
        if tag in _KEPT_TEXT or tag == _TAG + "str" or _SEXAGESIMAL.fullmatch(event.value):
            return event.value
        if not isinstance(tag, str) or tag.removeprefix(_TAG) not in ("null", "bool", "int", "float"):
            line, column = _at(event)
            raise Unreadable(f"the tag {tag} is not for Kubernetes objects; leave it out", line, column)
        try:
            return self._constructor.construct_object(ScalarNode(tag, event.value, event.start_mark, event.end_mark))
        except (ValueError, OverflowError):
            return event.value


def _at(event: Event) -> Mark:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)


def _compose(events: Iterator[Event]) -> Iterator[tuple[Any, dict[str, Mark]]]:
    """(value, marks) of each document, without recursion."""
    scalars = _Scalars()
    total = 0
    anchors: dict[str, _Node] = {}
    root = _Node([], {}, (0, 0))
    stack = [root]
    for event in events:
        if isinstance(event, DocumentStartEvent):
            anchors, root = {}, _Node([], {}, (0, 0))
            stack = [root]
        elif isinstance(event, DocumentEndEvent):
            yield root.value[0], {"": root.marks["[0]"], **_unwrapped(root.marks)}
        elif isinstance(event, ScalarEvent | AliasEvent | MappingStartEvent | SequenceStartEvent):
            total += _take(event, stack, anchors, scalars)
            if total > NODES_MAX:
                line, column = _at(event)
                raise Unreadable(f"the file has more than {NODES_MAX} values; split it", line, column)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            done = stack.pop()
            if done.merges:
                _merge(done)
            _put(stack[-1], done)


def _unwrapped(marks: dict[str, Mark]) -> dict[str, Mark]:
    return {path[4:] if path.startswith("[0].") else path[3:]: mark for path, mark in marks.items() if path != "[0]"}


def _take(event: Event, stack: list[_Node], anchors: dict[str, _Node], scalars: _Scalars) -> int:
    """Begin a node, or put a whole one where it belongs; how many values that is."""
    top, mark = stack[-1], _at(event)
    if isinstance(event, AliasEvent):
        known = anchors.get(event.anchor)
        if known is None or known in stack:
            raise Unreadable(f"the alias *{event.anchor} has no anchor before it", *mark)
        _put(top, _Node(known.value, known.marks, mark, known.size))
        return known.size
    if isinstance(event, ScalarEvent):
        if isinstance(top.value, dict) and top.key is None:
            _begin_key(top, event, scalars)
            return 0
        node = _Node(scalars.value(event), {}, mark, anchor=event.anchor)
    else:
        if len(stack) > DEPTH_MAX:
            raise Unreadable(f"more than {DEPTH_MAX} levels deep", *mark)
        if isinstance(top.value, dict) and top.key is None:
            raise Unreadable("a key must be text", *mark)
        node = _Node({} if isinstance(event, MappingStartEvent) else [], {}, mark, anchor=event.anchor)
    if node.anchor:
        anchors[node.anchor] = node
    if isinstance(event, ScalarEvent):
        _put(top, node)
    else:
        stack.append(node)
    return 1


def _begin_key(top: _Node, event: ScalarEvent, scalars: _Scalars) -> None:
    mark = _at(event)
    key = scalars.value(event) if event.implicit[0] else event.value
    text = event.value if isinstance(key, bool | int | float) else key
    if not isinstance(text, str):
        raise Unreadable(f"the key {event.value!r} must be text; put it in quotes", *mark)
    if text in top.value:
        line, _ = top.marks.get(step("", text), (0, 0))
        raise Unreadable(f"the key {text!r} is there twice (first in line {line}); keep one", *mark)
    top.key, top.key_mark = text, mark


def _put(top: _Node, node: _Node) -> None:
    """Make a whole node a member of the one that is open."""
    top.size += node.size
    if isinstance(top.value, list):
        path = f"[{len(top.value)}]"
        top.value.append(node.value)
        top.marks[path] = node.mark
    elif top.key == _MERGE:
        given = node.value if isinstance(node.value, list) else [node.value]
        if not all(isinstance(one, dict) for one in given):
            raise Unreadable("<<: takes an object, or a list of objects", *top.key_mark)
        top.merges += given
        top.key = None
        return
    else:
        assert top.key is not None, "a value follows its key"
        path = step("", top.key)
        top.value[top.key] = node.value
        top.marks[path] = top.key_mark
        top.key = None
    for inner, mark in node.marks.items():
        top.marks[path + inner if inner.startswith("[") else f"{path}.{inner}"] = mark


def _merge(node: _Node) -> None:
    """Keys of merged objects that the object does not have itself; earlier ones win."""
    for one in node.merges:
        for key, value in one.items():
            if key not in node.value:
                node.value[key] = value
                node.marks[step("", key)] = node.mark


def paths_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar (and empty container) of a value with its path, in order."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from paths_of(inner, step(path, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for at, inner in enumerate(value):
            yield from paths_of(inner, f"{path}[{at}]")
    else:
        yield path, value
