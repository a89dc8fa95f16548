"""One call of a remote function, from its bound arguments to its value. Imported at the first call, not before."""

from __future__ import annotations

import asyncio
import time
import warnings
from typing import TYPE_CHECKING, Any

from nanopod.client import background
from nanopod.client.link import Link, link_to
from nanopod.client.pending import PendingItems
from nanopod.model import calls, codec
from nanopod.model.endpoint import DEFAULT_WORKLOAD
from nanopod.model.errors import SerializationError

if TYPE_CHECKING:
    from nanopod.client.function import BoundFunction
    from nanopod.client.sdk import Route


async def call(function: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a remote call."""
    payload = encoded(function, args, kwargs)
    route = function.route() or await function.make_ready()
    link = link_to(route.url, route.key)
    if not link.is_open and function.is_local():
        route = await asyncio.to_thread(function.revive, route)
        link = link_to(route.url, route.key)
    header = _header(function, route, link, args, kwargs)
    patience_s = route.patient_until - time.monotonic()
    answer = await link.call(header, payload, module=function.module, on_state=function.on_state, patience_s=patience_s)
    return codec.decode(answer, module=function.module)


def encoded(function: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments as bytes. Raises `SerializationError` that names the argument: `args.x[3].model`."""
    try:
        return codec.encode((args, kwargs))
    except SerializationError:
        for name, value in function.named(args, kwargs).items():
            codec.encode(value, path=f"args.{name}")
        raise


def _header(
    function: BoundFunction, route: Route, link: Link, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> calls.Call:
    options = function.options
    return calls.Call(
        link.new_id(),
        endpoint=route.endpoint,
        function=function.name,
        workload=DEFAULT_WORKLOAD if options.workload is None else workload(function, args, kwargs),
        timeout_s=options.timeout,
        queue_timeout_s=options.queue_timeout,
        idempotent=options.idempotent,
        priority=options.priority,
        size=0,
    )


def workload(function: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """What the calculator says of these arguments; the default, with one warning, when it says nothing sensible."""
    options = function.options
    assert options.workload is not None, "only functions with a calculator are asked"
    named = function.named(args, kwargs)
    try:
        load = float(options.workload(named) if options.wants_payload else options.workload(**named))
        if 0.0 <= load < float("inf"):
            return load
        problem = f"returned {load}"
    except Exception as error:  # whatever the user's calculator raises
        problem = f"raised {type(error).__name__}: {error}"
    if not options.warned:
        options.warned = True
        warnings.warn(
            f"the workload calculator of {function.name} {problem}; {DEFAULT_WORKLOAD:g} is assumed", stacklevel=2
        )
    return DEFAULT_WORKLOAD


class RemoteItems:
    """The items of a remote generator: for `async for`, and for `for` where no event loop runs.

    Nothing is sent before the first item is asked for. An iterator that is dropped or closed cancels the call.
    """

    def __init__(self, function: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function = function
        self._arguments = (args, kwargs)
        self._link: Link | None = None
        self._pending: PendingItems | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done = False

    def __aiter__(self) -> RemoteItems:
        return self

    async def __anext__(self) -> Any:
        if self._done:
            raise StopAsyncIteration
        if self._pending is None:
            await self._begin()
        assert self._pending is not None, "it was begun above"
        try:
            payload = await self._pending.take()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        except BaseException:
            self._done = True
            raise
        return codec.decode(payload, module=self._function.module)

    async def aclose(self) -> None:
        """Stop the generator on its worker; for a `break` out of the loop."""
        self._cancel()

    def __iter__(self) -> RemoteItems:
        return self

    def __next__(self) -> Any:
        try:
            return background.run(self.__anext__(), advice="write `async for` instead")
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """The same as `aclose`, from code that is not asynchronous."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def __del__(self) -> None:
        if not self._done and self._pending is not None:
            self.close()

    async def _begin(self) -> None:
        function = self._function
        args, kwargs = self._arguments
        payload = encoded(function, args, kwargs)
        route = function.route() or await function.make_ready()
        if not link_to(route.url, route.key).is_open and function.is_local():
            route = await asyncio.to_thread(function.revive, route)
        self._loop = asyncio.get_running_loop()
        self._link = link_to(route.url, route.key)
        header = _header(function, route, self._link, args, kwargs)
        patience_s = route.patient_until - time.monotonic()
        self._pending = self._link.open_items(header, payload, module=function.module, patience_s=patience_s)

    def _cancel(self) -> None:
        self._done = True
        if self._link is not None and self._pending is not None:
            self._link.cancel(self._pending)
