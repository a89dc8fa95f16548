"""Removes bundles of code that no revision needs any more, a day after they were uploaded at the earliest."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import tarfile
import time
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Final

from nanopod.model.errors import NanopodError
from nanopod.store.blobs import BlobStore
from nanopod.store.writer import GroupStore

log = logging.getLogger(__name__)

PERIOD_S: Final = 6 * 3600.0
FIRST_S: Final = 600.0
"""After a start everything else comes first."""
AGE_S_MIN: Final = 86_400.0
BUNDLE_BYTES_MAX: Final = 256 << 20
CONFIG_BYTES_MAX: Final = 1 << 20
CONFIG: Final = "./config.json"


async def run(store: GroupStore, blobs: BlobStore) -> None:
    """Sweep until cancelled."""
    wait_s = FIRST_S
    while True:
        await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
        wait_s = PERIOD_S
        try:
            used = await store.read(lambda read: read.bundles())
            gone = await asyncio.to_thread(sweep, blobs, used, time.time())
        except (NanopodError, OSError) as error:
            log.warning("bundles=not swept reason=%s", error)
            continue
        if gone:
            log.info("bundles=swept removed=%d", gone)


def sweep(blobs: BlobStore, used: Collection[str], now: float) -> int:
    """Remove the bundles that are not `used` and older than a day; how many. Blocks.

    Whoever deploys such code again uploads it again: the server asks for what it lacks. Other blobs (images, volumes)
    are left to those who keep them.
    """
    removed = 0
    for path in (blobs.directory / "sha256").glob("*/*"):
        try:
            if path.name in used or path.stat().st_mtime > now - AGE_S_MIN or not is_bundle(path):
                continue
            blobs.remove(path.name)
        except OSError as error:
            log.warning("blob=%s not looked at: %s", path.name, error.strerror)
            continue
        removed += 1
    return removed


def is_bundle(path: Path) -> bool:
    """True for an archive of ours: gzip, tar, with a config.json that names its format."""
    if not 0 < path.stat().st_size <= BUNDLE_BYTES_MAX:
        return False
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return False
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name != CONFIG:
                    continue
                content = archive.extractfile(member)
                told = json.loads(content.read(CONFIG_BYTES_MAX)) if content is not None else None
                return isinstance(told, dict) and "format" in told
    except (tarfile.TarError, zlib.error, ValueError, EOFError):
        return False
    return False
