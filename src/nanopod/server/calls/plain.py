"""Encoded values as JSON, for people and webhooks: read without looking up any class, so no code of a user runs."""

from __future__ import annotations

import base64
import struct
from datetime import date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from nanopod.model import calls, revive
from nanopod.server.calls import wire

DEPTH_MAX: Final = 200
_raw: Final = msgspec.msgpack.Decoder()


def value_of(payload: bytes) -> Any:
    """The value as what JSON knows. Tuples and sets become lists, times ISO text, bytes `{"base64": ...}`, objects
    `{"class": ..., "state": ...}`; what has no such form `{"type": code}`. Raises `ValueError` for other bytes.
    """
    try:
        return _plain(_raw.decode(payload), 0)
    except (msgspec.MsgspecError, struct.error, OverflowError, IndexError, TypeError) as error:
        raise ValueError(f"the value cannot be shown as JSON: {error}") from error


def result_of(frames: bytes) -> tuple[Any, list[Any] | None]:
    """(value, items) of the frames that answer a call; items None for a function that is no generator."""
    items: list[Any] = []
    value: Any = None
    is_generator = False
    for frame in wire.pieces(frames):
        header, payload = calls.decode(frame)
        if isinstance(header, calls.Result):
            value = value_of(payload)
        elif isinstance(header, calls.Item):
            items.append(value_of(payload))
            is_generator = True
        elif isinstance(header, calls.End):
            is_generator = True
    return value, items if is_generator else None


def _plain(value: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise ValueError("the value is nested too deeply to be shown as JSON")
    if isinstance(value, msgspec.msgpack.Ext):
        return _extended(value.code, bytes(value.data), depth + 1)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(key)


def _pairs(flat: list[Any], depth: int) -> dict[str, Any]:
    return {_key(_plain(flat[at], depth)): _plain(flat[at + 1], depth) for at in range(0, len(flat) - 1, 2)}


def _extended(code: int, data: bytes, depth: int) -> Any:
    if code == revive.BIG_INT:
        number = int.from_bytes(data, "little", signed=True)
        return number if number.bit_length() < 4096 else hex(number)
    if code == revive.STR:
        return data.decode("utf-8", "replace")
    if code == revive.DECIMAL:
        return data.decode()
    if code == revive.UUID_:
        return str(UUID(bytes=data))
    if code == revive.BYTEARRAY:
        return {"base64": base64.b64encode(data).decode()}
    if code == revive.COMPLEX:
        return str(complex(*revive.COMPLEX_PARTS.unpack(data)))
    if code in _PARTS:
        return _PARTS[code](_raw.decode(data), depth)
    return {"type": code}


def _datetime(parts: list[Any], depth: int) -> Any:
    # The seventh part is the fold, the eighth the zone: [days, seconds, microseconds, name], or a name.
    shown = datetime(*parts[:7]).isoformat()
    zone = parts[8]
    if isinstance(zone, list):
        minutes = int(timedelta(*zone[:3]).total_seconds() // 60)
        return f"{shown}{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    return f"{shown}[{zone}]" if zone else shown


def _object(parts: list[Any], depth: int) -> Any:
    where, *rest = parts
    return {"class": ".".join(word for word in where if word), "state": _plain(rest[-1], depth)}


def _member(parts: list[Any], depth: int) -> Any:
    return parts[1] if parts[1] is not None else _plain(parts[2], depth)


_PARTS: Final[dict[int, Any]] = {
    **dict.fromkeys((revive.TUPLE, revive.SET, revive.FROZENSET), _plain),
    **dict.fromkeys((revive.DICT, revive.ORDERED_DICT), _pairs),
    revive.DEFAULT_DICT: lambda parts, depth: _pairs(parts[1], depth),
    revive.DEQUE: lambda parts, depth: _plain(parts[1], depth),
    revive.DATETIME: _datetime,
    revive.DATE: lambda parts, depth: date(*parts).isoformat(),
    revive.TIME: lambda parts, depth: time(*parts[:4]).isoformat(),
    revive.TIMEDELTA: lambda parts, depth: timedelta(*parts).total_seconds(),
    revive.PATH: lambda parts, depth: parts[1],
    revive.RANGE: lambda parts, depth: [_plain(part, depth) for part in parts],
    revive.CLASS: lambda parts, depth: ".".join(word for word in parts if word),
    revive.ENUM: _member,
    revive.OBJECT: _object,
    revive.SUBCLASS: lambda parts, depth: _plain(parts[1], depth),
}
