"""From a web request to a function's arguments, and from what it returned to a body.

Arguments come from the path, the query and the body (a JSON object, or a form), by name; texts become what the
parameter's annotation says. Everything that does not fit is told at once, by parameter.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Final, get_args, get_origin
from urllib.parse import parse_qs

import msgspec

from nanopod.model import unreadable
from nanopod.node import redact

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
_LISTS: Final = (list, tuple, set, frozenset, Sequence)
_decode: Final = msgspec.json.Decoder().decode
_KINDS: Final = inspect.Parameter
_MISSING: Final = object()


class BadCall(Exception):
    """The request does not fit the function: `status`, what is wrong as a whole, and each parameter's trouble."""

    def __init__(self, status: int, message: str, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class Given:
    """A value for a parameter; `is_text` when it may be turned into numbers and the like."""

    value: Any
    where: str
    is_text: bool


class Binder:
    """Binds requests to one function. Its annotations are read once."""

    def __init__(self, function: Callable[..., Any], *, skip: int = 0, batched: bool = False) -> None:
        """`skip`: leading parameters that somebody else gives (`self`); `batched`: it takes lists of what is given."""
        parameters = list(inspect.signature(function).parameters.values())[skip:]
        self._parameters = {p.name: p for p in parameters if p.kind not in (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD)}
        self._open = any(p.kind is _KINDS.VAR_KEYWORD for p in parameters)
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception:  # names that only a type checker knows
            hints = {}
        self._hints: dict[str, Any] = {name: hints.get(name, Any) for name in self._parameters}
        if batched:
            self._hints = {name: (get_args(hint) or (Any,))[0] for name, hint in self._hints.items()}

    def bind(
        self, path: Mapping[str, str], query: str, content_type: str, body: bytes
    ) -> tuple[list[Any], dict[str, Any]]:
        """(positional, named) arguments. Raises `BadCall` (415 or 422)."""
        found: dict[str, Given] = {name: Given(value, "path", True) for name, value in path.items()}
        errors: list[tuple[str, str]] = []
        for name, texts in parse_qs(query, keep_blank_values=True).items():
            self._add(found, errors, name, self._texts(name, texts, errors, "query"))
        self._add_body(found, errors, content_type, body)
        values: dict[str, Any] = {}
        for name, given in found.items():
            if name not in self._parameters and not self._open:
                there = ", ".join(self._parameters) or "none"
                errors.append((name, f"there is no such parameter (from the {given.where}); there are: {there}"))
                continue
            value = self._convert(name, given, errors)
            if value is not _MISSING:
                values[name] = value
        failed = {name for name, _ in errors}
        for name, parameter in self._parameters.items():
            if name not in values and name not in failed and parameter.default is _KINDS.empty:
                errors.append((name, "it is missing; give it in the JSON body or in the query"))
        if errors:
            text = "; ".join(f"{name}: {message}" for name, message in errors)
            raise BadCall(422, text, errors)
        return self._places(values), values

    def _places(self, values: dict[str, Any]) -> list[Any]:
        """Takes out what can only be given by position."""
        places: list[Any] = []
        for name, parameter in self._parameters.items():
            if parameter.kind is not _KINDS.POSITIONAL_ONLY:
                break
            places.append(values.pop(name) if name in values else parameter.default)
        return places

    def _add(self, found: dict[str, Given], errors: list[tuple[str, str]], name: str, given: Given) -> None:
        if name in found:
            errors.append((name, f"it is given in the {found[name].where} and in the {given.where}; give it once"))
        else:
            found[name] = given

    def _texts(self, name: str, values: list[str], errors: list[tuple[str, str]], where: str) -> Given:
        if self._is_list(name):
            return Given(values, where, True)
        if len(values) > 1:
            errors.append((name, f"it is {len(values)} times in the {where}; it takes one value"))
        return Given(values[0], where, True)

    def _is_list(self, name: str) -> bool:
        return any(_origin(option) in _LISTS for option in _options(self._hints.get(name, Any)))

    def _add_body(self, found: dict[str, Given], errors: list[tuple[str, str]], content_type: str, body: bytes) -> None:
        if not body:
            return
        kind = content_type.partition(";")[0].strip().lower()
        left = [name for name in self._parameters if name not in found]
        if kind == "application/x-www-form-urlencoded" and body.lstrip()[:1] not in (b"{", b"["):
            for name, values in parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True).items():
                self._add(found, errors, name, self._texts(name, values, errors, "form"))
            return
        raw = [name for name in left if self._hints[name] is bytes]
        is_json = kind in ("", JSON, "application/x-www-form-urlencoded", "text/plain") or kind.endswith("+json")
        if len(raw) == 1 and kind != JSON:
            found[raw[0]] = Given(body, "body", False)
            return
        if not is_json:
            raise BadCall(415, f"a body of type {kind} is not understood here; send JSON ({JSON})")
        try:
            value = _decode(body)
        except unreadable.JSON as error:
            raise BadCall(422, f"the body is not JSON: {error}") from None
        whole = self._takes_whole(left, value)
        if whole:
            found[whole] = Given(value, "body", False)
        elif isinstance(value, dict):
            for name, item in value.items():
                self._add(found, errors, name, Given(item, "body", False))
        else:
            raise BadCall(422, "the body must be a JSON object with the parameters by name")

    def _takes_whole(self, left: list[str], value: Any) -> str:
        """The one parameter that is left and that the body as a whole is for; "" when its fields are parameters."""
        if len(left) != 1:
            return ""
        name = left[0]
        if not isinstance(value, dict):
            return name
        hint = self._hints[name]
        structured = is_dataclass(hint) or hasattr(hint, "model_validate") or hasattr(hint, "__struct_fields__")
        return name if structured and name not in value else ""

    def _convert(self, name: str, given: Given, errors: list[tuple[str, str]]) -> Any:
        hint = self._hints.get(name, Any)
        value = given.value
        if hint is Any or (value is None and hint is None):
            return value
        if isinstance(value, bytes) and hint is bytes:
            return value
        try:
            try:
                return msgspec.convert(value, hint, strict=not given.is_text, dec_hook=_decode_class)
            except msgspec.ValidationError:
                if not (given.is_text and isinstance(value, str) and value[:1] in ("{", "[")):
                    raise
                return msgspec.convert(_decode(value), hint, dec_hook=_decode_class)
        except unreadable.JSON as error:
            errors.append((name, f"{error} (from the {given.where})"))
            return _MISSING
        except TypeError:  # an annotation that says nothing about JSON
            return value


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type by itself."""
    if get_origin(hint) is typing.Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for member in get_args(hint) for option in _options(member))
    return (hint,)


def _origin(hint: Any) -> Any:
    return get_origin(hint) or hint


def _decode_class(cls: Any, value: Any) -> Any:
    """A class that JSON does not know: pydantic models by themselves, others by their constructor."""
    validate = getattr(cls, "model_validate", None)
    if validate is not None:
        try:
            return validate(value)
        except ValueError as error:
            raise ValueError(" ".join(str(error).split())) from None
    if isinstance(cls, type) and isinstance(value, cls):
        return value
    raise ValueError(f"a {getattr(cls, '__name__', cls)} cannot be made from JSON; take plain values instead")


# --- answers ---


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def _plain(value: Any) -> Any:
    """What JSON can hold in place of `value`. Raises TypeError."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    for method in ("tolist", "item"):  # arrays and scalars of numpy, tensors
        make = getattr(value, method, None)
        if make is not None:
            return make()
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    if isinstance(value, range) or hasattr(value, "__iter__"):
        return list(value)
    name = type(value).__qualname__
    raise TypeError(
        f"an object of class {name} cannot be sent as JSON; return numbers, texts, lists, dicts, or a Response"
    )


to_json: Final = msgspec.json.Encoder(enc_hook=_plain).encode


def answer_of(value: Any) -> Answer:
    """The answer that a function's value stands for: `(body, status)`, `(body, status, headers)`, bytes, text, JSON.

    Raises TypeError for a value that cannot be sent as JSON.
    """
    status = 200
    extra: dict[Any, Any] = {}
    if type(value) is tuple and len(value) in (2, 3) and type(value[1]) is int and 200 <= value[1] <= 599:
        first = value[0]
        if first is None or (isinstance(first, str | bytes | dict) and (len(value) == 2 or isinstance(value[2], dict))):
            status = value[1]
            extra = value[2] if len(value) == 3 else {}
            value = b"" if first is None else first
    headers = [(str(name).lower(), str(text)) for name, text in extra.items()]
    if isinstance(value, bytes | bytearray | memoryview):
        body, kind = bytes(value), "application/octet-stream"
    elif isinstance(value, str):
        body, kind = value.encode(), "text/plain; charset=utf-8"
    else:
        body, kind = to_json(value), JSON
    headers = [item for item in headers if item[0] != "content-length"]
    if not any(name == "content-type" for name, _ in headers) and (body or status not in (204, 304)):
        headers.append(("content-type", kind))
    headers.append(("content-length", str(len(body))))
    return Answer(status, headers, body)


def problem(
    status: int, title: str, detail: str, errors: Sequence[tuple[str, str]] = (), trace: str = ""
) -> dict[str, Any]:
    """A problem document (RFC 9457) with the parameters' errors and, when asked for, a traceback."""
    found: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if errors:
        found["errors"] = [{"parameter": name, "message": message} for name, message in errors]
    if trace:
        found["traceback"] = trace
    return found


def problem_answer(document: dict[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    """A problem document as an answer."""
    body = redact.here().blotted(to_json(document))
    lines = [(name.lower(), text) for name, text in (headers or {}).items()]
    return Answer(
        int(document["status"]), [*lines, ("content-type", PROBLEM), ("content-length", str(len(body)))], body
    )


def event_of(item: Any) -> bytes:
    """An item of a generator as a server-sent event; bytes are taken for events that the author wrote."""
    if isinstance(item, bytes):
        return item
    return b"data: " + to_json(item) + b"\n\n"
