"""Classes whose object lives on a worker: `@app.cls`, with `enter`, `exit` and `method` as marks.

```
@app.cls(concurrency=8)
class Model:
    @enter()
    def load(self): ...
    @method()
    async def answer(self, text: str) -> str: ...
    @exit()
    def close(self): ...

await Model().answer("hello"); Model().answer.remote("hello")
```

One object is made and entered for each worker, before it takes calls. Each method is a remote function of its own,
named `Model.answer`. In programs that call, `Model()` makes no object but a handle: its constructor runs on workers
only.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, overload

from nanopod.client.function import BoundFunction, RemoteFunction, RemoteGenerator, hang_forms, kind_of, remote_form
from nanopod.client.options import read_options
from nanopod.model import registry
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])
_MARK: Final = "__nanopod_mark__"


class Method:
    """A method that was marked with `method`, until `@app.cls` sees its class."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self.function = function
        self.options = options

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        raise Invalid(f"{self.function.__qualname__} is marked with method, but its class lacks @app.cls", field="cls")


class OptionsMark:
    """The type of `method(option=...)`: a decorator that keeps the method's parameters and result."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, f: Callable[Concatenate[S, P], AsyncIterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, f: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> RemoteFunction[P, R]: ...
    @overload
    def __call__(self, f: Callable[Concatenate[S, P], Iterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, f: Callable[Concatenate[S, P], R]) -> RemoteFunction[P, R]: ...

    def __call__(self, f: Callable[..., Any]) -> Any:
        """Mark a method."""
        if not callable(f):
            raise TypeError("@method marks methods; its options are given by name")
        return Method(f, self._options)


class MethodMark:
    """The type of `method`: marks a method, bare or with the options of `@app.remote`."""

    @overload
    def __call__(self, f: Callable[Concatenate[S, P], AsyncIterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, f: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> RemoteFunction[P, R]: ...
    @overload
    def __call__(self, f: Callable[Concatenate[S, P], Iterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, f: Callable[Concatenate[S, P], R]) -> RemoteFunction[P, R]: ...
    @overload
    def __call__(self, f: None = None, **options: Any) -> OptionsMark: ...

    def __call__(self, f: Any = None, **options: Any) -> Any:
        """Mark a method of a class with `@app.cls` as remote."""
        mark: Any = OptionsMark(options)
        return mark if f is None else mark(f)


class LifeMark:
    """The type of `enter` and `exit`: marks a method (plain or async) of the object's life; bare or called."""

    def __init__(self, what: str) -> None:
        self._what = what

    @overload
    def __call__(self, f: F) -> F: ...
    @overload
    def __call__(self, f: None = None, *, snap: bool = False) -> Callable[[F], F]: ...

    def __call__(self, f: Any = None, *, snap: bool = False) -> Any:
        """Mark a method. `snap`: what it loads may be kept while no worker runs, as `snapshot=True` of a context."""
        return _marked(f, self._what, snap)


method: Final = MethodMark()
"""Marks a method of a class with `@app.cls` as remote."""
enter: Final = LifeMark("enter")
"""Marks a method to be run when the object is entered, before any call; several run in order."""
exit: Final = LifeMark("exit")
"""Marks a method (without arguments) to be run when the worker ends."""


def _marked(f: Any, what: str, snap: bool) -> Any:
    def mark(function: F) -> F:
        if not inspect.isfunction(function):
            raise TypeError(f"@{what}() marks methods of a class, not {function!r}")
        function.__dict__[_MARK] = (what, snap)
        return function

    return mark if f is None else mark(f)


def register(app: Deployment, cls: type, options: dict[str, Any]) -> type:
    """Make a class one of a deployment's: a context, and a remote function for each marked method. Raises `Invalid`."""
    if not isinstance(cls, type):
        raise TypeError(f"@app.cls marks classes, not {cls!r}")
    methods = {name: value for name, value in _members(cls) if isinstance(value, Method)}
    if not methods:
        raise Invalid(f"{cls.__name__} has no remote method; mark at least one with @method()", field="cls")
    required = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise Invalid(
            f"{cls.__name__}() takes {', '.join(required)}, but workers make it without arguments; give defaults, or "
            "load by name in a method marked with @enter()",
            field="cls",
        )
    for name, marked in methods.items():
        setattr(cls, name, marked.function)
    keeps = _make_context(cls)
    app._app.contexts[cls] = registry.RegisteredContext(
        cls, (), {}, tuple(getattr(cls, "nanopod_needs", ())), keeps or bool(getattr(cls, "nanopod_snapshot", False))
    )
    bounds = {name: _add(app, cls, name, marked, options) for name, marked in methods.items()}
    return cls if app._mode == "serve" else _handle(app, cls, bounds)


def _members(cls: type) -> list[tuple[str, Any]]:
    """What the class and its bases define, the bases' first, each name once."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    return list(found.items())


def _add(app: Deployment, cls: type, name: str, marked: Method, options: dict[str, Any]) -> BoundFunction:
    full = f"{cls.__name__}.{name}"
    if full in app._functions and not app.by_value:
        raise Invalid(f"there are two remote methods called {full}; rename one of the classes", field=full)
    app._note_source(marked.function)
    return bind_method(app, full, cls, marked.function, {**options, **marked.options})


def bind_method(
    app: Deployment, full: str, cls: type, function: Callable[..., Any], options: dict[str, Any]
) -> BoundFunction:
    """Register a method under its full name, such as `Model.answer`. Raises `Invalid`."""
    registered, made = read_options(function, options, kind_of(function), full)
    registered.owner = cls
    bound = app._bind(full, function, registered, made, cls)
    if app.by_value:
        app._given[full] = options
    if app._mode == "serve":
        hang_forms(bound)
    return bound


def _make_context(cls: type) -> bool:
    """Give the class `__aenter__` and `__aexit__` that run its marked methods; True when some of them may be kept."""
    marks = [(value, *value.__dict__[_MARK]) for _, value in _members(cls) if _MARK in getattr(value, "__dict__", {})]
    begins = [function for function, what, _ in marks if what == "enter"]
    ends = [function for function, what, _ in marks if what == "exit"]
    snaps = any(snap for _, _, snap in marks) or hasattr(cls, "__asnapshot__")
    own_enter, own_exit = getattr(cls, "__aenter__", None), getattr(cls, "__aexit__", None)
    if own_enter is not None and not (begins or ends):
        return snaps

    async def __aenter__(self: Any) -> Any:
        entered = self if own_enter is None else await own_enter(self)
        for function in begins:
            done = function(entered)
            if inspect.isawaitable(done):
                await done
        return entered

    async def __aexit__(self: Any, *about: object) -> None:
        try:
            for function in ends:
                done = function(self)
                if inspect.isawaitable(done):
                    await done
        finally:
            if own_exit is not None:
                await own_exit(self, *about)

    setattr(cls, "__aenter__", __aenter__)  # noqa: B010  (a plain assignment would not type-check)
    setattr(cls, "__aexit__", __aexit__)  # noqa: B010
    return snaps


def _handle(app: Deployment, cls: type, bounds: dict[str, BoundFunction]) -> type:
    """The class that callers see: no constructor runs, its methods are remote functions."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            raise TypeError(f"{cls.__name__}() takes no arguments; its object is made on the workers")

    def __getattr__(self: Any, name: str) -> Any:
        raise AttributeError(
            f"{cls.__name__} lives on workers; here it has its remote methods alone ({', '.join(bounds)}), not {name!r}"
        )

    def __repr__(self: Any) -> str:
        return f"<handle of remote class {cls.__name__} of {app.name or 'an unbound deployment'}>"

    names: dict[str, Any] = {name: remote_form(bound) for name, bound in bounds.items()}
    names |= {
        "__init__": __init__, "__getattr__": __getattr__, "__repr__": __repr__, "__doc__": cls.__doc__,
        "__module__": cls.__module__, "__qualname__": cls.__qualname__, "nanopod_class": cls,
    }  # fmt: skip
    return type(cls.__name__, (), names)
