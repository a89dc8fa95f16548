"""A remote function as its caller sees it: arguments are bound here, the body runs on a worker.

| form | does |
| --- | --- |
| `await f(x)` | the call; a missing argument is a TypeError here |
| `async for item in g(x)`, `for item in g(x)`, `g.stream(x)` | the items of a generator |
| `f.remote(x)`, `await f.remote.aio(x)` | blocking form and its twin |
| `f.spawn(x)`, `await f.spawn.aio(x)` | a `Call` that outlives this program |
| `f.map(xs)`, `f.starmap(pairs)`, `f.for_each(xs)` | many calls, their results one after another |
| `f.with_options(timeout=5)(x)` | any form, with other options |
| `f.local(x)` | in this process |

On a worker a decorated function stays the plain function, called in that process; the other forms hang on it and go to
the whole fleet.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from nanopod.client import background
from nanopod.client.options import Options
from nanopod.client.percall import PerCall, changed
from nanopod.model.endpoint import FunctionSpec
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.call import Call
    from nanopod.client.calling import RemoteItems
    from nanopod.client.mapping import Results
    from nanopod.client.sdk import Deployment, Route

P = ParamSpec("P")
R = TypeVar("R")

FUNCTION_FORMS: Final = ("remote", "spawn", "map", "starmap", "for_each", "spawn_map", "with_options", "stats")
GENERATOR_FORMS: Final = ("remote", "stream", "remote_gen", "spawn", "with_options", "stats")
_NEUTRAL: Final = PerCall()


class BoundFunction:
    """What a call needs to know of its function; shared by all its forms."""

    on_state: Any = None

    def __init__(
        self,
        app: Deployment,
        name: str,
        function: Callable[..., Any] | None,
        options: Options,
        owner: type | None = None,
    ) -> None:
        self.app = app
        self.name = name
        self.function = function
        self.options = options
        self.owner = owner
        """The class that a method belongs to; callers do not pass `self`."""
        self.per_call = _NEUTRAL
        self.is_guessed = function is None
        """Its options are not the author's but the usual ones, until `adopt` looked at what is deployed."""
        self.module = function.__module__ if function is not None else ""
        self._signature = inspect.signature(function) if function is not None else None
        self._defaults: tuple[Any, ...] | None = None
        self._required = 0
        if self._signature is not None:
            parameters = list(self._signature.parameters.values())
            if owner is not None:
                parameters = parameters[1:]
                self._signature = self._signature.replace(parameters=parameters)
            if all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
                self._defaults = tuple(p.default for p in parameters if p.default is not p.empty)
                self._required = len(parameters) - len(self._defaults)
            if options.workload is not None:
                options.wants_payload = (
                    list(inspect.signature(options.workload).parameters) == ["payload"]
                    and "payload" not in self._signature.parameters
                )

    @property
    def signature(self) -> inspect.Signature | None:
        """The parameters that callers pass; None when the code is not at hand."""
        return self._signature

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

    def changed(self, given: dict[str, Any]) -> BoundFunction:
        """A twin with other options of its calls. Raises as `with_options` does."""
        twin = copy.copy(self)
        twin.options, twin.per_call = changed(self.name, self.options, self.per_call, given)
        return twin

    def adopt(self) -> None:
        """Take the options that the deployed function has, where its code is not at hand; those given here stay."""
        self.is_guessed = False
        specs = {row.get("name"): row for row in self.app._endpoint.get("functions") or ()}
        usual, found = Options(), specs.get(self.name)
        if found is None:
            return
        names = {"timeout": "timeout_s", "queue_timeout": "queue_timeout_s"}
        for option in ("timeout", "queue_timeout", "idempotent", "priority", "concurrency"):
            value = found.get(names.get(option, option))
            if value is not None and getattr(self.options, option) == getattr(usual, option):
                self.options = dataclasses.replace(self.options, **{option: value})

    def route(self) -> Route | None:
        """Where calls go, when that is known already."""
        return self.app._route

    async def make_ready(self) -> Route:
        """Where calls go; in local and client mode this may deploy or connect first."""
        import asyncio

        return await asyncio.to_thread(self.app._route_now)

    def check_callable(self) -> None:
        """Raise `NotReady` where a call does not make the deployment ready by itself."""
        if self.app._route is None:
            self.app._check_callable()

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
    """A form of a call as a plain function, and `aio`, the same to await."""

    def __init__(self, call: Callable[P, Coroutine[Any, Any, R]], name: str, advice: str = "") -> None:
        self.aio = call
        self._name = name
        self._advice = advice or f"await {name}.aio(...)"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the call and wait for its value. Raises `BlockingCallInLoop` where an event loop runs."""
        if background.in_loop():
            raise background.BlockingCallInLoop(
                f"{self._name}() would block the event loop that runs here; write: {self._advice}"
            )
        return background.run(self.aio(*args, **kwargs))


class ForEach(Blocking[..., None]):
    """`f.for_each`; the blocking form reads its items in the caller's thread."""

    def __init__(
        self, call: Callable[..., Coroutine[Any, Any, None]], name: str, function: RemoteFunction[..., Any]
    ) -> None:
        super().__init__(call, name)
        self._function = function

    def __call__(
        self, *items: Any, ignore_exceptions: bool = False, concurrency: int | None = None, progress: bool = False
    ) -> None:
        """Call it with each item and wait for all; the first failure raises, unless failures are ignored."""
        if background.in_loop():
            super().__call__()
        for _ in self._function.map(
            *items, order=False, return_exceptions=ignore_exceptions, concurrency=concurrency, progress=progress
        ):
            pass


class RemoteFunction(Generic[P, R]):
    """A function that runs on a worker when called."""

    def __init__(self, bound: BoundFunction) -> None:
        self._bound = bound
        self._call: Callable[..., Coroutine[Any, Any, Any]] | None = None
        _dress(self, bound)
        self.remote: Blocking[P, R] = Blocking(self.__call__, f"{bound.name}.remote", f"await {bound.name}(...)")
        self.spawn: Blocking[P, Call[R]] = Blocking(self._spawn, f"{bound.name}.spawn")
        self.for_each: ForEach = ForEach(self._for_each, f"{bound.name}.for_each", self)
        self.spawn_map: Blocking[..., list[Call[R]]] = Blocking(self._spawn_map, f"{bound.name}.spawn_map")

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

    def with_options(
        self,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        retries: Any = None,
        idempotent: bool | None = None,
        workload: float | None = None,
        model: str | None = None,
        session: Any = None,
        webhook: str | None = None,
        gpu: str | Sequence[str] | None = None,
        region: str | None = None,
        **unknown: Any,
    ) -> RemoteFunction[P, R]:
        """The same function with other options for its calls; times in seconds, `deadline` from the call on.

        `retries` is a `Retries`; `model` a routing key; `session` what `app.session()` gives; `webhook` a URL that the
        result of the call (which is then a spawned one) is posted to. Workers with a `gpu` of these (the best first),
        and then those in the `region`, are preferred while they have a free slot. Raises `Invalid`, or TypeError for
        a name.
        """
        given = _given(locals())
        return RemoteFunction(self._bound.changed({**given, **unknown}))

    def map(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *more: Iterable[Any],
        order: bool = True,
        return_exceptions: bool = False,
        concurrency: int | None = None,
        progress: bool = False,
    ) -> Results[R]:
        """Call it with each item; iterate (`for` or `async for`) over the results. Several iterables go in step.

        Results come in the order of the items, or as they are done (`order=False`). A failed item raises at its place
        and ends the iteration, or is the exception object with `return_exceptions`. `items` is read as far as
        `concurrency` calls in flight need it; None: twice what the workers can run at once.
        """
        from nanopod.client import mapping

        pairs = mapping.each(items, *more)
        return mapping.Results(
            self._bound, pairs, order=order, return_exceptions=return_exceptions, limit=concurrency, progress=progress
        )

    def starmap(
        self,
        items: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        order: bool = True,
        return_exceptions: bool = False,
        concurrency: int | None = None,
        progress: bool = False,
    ) -> Results[R]:
        """The same with several arguments: each item is a tuple of them."""
        from nanopod.client import mapping

        pairs = mapping.spread(items)
        return mapping.Results(
            self._bound, pairs, order=order, return_exceptions=return_exceptions, limit=concurrency, progress=progress
        )

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run it in this process; a coroutine for `async def` functions. Contexts it names are entered here."""
        return _local(self._bound, args, kwargs)

    def stats(self) -> dict[str, Any]:
        """What the server says of this function and its workers now. Blocks."""
        return self._bound.app.stats(self._bound.name)

    async def _spawn(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        return await _spawned(self._bound, args, kwargs)

    async def _for_each(
        self, items: Any, *more: Any, ignore_exceptions: bool = False, concurrency: int | None = None,
        progress: bool = False,
    ) -> None:  # fmt: skip
        """Call it with each item and wait for all; results are dropped. The first failure raises, unless ignored."""
        async for _ in self.map(
            items, *more, order=False, return_exceptions=ignore_exceptions, concurrency=concurrency, progress=progress
        ):
            pass

    async def _spawn_map(self, items: Any, *more: Any) -> list[Call[R]]:
        """Spawn a call for each item; they are all made when this returns, in the order of the items."""
        from nanopod.client import call, mapping

        return await call.spawn_all(self._bound, mapping.each(items, *more))

    @property
    def url(self) -> str:
        """Where it answers over HTTP. Raises `Invalid` without `web=`, `NotReady` before `ensure_ready()`."""
        return _web_url(self._bound)

    def __repr__(self) -> str:
        return f"<remote function {self._bound.name} of {self._bound.app.name or 'an unbound deployment'}>"

    def __reduce__(self) -> Any:
        from nanopod.client import notebook

        return notebook.reduced(self._bound)


class RemoteGenerator(Generic[P, R]):
    """A generator function that runs on a worker; calling it gives an iterator of its items."""

    def __init__(self, bound: BoundFunction) -> None:
        self._bound = bound
        _dress(self, bound)
        self.spawn: Blocking[P, Call[list[R]]] = Blocking(self._spawn, f"{bound.name}.spawn")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> RemoteItems[R]:
        """An iterator for `async for` or `for`. Raises as calling a remote function does."""
        bound = self._bound
        places, names = bound.bind(args, kwargs)
        if bound.app._route is None:
            bound.app._check_callable()
        from nanopod.client.calling import RemoteItems

        return RemoteItems(bound, places, names)

    remote = stream = remote_gen = __call__

    def with_options(
        self,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        retries: Any = None,
        idempotent: bool | None = None,
        workload: float | None = None,
        model: str | None = None,
        session: Any = None,
        webhook: str | None = None,
        gpu: str | Sequence[str] | None = None,
        region: str | None = None,
        **unknown: Any,
    ) -> RemoteGenerator[P, R]:
        """The same generator with other options for its calls; see `RemoteFunction.with_options`."""
        given = _given(locals())
        return RemoteGenerator(self._bound.changed({**given, **unknown}))

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The generator itself, in this process."""
        return _local(self._bound, args, kwargs)

    def stats(self) -> dict[str, Any]:
        """What the server says of this function and its workers now. Blocks."""
        return self._bound.app.stats(self._bound.name)

    async def _spawn(self, *args: P.args, **kwargs: P.kwargs) -> Call[list[R]]:
        """A call whose result is the list of all items."""
        return await _spawned(self._bound, args, kwargs)

    @property
    def url(self) -> str:
        """Where it answers over HTTP. Raises `Invalid` without `web=`, `NotReady` before `ensure_ready()`."""
        return _web_url(self._bound)

    def __repr__(self) -> str:
        return f"<remote generator {self._bound.name} of {self._bound.app.name or 'an unbound deployment'}>"

    def __reduce__(self) -> Any:
        from nanopod.client import notebook

        return notebook.reduced(self._bound)


def _web_url(bound: BoundFunction) -> str:
    from nanopod.client import web

    return web.function_url(bound)


def kind_of(function: Callable[..., Any]) -> str:
    """How a function runs: `async`, `sync`, `generator` or `async_generator`."""
    if inspect.isasyncgenfunction(function):
        return "async_generator"
    if inspect.isgeneratorfunction(function):
        return "generator"
    return "async" if inspect.iscoroutinefunction(function) else "sync"


def remote_form(bound: BoundFunction) -> RemoteFunction[..., Any] | RemoteGenerator[..., Any]:
    """The object that callers use, by the function's kind."""
    return RemoteGenerator(bound) if "generator" in bound.kind() else RemoteFunction(bound)


def hang_forms(bound: BoundFunction) -> None:
    """Give the plain function, which serves here, the forms that go to the whole fleet."""
    assert bound.function is not None, "it runs here, so its code is at hand"
    remote = remote_form(bound)
    forms = GENERATOR_FORMS if isinstance(remote, RemoteGenerator) else FUNCTION_FORMS
    bound.function.__dict__.update({form: getattr(remote, form) for form in forms}, local=bound.function)


def _dress(form: Any, bound: BoundFunction) -> None:
    """Name, docstring and attributes of the function, without the forms that hang on it on a worker."""
    form.__name__ = bound.name
    if bound.function is None:
        return
    functools.update_wrapper(form, bound.function, updated=())
    hung = {"local", *FUNCTION_FORMS, *GENERATOR_FORMS}
    form.__dict__.update({key: value for key, value in bound.function.__dict__.items() if key not in hung})
    if bound.owner is not None:
        form.__signature__ = bound.signature


def _given(named: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in named.items() if value is not None and key not in ("self", "unknown")}


async def _spawned(bound: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
    places, names = bound.bind(args, kwargs)
    bound.check_callable()
    from nanopod.client import call

    return (await call.spawn_all(bound, [(places, names)]))[0]


def _local(bound: BoundFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if bound.function is None:
        raise Invalid(f"{bound.name} is known by name only here; its code is not at hand for .local()")
    from nanopod.client import contexts

    places, names = bound.bind(args, kwargs)
    return contexts.call_local(bound.function, bound.app._app, places, names, bound.owner)
