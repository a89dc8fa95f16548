"""New code for an instance that runs: unpacked beside the old, swapped in by the worker itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.model.endpoint import InstanceSpec
from nanopod.model.layout import Layout
from nanopod.node import bundle, files, records

ANSWER_S_MAX: Final = 10.0
_log: Final = logging.getLogger(__name__)


def is_swap(old: InstanceSpec, new: InstanceSpec) -> bool:
    """Whether `new` is the same start of the same instance with other function bodies."""
    return bool(
        new.epoch == old.epoch
        and new.revision_id != old.revision_id
        and new.app.swap_from
        and old.app.kind == "function"
    )


async def swap(directory: Path, spec: InstanceSpec, layout: Layout) -> str:
    """Have a running worker take the code of `spec`; "" when it did, else why it could not."""
    place = directory / files.NEXT
    try:
        await asyncio.to_thread(bundle.unpack, layout.blob(spec.app.bundle), spec.app.bundle, place, ())
        answer = await ask(directory, {"files": str(place), "revision": spec.revision_id})
    except (bundle.BundleError, OSError, ValueError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await asyncio.to_thread(shutil.rmtree, place, True)
    if "error" in answer:
        return str(answer["error"])
    start = records.read_start(directory)
    if start is not None:
        records.write_start(directory, msgspec.structs.replace(start, instance=spec))
    _log.info("instance=%s revision=%s swapped in: %s", spec.instance_id, spec.revision_id, answer.get("functions"))
    return ""


async def ask(directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Ask a running worker on its socket; `error` in the answer says what it could not do.

    Raises OSError or TimeoutError.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/{files.SWAP}")
            writer.write(json.dumps(request).encode() + b"\n")
            line = await reader.readline()
            writer.close()
    finally:
        os.close(fd)
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {"error": "the worker said nothing"}
