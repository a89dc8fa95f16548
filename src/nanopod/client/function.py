"""A remote function as its caller sees it: arguments are bound here, the body runs on a worker.

| form | does |
| --- | --- |
| `await f(x)` | the call; a missing argument is a TypeError here |
| `async for item in g(x)`, `for item in g(x)` | the items of a generator |
| `f.remote(x)`, `await f.remote.aio(x)` | blocking form and its twin |
| `f.local(x)` | in this process |
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from nanopod.client import background
from nanopod.client.options import Options
from nanopod.model.endpoint import FunctionSpec
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.calling import RemoteItems
    from nanopod.client.sdk import Deployment, Route

P = ParamSpec("P")
R = TypeVar("R")


class BoundFunction:
    """What a call needs to know of its function; shared by all its forms."""

    on_state: Any = None

    def __init__(self, app: Deployment, name: str, function: Callable[..., Any] | None, options: Options) -> None:
        self.app = app
        self.name = name
        self.function = function
        self.options = options
        self.module = function.__module__ if function is not None else ""
        self._signature = inspect.signature(function) if function is not None else None
        self._defaults: tuple[Any, ...] | None = None
        self._required = 0
        if self._signature is not None:
            parameters = list(self._signature.parameters.values())
            if all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
                self._defaults = tuple(p.default for p in parameters if p.default is not p.empty)
                self._required = len(parameters) - len(self._defaults)
            if options.workload is not None:
                options.wants_payload = (
                    list(inspect.signature(options.workload).parameters) == ["payload"]
                    and "payload" not in self._signature.parameters
                )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments in their places, defaults filled in. Raises TypeError as the function itself would."""
        if self._signature is None:
            return args, kwargs
        if self._defaults is not None and not kwargs:
            extra = len(args) - self._required
            if 0 <= extra <= len(self._defaults):
                return args + self._defaults[extra:], kwargs
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        bound.apply_defaults()
        return bound.args, bound.kwargs

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Bound arguments by parameter name."""
        if self._signature is None:
            return {**{str(index): value for index, value in enumerate(args)}, **kwargs}
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def route(self) -> Route | None:
        """Where calls go, when that is known already."""
        return self.app._route

    async def make_ready(self) -> Route:
        """Where calls go; in local and client mode this may deploy or connect first."""
        import asyncio

        return await asyncio.to_thread(self.app._route_now)

    def is_local(self) -> bool:
        """True when calls go to a cloud that this program started or shares."""
        return self.app._cloud is not None

    def revive(self, route: Route) -> Route:
        """Where calls go now: a local cloud that ended is started again."""
        return self.app._revive(route)

    def kind(self) -> str:
        """How the function runs: `async`, `sync`, `generator` or `async_generator`."""
        return kind_of(self.function) if self.function is not None else "async"

    def spec(self, default_concurrency: int) -> FunctionSpec:
        """The plain value that travels."""
        registered = self.app._app.functions.get(self.name)
        benchmark = registered is not None and bool(registered.benchmark_dataset or registered.benchmark_generator)
        return self.options.spec(self.name, self.kind(), default_concurrency, benchmark=benchmark)


class Blocking(Generic[P, R]):
    """`f.remote`: the call as a plain function, and `aio`, the same to await."""

    def __init__(self, call: Callable[P, Coroutine[Any, Any, R]], name: str) -> None:
        self.aio = call
        self._name = name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the call and wait for its value."""
        if background.in_loop():
            raise background.BlockingCallInLoop(
                f"{self._name}.remote() would block the event loop that runs here; write: await {self._name}(...)"
            )
        return background.run(self.aio(*args, **kwargs))


class RemoteFunction(Generic[P, R]):
    """A function that runs on a worker when called."""

    def __init__(self, bound: BoundFunction) -> None:
        self._bound = bound
        self._call: Callable[..., Coroutine[Any, Any, Any]] | None = None
        self.__name__ = bound.name
        self.remote: Blocking[P, R] = Blocking(self.__call__, bound.name)
        if bound.function is not None:
            functools.update_wrapper(self, bound.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """A coroutine of the remote call. Raises TypeError for wrong arguments, `NotReady` before `ensure_ready()`."""
        bound = self._bound
        places, names = bound.bind(args, kwargs)
        if bound.app._route is None:
            bound.app._check_callable()
        if self._call is None:
            from nanopod.client import calling

            self._call = calling.call
        return self._call(bound, places, names)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run it in this process; a coroutine for `async def` functions. Contexts it names are entered here."""
        return _local(self._bound, args, kwargs)

    def __repr__(self) -> str:
        return f"<remote function {self._bound.name} of {self._bound.app.name or 'an unbound deployment'}>"


class RemoteGenerator(Generic[P, R]):
    """A generator function that runs on a worker; calling it gives an iterator of its items."""

    def __init__(self, bound: BoundFunction) -> None:
        self._bound = bound
        self.__name__ = bound.name
        if bound.function is not None:
            functools.update_wrapper(self, bound.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> RemoteItems:
        """An iterator for `async for` or `for`. Raises as calling a remote function does."""
        bound = self._bound
        places, names = bound.bind(args, kwargs)
        if bound.app._route is None:
            bound.app._check_callable()
        from nanopod.client.calling import RemoteItems

        return RemoteItems(bound, places, names)

    remote = stream = __call__

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The generator itself, in this process."""
        return _local(self._bound, args, kwargs)

    def __repr__(self) -> str:
        return f"<remote generator {self._bound.name} of {self._bound.app.name or 'an unbound deployment'}>"


def kind_of(function: Callable[..., Any]) -> str:
    """How a function runs: `async`, `sync`, `generator` or `async_generator`."""
    if inspect.isasyncgenfunction(function):
        return "async_generator"
    if inspect.isgeneratorfunction(function):
        return "generator"
    return "async" if inspect.iscoroutinefunction(function) else "sync"


def _local(bound: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if bound.function is None:
        raise Invalid(f"{bound.name} is known by name only here; its code is not at hand for .local()")
    from nanopod.client import contexts

    places, names = bound.bind(args, kwargs)
    return contexts.call_local(bound.function, bound.app._app, places, names)
