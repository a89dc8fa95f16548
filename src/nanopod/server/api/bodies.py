"""Request bodies: strict JSON into the model's own types; an unknown field is named with its path and nearest kin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect
from starlette.requests import Request

from nanopod.model import unreadable
from nanopod.model.errors import Invalid, NanopodError
from nanopod.server.api.errors import BadRequest

T = TypeVar("T")
BODY_BYTES_MAX: Final = 4 << 20
_AT: Final = re.compile(r"(.*?)(?: - at `(?:key in )?\$?(.*)`)?", re.S)
INTEGER_MAX: Final = 2**63 - 1
_LONG: Final = re.compile(rb"[0-9]{19}")
_MISSING: Final = re.compile(r"Object missing required field `(.+)`")
_infos: dict[type[Any], inspect.Type] = {}


class TooLarge(NanopodError):
    """The body is longer than this path takes."""

    status = 413
    code = "request_too_large"


async def read_body(request: Request) -> bytes:
    """The whole body. Raises `TooLarge`."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise TooLarge(f"the body is larger than {BODY_BYTES_MAX >> 20} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


async def body_as(request: Request, kind: type[T]) -> T:
    """The body as a value of `kind`."""
    return parse(await read_body(request), kind)


def parse(data: bytes, kind: type[T]) -> T:
    """JSON as a value of `kind`. Raises `BadRequest` (not JSON) or `Invalid` naming the field and the fix."""
    if not data:
        raise BadRequest("the body is empty; send a JSON object")
    try:
        tree = msgspec.json.decode(data)
    except unreadable.JSON as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if _LONG.search(data):
        _refuse_large(tree, "")
    if kind not in _infos:
        _infos[kind] = inspect.type_info(kind)
    _refuse_unknown(tree, _infos[kind], "")
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        found = _AT.fullmatch(str(error))
        said, path = (found[1], (found[2] or "").lstrip(".")) if found else (str(error), "")
        if missing := _MISSING.fullmatch(said):
            path, said = f"{path}.{missing[1]}".lstrip("."), "is missing; it is needed here"
        raise Invalid(f"{path or 'the body'}: {said}", field=path or None) from None


def _refuse_large(value: Any, path: str) -> None:
    """Whole numbers of more than 64 bits can be kept, but sent to no node or gateway."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, int) and not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise Invalid(
            f"{path}: a whole number of {value.bit_length()} bits; at most 63 can be kept", field=path or None
        )
    for key, inner in inside:
        _refuse_large(inner, f"{path}.{key}".lstrip(".") if isinstance(value, dict) else f"{path}[{key}]")


def _refuse_unknown(value: Any, info: inspect.Type, path: str) -> None:
    """Walk value and type together; the codec itself lets unknown fields of dataclasses pass."""
    if isinstance(info, inspect.UnionType):
        # Fields can only be checked where one member of the union is a structure.
        for member in info.types:
            fits_object = isinstance(value, dict) and isinstance(
                member, (inspect.DataclassType, inspect.StructType, inspect.DictType)
            )
            if fits_object or (isinstance(value, list) and _items(member) is not None):
                _refuse_unknown(value, member, path)
        return
    if isinstance(value, dict):
        if isinstance(info, (inspect.DataclassType, inspect.StructType)):
            fields = {field.encode_name: field.type for field in info.fields}
            for name, inner in value.items():
                if name not in fields:
                    raise _unknown(f"{path}.{name}".lstrip("."), name, list(fields))
                _refuse_unknown(inner, fields[name], f"{path}.{name}")
        elif isinstance(info, inspect.DictType):
            for name, inner in value.items():
                _refuse_unknown(inner, info.value_type, f"{path}.{name}")
    elif isinstance(value, list) and (item := _items(info)) is not None:
        for index, inner in enumerate(value):
            _refuse_unknown(inner, item, f"{path}[{index}]")


def _items(info: inspect.Type) -> inspect.Type | None:
    if isinstance(info, (inspect.ListType, inspect.VarTupleType, inspect.SetType)):
        return info.item_type
    return None


def _unknown(path: str, name: str, known: Sequence[str]) -> Invalid:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return Invalid(f"{path}: there is no such field; {hint}", field=path)
