"""Blobs: uploaded bundles, named by their SHA-256."""

from __future__ import annotations

from typing import Final, TypedDict

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from nanopod.model.chain import Key
from nanopod.model.errors import NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import TooLarge
from nanopod.server.api.context import Context, Operation
from nanopod.store.blobs import BLOB_BYTES_MAX


class BlobAnswer(TypedDict):
    """An uploaded blob."""

    object: str
    sha256: str
    size: int


async def head_blob(context: Context, request: Request, _key: Key) -> Response:
    """204 when it is here, 404 when not."""
    size = context.blobs.size(request.path_params["sha256"])
    return Response(status_code=404 if size is None else 204)


async def get_blob(context: Context, request: Request, _key: Key) -> Response:
    """The bytes of a blob. Raises `NotFound`."""
    digest = request.path_params["sha256"]
    if context.blobs.size(digest) is None:
        raise NotFound(f"there is no blob {digest}")
    return FileResponse(context.blobs.path(digest), media_type="application/octet-stream")


async def put_blob(context: Context, request: Request, _key: Key) -> Response:
    """Keep a blob: 201, or 200 when it was here already."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BLOB_BYTES_MAX:
        raise TooLarge(f"a blob may have at most {BLOB_BYTES_MAX >> 20} MiB")
    digest = request.path_params["sha256"]
    fresh = await context.blobs.put(digest, request.stream())
    size = context.blobs.size(digest)
    return answer({"object": "blob", "sha256": digest, "size": size}, 201 if fresh else 200)


OPERATIONS: Final = (
    Operation("HEAD", "/v1/blobs/{sha256}", head_blob, "Is this blob here?", status=204, errors=(404,)),
    Operation(
        "GET", "/v1/blobs/{sha256}", get_blob, "Download a blob", media="application/octet-stream", errors=(404,),
    ),
    Operation(
        "PUT", "/v1/blobs/{sha256}", put_blob, "Upload a blob; its digest is verified on the way", answer=BlobAnswer,
        status=201, also=(200,), errors=(413,),
    ),
)  # fmt: skip
