"""What is in a volume: the lease of its one writer, commits, and the parts of its files."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import TooLarge, body_as, parse
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import CodedError
from nanopod.server.api.objects import GB, content_key, octets
from nanopod.server.api.volumes import VolumeAnswer, found_volume, show
from nanopod.store.blobs import BLOB_BYTES_MAX, BlobStore
from nanopod.store.transaction import Transaction
from nanopod.store.volumes import Entry, Manifest, Volume

log = logging.getLogger(__name__)

FILES_MAX: Final = 100_000
PATH_BYTES_MAX: Final = 1024
COMMIT_BYTES_MAX: Final = 64 << 20
LEASE_S_MAX: Final = 600.0
LEASE_S: Final = 60.0
MISSING_SHOWN_MAX: Final = 1000
_PLAIN: Final = re.compile(r"(?!\.{1,2}(/|$))[^/\0]+(/(?!\.{1,2}(/|$))[^/\0]+)*")


@dataclass(frozen=True, slots=True)
class LeaseBody:
    """Who wants to write, under a name of his own choosing, and for how long."""

    writer: str
    lease_s: float = LEASE_S


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file's new content: `blob` are the digests of its parts with blanks between, "" for an empty file.

    `was` is the `blob` that the writer saw there, null when he saw none. `gone` removes the file.
    """

    blob: str = ""
    bytes: int = 0
    mode: int = 0o644
    was: str | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class CommitBody:
    """What a writer changed since the version that he saw."""

    writer: str
    files: dict[str, FileChange] = field(default_factory=dict)


class CommitAnswer(TypedDict):
    """The version that a commit made, and what the volume holds then."""

    object: str
    volume_id: str
    version: int
    files: dict[str, tuple[str, int, int]]


class BlobStored(TypedDict):
    """A part of a file that was uploaded."""

    object: str
    sha256: str
    size: int


async def take_lease(context: Context, request: Request, key: Key) -> Response:
    """Become the one writer, or stay it for longer. 409 names who is."""
    wanted = await body_as(request, LeaseBody)
    content_key(key)
    if not 0 < wanted.lease_s <= LEASE_S_MAX:
        raise Invalid(
            f"lease_s: {wanted.lease_s} must be above 0 and at most {LEASE_S_MAX:.0f} seconds", field="lease_s"
        )
    if not 1 <= len(wanted.writer) <= 255:
        raise Invalid("writer: give a name of 1 to 255 characters", field="writer")
    now = time.time()

    def lease(write: Transaction) -> Volume:
        found = write.lease_volume(
            found_volume(write, key, request).volume_id, wanted.writer, now, now + wanted.lease_s
        )
        if found.writer != wanted.writer:
            raise _leased(found, now)
        return found

    return answer(show(await context.store.write(lease)))


def _leased(found: Volume, now: float) -> CodedError:
    left_s = max(1, round(found.writer_until - now))
    return CodedError(
        Conflict(
            f"volume {found.name!r} is being written by {found.writer} (its lease ends in {left_s} s): wait, then try "
            "again"
        ),
        "volume_leased",
    )


async def end_lease(context: Context, request: Request, key: Key) -> Response:
    """The writer is done."""
    content_key(key)
    writer = request.query_params.get("writer", "")

    def release(write: Transaction) -> Volume:
        found = found_volume(write, key, request)
        write.release_volume(found.volume_id, writer)
        return replace(found, writer="" if found.writer == writer else found.writer)

    return answer(show(await context.store.write(release)))


async def commit(context: Context, request: Request, key: Key) -> Response:
    """Make the next version: all of the changes, or none of them.

    409 when another writer has the lease, when a file was changed by others since the writer saw it, or (with code
    `blob_missing` and the digests) when content was not uploaded.
    """
    content_key(key)
    wanted = parse(await octets(request, COMMIT_BYTES_MAX), CommitBody)
    for path, change in wanted.files.items():
        _check_change(path, change)
    digests = {digest for change in wanted.files.values() for digest in change.blob.split()}
    missing = sorted(digest for digest in digests if not context.blobs.has(digest))
    if missing:
        shown = " ".join(missing[:MISSING_SHOWN_MAX])
        raise CodedError(Conflict(f"files: upload what they hold first: {shown}", field="files"), "blob_missing")
    at, wall = context.clock(), time.time()

    def apply(write: Transaction) -> tuple[Volume, int, Manifest]:
        found = found_volume(write, key, request)
        if found.writer != wanted.writer and found.writer and found.writer_until > wall:
            raise _leased(found, wall)
        before = write.manifest(found.volume_id, found.version)
        assert before is not None, "the newest version is always kept"
        after = merged(found.name, before, wanted.files)
        if after == before:
            return found, found.version, before
        used = sum(size for _, size, _ in after.values())
        if found.size_bytes_max and used > max(found.size_bytes_max, found.used_bytes):
            raise Invalid(
                f"size_gb: volume {found.name!r} would hold {used / GB:.3f} GB, above its limit of "
                f"{found.size_bytes_max / GB:g} GB; remove files, or raise the limit: nanopod volumes resize",
                field="size_gb",
            )
        return found, write.commit_volume(found, after, used, at), after

    found, version, manifest = await context.store.write(apply)
    log.info("volume=%s version=%d changes=%d key=%s", found.name, version, len(wanted.files), key.key_id)
    made: CommitAnswer = {
        "object": "volume.commit", "volume_id": found.volume_id, "version": version, "files": manifest,
    }  # fmt: skip
    return answer(made)


def _check_change(path: str, change: FileChange) -> None:
    where = f"files.{path[:100]}"
    if not _PLAIN.fullmatch(path) or len(path.encode("utf-8", "surrogatepass")) > PATH_BYTES_MAX:
        raise Invalid(f"{where}: a path is relative, without .. and at most {PATH_BYTES_MAX} bytes long", field=where)
    if change.gone:
        return
    for digest in change.blob.split():
        BlobStore.check(digest)
    if change.bytes < 0 or (change.bytes > 0) != bool(change.blob) or not 0 <= change.mode <= 0o777:
        raise Invalid(f"{where}: give blob, bytes (0 or more) and mode (0 to 511) that fit together", field=where)


def merged(name: str, before: Manifest, changes: dict[str, FileChange]) -> Manifest:
    """A manifest with changes. Raises `Conflict` naming files that others changed since the writer saw them."""
    after = dict(before)
    clashes = []
    for path, change in changes.items():
        there = before.get(path)
        new: Entry | None = None if change.gone else (change.blob, change.bytes, change.mode)
        blob_there = there[0] if there is not None else None
        if blob_there != change.was and there != new:
            clashes.append(path)
        elif new is None:
            after.pop(path, None)
        else:
            after[path] = new
    if clashes:
        shown = ", ".join(sorted(clashes)[:5]) + (f" and {len(clashes) - 5} more" if len(clashes) > 5 else "")
        raise Conflict(
            f"others committed {shown} to volume {name!r} since this copy was loaded: save your files elsewhere, call "
            ".reload(discard=True), and commit again",
            field="files",
        )
    if len(after) > FILES_MAX:
        raise Invalid(f"files: a volume holds at most {FILES_MAX} files; pack some into archives", field="files")
    directories = {path[: at.start()] for path in after for at in re.finditer("/", path)}
    if both := sorted(directories & after.keys()):
        raise Invalid(f"files: {both[0]!r} would be a file and a directory; remove one first", field="files")
    return after


# --- content ---


async def head_part(context: Context, request: Request, key: Key) -> Response:
    """204 when the part is here, 404 when it must be uploaded."""
    content_key(key)
    await context.store.read(lambda read: found_volume(read, key, request))
    size = context.blobs.size(request.path_params["sha256"])
    return Response(status_code=404 if size is None else 204)


async def put_part(context: Context, request: Request, key: Key) -> Response:
    """Upload a part of a file; its digest is verified on the way."""
    content_key(key)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BLOB_BYTES_MAX:
        raise TooLarge(f"a part may have at most {BLOB_BYTES_MAX >> 20} MiB")
    await context.store.read(lambda read: found_volume(read, key, request))
    digest = request.path_params["sha256"]
    fresh = await context.blobs.put(digest, request.stream())
    stored: BlobStored = {"object": "blob", "sha256": digest, "size": context.blobs.size(digest) or 0}
    return answer(stored, 201 if fresh else 200)


async def get_part(context: Context, request: Request, key: Key) -> Response:
    """A part of a file of a version of this volume that is kept."""
    content_key(key)
    digest = BlobStore.check(request.path_params["sha256"])

    def holds(read: Transaction) -> bool:
        found = found_volume(read, key, request)
        versions = [found.version, *(number for number, _ in read.volume_versions(found.volume_id))]
        return any(
            digest in blob
            for version in dict.fromkeys(versions)
            for blob, _, _ in (read.manifest(found.volume_id, version) or {}).values()
        )

    if not await context.store.read(holds) or not context.blobs.has(digest):
        raise NotFound(f"no version of this volume that is kept holds {digest}: reload it")
    return FileResponse(context.blobs.path(digest), media_type="application/octet-stream")


_W: Final = ("workspace",)
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/volumes/{id}/versions", commit, "Commit changes as the next version", scope="call",
        body=CommitBody, answer=CommitAnswer, query=_W, errors=(404, 409, 413),
    ),
    Operation(
        "POST", "/v1/volumes/{id}/lease", take_lease, "Become the one writer", scope="call", body=LeaseBody,
        answer=VolumeAnswer, query=_W, errors=(404, 409),
    ),
    Operation(
        "DELETE", "/v1/volumes/{id}/lease", end_lease, "Stop being the writer", scope="call", answer=VolumeAnswer,
        query=("workspace", Query("writer", "Who.")), errors=(404,),
    ),
    Operation(
        "HEAD", "/v1/volumes/{id}/parts/{sha256}", head_part, "Is this part of a file here?", scope="call", status=204,
        query=_W, errors=(404,),
    ),
    Operation(
        "PUT", "/v1/volumes/{id}/parts/{sha256}", put_part, "Upload a part of a file", scope="call", answer=BlobStored,
        status=201, also=(200,), query=_W, errors=(404, 413),
    ),
    Operation(
        "GET", "/v1/volumes/{id}/parts/{sha256}", get_part, "A part of a file", scope="call", query=_W, errors=(404,),
        media="application/octet-stream",
    ),
)  # fmt: skip
