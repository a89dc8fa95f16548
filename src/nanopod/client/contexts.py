"""Contexts entered in this process, for `.local()` calls: those a function names, on its first local call."""

from __future__ import annotations

import asyncio
import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from nanopod.client import background
from nanopod.model.registry import App, RegisteredContext

_entering: dict[tuple[int, type], asyncio.Future[None]] = {}


def named_by(function: Callable[..., Any], app: App) -> list[type]:
    """The context classes whose names the function's code mentions."""
    names = set(_names(function.__code__))
    return [cls for cls in app.contexts if cls.__name__ in names]


async def enter(app: App, wanted: list[type]) -> None:
    """Enter contexts, and first those they need, unless they are entered already. Raises what `__aenter__` raises."""
    for cls in wanted:
        if cls in app.entered or cls not in app.contexts:
            continue
        slot = (id(app), cls)
        if slot in _entering and _entering[slot].get_loop() is asyncio.get_running_loop():
            await asyncio.shield(_entering[slot])
            continue
        _entering[slot] = done = asyncio.get_running_loop().create_future()
        try:
            context = app.contexts[cls]
            await enter(app, list(context.needs))
            app.entered[cls] = await build(context).__aenter__()
        finally:
            done.set_result(None)
            _entering.pop(slot, None)


def entered(app: App, cls: type) -> Any:
    """What a context's `__aenter__` returned; entered now, on the background loop, when it is not yet."""
    if cls not in app.entered:
        if background.in_loop():
            warnings.warn(
                f"{cls.__name__} is entered on another event loop, because the remote function does not name it itself",
                stacklevel=4,
            )
        asyncio.run_coroutine_threadsafe(enter(app, [cls]), background.loop()).result()
    return app.entered[cls]


def build(context: RegisteredContext) -> Any:
    """The context object."""
    return context.cls(*context.args, **context.kwargs)


async def run_local(function: Callable[..., Any], app: App, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An `async def` function with its contexts."""
    await enter(app, named_by(function, app))
    return await function(*args, **kwargs)


async def iterate_local(function: Callable[..., Any], app: App, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An async generator function with its contexts."""
    await enter(app, named_by(function, app))
    async for item in function(*args, **kwargs):
        yield item


def call_local(
    function: Callable[..., Any],
    app: App,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    owner: type | None = None,
) -> Any:
    """Any function: a coroutine or async generator of asynchronous ones, else the value.

    `owner` is the class of a method: it is entered here first, and its object is `self`.
    """
    if owner is not None:
        args = (entered(app, owner), *args)
    if inspect.iscoroutinefunction(function):
        return run_local(function, app, args, kwargs)
    if inspect.isasyncgenfunction(function):
        return iterate_local(function, app, args, kwargs)
    for cls in named_by(function, app):
        entered(app, cls)
    return function(*args, **kwargs)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
