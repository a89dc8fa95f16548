"""Contexts of a deployment: entered side by side, those that others need first; left side by side.

The first one that fails takes the others with it: those still entering are cancelled, those entered are left again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nanopod.model.registry import App, RegisteredContext
from nanopod.node.runtime import faulty
from nanopod.node.runtime.snapshots import Snapshots

ROLL_BACK_S_MAX: Final = 10.0
_log: Final = logging.getLogger(__name__)


class ContextFailed(Exception):
    """A context could not be entered; `error` is what it raised."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"context {name} failed: {type(error).__name__}: {error}")
        self.name = name
        self.error = error


def check_needs(contexts: Mapping[type, RegisteredContext]) -> None:
    """Raise `ContextFailed` for a context that needs an unknown one, or (in a circle) itself."""
    done: set[type] = set()

    def visit(cls: type, path: tuple[type, ...]) -> None:
        if cls in done:
            return
        if cls in path:
            circle = " -> ".join(item.__name__ for item in (*path[path.index(cls) :], cls))
            raise ContextFailed(cls.__name__, ValueError(f"contexts need each other in a circle: {circle}"))
        for other in contexts[cls].needs:
            if other not in contexts:
                text = f"it needs {other.__name__}, which is not registered with @app.context"
                raise ContextFailed(cls.__name__, LookupError(text))
            visit(other, (*path, cls))
        done.add(cls)

    for cls in contexts:
        visit(cls, ())


class Contexts:
    """The contexts of one app, on the running loop. With `snapshots`, those that have the hooks use them."""

    def __init__(self, app: App, snapshots: Snapshots | None = None) -> None:
        self._app = app
        self._snapshots = snapshots
        self._saved: Path | None = None
        """A snapshot that fits, while contexts are entered."""
        self._managers: dict[type, Any] = {}
        """Entered ones."""

    async def enter(self) -> None:
        """Enter all. Raises `ContextFailed` after everything was rolled back; cancelling it rolls back too."""
        check_needs(self._app.contexts)
        if self._snapshots is None or not any(map(keeps_snapshots, self._app.contexts)):
            await self._enter_all()
            return
        reading = self._snapshots.reading()
        self._saved = await asyncio.to_thread(reading.__enter__)
        try:
            await self._enter_all()
        finally:
            self._saved = None
            await asyncio.to_thread(reading.__exit__, None, None, None)

    async def _enter_all(self) -> None:
        tasks: dict[type, asyncio.Task[None]] = {}
        for cls, context in self._app.contexts.items():
            tasks[cls] = asyncio.create_task(self._enter(cls, context, tasks), name=cls.__name__)
        if not tasks:
            return
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            await self._roll_back(tasks, None)
            raise
        failed = _first_failure(tasks)
        if failed is not None:
            cls, error = failed
            await self._roll_back(tasks, error)
            raise ContextFailed(cls.__name__, error) from error

    async def _enter(self, cls: type, context: RegisteredContext, tasks: Mapping[type, asyncio.Task[None]]) -> None:
        # One step later every task is in the table.
        await asyncio.sleep(0)
        for other in context.needs:
            # Shielded: what waits for it must not end it. If it fails, so do we, by cancellation from outside.
            await asyncio.wait([tasks[other]])
            if tasks[other].cancelled() or tasks[other].exception() is not None:
                raise asyncio.CancelledError
        faulty.check_context(cls.__name__)
        if self._saved is not None and (self._saved / cls.__qualname__).is_dir() and keeps_snapshots(cls):
            try:
                await self._restore(cls, context, self._saved / cls.__qualname__)
                return
            except Exception:
                _log.exception("context %s could not be restored from its snapshot; it is entered anew", cls.__name__)
        manager = cls(*context.args, **context.kwargs)
        value = manager.__aenter__() if hasattr(manager, "__aenter__") else manager.__enter__()
        self._app.entered[cls] = await value if inspect.isawaitable(value) else value
        self._managers[cls] = manager

    async def _restore(self, cls: type, context: RegisteredContext, saved: Path) -> None:
        began = time.perf_counter()
        manager = cls(*context.args, **context.kwargs)
        value = manager.__arestore__(saved)
        value = await value if inspect.isawaitable(value) else value
        # As `__aenter__`, it returns what `get_context` gives; one that returns nothing means itself.
        self._app.entered[cls] = manager if value is None else value
        self._managers[cls] = manager
        _log.info("context %s restored from its snapshot in %.3f s", cls.__name__, time.perf_counter() - began)

    async def snapshot(self, limit_s: float) -> bool:
        """Let all that can write down their state do so, side by side; whether there is a new snapshot.

        It is all or nothing: a failure, or more than `limit_s` seconds, leaves the earlier snapshot in place.
        """
        managers = {cls: manager for cls, manager in self._managers.items() if keeps_snapshots(cls)}
        if self._snapshots is None or not managers:
            return False
        if limit_s <= 0:
            _log.warning("no time is left for a snapshot")
            return False
        snapshots = self._snapshots
        new: Path | None = None
        try:
            async with asyncio.timeout(limit_s):
                new = await asyncio.to_thread(snapshots.begin)
                async with asyncio.TaskGroup() as group:
                    for cls, manager in managers.items():
                        (new / cls.__qualname__).mkdir()
                        group.create_task(_write(manager, new / cls.__qualname__))
                kept = await asyncio.to_thread(snapshots.commit, new)
        except Exception as error:  # whatever the hooks raise, and a full disk
            causes = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
            _log.error("there is no snapshot: %s", "; ".join(f"{type(one).__name__}: {one}" for one in causes))
            if new is not None:
                await asyncio.to_thread(snapshots.discard, new)
            return False
        return kept

    async def _roll_back(self, tasks: Mapping[type, asyncio.Task[None]], error: BaseException | None) -> None:
        for task in tasks.values():
            task.cancel()
        await asyncio.wait(tasks.values(), timeout=ROLL_BACK_S_MAX)
        await self.exit(error, ROLL_BACK_S_MAX)

    async def exit(self, error: BaseException | None, limit_s: float) -> list[str]:
        """Leave all that were entered, side by side; the names of those that failed or were not done in time."""
        managers, self._managers = self._managers, {}
        self._app.entered.clear()
        if not managers:
            return []
        tasks = {asyncio.create_task(self._exit(manager, error)): cls.__name__ for cls, manager in managers.items()}
        done, late = await asyncio.wait(tasks, timeout=limit_s)
        troubled = []
        for task in done:
            raised = None if task.cancelled() else task.exception()
            if raised is not None:
                _log.error("context %s failed when it was left", tasks[task], exc_info=raised)
                troubled.append(tasks[task])
        for task in late:
            _log.error("context %s was not left within %.1f s", tasks[task], limit_s)
            task.cancel()
            troubled.append(tasks[task])
        return troubled

    async def _exit(self, manager: Any, error: BaseException | None) -> None:
        about = (type(error), error, error.__traceback__) if error is not None else (None, None, None)
        value = manager.__aexit__(*about) if hasattr(manager, "__aexit__") else manager.__exit__(*about)
        if inspect.isawaitable(value):
            await value


def keeps_snapshots(cls: type) -> bool:
    """True for a context class with both hooks."""
    return hasattr(cls, "__asnapshot__") and hasattr(cls, "__arestore__")


async def _write(manager: Any, directory: Path) -> None:
    """Call the hook; a plain one runs on a thread, so that its time can be limited."""
    hook = manager.__asnapshot__
    value = await hook(directory) if inspect.iscoroutinefunction(hook) else await asyncio.to_thread(hook, directory)
    if inspect.isawaitable(value):
        await value


def _first_failure(tasks: Mapping[type, asyncio.Task[None]]) -> tuple[type, BaseException] | None:
    """(context, what it raised) of one that failed; one that cancelled itself only if nothing else explains it."""
    cancelled = None
    for cls, task in tasks.items():
        if not task.done():
            continue
        if task.cancelled():
            cancelled = cancelled or (cls, asyncio.CancelledError("it cancelled itself"))
        elif (error := task.exception()) is not None:
            return cls, error
    return cancelled
