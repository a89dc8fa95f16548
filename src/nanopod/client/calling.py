"""One call of a remote function, from its bound arguments to its value. Imported at the first call, not before."""

from __future__ import annotations

import asyncio
import time
import warnings
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nanopod.client import background
from nanopod.client.link import Link, link_to
from nanopod.client.pending import PendingItems
from nanopod.model import calls, codec, registry, spill
from nanopod.model.endpoint import DEFAULT_WORKLOAD
from nanopod.model.errors import Invalid, SerializationError

if TYPE_CHECKING:
    from nanopod.client.function import BoundFunction
    from nanopod.client.sdk import Route

R = TypeVar("R")


async def call(function: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a remote call."""
    if function.per_call.webhook:
        from nanopod.client.call import spawn_all

        return await (await spawn_all(function, [(args, kwargs)]))[0].aget()
    payload = encoded(function, args, kwargs)
    route, link = await way(function)
    if len(payload) > calls.INLINE_BYTES_MAX:
        payload = await _spilled(function, route, payload)
    header = header_of(function, route, link.new_id(), args, kwargs)
    patience_s = route.patient_until - time.monotonic()
    with registry.Waiting():
        answer = await link.call(
            header, payload, module=function.module, on_state=function.on_state, patience_s=patience_s
        )
    if answer[:2] == spill.SPILLED:
        return await asyncio.to_thread(decoded, function, answer)
    return decoded(function, answer)


async def _spilled(function: BoundFunction, route: Route, payload: bytes) -> bytes:
    from nanopod.client.config import Target
    from nanopod.client.spilling import spilled

    return await spilled(Target(route.url, route.key), payload, f"the arguments of {function.name}")


async def way(function: BoundFunction) -> tuple[Route, Link]:
    """Where calls go, and the link of the running loop to there."""
    route = function.route() or await function.make_ready()
    link = link_to(route.url, route.key)
    if not link.is_open and function.is_local():
        route = await asyncio.to_thread(function.revive, route)
        link = link_to(route.url, route.key)
    return route, link


def encoded(function: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments as bytes. Raises `SerializationError` that names the argument: `args.x[3].model`."""
    if function.app.serializer == "pickle":
        from nanopod.model import pickled

        return pickled.encode((args, kwargs))
    try:
        return codec.encode((args, kwargs))
    except SerializationError:
        for name, value in function.named(args, kwargs).items():
            codec.encode(value, path=f"args.{name}")
        raise


def decoded(function: BoundFunction, payload: bytes) -> Any:
    """The value of an answer. Raises `SerializationError` for one that cannot be read, or may not be.

    One that was too large for its frames is fetched first, which blocks.
    """
    if payload[:2] == spill.SPILLED and (route := function.route()) is not None:
        from nanopod.client.config import Target
        from nanopod.client.spilling import fetched

        payload = fetched(Target(route.url, route.key), payload)
    if payload[:1] == codec.PICKLED:
        from nanopod.model import pickled

        return pickled.decode(payload, allowed=function.app.serializer == "pickle")
    return codec.decode(payload, module=function.module)


def header_of(
    function: BoundFunction, route: Route, call_id: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> calls.Call:
    """The frame's header of a new call. Inside a remote function it names the running call as its parent.

    Raises `Invalid` for a session that is not open, and below `DEPTH_MAX` calls.
    """
    if function.is_guessed:
        function.adopt()
    options, per_call = function.options, function.per_call
    running = registry.current.get()
    parent, depth = b"", 0
    if running is not None:
        parent, depth = bytes.fromhex(running.call_id.removeprefix("call_")), running.depth + 1
        if depth > calls.DEPTH_MAX:
            raise Invalid(
                f"{function.name} would be {depth} calls deep, at most {calls.DEPTH_MAX} are possible; "
                "does a remote function call itself without an end?",
                field="depth",
            )
    load = per_call.workload
    if load is None:
        load = DEFAULT_WORKLOAD if options.workload is None else workload(function, args, kwargs)
    return calls.Call(
        call_id,
        endpoint=route.endpoint,
        function=function.name,
        workload=load,
        timeout_s=options.timeout,
        queue_timeout_s=options.queue_timeout,
        idempotent=options.idempotent,
        priority=options.priority,
        size=0,
        deadline_at=0.0 if options.deadline is None else time.time() + options.deadline,
        retries=per_call.retries,
        session=per_call.session_id(),
        route_key=per_call.model,
        parent=parent,
        depth=depth,
        gpus=per_call.gpus,
        region=per_call.region,
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


class RemoteItems(Generic[R]):
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

    def __aiter__(self) -> RemoteItems[R]:
        return self

    async def __anext__(self) -> R:
        if self._done:
            raise StopAsyncIteration
        if self._pending is None:
            await self._begin()
        assert self._pending is not None, "it was begun above"
        try:
            with registry.Waiting():
                payload = await self._pending.take()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        except BaseException:
            self._done = True
            raise
        value: R = decoded(self._function, payload)
        return value

    async def aclose(self) -> None:
        """Stop the generator on its worker; for a `break` out of the loop."""
        self._cancel()

    def __iter__(self) -> RemoteItems[R]:
        return self

    def __next__(self) -> R:
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
        route, self._link = await way(function)
        if len(payload) > calls.INLINE_BYTES_MAX:
            payload = await _spilled(function, route, payload)
        self._loop = asyncio.get_running_loop()
        header = header_of(function, route, self._link.new_id(), args, kwargs)
        patience_s = route.patient_until - time.monotonic()
        self._pending = self._link.open_items(header, payload, module=function.module, patience_s=patience_s)

    def _cancel(self) -> None:
        self._done = True
        if self._link is not None and self._pending is not None:
            self._link.cancel(self._pending)
