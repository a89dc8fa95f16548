"""`multiplexed`: a loader whose results a worker keeps, the least recently used going first.

```
@app.multiplexed(max=8)
async def adapter(name: str): return await load(name)

@app.remote(concurrency=32)
async def answer(text): return await (await adapter()).answer(text)

await answer.with_options(model="french")("hello")
```
Without an argument the loader is asked for what the call was made with (`with_options(model=...)`); such calls prefer a
worker that has it already.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, ParamSpec, TypeVar

from nanopod.client import background
from nanopod.model import registry
from nanopod.model.errors import Invalid

P = ParamSpec("P")
R = TypeVar("R")
_SLOTS: Final = "__nanopod_multiplexed__"
_log: Final = logging.getLogger(__name__)


class Entry:
    """One loaded thing, or one that is being loaded."""

    __slots__ = ("future", "loop", "users")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.loop = loop
        """Where it was loaded; it is closed there too."""
        self.users: set[weakref.ref[registry.CallContext]] = set()
        """Calls that were given it and still run."""


class Cache:
    """At most `size` loaded things. Any thread may ask; each key is loaded once at a time."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._leaving: set[Entry] = set()
        """Fallen out, but still in use."""

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> list[Hashable]:
        """What is loaded or being loaded, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def claim(self, key: Hashable) -> tuple[Entry, bool]:
        """(its entry, whether the caller has to load it). What is too much for the cache goes."""
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._lock:
            entry = self._entries.get(key)
            is_new = entry is None
            if entry is None:
                entry = self._entries[key] = Entry(loop)
            self._entries.move_to_end(key)
            self._use(entry)
        self.trim()
        return entry, is_new

    def trim(self) -> None:
        """Let go of what is too much."""
        with self._lock:
            over = [self._entries.pop(old) for old in self._surplus()]
        for entry in over:
            self._end(entry)

    def _surplus(self) -> list[Hashable]:
        """Keys beyond the size, oldest first; what is still being loaded has waiters and stays."""
        loaded = [key for key, entry in self._entries.items() if entry.future.done()]
        return loaded[: max(0, len(self._entries) - self._size)]

    def _use(self, entry: Entry) -> None:
        """The running call may use it until its end."""
        context = registry.current.get()
        if context is None:
            return
        entry.users.add(weakref.ref(context, functools.partial(self._unused, entry)))

    def _unused(self, entry: Entry, user: weakref.ref[registry.CallContext]) -> None:
        """A call that used it is over. Called wherever its last reference went."""
        with self._lock:
            entry.users.discard(user)
            close = entry in self._leaving and not entry.users
            if close:
                self._leaving.discard(entry)
        if close:
            _close_soon(entry, self._name)

    def _end(self, entry: Entry) -> None:
        with self._lock:
            in_use = bool(entry.users)
            if in_use:
                self._leaving.add(entry)
        if not in_use:
            _close_soon(entry, self._name)

    def failed(self, key: Hashable, entry: Entry, error: BaseException) -> None:
        """It could not be loaded: whoever waits hears of it, and the next one tries again."""
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]
        if isinstance(error, asyncio.CancelledError):
            # The call that loaded it was cancelled; those that wait for it try themselves.
            entry.future.cancel()
            return
        entry.future.set_exception(error)

    async def close(self) -> None:
        """Close everything, used or not: the worker ends."""
        with self._lock:
            entries = [*self._entries.values(), *self._leaving]
            self._entries.clear()
            self._leaving.clear()
        for entry in entries:
            if entry.future.done() and not entry.future.cancelled() and entry.future.exception() is None:
                await _close(entry.future.result(), self._name)


class Multiplexed(Generic[P, R]):
    """A loader with its cache; for a method, each object has a cache of its own."""

    def __init__(self, loader: Callable[..., Any], size: int) -> None:
        functools.update_wrapper(self, loader)
        self._loader = loader
        self._size = size
        self._is_async = inspect.iscoroutinefunction(loader)
        self._is_method = next(iter(inspect.signature(loader).parameters), "") == "self"
        self._cache = self._make_cache()

    def _make_cache(self) -> Cache:
        cache = Cache(self._size, self._loader.__qualname__)
        registry.closers.append(cache.close)
        return cache

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        caches = instance.__dict__.setdefault(_SLOTS, {})
        if self not in caches:
            caches[self] = self._make_cache()
        return functools.partial(self._ask, caches[self], (instance,))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What belongs to the argument, loaded if need be; a coroutine of it for an `async def` loader."""
        if self._is_method and args:
            return self.__get__(args[0])(*args[1:], **kwargs)  # type: ignore[no-any-return]
        return self._ask(self._cache, (), *args, **kwargs)  # type: ignore[no-any-return]

    def loaded(self) -> list[Hashable]:
        """The keys that the cache of a plain loader holds, the least recently used first."""
        return self._cache.keys()

    def _ask(self, cache: Cache, first: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        key = self._key(args, kwargs)
        if self._is_async:
            return self._load_async(cache, key, first)
        return self._load(cache, key, first)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        given = [*args, *kwargs.values()]
        name = self._loader.__name__
        if len(given) > 1:
            raise TypeError(f"{name}() is multiplexed: it takes one argument, by which its results are kept")
        if given:
            key = given[0]
            try:
                hash(key)
            except TypeError:
                raise TypeError(
                    f"{name}() keeps its results by its argument: it must be hashable, not {key!r}"
                ) from None
            return key  # type: ignore[no-any-return]
        context = registry.current.get()
        if context is None or not context.route_key:
            raise Invalid(
                f"{name}() without an argument loads what the call asks for, and this call asks for nothing; call with "
                f"with_options(model=...), or {name}(key)",
                field="model",
            )
        return context.route_key

    async def _load_async(self, cache: Cache, key: Hashable, first: tuple[Any, ...]) -> Any:
        while True:
            entry, is_new = cache.claim(key)
            if not is_new:
                try:
                    return await asyncio.shield(asyncio.wrap_future(entry.future))
                except asyncio.CancelledError:
                    if entry.future.cancelled() and not _is_cancelled():
                        continue
                    raise
            try:
                value = await self._loader(*first, key)
            except BaseException as error:
                cache.failed(key, entry, error)
                raise
            entry.future.set_result(value)
            cache.trim()
            return value

    def _load(self, cache: Cache, key: Hashable, first: tuple[Any, ...]) -> Any:
        entry, is_new = cache.claim(key)
        if not is_new:
            return entry.future.result()
        try:
            value = self._loader(*first, key)
        except BaseException as error:
            cache.failed(key, entry, error)
            raise
        entry.future.set_result(value)
        cache.trim()
        return value


def multiplexed(loader: Any = None, *, max: int = 8) -> Any:
    """Keep what a loader loads: at most `max` things for each worker, by the loader's one argument.

    Called without its argument, the loader is asked for `current_call().route_key`, what the caller gave as `model=`.
    Several calls that want the same thing wait for one load. What is least recently used goes when there are too many,
    by its `aclose()`, `close()` or `__aexit__()` if it has one, and not before the calls that use it are over.
    Raises `Invalid` for an impossible `max`.
    """
    if type(max) is not int or not 1 <= max <= 10_000:
        raise Invalid(f"multiplexed: max is from 1 to 10000, not {max!r}", field="max")
    if loader is None:
        return lambda function: multiplexed(function, max=max)
    if not callable(loader):
        raise TypeError("@multiplexed marks a function (or method) that loads something by name")
    return Multiplexed(loader, max)


def _is_cancelled() -> bool:
    """True when the running task itself was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _close_soon(entry: Entry, name: str) -> None:
    """Close on the loop it was loaded on, else on one of the background."""
    future = entry.future
    if not future.done() or future.cancelled() or future.exception() is not None:
        return
    loop = entry.loop if entry.loop is not None and not entry.loop.is_closed() else background.loop()

    def start() -> None:
        # The loop keeps only a weak reference to a task.
        task = loop.create_task(_close(future.result(), name))
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    loop.call_soon_threadsafe(start)


async def _close(value: Any, name: str) -> None:
    for word, about in (("aclose", ()), ("close", ()), ("__aexit__", (None,) * 3), ("__exit__", (None,) * 3)):
        hook = getattr(value, word, None)
        if callable(hook):
            try:
                done = hook(*about)
                if inspect.isawaitable(done):
                    await done
            except Exception:
                _log.exception("what %s() had loaded could not be closed", name)
            return


_closing: Final[set[asyncio.Task[None]]] = set()
