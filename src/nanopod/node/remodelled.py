"""Other models for a model server that runs: their files are fetched, then its worker is told to load them.

The worker is told everything each time: which further models there are, and how far the files of each are. So a word
that was lost, or an agent that was started anew, changes nothing. One whose files cannot be had is told as such.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.model.endpoint import InstanceSpec, LoadedModel
from nanopod.node import records, updates
from nanopod.node.environment import EnvironmentFailed
from nanopod.node.storage import furnishing
from nanopod.node.storage.errors import GivenUp, StorageFailed
from nanopod.node.storage.told import Furnished

TRIES_MAX: Final = 6
"""How often files that the network kept from us are tried for."""
TELL_S_MAX: Final = 120.0
"""A worker that cannot be told for so long is started anew. One that has just begun does not listen yet."""
PAUSE_S: Final = 0.2
_log: Final = logging.getLogger("nanopod.node.remodelled")

Fetch = Callable[[InstanceSpec, str, threading.Event], Awaitable[Path]]
"""Has the files of a further model. Raises `StorageFailed`, `EnvironmentFailed` or OSError; `GivenUp` once stopped."""


def is_change(old: InstanceSpec, new: InstanceSpec) -> bool:
    """Whether `new` is the same start of the same instance with other further models."""
    before, after = old.app.model, new.app.model
    return bool(
        new.epoch == old.epoch
        and new.revision_id != old.revision_id
        and before is not None
        and after is not None
        and after.engine == "server"
        and replace(before, models=()) == replace(after, models=())
    )


@dataclass(slots=True)
class _Going:
    """A model's files on their way."""

    stop: threading.Event


class Remodelled:
    """The further models of one running instance. Used on the agent's loop."""

    def __init__(
        self, directory: Path, spec: InstanceSpec, fetch: Fetch, spawn: Callable[[Coroutine[Any, Any, None]], None],
        give_up: Callable[[str], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._directory = directory
        self._spec = spec
        self._fetch = fetch
        self._spawn = spawn
        self._give_up = give_up
        self._rows: dict[str, Furnished] = {}
        self._going: dict[str, _Going] = {}
        self._telling = False
        self._due = False
        self._ended = False

    def want(self, spec: InstanceSpec) -> None:
        """The instance has these models from now on."""
        before = self._models(self._spec)
        after = self._models(spec)
        old, self._spec = self._spec, spec
        for name in before.keys() - after.keys():
            self._stop(name)
            self._rows.pop(name, None)
            self._spawn(self._discard(old, name))
        for name, model in after.items():
            row = self._rows.get(name)
            if row is not None and row.model == model and row.state != "failed":
                continue
            if row is None and before.get(name) == model:
                place = furnishing.place_in(spec, self._directory, name)
                if place.exists():
                    self._rows[name] = Furnished(model, "there", str(place))
                    continue
            self._stop(name)
            self._rows[name] = Furnished(model, "fetching")
            going = self._going[name] = _Going(threading.Event())
            self._spawn(self._bring(spec, model, going))
        self._tell()

    def end(self) -> None:
        """The instance ends."""
        self._ended = True
        for name in list(self._going):
            self._stop(name)

    @staticmethod
    def _models(spec: InstanceSpec) -> dict[str, LoadedModel]:
        return {one.name: one for one in spec.app.model.models} if spec.app.model is not None else {}

    def _stop(self, name: str) -> None:
        going = self._going.pop(name, None)
        if going is not None:
            going.stop.set()

    async def _discard(self, spec: InstanceSpec, name: str) -> None:
        where = furnishing.place_in(spec, self._directory, name)
        if name not in self._rows:
            await asyncio.to_thread(furnishing.discard, where)

    async def _bring(self, spec: InstanceSpec, model: LoadedModel, going: _Going) -> None:
        row = await self._brought(spec, model, going)
        if row is not None and self._going.get(model.name) is going:
            del self._going[model.name]
            self._rows[model.name] = row
            self._tell()

    async def _brought(self, spec: InstanceSpec, model: LoadedModel, going: _Going) -> Furnished | None:
        """How it went; None when it was given up."""
        pause_s = PAUSE_S
        for last in (*[False] * (TRIES_MAX - 1), True):
            try:
                where = await self._fetch(spec, model.name, going.stop)
                return Furnished(model, "there", str(where))
            except GivenUp:
                return None
            except (StorageFailed, EnvironmentFailed, OSError) as error:
                why = f"{error}" or type(error).__name__
                said = error.failure if isinstance(error, EnvironmentFailed) else error
                fault = getattr(said, "user_fault", False)
                _log.info("instance=%s model=%s files: %s", spec.instance_id, model.name, why)
                if fault or last or going.stop.is_set():
                    return Furnished(model, "failed", error=why)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s *= 2
        return None

    # --- the worker ---

    def _tell(self) -> None:
        self._due = True
        if not self._telling:
            self._telling = True
            self._spawn(self._told())

    async def _told(self) -> None:
        """Tell the worker until it has heard the newest; one that cannot be told is started anew by the server."""
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + TELL_S_MAX, PAUSE_S
        while self._due and not self._ended:
            self._due = False
            spec = self._spec
            rows = [msgspec.to_builtins(row) for row in self._rows.values()]
            why = ""
            try:
                answer = await updates.ask(self._directory, {"models": rows, "revision": spec.revision_id})
                why = str(answer.get("error") or "")
            except (OSError, ValueError, TimeoutError) as error:
                why = f"{type(error).__name__}: {error}"
            if not why:
                until, pause_s = loop.time() + TELL_S_MAX, PAUSE_S
                continue
            if loop.time() > until:
                _log.warning("instance=%s other models need a new worker: %s", spec.instance_id, why)
                await self._give_up(f"its other models need a new worker: {why}")
                break
            self._due = True
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(4.0, pause_s * 2)
        self._telling = False
        if not self._going and not self._ended:
            # Only now: an agent that is started anew meanwhile finds the change still to be made.
            start = records.read_start(self._directory)
            if start is not None and start.instance.epoch == self._spec.epoch:
                records.write_start(self._directory, msgspec.structs.replace(start, instance=self._spec))
