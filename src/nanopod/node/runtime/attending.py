"""What accompanies a worker of functions: announced ends, health, its perf, and the orderly end of it all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from nanopod.model import registry
from nanopod.model.endpoint import Failure
from nanopod.model.registry import Notice
from nanopod.node import files
from nanopod.node.records import Start
from nanopod.node.runtime.contexts import Contexts, keeps_snapshots
from nanopod.node.runtime.ending import Ending, Hooks, Notices, close_all, exit_limit_s, watch_health
from nanopod.node.runtime.executor import CANCEL_S_MAX
from nanopod.node.runtime.keeping import Findings, Keeping, Shown, told, usable
from nanopod.node.runtime.loading import StartFailed, failure_of
from nanopod.node.runtime.measuring import Perf, has_benchmark
from nanopod.node.runtime.serving import Functions
from nanopod.node.runtime.snapshots import Snapshots, key_of
from nanopod.node.runtime.table import Call
from nanopod.node.runtime.waiting import until

DELIVER_S_MAX: Final = 5.0
"""How long a drained worker keeps answers that no gateway has taken yet."""
_log: Final = logging.getLogger(__name__)


def snapshots_of(start: Start, app: registry.App) -> Snapshots | None:
    """Where the app's contexts keep their snapshots; None when none of them does."""
    if not start.snapshots_dir or not any(map(keeps_snapshots, app.contexts)):
        return None
    from nanopod.node.inventory import find_gpus

    gpus = tuple(f"{gpu.name} {gpu.driver}" for gpu in find_gpus())
    return Snapshots(Path(start.snapshots_dir), key_of(start.instance.app, gpus))


class Attending:
    """Everything about one worker's life but its calls. Used on its event loop."""

    def __init__(self, start: Start, directory: Path, serving: Functions, contexts: Contexts, ending: Ending) -> None:
        self._start = start
        self._serving = serving
        self._contexts = contexts
        self._ending = ending
        self._grace_s = start.instance.grace_s
        self._stop_s = start.instance.stop_s
        self._hooks = Hooks(serving.app)
        self._notices = Notices(directory / files.SHUTDOWN, self._hooks, ending, self._grace_s)
        self._perf: Perf | None = None
        self._keeping = Keeping.of(start)
        self._shown: dict[str, Shown] = {}
        self._was_ready = False
        self._tasks: list[asyncio.Task[None]] = []
        serving.executor.on_stuck = self._stuck

    def begin(self) -> None:
        """Look for announcements from now on."""
        self._spawn(self._notices.watch())

    async def measure(self) -> None:
        """Run the benchmarks; follow what calls show from then on. Raises `StartFailed`."""
        serving = self._serving
        functions = serving.app.functions
        with_benchmark = {name for name, function in functions.items() if has_benchmark(function)}
        keeping = self._keeping
        kept = await asyncio.to_thread(keeping.read) if keeping is not None else None
        perf = usable(kept, with_benchmark, set(functions))
        if with_benchmark and (perf is None or kept is None):
            perf = await self._benchmark()
        elif with_benchmark and kept is not None:
            self._shown = kept.benchmarks
            serving.benchmark = {name: told(shown) for name, shown in kept.benchmarks.items()}
        self._perf = Perf(functions, perf or {}, passive=not with_benchmark)
        serving.perf = self._perf.value
        answers = serving.executor.answers
        answers.on_value = self._note
        serving.executor.on_sweep = self._review

    async def _benchmark(self) -> dict[str, float]:
        """Run the benchmarks, and keep what they show unless something went wrong in them."""
        from nanopod.node.runtime.benchmark import BenchmarkFailed, benchmark

        serving, runs_max = self._serving, 1 if self._start.local else None
        try:
            found = await benchmark(
                serving.executor, serving.app.functions, self._start.instance.app.module, runs_max
            )  # fmt: skip
        except BenchmarkFailed as failed:
            raise StartFailed(failure_of("benchmark", failed.error, f"{failed.name}: ")) from failed
        serving.benchmark = {name: measured.as_state() for name, measured in found.items()}
        perf = {name: measured.perf for name, measured in found.items()}
        self._shown = {name: Shown(**state) for name, state in serving.benchmark.items()}
        await self._keep(perf)
        return perf

    async def _keep(self, perf: dict[str, float]) -> None:
        """The next worker of this kind begins with this, unless a benchmark had failures or other code runs by now."""
        same = self._serving.start.instance.revision_id == self._start.instance.revision_id
        if self._keeping is not None and same and not any(shown.errors for shown in self._shown.values()):
            await asyncio.to_thread(self._keeping.write, Findings(perf, self._shown))

    def ready(self) -> None:
        """The worker takes calls from now on."""
        self._was_ready = True
        check = self._serving.app.healthcheck
        if check is not None:
            self._spawn(watch_health(check, self._ending))

    def _note(self, call: Call, run_us: int, at_once: int) -> None:
        """Any thread: a call succeeded."""
        if self._perf is not None and not call.is_probe:
            units = call.workload if call.workload is not None else call.header.workload
            self._perf.note(call.header.function, units, run_us, at_once or len(self._serving.executor.active))

    def _review(self) -> None:
        if self._perf is not None and self._perf.review():
            self._serving.perf = self._perf.value
            self._serving.tell()
            self._spawn(self._keep(self._perf.measured))

    def _stuck(self, call: Call) -> None:
        """A function with `kill_on_cancel` goes on after its call was cancelled: only the process's end ends it."""
        name = call.header.function
        reason = f"{name}() went on for {CANCEL_S_MAX:.0f} s after its call was cancelled (kill_on_cancel)"
        self._ending.ask(reason, Failure("run", reason, user_fault=False), forsaken=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def end(self, error: BaseException | None) -> None:
        """Drain, tell the hooks, take snapshots, leave the contexts: what follows the calls within the grace period.

        `error` is what the start broke with, if it did. With a failure in the `Ending` afterwards the worker is to be
        replaced.
        """
        ending, executor, fenced = self._ending, self._serving.executor, self._serving.fenced
        for task in self._tasks:
            task.cancel()
        # Who is told to stop lets its calls end; who is broken has its grace, and is replaced.
        grace_s = ending.grace_s(self._grace_s)
        drain_s = ending.grace_s(self._stop_s if ending.failure is None else self._grace_s)
        limit_s = exit_limit_s(grace_s)
        is_orderly = error is None and not fenced
        # One that never took calls has none to wait for: what runs is its benchmark.
        drained_by = time.monotonic() + (drain_s - limit_s if is_orderly and self._was_ready else 0.0)
        if is_orderly and self._was_ready:
            self._hooks.tell(Notice(time.time() + grace_s, ending.reason))
        web = asyncio.ensure_future(self._serving.web.drain(drained_by - time.monotonic()))
        lost = await executor.drain(
            drained_by - time.monotonic(), lost=ending.reason if is_orderly else "", forsaken=ending.forsaken
        )
        lost += await web
        drained_by = min(drained_by, time.monotonic() + grace_s - limit_s)
        over_by = drained_by + limit_s
        if lost:
            _log.warning("%d calls were still running at the end of the grace period", lost)
        await self._hooks.finish(drained_by - time.monotonic())
        deliver_s = max(0.0, drained_by - time.monotonic()) + limit_s / 3
        await until(
            lambda: bool(self._serving.fenced) or not executor.table.undelivered(), min(DELIVER_S_MAX, deliver_s)
        )
        if is_orderly and self._was_ready and ending.failure is None:
            await self._contexts.snapshot(drained_by - time.monotonic())
        await self._serving.web.stop(limit_s / 4)
        await close_all(registry.closers, limit_s / 4)
        # Whatever the steps before took, contexts have some of the time that is theirs.
        await self._contexts.exit(error, max(limit_s / 4, over_by - time.monotonic()))
        if ending.at is not None and ending.failure is None:
            why = await self._notices.linger()
            ending.failure = Failure("run", f"{why}; it starts anew", user_fault=False) if why else None
