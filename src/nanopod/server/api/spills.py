"""Arguments and results that are too large for a call's frames: kept for a day under their digest, per workspace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from nanopod.model.chain import Key
from nanopod.model.errors import NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.blobs import BlobAnswer
from nanopod.server.api.bodies import TooLarge
from nanopod.server.api.context import Context, Operation
from nanopod.store.blobs import BLOB_BYTES_MAX, BlobStore

KEPT_S: Final = 26 * 3600.0
"""Results of spawned calls are kept for a day; what they refer to, a little longer."""
SWEEP_S: Final = 600.0
_stores: dict[Path, BlobStore] = {}
_swept: dict[Path, float] = {}


def _store(context: Context, key: Key) -> BlobStore:
    """The payloads of the key's workspace; nobody else can name them."""
    directory = context.blobs.directory.parent / "spills" / key.workspace_id
    found = _stores.get(directory)
    if found is None:
        found = _stores[directory] = BlobStore(directory, lambda digest: directory / digest[:2] / digest)
    return found


def sweep(directory: Path, before: float) -> int:
    """Remove payloads that nobody put since `before` (Unix seconds); how many."""
    removed = 0
    for file in directory.glob("*/*"):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < before:
                file.unlink()
                removed += 1
    return removed


async def head_spill(context: Context, request: Request, key: Key) -> Response:
    """204 when it is here (it is kept for another day then), 404 when not."""
    store, digest = _store(context, key), request.path_params["sha256"]
    if not store.has(digest):
        return Response(status_code=404)
    with contextlib.suppress(OSError):
        os.utime(store.path(digest))
    return Response(status_code=204)


async def get_spill(context: Context, request: Request, key: Key) -> Response:
    """Its bytes. Raises `NotFound`."""
    store, digest = _store(context, key), request.path_params["sha256"]
    if not store.has(digest):
        raise NotFound(f"there is no payload {digest}; large payloads are kept for a day")
    return FileResponse(store.path(digest), media_type="application/octet-stream")


async def put_spill(context: Context, request: Request, key: Key) -> Response:
    """Keep a payload: 201, or 200 when it was here already."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BLOB_BYTES_MAX:
        raise TooLarge(f"a payload may have at most {BLOB_BYTES_MAX >> 20} MiB")
    store, digest = _store(context, key), request.path_params["sha256"]
    now = time.time()
    if now - _swept.get(store.directory, 0.0) > SWEEP_S:
        _swept[store.directory] = now
        await asyncio.to_thread(sweep, store.directory, now - KEPT_S)
    fresh = await store.put(digest, request.stream())
    if not fresh:
        with contextlib.suppress(OSError):
            os.utime(store.path(digest))
    return answer({"object": "blob", "sha256": digest, "size": store.size(digest)}, 201 if fresh else 200)


OPERATIONS: Final = (
    Operation(
        "HEAD", "/v1/spills/{sha256}", head_spill, "Is this large payload here?", scope="call", status=204,
        errors=(404,),
    ),
    Operation(
        "GET", "/v1/spills/{sha256}", get_spill, "Fetch a large argument or result", scope="call", errors=(404,),
        media="application/octet-stream",
    ),
    Operation(
        "PUT", "/v1/spills/{sha256}", put_spill, "Keep a large argument or result for a day", scope="call",
        answer=BlobAnswer, status=201, also=(200,), errors=(413,),
    ),
)  # fmt: skip
