"""Where a model's files are on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from nanopod.model.endpoint import StorageSpec
from nanopod.node.engines.serving.formats import LoadFailed

DIRECTORY: Final = "NANOPOD_MODEL_DIR"
"""Environment variable: where the node put the files of the first storage; further models are below it by name."""


def directory_of(source: str, storage: Sequence[StorageSpec], name: str = "") -> Path:
    """A model's directory (or file): what the node fetched, or a local path. `name`: one of several models.

    Raises `LoadFailed` when nothing says where it is.
    """
    given = os.environ.get(DIRECTORY, "")
    first = storage[0] if storage else None
    if name:
        # What the node fetched comes first: a path of the machine's own may be another worker's.
        candidates = [os.path.join(given, quote(name, safe=" "))] if given else []
        candidates += [first.path] if first is not None else []
        for candidate in candidates:
            if os.path.exists(candidate):
                return Path(candidate)
    elif given:
        return Path(given)
    if source:
        return Path(source.removeprefix("file://")).expanduser()
    if first is not None:
        if first.uri.startswith(("file://", "/")):
            return Path(first.uri.removeprefix("file://"))
        return Path(first.path)
    raise LoadFailed("the model server needs files: set model.storage, or model.source to a directory")
