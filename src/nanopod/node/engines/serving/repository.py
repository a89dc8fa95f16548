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
    gone: bool = False
    """It was removed: what is being loaded for it is forgotten."""


class Repository:
    """Used on one loop; models are loaded on `pool`."""

    def __init__(self, pool: Executor, memory_max: int) -> None:
        self._pool = pool
        self._memory_max = memory_max
        self._reserved: dict[int, Entry] = {}
        """Entries that hold memory, by identity."""
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called when the state of a model changed."""

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
        """Some model can be asked, or none is being loaded."""
        states = [entry.state for entry in self._entries.values()]
        return "ready" in states or "loading" not in states

    def states(self) -> dict[str, str]:
        """{model: "" once it is ready, else why it is not}. One that is ready and could not be changed says so."""
        found = {}
        for name, entry in self._entries.items():
            state = "" if entry.state == "ready" and not entry.error else entry.state
            found[name] = f"{state}: {entry.error}" if entry.error else state
        return found

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
            if entry.predictor is None:
                self._reserve(entry)
            entry.state, entry.error = ("ready" if entry.predictor is not None else "loading"), ""
            self.on_change()
            try:
                made = await self._made(entry)
            except BaseException as error:
                entry.error = str(error)
                if entry.predictor is None:
                    entry.state = "failed"
                    self._release(entry)
                self.on_change()
                raise
            self._loaded(entry, made)

    async def replace(self, fresh: Entry) -> None:
        """Load a model in place of the one with its name, which answers until then, and goes on when this fails.

        Raises `LoadFailed`.
        """
        async with self._locks.setdefault(fresh.name, asyncio.Lock()):
            if fresh.gone:
                return
            old = self._entries.get(fresh.name)
            try:
                self._reserve(fresh)
                made = await self._made(fresh)
            except BaseException as error:
                self._release(fresh)
                if not fresh.gone:
                    self.failed(fresh, str(error))
                raise
            if old is not None and old is not fresh:
                self._release(old)
            if not fresh.gone:
                self._entries[fresh.name] = fresh
            self._loaded(fresh, made)

    def _loaded(self, entry: Entry, made: Predictor) -> None:
        if entry.gone:
            self._release(entry)
            return
        entry.predictor, entry.state, entry.error = made, "ready", ""
        self.on_change()
        _log.info("model %s is loaded", entry.name)

    def announce(self, entry: Entry) -> None:
        """A model is about to be loaded by `replace`; one of its name that is ready stays in its place until then."""
        old = self._entries.get(entry.name)
        if old is None or old.predictor is None:
            self._entries[entry.name] = entry
        else:
            old.error = "loading"
        self.on_change()

    def failed(self, entry: Entry, why: str) -> None:
        """A model cannot be loaded; one of its name that answers goes on, and says so."""
        old = self._entries.get(entry.name)
        if old is not None and old.predictor is not None:
            old.error = why
        else:
            entry.state, entry.error = "failed", why
            self._entries[entry.name] = entry
        self.on_change()

    def remove(self, name: str) -> None:
        """Forget a model and its name at once; requests that it runs end with it."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        entry.gone = True
        self._release(entry)
        self.on_change()
        _log.info("model %s is removed", name)

    async def _made(self, entry: Entry) -> Predictor:
        if entry.loaded_by is not None:
            return await entry.loaded_by()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, formats.load, entry.name, entry.form, entry.directory, entry.options
        )

    def _reserve(self, entry: Entry) -> None:
        # The one that it takes the place of counts for all others, not for it.
        free = self._memory_max - sum(one.memory_bytes for one in self._reserved.values() if one.name != entry.name)
        if entry.memory_bytes > free:
            text = f"model {entry.name} needs {entry.memory_bytes} bytes, {max(0, free)} of {self._memory_max} are left"
            entry.state, entry.error = "failed", text
            self.on_change()
            raise LoadFailed(f"{text}; unload another model or give it a machine with more memory")
        self._reserved[id(entry)] = entry

    def _release(self, entry: Entry) -> None:
        """It holds no memory any more; no harm when it held none."""
        self._reserved.pop(id(entry), None)

    async def unload(self, name: str) -> None:
        """Forget a model; requests that have it end with it. Raises `Refused` 404."""
        entry = self.entry(name)
        async with self._locks.setdefault(entry.name, asyncio.Lock()):
            self._release(entry)
            entry.predictor, entry.state, entry.error = None, "unloaded", ""
            self.on_change()
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
