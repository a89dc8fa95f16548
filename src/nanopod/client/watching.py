"""Notices that files changed: a look at their times and sizes every 50 ms, which costs nothing and works everywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

POLL_S: Final = 0.05
SETTLE_S: Final = 0.02
"""An editor that writes a file in steps gets so long between two of them."""
SKIPPED: Final = frozenset({"__pycache__", ".git", ".hg", ".nanopod", ".venv", "venv", "node_modules", ".mypy_cache"})

State = dict[Path, tuple[int, int, int]]
"""(time of change in ns, size, inode) by file."""


def state_of(places: Iterable[Path]) -> State:
    """The files at some places; of directories everything in them but caches. What is missing is left out."""
    found: State = {}
    for place in places:
        for path in _files(place):
            try:
                stat = path.stat()
            except OSError:
                continue
            found[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    for top, names, files in os.walk(place):
        names[:] = [name for name in names if name not in SKIPPED]
        yield from (Path(top) / name for name in files if not name.endswith((".pyc", ".pyo", "~", ".swp")))


class Watch:
    """Files that are looked at. `places` may be replaced at any time."""

    def __init__(self, places: Iterable[Path]) -> None:
        self.places = list(places)
        self._seen = state_of(self.places)

    def changed(self) -> list[Path]:
        """Files that are new, other or gone since the last time that this returned any."""
        now = state_of(self.places)
        found = sorted(path for path in {*now, *self._seen} if now.get(path) != self._seen.get(path))
        if found:
            time.sleep(SETTLE_S)
            while (later := state_of(self.places)) != now:
                now = later
                time.sleep(SETTLE_S)
            self._seen = now
        return found

    def wait(self, stop: Callable[[], bool]) -> list[Path]:
        """Wait for a change; an empty list once `stop` says so."""
        while not stop():
            if found := self.changed():
                return found
            time.sleep(POLL_S)
        return []
