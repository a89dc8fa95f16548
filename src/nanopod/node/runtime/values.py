"""Arguments and results of calls as bytes, in the way that the call or its deployment asks for.

| how | when |
| --- | --- |
| `model.codec` | always, unless |
| a pickle | the deployment opted in on both ends (`serializer="pickle"`) |
| Vast's JSON | the call says so; its answer is `{"ok": value}` or `{"err": exception}`, items come as a list |
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from nanopod.model import calls, codec, spill
from nanopod.model.errors import SerializationError
from nanopod.node.runtime import spilling

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Values:
    """Reads and writes the values of one worker's calls."""

    def __init__(self, module: str, serializer: str = "native") -> None:
        self.module = module
        self._pickles = serializer == "pickle"

    def arguments(self, header: calls.Call, payload: bytes) -> Arguments:
        """(args, kwargs) of a call. Raises `SerializationError`."""
        if header.codec:
            return self._foreign(header, payload)
        if payload[:2] == spill.SPILLED:
            payload = spilling.fetched(payload)
        if payload[:1] == codec.PICKLED:
            from nanopod.model import pickled

            found: Arguments = pickled.decode(payload, allowed=self._pickles)
            return found
        found = codec.decode(payload, module=self.module)
        return found

    def encode(self, header: calls.Call, value: object, path: str) -> bytes:
        """A result. Raises `SerializationError` naming the part of it that cannot travel."""
        if header.codec:
            from nanopod.model import vastjson

            return _json({"ok": vastjson.encode(value, self.module, path=path)})
        if self._pickles:
            from nanopod.model import pickled

            return pickled.encode(value, path=path)
        return codec.encode(value, path=path)

    def foreign_error(self, error: BaseException) -> bytes:
        """An exception as the answer to a call in Vast's JSON."""
        from nanopod.model import vastjson

        try:
            return _json({"err": vastjson.encode_error(error, self.module)})
        except Exception:  # a class that cannot be described there is quoted
            return _json(vastjson.failure(type(error).__name__, str(error)))

    def _foreign(self, header: calls.Call, payload: bytes) -> Arguments:
        from nanopod.model import vastjson

        if header.codec != vastjson.CODEC:
            raise SerializationError(f"this worker does not know the codec {header.codec!r}; use {vastjson.CODEC!r}")
        try:
            sent = json.loads(payload)
            args, kwargs = list(sent["args"]), dict(sent["kwargs"])
        except (ValueError, KeyError, TypeError) as error:
            raise SerializationError(f"the arguments are no JSON object of args and kwargs: {error}") from error
        return (
            tuple(vastjson.decode(part, self.module, path=f"args[{at}]") for at, part in enumerate(args)),
            {name: vastjson.decode(part, self.module, path=f"args.{name}") for name, part in kwargs.items()},
        )


def collected(call: Callable[..., Iterator[Any]]) -> Callable[..., list[Any]]:
    """A generator function as one that returns the list of its items."""

    def run(*args: Any, **kwargs: Any) -> list[Any]:
        return list(call(*args, **kwargs))

    return run


def async_collected(call: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """The same of an asynchronous generator function."""

    async def run(*args: Any, **kwargs: Any) -> list[Any]:
        return [item async for item in call(*args, **kwargs)]

    return run


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=True).encode()
