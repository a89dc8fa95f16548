"""Python values to bytes and back, exactly: a tuple stays a tuple, a set a set, a class its class.

Plain values (None, bool, 64-bit int, float, str, bytes, list, dict with plain keys) are msgpack as it is; all others
are msgpack extension values whose data is msgpack again (or raw bytes), so decoding needs no second walk over the tree:

| code | value | data |
| --- | --- | --- |
| 1 | marker of a call's (args, kwargs) | empty; first of a top-level array of three |
| 2-5 | tuple, set, frozenset, dict with any keys | array (keys and values alternate) |
| 6-9 | big int, complex, bytearray, str with surrogates | raw |
| 10-13 | datetime, date, time, timedelta | array of fields |
| 14-17 | Decimal, UUID, path, range | text, raw, array, array |
| 18-20 | OrderedDict, defaultdict, deque | array |
| 21-24 | class, enum member, object, instance of a builtin's subclass | array that begins with [module, qualname] |
| 25-28 | numpy array, numpy scalar, torch tensor, exception | see `tensors`, `raised` |

Classes are looked up in the user's module and among modules that are already imported; a name in the bytes never causes
an import, and no constructor of a looked-up class runs. Classes of `__main__` travel with an empty module name.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import ModuleType, NoneType
from typing import Any, Final, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from msgspec import MsgspecError
from msgspec.msgpack import Encoder, Ext

from nanopod.model import revive
from nanopod.model.errors import SerializationError

Module = str | ModuleType | None
Lower = Callable[[Any, bool], Any]

PICKLED: Final = b"\xc1"
"""First byte of payloads that are no values of this module but of `pickled`; msgpack never writes it."""
_encode: Final = Encoder().encode
_PAIR: Final = _encode((revive.PAIR_MARK, None, None))[:-2]
_TWO: Final = _encode((None, None))[:-2]
"""How arguments begin, and how an array of two does."""
_QUICK_BYTES: Final = 4096
_ATOMS: Final = frozenset({NoneType, bool, int, float, str, bytes})
_KEYS: Final = frozenset({str, int, bool, NoneType, bytes})
_CUSTOM_REDUCE: Final = frozenset({"fractions", "ipaddress"})
"""Modules whose classes say how to pickle themselves although their slots hold all there is."""


class Refused(Exception):
    """A value cannot travel; containers add their step of the path while this passes through them."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []


def encode(value: object, *, path: str = "") -> bytes:
    """The bytes of any value of the table above. `path` is what the value is called in an error.

    Raises `SerializationError` naming the part that cannot travel, such as `args.x[3].model`.
    """
    if type(value) is tuple and len(value) == 2 and type(value[0]) is tuple and type(value[1]) is dict:
        args, kwargs = value
        if not kwargs or _KEYS.issuperset(map(type, kwargs)):
            try:
                if _ATOMS.issuperset(map(type, args)) and (not kwargs or _ATOMS.issuperset(map(type, kwargs.values()))):
                    return _encode((revive.PAIR_MARK, args, kwargs))
                return _encode((revive.PAIR_MARK, _each(args, False), _values(kwargs)))
            except (OverflowError, UnicodeEncodeError, Refused, RecursionError):
                pass  # the careful way below copes, or says what is wrong and where
    try:
        try:
            return _encode(lower(value))
        except (OverflowError, UnicodeEncodeError):
            return _encode(lower(value, True))
    except Refused as refused:
        where = (path + "".join(reversed(refused.steps))).lstrip(".")
        raise SerializationError(f"{where or 'the value'}: {refused.reason}") from None
    except RecursionError:
        raise SerializationError(f"{path or 'the value'}: it contains itself, or is nested too deeply") from None


def decode(data: bytes | bytearray | memoryview, *, module: Module = None) -> Any:
    """The value of `encode`'s bytes. `module` (or its name) is the user's: its classes are found even when the other
    side knows that module by another name. Raises `SerializationError` for bytes or classes that it cannot read.
    """
    name = "" if module is None else module if isinstance(module, str) else module.__name__
    decode_one = revive.decoders.get(name) or revive.decoder(name)
    try:
        if len(data) < _QUICK_BYTES and data[:4] == _PAIR:
            # Small arguments, most of what is ever decoded, go without a call of the hook for their mark.
            args, kwargs = decode_one(_TWO + data[4:])
            return tuple(args), kwargs
        found = decode_one(data)
    except RecursionError:
        raise SerializationError("the received value is nested too deeply") from None
    except (MsgspecError, struct.error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise SerializationError(f"the received bytes are not a value: {error}") from error
    if type(found) is list and len(found) == 3 and found[0] is revive.PAIR_MARK:
        return tuple(found[1]), found[2]
    return found


def encode_exception(exc: BaseException, *, log_tail: str = "") -> bytes:
    """An exception as bytes: class, args, attributes, notes, causes, the text of its frames, and `log_tail`, the last
    lines that the call printed. Never fails: parts that cannot travel become their `repr`.
    """
    from nanopod.model import raised

    return _encode(raised.lower_exception(exc, log_tail=log_tail))


def decode_exception(data: bytes | bytearray | memoryview, *, module: Module = None) -> BaseException:
    """The exception of `encode_exception`'s bytes, with the remote frames as a note.

    A class that does not exist on this side becomes `RemoteError`. Raises `SerializationError` for other bytes.
    """
    found = decode(data, module=module)
    if not isinstance(found, BaseException):
        raise SerializationError("the received bytes are a value, not an exception")
    return found


# --- to bytes ---


def lower(value: object, wide: bool = False) -> Any:
    """`value` in terms of what msgpack knows. `wide` also looks at the size of ints and for lone surrogates."""
    kind = type(value)
    if kind in _ATOMS and not wide:
        return value
    known = _LOWER.get(kind) or _chosen.get(kind) or _choose(kind)
    return known(value, wide)


def ext(code: int, parts: object) -> Ext:
    """An extension value whose data is the msgpack of `parts`, which must be lowered already."""
    return Ext(code, _encode(parts))


def class_ref(cls: type) -> list[str]:
    """[module, qualified name] of a class that can be found again by that name."""
    if revive.find(cls.__module__, cls.__qualname__, "") is not cls:
        raise Refused(
            f"its class {cls.__module__}.{cls.__qualname__} cannot be found by that name on the other side; "
            "define the class at the top level of a module"
        )
    return ["" if cls.__module__ == "__main__" else cls.__module__, cls.__qualname__]


def _each(items: Iterable[Any], wide: bool) -> list[Any]:
    out: list[Any] = []
    add = out.append
    try:
        for item in items:
            add(lower(item, wide))
    except Refused as refused:
        refused.steps.append(f"[{len(out)}]")
        raise
    return out


def _step(key: object) -> str:
    return f".{key}" if type(key) is str and key.isidentifier() else f"[{key!r}]"


def _values(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    key: object = None
    try:
        for key, value in mapping.items():
            out[key] = lower(value)
    except Refused as refused:
        refused.steps.append(_step(key))
        raise
    return out


def _flat(mapping: Mapping[Any, Any], wide: bool) -> list[Any]:
    """Keys and values in turn."""
    out: list[Any] = []
    key: object = None
    try:
        for key, value in mapping.items():
            out.append(lower(key, wide))
            out.append(lower(value, wide))
    except Refused as refused:
        refused.steps.append(_step(key))
        raise
    return out


def _list(value: list[Any], wide: bool) -> list[Any]:
    if not wide and _ATOMS.issuperset(map(type, value)):
        return value
    return _each(value, wide)


def _tuple(value: tuple[Any, ...], wide: bool) -> Ext:
    if not wide and _ATOMS.issuperset(map(type, value)):
        return Ext(revive.TUPLE, _encode(value))
    return Ext(revive.TUPLE, _encode(_each(value, wide)))


def _dict(value: dict[Any, Any], wide: bool) -> Any:
    if wide or not _KEYS.issuperset(map(type, value)):
        return ext(revive.DICT, _flat(value, wide))
    if _ATOMS.issuperset(map(type, value.values())):
        return value
    return _values(value)


def _int(value: int, wide: bool) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return Ext(revive.BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _str(value: str, wide: bool) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return Ext(revive.STR, value.encode("utf-8", "surrogatepass"))
    return value


def _zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        return [
            offset.days,
            offset.seconds,
            offset.microseconds,
            None if timezone(offset).tzname(None) == name else name,
        ]
    key = getattr(zone, "key", None)
    if type(zone).__module__.startswith("zoneinfo") and isinstance(key, str):
        return key
    raise Refused(f"a time zone of type {type(zone).__qualname__} cannot travel; use zoneinfo or datetime.timezone")


def _datetime(value: datetime, wide: bool) -> Ext:
    clock = [value.hour, value.minute, value.second, value.microsecond, value.fold, _zone(value.tzinfo)]
    return ext(revive.DATETIME, [value.year, value.month, value.day, *clock])


def _time(value: time, wide: bool) -> Ext:
    return ext(
        revive.TIME, [value.hour, value.minute, value.second, value.microsecond, value.fold, _zone(value.tzinfo)]
    )


def _enum(value: Enum, wide: bool) -> Ext:
    # Flags combined of several members have no name of their own.
    name = value._name_ if value._name_ in type(value).__members__ else None
    return ext(revive.ENUM, [class_ref(type(value)), name, None if name else lower(value._value_, True)])


def _defaultdict(value: defaultdict[Any, Any], wide: bool) -> Ext:
    try:
        factory = lower(value.default_factory)
    except Refused as refused:
        refused.steps.append(".default_factory")
        raise
    return ext(revive.DEFAULT_DICT, [factory, _flat(value, wide)])


def _state(value: object, wide: bool) -> Any:
    """What an object holds besides a builtin base's value: None, a dict, or whatever its `__getstate__` says."""
    kind = type(value)
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        try:
            state = cast(tuple[Any, ...], object.__reduce_ex__(value, 2))[2]
        except TypeError as error:
            raise Refused(_cannot(kind)) from error
    elif kind.__module__ in _CUSTOM_REDUCE:
        state = value.__getstate__()
    else:
        state = getattr(value, "__dict__", None)
    if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
        return [lower(state[0], wide) if not state[0] else _state_dict(state[0], wide), _state_dict(state[1], wide)]
    return _state_dict(state, wide) if type(state) is dict else lower(state, wide)


def _state_dict(state: Any, wide: bool) -> Any:
    """A dict of attributes; their names make the path `.model`."""
    return _dict(state, wide) if type(state) is dict else lower(state, wide)


def _object(value: object, wide: bool) -> Ext:
    return ext(revive.OBJECT, [class_ref(type(value)), _state(value, wide)])


def _subclass(value: Any, wide: bool) -> Ext:
    base = revive.solid(type(value))
    if base is dict:
        plain: Any = _flat(value, wide)
    elif base in (list, tuple, set, frozenset):
        plain = _each(base.__iter__(value), wide)
    elif base is bytearray:
        plain = bytes(value)
    else:
        plain = lower(base.__new__(base, value), wide)
    return ext(revive.SUBCLASS, [class_ref(type(value)), plain, _state(value, wide)])


def _cannot(cls: type) -> str:
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    advice = {
        "function": "pass data, and call the function remotely",
        "generator": "pass a list, or make the remote function a generator",
        "module": "import it inside the function",
        "lock": "create it on the side that uses it",
        "TextIOWrapper": "pass the file's content",
        "memoryview": "pass bytes",
    }.get(cls.__name__, "pass plain data that describes it")
    return f"a value of type {name} cannot travel; {advice}"


def _refuse(value: object, wide: bool) -> Any:
    raise Refused(_cannot(type(value)))


def _choose(cls: type) -> Lower:
    """How values of a class that is not listed are lowered; remembered in `_chosen`."""
    choice: Lower = _refuse
    if issubclass(cls, type):
        choice = _class
    elif issubclass(cls, Enum):
        choice = _enum
    elif issubclass(cls, BaseException):
        choice = _raised
    elif (special := _tensor_kind(cls)) is not None:
        choice = special
    elif revive.is_made_by_statement(cls):
        plain = cls.__reduce__ is object.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__
        base = revive.solid(cls)
        if base in revive.BASES:
            choice = _subclass
        elif base is object and (plain or cls.__module__ in _CUSTOM_REDUCE):
            choice = _object
    _chosen[cls] = choice
    return choice


def _class(value: type, wide: bool) -> Ext:
    return ext(revive.CLASS, class_ref(value))


def _raised(value: BaseException, wide: bool) -> Ext:
    from nanopod.model import raised

    return raised.lower_exception(value)


def _tensor_kind(cls: type) -> Lower | None:
    # Only a program that has numpy or torch already can hold such a value: the codec itself never imports them.
    if "numpy" in sys.modules or "torch" in sys.modules:
        from nanopod.model import tensors

        return tensors.lower_for(cls)
    return None


_chosen: WeakKeyDictionary[type, Lower] = WeakKeyDictionary()
_LOWER: Final[dict[type, Lower]] = {
    NoneType: lambda value, wide: None,
    bool: lambda value, wide: value,
    float: lambda value, wide: value,
    bytes: lambda value, wide: value,
    int: _int,
    str: _str,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: lambda value, wide: ext(revive.SET, _each(value, wide)),
    frozenset: lambda value, wide: ext(revive.FROZENSET, _each(value, wide)),
    bytearray: lambda value, wide: Ext(revive.BYTEARRAY, bytes(value)),
    complex: lambda value, wide: Ext(revive.COMPLEX, revive.COMPLEX_PARTS.pack(value.real, value.imag)),
    datetime: _datetime,
    date: lambda value, wide: ext(revive.DATE, [value.year, value.month, value.day]),
    time: _time,
    timedelta: lambda value, wide: ext(revive.TIMEDELTA, [value.days, value.seconds, value.microseconds]),
    Decimal: lambda value, wide: Ext(revive.DECIMAL, str(value).encode()),
    UUID: lambda value, wide: Ext(revive.UUID_, value.bytes),
    PosixPath: lambda value, wide: ext(revive.PATH, ["path", str(value)]),
    WindowsPath: lambda value, wide: ext(revive.PATH, ["path", str(value)]),
    PurePosixPath: lambda value, wide: ext(revive.PATH, ["posix", str(value)]),
    PureWindowsPath: lambda value, wide: ext(revive.PATH, ["windows", str(value)]),
    range: lambda value, wide: ext(
        revive.RANGE, [lower(value.start, True), lower(value.stop, True), lower(value.step, True)]
    ),
    OrderedDict: lambda value, wide: ext(revive.ORDERED_DICT, _flat(value, wide)),
    defaultdict: _defaultdict,
    deque: lambda value, wide: ext(revive.DEQUE, [value.maxlen, _each(value, wide)]),
    type: _class,
}
