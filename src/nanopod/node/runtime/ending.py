"""Why and when a worker ends: a signal, an announced end, its own health, a function that cannot be stopped.

An end that is announced (`shutdown.json`, which the agent writes) is told to the user's hooks at once and prepared for
in time: the worker drains and leaves its contexts before its time is over, since after that it is killed without grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from nanopod.model.endpoint import Failure
from nanopod.model.registry import App, Notice

EXIT_S_MAX: Final = 10.0
NOTICE_LOOK_S: Final = 0.25
LINGER_S_MAX: Final = 60.0
"""How long a worker whose time should be over waits for its end before it asks to be started anew."""
HEALTH_S: Final = 5.0
HEALTH_S_MAX: Final = 30.0
"""A health check that takes longer has failed."""
SICK_MAX: Final = 2
"""Health checks that fail in a row before the worker is replaced."""
_log: Final = logging.getLogger(__name__)


def exit_limit_s(grace_s: float) -> float:
    """The part of the grace period that is kept for leaving contexts."""
    return min(EXIT_S_MAX, grace_s / 3)


class Ending:
    """The first reason to end, and what follows from it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.told = asyncio.Event()
        """Whoever started the worker told it to end (again, if there was an earlier reason)."""
        self.reason = ""
        self.failure: Failure | None = None
        """With it the worker is replaced."""
        self.at: float | None = None
        """Unix seconds: when its time is over, if that was announced."""
        self.forsaken = False
        """Functions that go on although their calls were answered are left behind."""

    def ask(
        self, reason: str, failure: Failure | None = None, *, at: float | None = None, forsaken: bool = False
    ) -> None:
        """End; the first reason counts."""
        if not self.asked.is_set():
            self.reason, self.failure, self.at, self.forsaken = reason, failure, at, forsaken
            self.asked.set()

    def signalled(self, name: str) -> None:
        """A signal came."""
        self.told.set()
        self.ask(f"{name} was sent")

    def grace_s(self, grace_s: float) -> float:
        """Seconds that are left to end in, at most `grace_s`."""
        return grace_s if self.at is None else max(0.0, min(grace_s, self.at - time.time()))


class Hooks:
    """The user's `@app.on_preempt` functions; each end is told to them once."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = False

    def tell(self, notice: Notice) -> None:
        """Call them all, side by side, unless they know already."""
        if self._told:
            return
        self._told = True
        for hook in self._app.on_preempt:
            task = asyncio.create_task(self._call(hook, notice))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def clear(self) -> None:
        """What they were told is no longer so: the next end is told anew."""
        self._told = False

    async def finish(self, wait_s_max: float) -> None:
        """Wait for those that run; cancel what is not done in time."""
        tasks = list(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=max(0.0, wait_s_max))
        for task in late:
            _log.error("an on_preempt hook was not done within %.1f s", wait_s_max)
            task.cancel()

    async def _call(self, hook: Callable[..., Any], notice: Notice) -> None:
        try:
            await called(hook, notice)
        except Exception:
            _log.exception("an on_preempt hook failed")


async def called(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns: plain ones run on a thread, so that they do not hold up the calls."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    value = await asyncio.to_thread(function, *args)
    return await value if inspect.isawaitable(value) else value


def read_notice(path: Path) -> Notice | None:
    """The announced end in the file at `path`, None while there is none."""
    try:
        found = json.loads(path.read_bytes())
        return Notice(float(found["at"]), str(found["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Notices:
    """Looks at the announcement file and acts on it."""

    def __init__(self, path: Path, hooks: Hooks, ending: Ending, grace_s: float) -> None:
        self.notice: Notice | None = None
        self._path = path
        self._hooks = hooks
        self._ending = ending
        self._grace_s = grace_s
        self._mark: tuple[int, int] | None = None
        self._drain_at: float | None = None

    def look(self) -> None:
        """Once: has something been announced, or taken back, and is it time to drain?"""
        try:
            stat = os.stat(self._path)
            mark = (stat.st_mtime_ns, stat.st_ino)
        except OSError:
            mark = None
        if mark != self._mark:
            self._mark = mark
            self._changed(read_notice(self._path) if mark is not None else None)
        if self._drain_at is not None and time.time() >= self._drain_at and self.notice is not None:
            reason = f"its time is over soon: {self.notice.reason}"
            self._ending.ask(reason, at=self.notice.deadline)

    def _changed(self, notice: Notice | None) -> None:
        if notice == self.notice:
            return
        self.notice = notice
        # A moment that is past already (the cluster's clock may not be ours) says nothing about how long is left.
        ahead = notice is not None and notice.deadline > time.time()
        self._drain_at = notice.deadline - self._grace_s if notice is not None and ahead else None
        if notice is None:
            self._hooks.clear()
        else:
            _log.warning("the end of this worker is announced: %s", notice.reason)
            self._hooks.tell(notice)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(NOTICE_LOOK_S)

    async def linger(self) -> str:
        """After everything was left: wait for the end that was announced. Why it did not come; "" when it did."""
        limit = (self._ending.at or time.time()) + LINGER_S_MAX
        while time.time() < limit:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.told.wait(), NOTICE_LOOK_S)
            if self._ending.told.is_set():
                return ""
            if not self._path.exists():
                return "its announced end was taken back"
        return "its announced end did not come"


async def watch_health(check: Callable[..., Any], ending: Ending) -> None:
    """Ask `check` every few seconds; end the worker when it fails twice in a row."""
    sick = 0
    while True:
        began = time.monotonic()
        problem = await _problem(check)
        sick = sick + 1 if problem else 0
        if problem:
            _log.warning("healthcheck failed (%d of %d): %s", sick, SICK_MAX, problem)
        if sick >= SICK_MAX:
            reason = f"healthcheck failed {SICK_MAX} times: {problem}"
            ending.ask(reason, Failure("run", reason, user_fault=True))
            return
        await asyncio.sleep(max(0.0, HEALTH_S - (time.monotonic() - began)))


async def _problem(check: Callable[..., Any]) -> str:
    """What is wrong, empty when nothing is."""
    try:
        async with asyncio.timeout(HEALTH_S_MAX):
            healthy = await called(check)
    except TimeoutError as error:
        return str(error) or f"no answer within {HEALTH_S_MAX:.0f} s"
    except Exception as error:  # whatever the user's check raises
        return f"{type(error).__name__}: {error}"
    return "it returned False" if healthy is False else ""


async def close_all(closers: Iterable[Callable[[], Any]], wait_s_max: float) -> None:
    """Call (and await) each; a failure is logged and holds up no other."""

    async def close(closer: Callable[[], Any]) -> None:
        try:
            value = closer()
            if inspect.isawaitable(value):
                await value
        except Exception:
            _log.exception("something that was loaded could not be closed")

    tasks = [asyncio.ensure_future(close(closer)) for closer in closers]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=wait_s_max)
        for task in late:
            task.cancel()
