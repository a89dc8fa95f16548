"""The JSON that Vast's deployments send: values with a type tag wherever JSON has none of its own.

| value | JSON |
| --- | --- |
| int, str, float, None | itself |
| bytes | `{"type": "bytes", "contents": base64}` |
| list, tuple | `{"type": "list", "contents": [...]}` |
| dict | `{"type": "dict", "contents": [[key, value], ...]}` |
| any other object | `{"type": "obj", "module": ..., "class": qualname, "contents": {attribute: value}}` |

A module is `{"type": "relative", "path": [...]}` below the deployment's own, or `{"type": "absolute", "path": [...]}`.
Classes are looked up among what is imported already; reading never imports and never runs a constructor. Vast's own
reader knows no booleans, so they are written as numbers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final, cast

from nanopod.model import revive
from nanopod.model.errors import SerializationError

DEPTH_MAX: Final = 200
CODEC: Final = "vast-json"
"""`Call.codec` of calls whose payload and answer are such JSON."""


def decode(value: Any, module: str, *, path: str = "", depth: int = 0) -> Any:
    """The Python value; `module` is the deployment's own. Raises `SerializationError` naming the path."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > DEPTH_MAX:
        raise SerializationError(f"{path or 'the value'} is nested more than {DEPTH_MAX} deep")
    kind = value.get("type") if isinstance(value, Mapping) else None
    contents = value.get("contents") if isinstance(value, Mapping) else None
    deeper = depth + 1
    if kind == "bytes" and isinstance(contents, str):
        try:
            return base64.b64decode(contents, validate=True)
        except binascii.Error:
            raise SerializationError(f"{path or 'the value'}: its contents are no base64") from None
    if kind in ("list", "tuple") and isinstance(contents, list):
        items = [decode(item, module, path=f"{path}[{at}]", depth=deeper) for at, item in enumerate(contents)]
        return items if kind == "list" else tuple(items)
    if kind == "dict" and isinstance(contents, list):
        found: dict[Any, Any] = {}
        for pair in contents:
            if not isinstance(pair, list) or len(pair) != 2:
                raise SerializationError(f"{path or 'the value'}: a dict's contents are pairs")
            key = decode(pair[0], module, path=f"{path} key", depth=deeper)
            try:
                found[key] = decode(pair[1], module, path=f"{path}[{key!r}]", depth=deeper)
            except TypeError:
                raise SerializationError(f"{path or 'the value'}: {type(key).__name__} cannot be a key") from None
        return found
    if kind == "obj" and isinstance(contents, Mapping):
        return _object(value, contents, module, path, deeper)
    raise SerializationError(f"{path or 'the value'} is none of the kinds that travel: {str(value)[:80]}")


def _object(value: Mapping[str, Any], contents: Mapping[str, Any], own: str, path: str, depth: int) -> Any:
    where = value.get("module")
    steps = where.get("path") if isinstance(where, Mapping) else None
    name = value.get("class")
    if not isinstance(steps, list) or not isinstance(name, str) or not isinstance(where, Mapping):
        raise SerializationError(f"{path or 'the value'}: an object names its module and class")
    parts = [str(step) for step in steps if step]
    module = ".".join([own, *parts] if where.get("type") == "relative" else parts)
    cls: Any = revive.find(module, name, own)
    if not isinstance(cls, type):
        raise SerializationError(f"{path or 'the value'}: the class {module}.{name} is not known here")
    fields = {str(key): decode(part, own, path=f"{path}.{key}", depth=depth) for key, part in contents.items() if key}
    try:
        found: Any = cast(Any, cls).__new__(cls)
        if isinstance(found, BaseException) and isinstance(fields.get("args"), tuple | list):
            found.args = tuple(fields.pop("args"))
        for key, part in fields.items():
            setattr(found, key, part)
    except (TypeError, AttributeError) as error:
        raise SerializationError(f"{path or 'the value'}: {module}.{name} cannot be made: {error}") from None
    return found


def encode(value: Any, module: str, *, path: str = "", depth: int = 0) -> Any:
    """The value as JSON parts. Raises `SerializationError` naming the path of what cannot travel."""
    if isinstance(value, bool):
        return int(value)
    if value is None or type(value) in (int, float, str):
        return value
    if depth > DEPTH_MAX:
        raise SerializationError(f"{path or 'the value'} is nested more than {DEPTH_MAX} deep")
    deeper = depth + 1
    if type(value) in (bytes, bytearray, memoryview):
        return {"type": "bytes", "contents": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        items = [encode(item, module, path=f"{path}[{at}]", depth=deeper) for at, item in enumerate(value)]
        return {"type": "tuple" if isinstance(value, tuple) else "list", "contents": items}
    if isinstance(value, Mapping):
        pairs = [
            [
                encode(k, module, path=f"{path} key", depth=deeper),
                encode(v, module, path=f"{path}[{k!r}]", depth=deeper),
            ]
            for k, v in value.items()
        ]
        return {"type": "dict", "contents": pairs}
    if isinstance(value, int | float | str):
        # A subclass (an enum's member, a numpy scalar): its reader gets the plain value.
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    if not hasattr(value, "__dict__") or isinstance(value, type) or callable(value):
        raise SerializationError(f"{path or 'the value'}: a {type(value).__qualname__} does not travel as Vast's JSON")
    fields = {key: encode(part, module, path=f"{path}.{key}", depth=deeper) for key, part in value.__dict__.items()}
    return _named(type(value), fields, module)


def encode_error(error: BaseException, module: str) -> Any:
    """An exception with its message and notes, in the fields that Vast's reader sets again."""
    fields: dict[str, Any] = {}
    for key, part in getattr(error, "__dict__", {}).items():
        try:
            fields[key] = encode(part, module)
        except SerializationError:
            fields[key] = repr(part)[:1000]
    try:
        args = [encode(part, module) for part in error.args]
    except SerializationError:
        args = [str(error)]
    fields["args"] = {"type": "tuple", "contents": args}
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    if notes:
        fields["__notes__"] = {"type": "list", "contents": notes}
    return _named(type(error), fields, module)


def failure(type_name: str, message: str) -> dict[str, Any]:
    """`{"err": ...}` for an error whose class the other side may not have: a RuntimeError that quotes it."""
    text = f"{type_name}: {message}" if type_name and type_name != "RuntimeError" else message
    args = {"type": "tuple", "contents": [text]}
    return {"err": _tagged(["builtins"], "RuntimeError", {"args": args}, relative=False)}


def _named(cls: type, fields: dict[str, Any], own: str) -> dict[str, Any]:
    name = cls.__module__
    if name == own or name.startswith(f"{own}."):
        return _tagged([part for part in name[len(own) :].split(".") if part], cls.__qualname__, fields, relative=True)
    return _tagged(name.split("."), cls.__qualname__, fields, relative=False)


def _tagged(path: list[str], name: str, fields: dict[str, Any], *, relative: bool) -> dict[str, Any]:
    module = {"type": "relative" if relative else "absolute", "path": path}
    return {"type": "obj", "module": module, "class": name, "contents": fields}
