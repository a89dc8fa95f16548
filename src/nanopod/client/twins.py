"""Methods in two forms: `d.get(k)` blocks, `await d.get.aio(k)` does not.

The second form runs the first one on a thread of a pool; cancelling it cuts the connection that it waits on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    import http.client
    from concurrent.futures import ThreadPoolExecutor

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

THREADS_MAX: Final = 64


class Abort:
    """Ends what a thread waits for."""

    def __init__(self) -> None:
        self.asked = False
        self.connection: http.client.HTTPConnection | None = None

    def now(self) -> None:
        """Cut the connection; nothing is sent again."""
        self.asked = True
        peer = self.connection.sock if self.connection is not None else None
        if peer is not None:
            import contextlib
            import socket

            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


aborting: ContextVar[Abort | None] = ContextVar("nanopod_abort", default=None)
"""What ends the wait of this thread."""
_pool: ThreadPoolExecutor | None = None
_pool_pid = 0
_lock: Final = threading.Lock()


def threads() -> ThreadPoolExecutor:
    """The pool; a forked process has one of its own."""
    global _pool, _pool_pid
    with _lock:
        if _pool is None or _pool_pid != os.getpid():
            from concurrent.futures import ThreadPoolExecutor

            _pool, _pool_pid = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="nanopod-shared"), os.getpid()
        return _pool


async def in_thread(call: Callable[[], T]) -> T:
    """The result of a blocking call, which is cut off when this is cancelled."""
    import asyncio

    abort = Abort()

    def run() -> T:
        aborting.set(abort)
        return call()

    context = copy_context()
    try:
        return await asyncio.get_running_loop().run_in_executor(threads(), context.run, run)
    except asyncio.CancelledError:
        abort.now()
        raise


class Both(Generic[P, R]):
    """A bound method: call it, or await its `aio`."""

    __slots__ = ("_method",)

    def __init__(self, method: Callable[P, R]) -> None:
        self._method = method

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The blocking form."""
        return self._method(*args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for event loops."""
        return await in_thread(lambda: self._method(*args, **kwargs))


class twin(Generic[S, P, R]):
    """Makes a method that has both forms of a blocking one."""

    def __init__(self, method: Callable[Concatenate[S, P], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__name__ = getattr(method, "__name__", "")

    def __get__(self, owner: S, kind: Any = None) -> Both[P, R]:
        """The method of an object."""
        method = self._method

        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            return method(owner, *args, **kwargs)

        return Both(bound)


class Pages(Generic[T]):
    """Items that are fetched in pages while they are iterated over, by `for` or `async for`."""

    def __init__(self, fetch: Callable[[], Iterator[list[T]]]) -> None:
        self._fetch = fetch

    def __iter__(self) -> Iterator[T]:
        for page in self._fetch():
            yield from page

    async def __aiter__(self) -> AsyncIterator[T]:
        pages = self._fetch()
        while (page := await in_thread(lambda: next(pages, None))) is not None:
            for item in page:
                yield item


def refuse_in_loop(what: str, instead: str) -> None:
    """Raises `BlockingCallInLoop` where a call that may wait for long would stop an event loop."""
    from nanopod.client import background

    if background.in_loop():
        raise background.BlockingCallInLoop(f"{what} would block the event loop that runs here; write: {instead}")
