"""What instances that ended leave on a node: their output, for a while."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from nanopod.node import files, launch

KEEP_S: Final = 86_400.0
KEEP_MAX: Final = 50
"""Logs of ended instances: the newest ones, for a day."""


def sweep(instances: Path, known: frozenset[str]) -> None:
    """Remove what ended long ago below the directory of instances, but for the `known` ones."""
    ended = []
    for path in instances.iterdir():
        if path.is_dir() and path.name not in known and not (path / files.SPEC).exists():
            with contextlib.suppress(OSError):
                ended.append((path.stat().st_mtime, path))
    ended.sort(reverse=True)
    limit = time.time() - KEEP_S
    for number, (changed, path) in enumerate(ended):
        if number >= KEEP_MAX or changed < limit:
            launch.remove_tree(path)
