"""Models besides the main one: loaded at the start, and changed while the server runs, as its agent furnishes them.

The agent says again and again what all of them are and how far their files are; what differs from before is done. One
that cannot be loaded says so at its own paths, and nothing else hears of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Final

from nanopod.model.endpoint import LoadedModel
from nanopod.node.engines.serving.directories import directory_of
from nanopod.node.engines.serving.formats import LoadFailed
from nanopod.node.engines.serving.repository import Entry, Repository
from nanopod.node.storage.told import LACKING, Furnished

_log: Final = logging.getLogger(__name__)


def failed_files() -> dict[str, str]:
    """{model: why its files are not here}, as the node said at the start."""
    try:
        found = json.loads(os.environ.get(LACKING, ""))
    except ValueError:
        return {}
    return {str(name): str(why) for name, why in found.items()} if isinstance(found, dict) else {}


class Further:
    """Used on one loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._known: dict[str, Furnished] = {}
        """What was done last, by name."""
        self._loading: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._coming: Sequence[Furnished] | None = None

    async def start(self, models: Sequence[LoadedModel]) -> None:
        """Load those that the specification names; one that cannot be loaded does not keep the others."""
        failed = failed_files()
        for model in models:
            why = failed.get(model.name, "")
            self._known[model.name] = Furnished(model, "failed" if why else "there", error=why)
            if why:
                self._repository.failed(_entry(model, ""), why)
                _log.error("model %s: %s", model.name, why)
                continue
            try:
                directory = str(directory_of("", (model.storage,), model.name))
            except LoadFailed as error:
                self._repository.failed(_entry(model, ""), str(error))
                continue
            self._repository.add(_entry(model, directory))
            await self._quietly(self._repository.load(model.name))
        self._started = True
        if self._coming is not None:
            self.want(self._coming)

    def want(self, rows: Sequence[Furnished]) -> None:
        """These are all of them from now on."""
        if not self._started:
            self._coming = rows
            return
        names = {row.model.name for row in rows}
        for name in self._known.keys() - names:
            del self._known[name]
            self._forget(name)
            self._repository.remove(name)
        for row in rows:
            name = row.model.name
            before = self._known.get(name)
            if before is not None and before.model == row.model and before.state == row.state:
                continue
            self._known[name] = row
            self._forget(name)
            if row.state == "there":
                entry = self._loading[name] = _entry(row.model, row.directory)
                self._announce(entry)
                task = asyncio.get_running_loop().create_task(self._quietly(self._repository.replace(entry)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif row.state == "failed":
                self._repository.failed(_entry(row.model, ""), row.error)
                _log.error("model %s: %s", name, row.error)
            else:
                self._announce(_entry(row.model, ""))

    def _announce(self, entry: Entry) -> None:
        """It is on its way; one of its name that is ready answers meanwhile."""
        entry.state = "loading"
        self._repository.announce(entry)

    def _forget(self, name: str) -> None:
        """What is being loaded under this name is not wanted any more."""
        entry = self._loading.pop(name, None)
        if entry is not None and entry.state != "ready":
            entry.gone = True

    async def _quietly(self, loading: Awaitable[None]) -> None:
        try:
            await loading
        except Exception as error:
            # Its own paths say why it is not ready; the others are served all the same.
            _log.error("%s", error)


def _entry(model: LoadedModel, directory: str) -> Entry:
    return Entry(model.name, model.format, Path(directory or model.storage.path), {}, model.memory_bytes)
