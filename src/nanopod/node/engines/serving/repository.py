"""The models of one server: which are loaded, which are ready, and the memory that is reserved before one is loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from nanopod.node.engines.serving import formats
from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.formats import LoadFailed
from nanopod.node.engines.serving.predictors import Predictor

State = Literal["unloaded", "loading", "ready", "failed"]
MEMORY_FILES: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class Entry:
    """One model by its name. `memory_bytes` is reserved while it is loaded; 0: nothing is."""

    name: str
    form: str
    directory: Path
    options: dict[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    predictor: Predictor | None = None
    state: State = "unloaded"
    error: str = ""
    loaded_by: Callable[[], Awaitable[Predictor]] | None = None
    """How it is loaded, where that is not by `formats.load`."""


class Repository:
    """Used on one loop; models are loaded on `pool`."""

    def __init__(self, pool: Executor, memory_max: int) -> None:
        self._pool = pool
        self._memory_max = memory_max
        self._reserved = 0
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def add(self, entry: Entry, *aliases: str) -> None:
        """Make a model known, also under other names."""
        if entry.name in self._entries:
            raise LoadFailed(f"model.models: the name {entry.name} is used twice")
        self._entries[entry.name] = entry
        for alias in aliases:
            self._aliases.setdefault(alias, entry.name)

    @property
    def names(self) -> list[str]:
        """Of all models, loaded or not."""
        return list(self._entries)

    @property
    def ready(self) -> bool:
        """No model is being loaded."""
        return all(entry.state != "loading" for entry in self._entries.values())

    def entry(self, name: str) -> Entry:
        """A model by its name. Raises `Refused` 404."""
        found = self._entries.get(name) or self._entries.get(self._aliases.get(name, ""))
        if found is None:
            raise Refused(404, f"there is no model {name} here; there is {', '.join(self._entries) or 'none'}")
        return found

    def predictor(self, name: str) -> Predictor:
        """A model that is ready. Raises `Refused` 404 or 503."""
        found = self.entry(name)
        if found.predictor is None or found.state != "ready":
            why = f": {found.error}" if found.error else ""
            raise Refused(503, f"the model {name} is not ready ({found.state}{why})")
        return found.predictor

    async def load(self, name: str) -> None:
        """Reserve its memory, then load it; again where it is loaded already. Raises `Refused` 404 or `LoadFailed`."""
        entry = self.entry(name)
        async with self._locks.setdefault(entry.name, asyncio.Lock()):
            if entry.state != "ready":
                self._reserve(entry)
            entry.state, entry.error = ("ready" if entry.predictor is not None else "loading"), ""
            try:
                made = await self._made(entry)
            except BaseException as error:
                entry.error = str(error)
                if entry.predictor is None:
                    entry.state = "failed"
                    self._reserved -= entry.memory_bytes
                raise
            entry.predictor, entry.state = made, "ready"
            _log.info("model %s is loaded", entry.name)

    async def _made(self, entry: Entry) -> Predictor:
        if entry.loaded_by is not None:
            return await entry.loaded_by()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, formats.load, entry.name, entry.form, entry.directory, entry.options
        )

    def _reserve(self, entry: Entry) -> None:
        free = self._memory_max - self._reserved
        if entry.memory_bytes > free:
            text = f"model {entry.name} needs {entry.memory_bytes} bytes, {max(0, free)} of {self._memory_max} are left"
            entry.state, entry.error = "failed", text
            raise LoadFailed(f"{text}; unload another model or give it a machine with more memory")
        self._reserved += entry.memory_bytes

    async def unload(self, name: str) -> None:
        """Forget a model; requests that have it end with it. Raises `Refused` 404."""
        entry = self.entry(name)
        async with self._locks.setdefault(entry.name, asyncio.Lock()):
            if entry.predictor is not None:
                self._reserved -= entry.memory_bytes
            entry.predictor, entry.state, entry.error = None, "unloaded", ""
            _log.info("model %s is unloaded", entry.name)


def memory_limit() -> int:
    """Bytes that this process may use: its control group's limit, else the machine's memory. Blocks shortly."""
    total = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                total = int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    for name in MEMORY_FILES:
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total
