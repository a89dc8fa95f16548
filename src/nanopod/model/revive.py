"""The reading half of `codec`: what each extension value becomes, and how a class is found by its name.

Classes are looked up in the user's module and among modules that are already imported. Nothing in the bytes causes an
import, a call of a module's `__getattr__` or of a looked-up class's constructor.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final, cast
from uuid import UUID

from msgspec import ValidationError
from msgspec.msgpack import Decoder, Ext

from nanopod.model.errors import SerializationError

(PAIR, TUPLE, SET, FROZENSET, DICT, BIG_INT, COMPLEX, BYTEARRAY, STR, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID_,
 PATH, RANGE, ORDERED_DICT, DEFAULT_DICT, DEQUE, CLASS, ENUM, OBJECT, SUBCLASS, ARRAY, SCALAR, TENSOR,
 RAISED) = range(1, 29)  # fmt: skip

Read = Callable[[Any, str], Any]

PAIR_MARK: Final = Ext(PAIR, b"")
"""First of the top-level array [mark, args, kwargs] that a call's arguments are."""
COMPLEX_PARTS: Final = struct.Struct("<dd")
_HEAP_TYPE: Final = 1 << 9
"""Flag of classes made by a `class` statement (and of a few made in C)."""
FILLED: Final[Mapping[type, Callable[[Any, Any], object]]] = {
    list: list.extend, dict: dict.update, set: set.update, bytearray: bytearray.extend,
}  # fmt: skip
BASES: Final = frozenset({int, float, complex, str, bytes, tuple, frozenset, *FILLED})
"""Builtins whose subclasses' instances travel: by the builtin's value and by their attributes."""


def decoder(own: str) -> Callable[[Any], Any]:
    """The decode function of the user's module called `own`; made once for each."""
    known = decoders.get(own)
    if known is not None:
        return known

    def hook(code: int, data: memoryview) -> Any:
        raw = _RAW.get(code)
        if raw is not None:
            return raw(data)
        quick = _WITH_BYTES.get(code)
        if quick is not None:
            # Their bytes are looked at in place: they are copied once, into the array.
            with contextlib.suppress(ValidationError):
                return _PARTS[code](quick(data), own)
        return _PARTS[code](decode_part(data), own)

    decode_part: Callable[[Any], Any] = Decoder(ext_hook=hook).decode
    if len(decoders) > 64:
        decoders.clear()
    decoders[own] = decode_part
    return decode_part


def find(module: str, qualname: str, own: str) -> object:
    """A class (or None) by name, without running any code: neither imports nor a module's `__getattr__`."""
    for name in (module or own or "__main__", own or "__main__"):
        found: object = sys.modules.get(name)
        for part in qualname.split("."):
            found = getattr(found, "__dict__", {}).get(part)
        if isinstance(found, type):
            return found
    return None


def find_class(ref: list[str], own: str) -> type:
    """The class behind [module, qualname]; raises `SerializationError` when this process does not have it."""
    found = find(ref[0], ref[1], own)
    if not isinstance(found, type):
        raise SerializationError(
            f"the class {ref[0] or own or '__main__'}.{ref[1]} is not known here; import its module first"
        )
    return found


def solid(cls: type) -> type:
    """The class, made in C, that fixes the layout of `cls`'s instances."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


def is_made_by_statement(cls: type) -> bool:
    """True for classes that a `class` statement made, False for builtin ones."""
    return bool(cls.__flags__ & _HEAP_TYPE)


def _read_zone(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        from zoneinfo import ZoneInfo

        return ZoneInfo(zone)
    offset = timedelta(zone[0], zone[1], zone[2])
    return timezone(offset) if zone[3] is None else timezone(offset, zone[3])


def _read_datetime(parts: list[Any], own: str) -> datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = parts
    return datetime(year, month, day, hour, minute, second, microsecond, _read_zone(zone), fold=fold)


def _read_time(parts: list[Any], own: str) -> time:
    hour, minute, second, microsecond, fold, zone = parts
    return time(hour, minute, second, microsecond, _read_zone(zone), fold=fold)


def _read_pairs(flat: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _read_default_dict(parts: list[Any], own: str) -> defaultdict[Any, Any]:
    if parts[0] is not None and not isinstance(parts[0], type):
        raise ValueError("a defaultdict's factory must be a class")
    return defaultdict(parts[0], _read_pairs(parts[1]))


def _read_enum(parts: list[Any], own: str) -> Enum:
    cls = find_class(parts[0], own)
    if not issubclass(cls, Enum):
        raise ValueError(f"{parts[0][1]} is not an Enum here")
    return cls[parts[1]] if parts[1] is not None else cls(parts[2])


def _set_state(value: Any, state: Any) -> Any:
    setter = getattr(type(value), "__setstate__", None)
    slots: dict[str, Any] | None = None
    if type(state) is list and len(state) == 2:
        state, slots = state
        if setter is not None:
            state, slots = (state, slots), None
    if setter is not None:
        if state is not None:
            setter(value, state)
        return value
    if state:
        value.__dict__.update(state)
    for name, part in (slots or {}).items():
        object.__setattr__(value, name, part)
    return value


def _read_object(parts: list[Any], own: str) -> Any:
    return _set_state(object.__new__(find_class(parts[0], own)), parts[1])


def _read_subclass(parts: list[Any], own: str) -> Any:
    cls = find_class(parts[0], own)
    base = solid(cls)
    if base not in BASES or issubclass(cls, Enum):
        raise ValueError(f"{parts[0][1]} is not a subclass of a builtin here")
    make = cast(Any, base).__new__
    fill = FILLED.get(base)
    if fill is None:
        return _set_state(make(cls, parts[1]), parts[2])
    value = make(cls)
    fill(value, _read_pairs(parts[1]) if base is dict else parts[1])
    return _set_state(value, parts[2])


def _read_raised(parts: Any, own: str) -> BaseException:
    from nanopod.model import raised

    return raised.read_exception(parts, own)


def _read_tensor(reader: str) -> Read:
    def read(parts: Any, own: str) -> Any:
        from nanopod.model import tensors

        return getattr(tensors, reader)(parts)

    return read


def _read_path(parts: list[str], own: str) -> PurePath:
    kinds: dict[str, type[PurePath]] = {"path": Path, "posix": PurePosixPath, "windows": PureWindowsPath}
    return kinds[parts[0]](parts[1])


_WITH_BYTES: Final[dict[int, Callable[[Any], Any]]] = {
    ARRAY: Decoder(tuple[Any, list[int], str, memoryview]).decode,
    TENSOR: Decoder(tuple[str, list[int], bool, memoryview]).decode,
}
"""Of values that are mostly bytes. An array of objects holds values instead, and is read like all others."""
decoders: dict[str, Callable[[Any], Any]] = {}
"""What `decoder` made, by the name of the user's module."""
_RAW: Final[dict[int, Callable[[memoryview], Any]]] = {
    PAIR: lambda data: PAIR_MARK,
    BIG_INT: lambda data: int.from_bytes(data, "little", signed=True),
    COMPLEX: lambda data: complex(*COMPLEX_PARTS.unpack(data)),
    BYTEARRAY: bytearray,
    STR: lambda data: str(data, "utf-8", "surrogatepass"),
    DECIMAL: lambda data: Decimal(str(data, "ascii")),
    UUID_: lambda data: UUID(bytes=bytes(data)),
}
_PARTS: Final[dict[int, Read]] = {
    TUPLE: lambda parts, own: tuple(parts),
    SET: lambda parts, own: set(parts),
    FROZENSET: lambda parts, own: frozenset(parts),
    DICT: lambda parts, own: dict(_read_pairs(parts)),
    DATETIME: _read_datetime,
    DATE: lambda parts, own: date(*parts),
    TIME: _read_time,
    TIMEDELTA: lambda parts, own: timedelta(*parts),
    PATH: _read_path,
    RANGE: lambda parts, own: range(*parts),
    ORDERED_DICT: lambda parts, own: OrderedDict(_read_pairs(parts)),
    DEFAULT_DICT: _read_default_dict,
    DEQUE: lambda parts, own: deque(parts[1], parts[0]),
    CLASS: find_class,
    ENUM: _read_enum,
    OBJECT: _read_object,
    SUBCLASS: _read_subclass,
    ARRAY: _read_tensor("read_array"),
    SCALAR: _read_tensor("read_scalar"),
    TENSOR: _read_tensor("read_tensor"),
    RAISED: _read_raised,
}
