"""Exceptions as values: class, args, attributes, notes, cause and context, and what the frames looked like.

The wire form is [class or None, type name, message, args, attributes, notes, cause, context, suppress context, frames,
log tail]. Frames travel as text with their source lines, since the other side may have neither the files nor the
interpreter; they arrive as a note, so that an ordinary traceback shows them below the caller's own.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.msgpack import Ext

from nanopod.model import codec, revive
from nanopod.model.errors import RemoteError, SerializationError

CHAIN_MAX: Final = 16
"""How many causes deep an exception travels."""
LOG_LINES_MAX: Final = 50
FRAMES_TITLE: Final = "Remote traceback (most recent call last):"
LOG_TITLE: Final = "The call's last lines of output:"
_PACKAGE: Final = str(Path(__file__).parents[1])


def lower_exception(exc: BaseException, *, log_tail: str = "", _seen: tuple[int, ...] = ()) -> Ext:
    """`exc` as an extension value; whatever in it cannot travel is replaced by its `repr`."""
    seen = (*_seen, id(exc))
    cls = type(exc)
    try:
        ref = codec.class_ref(cls)
    except codec.Refused:
        ref = None
    args, state = _parts(exc)
    links = [
        lower_exception(other, _seen=seen)
        if other is not None and id(other) not in seen and len(seen) < CHAIN_MAX
        else None
        for other in (exc.__cause__, exc.__context__ if exc.__context__ is not exc.__cause__ else None)
    ]
    tail = "\n".join(log_tail.splitlines()[-LOG_LINES_MAX:])
    return codec.ext(
        revive.RAISED,
        [
            *(ref, _safe(cls.__qualname__), _safe(_text(exc))),
            *([_travels(arg) for arg in args], [[_safe(name), _travels(part)] for name, part in state.items()]),
            [_safe(str(note)) for note in getattr(exc, "__notes__", ())],
            *(*links, exc.__suppress_context__, _frames(exc), _safe(tail)),
        ],
    )


def read_exception(parts: list[Any], own: str) -> BaseException:
    """The exception of the list above, or a `RemoteError` that quotes it when its class is unknown here."""
    ref, type_name, message, args, state, notes, cause, context, suppress, frames, tail = parts
    exc = None
    if ref is not None:
        try:
            exc = _build(revive.find_class(ref, own), args, state)
        except SerializationError:
            exc = None
    if exc is None:
        text = f"{type_name}: {message}" if message else str(type_name)
        exc = RemoteError(text, type_name=type_name, traceback=frames)
    for note in notes:
        exc.add_note(note)
    if frames:
        exc.add_note(f"{FRAMES_TITLE}\n{frames.rstrip()}")
    if tail:
        exc.add_note(f"{LOG_TITLE}\n{tail}")
    exc.__cause__ = cause
    exc.__context__ = context if context is not None else cause
    exc.__suppress_context__ = suppress
    return exc


def _parts(exc: BaseException) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """(args, attributes). Builtin classes keep some attributes outside `__dict__` and tell them to pickle alone."""
    state: dict[str, Any] = {}
    args: tuple[Any, ...] = exc.args
    try:
        reduced: Any = exc.__reduce__() if not hasattr(type(exc).__reduce__, "__code__") else None
    except Exception:  # a class with a broken __reduce__ still has args
        reduced = None
    if type(reduced) is tuple and len(reduced) > 1 and reduced[0] is type(exc):
        args = reduced[1]
        state = dict(reduced[2]) if len(reduced) > 2 and isinstance(reduced[2], dict) else {}
    state |= getattr(exc, "__dict__", {})
    state.pop("__notes__", None)
    if not isinstance(args, tuple):
        args = tuple(args)
    return args, state


def _travels(part: object) -> Any:
    try:
        return codec.lower(part, True)
    except (codec.Refused, RecursionError):
        return _safe(_repr(part))


def _repr(part: object) -> str:
    try:
        return repr(part)[:1000]
    except Exception:  # whatever a user's __repr__ raises
        return f"<{type(part).__qualname__}>"


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # whatever a user's __str__ raises
        return ""


def _safe(text: str) -> str:
    """`text` without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _frames(exc: BaseException) -> str:
    """The traceback as text, without the frames of this package that led to the user's code."""
    from traceback import StackSummary, walk_tb

    frames = list(StackSummary.extract(walk_tb(exc.__traceback__), limit=64))
    while len(frames) > 1 and frames[0].filename.startswith(_PACKAGE):
        frames.pop(0)
    return _safe("".join(StackSummary.from_list(frames).format()))


def _build(cls: type, args: list[Any], state: list[Any]) -> BaseException | None:
    """An instance whose constructor did not run, except the builtin base's, which fills fields such as `errno`."""
    if not issubclass(cls, BaseException):
        return None
    base: Any = next(parent for parent in cls.__mro__ if parent.__module__ == builtins.__name__)
    try:
        exc: BaseException = base.__new__(cls, *args)
        base.__init__(exc, *args)
    except Exception:  # args that this class refuses: keep the class, and the args as they are
        exc = BaseException.__new__(cls, *args)
    for name, part in state:
        try:
            setattr(exc, name, part)
        except (AttributeError, TypeError):
            exc.__dict__[name] = part
    return exc
