"""An event loop in a daemon thread, for code that is not asynchronous itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


class BlockingCallInLoop(RuntimeError):
    """A blocking call was made where an event loop runs, which it would stop."""


def in_loop() -> bool:
    """True when this thread runs an event loop right now. Imports asyncio only if somebody else did."""
    import sys

    running = sys.modules.get("asyncio.events")
    return running is not None and running._get_running_loop() is not None


def loop() -> asyncio.AbstractEventLoop:
    """The background loop; started at the first call."""
    global _loop
    with _lock:
        if _loop is None:
            import asyncio

            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="nanopod-calls", daemon=True).start()
        return _loop


def run(coroutine: Coroutine[Any, Any, T], *, advice: str = "await it instead") -> T:
    """Run a coroutine on the background loop and wait for its value; Ctrl-C cancels it.

    Raises `BlockingCallInLoop` when an event loop runs in this thread.
    """
    if in_loop():
        coroutine.close()
        raise BlockingCallInLoop(f"this call would block the event loop that runs in this thread; {advice}")
    import asyncio

    future = asyncio.run_coroutine_threadsafe(coroutine, loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _forget() -> None:
    """A forked child has no thread that runs the loop."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
