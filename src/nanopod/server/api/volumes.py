"""Volumes: directories with numbered versions, read by many workers and written by one at a time."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Final, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import whole_of
from nanopod.server.api.objects import (
    GB,
    check_name,
    check_size,
    content_key,
    new_volume,
    room_for,
    users_of_volume,
)
from nanopod.server.api.tenants import workspace_of
from nanopod.store.transaction import Transaction
from nanopod.store.volumes import Manifest, Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume to be made. `size_gb` 0: as much as the server's disk takes; `region` says where it should be near."""

    name: str
    size_gb: float = 0.0
    region: str = ""


@dataclass(frozen=True, slots=True)
class VolumeChange:
    """What to change about a volume."""

    size_gb: float


class VolumeAnswer(TypedDict):
    """A volume. `version` 0 is empty; `size_gb` 0: no limit of its own; `writer` has the lease at present."""

    id: str
    object: str
    name: str
    region: str
    size_gb: float
    used_bytes: int
    version: int
    writer: str | None
    writer_until: float | None
    created_at: int
    updated_at: int


class VolumeCard(VolumeAnswer):
    """One volume, with the endpoints that mount it."""

    used_by: list[str]


class FilesAnswer(TypedDict):
    """What a version holds: {path: [blob, bytes, mode]}."""

    object: str
    volume_id: str
    version: int
    files: dict[str, tuple[str, int, int]]


class VersionLine(TypedDict):
    """A version that is kept."""

    version: int
    created_at: int


class DeletedVolume(TypedDict):
    """What is left of a volume."""

    id: str
    object: str
    name: str
    deleted: bool


def show(found: Volume) -> VolumeAnswer:
    """A volume as the API shows it."""
    leased = bool(found.writer) and found.writer_until > time.time()
    return {
        "id": found.volume_id,
        "object": "volume",
        "name": found.name,
        "region": found.region,
        "size_gb": found.size_bytes_max / GB,
        "used_bytes": found.used_bytes,
        "version": found.version,
        "writer": found.writer if leased else None,
        "writer_until": found.writer_until if leased else None,
        "created_at": int(found.created_at),
        "updated_at": int(found.updated_at),
    }


def found_volume(read: Transaction, key: Key, request: Request) -> Volume:
    """The volume in the path, by name or id. Raises `NotFound` saying which there are."""
    reference = request.path_params["id"]
    place = workspace_of(read, key, request.query_params.get("workspace")).workspace_id
    found = read.volume(place, reference)
    if found is None:
        known = ", ".join(one.name for one in read.volumes(place)[:20]) or "none yet"
        raise NotFound(
            f"there is no volume {reference!r} in this workspace (there are: {known}); make it with: "
            f"nanopod volumes create {reference}"
        )
    return found


# --- volumes ---


async def create_volume(context: Context, request: Request, key: Key) -> Response:
    """Make a volume: 201; 200 with the one that is there when its name is taken (nothing is changed then)."""
    wanted = await body_as(request, NewVolume)
    content_key(key)
    check_name(wanted.name)
    check_size(wanted.size_gb)
    now = context.clock()
    workspace = request.query_params.get("workspace")

    def create(write: Transaction) -> tuple[Volume, bool]:
        place = workspace_of(write, key, workspace).workspace_id
        found = write.volume(place, wanted.name)
        if found is not None:
            return found, False
        room_for(write.volumes_count(place), "volumes")
        made = new_volume(context, place, wanted.name, wanted.size_gb, wanted.region, now)
        write.add_volume(made)
        return made, True

    made, fresh = await context.store.write(create)
    return answer(show(made), 201 if fresh else 200)


async def list_volumes(context: Context, request: Request, key: Key) -> Response:
    """Every volume of the workspace, by name."""
    workspace = request.query_params.get("workspace")
    found = await context.store.read(lambda read: read.volumes(workspace_of(read, key, workspace).workspace_id))
    return whole_list(request, found, show)


async def get_volume(context: Context, request: Request, key: Key) -> Response:
    """One volume by name or id, with its users."""

    def read(read: Transaction) -> VolumeCard:
        found = found_volume(read, key, request)
        return {**show(found), "used_by": users_of_volume(read, found.workspace_id, found.name)}

    return answer(await context.store.read(read))


async def change_volume(context: Context, request: Request, key: Key) -> Response:
    """Change how large a volume may become."""
    wanted = await body_as(request, VolumeChange)
    check_size(wanted.size_gb)
    limit = int(wanted.size_gb * GB)

    def change(write: Transaction) -> Volume:
        found = found_volume(write, key, request)
        if 0 < limit < found.used_bytes:
            raise Invalid(
                f"size_gb: {wanted.size_gb} is less than the {found.used_bytes} bytes it holds; remove files first",
                field="size_gb",
            )
        write.set_volume(found.volume_id, size_bytes_max=limit)
        return replace(found, size_bytes_max=limit)

    return answer(show(await context.store.write(change)))


async def delete_volume(context: Context, request: Request, key: Key) -> Response:
    """Delete a volume with all its versions. One that an endpoint mounts is kept (409)."""

    def delete(write: Transaction) -> Volume:
        found = found_volume(write, key, request)
        if users := users_of_volume(write, found.workspace_id, found.name):
            raise Conflict(
                f"volume {found.name!r} is mounted by {', '.join(users)}: deploy without it, or delete these "
                "endpoints first"
            )
        write.delete_volume(found.volume_id)
        return found

    gone = await context.store.write(delete)
    log.info("volume=%s action=deleted key=%s", gone.name, key.key_id)
    deleted: DeletedVolume = {"id": gone.volume_id, "object": "volume", "name": gone.name, "deleted": True}
    return answer(deleted)


# --- versions ---


async def list_files(context: Context, request: Request, key: Key) -> Response:
    """What a version of a volume holds; the newest unless another one is named."""
    content_key(key)
    wanted = whole_of(request, "version")

    def read(read: Transaction) -> tuple[Volume, int, Manifest]:
        found = found_volume(read, key, request)
        version = found.version if wanted is None else wanted
        manifest = read.manifest(found.volume_id, version)
        if manifest is None:
            kept = ", ".join(str(number) for number, _ in read.volume_versions(found.volume_id)) or "none"
            raise NotFound(f"version: volume {found.name!r} has no version {version} (any more); kept are: {kept}")
        return found, version, manifest

    found, version, manifest = await context.store.read(read)
    shown: FilesAnswer = {
        "object": "volume.files", "volume_id": found.volume_id, "version": version, "files": manifest,
    }  # fmt: skip
    return answer(shown)


async def list_versions(context: Context, request: Request, key: Key) -> Response:
    """The versions that are kept, newest first."""
    found = await context.store.read(lambda read: read.volume_versions(found_volume(read, key, request).volume_id))
    rows = [{"id": str(version), "version": version, "created_at": int(at)} for version, at in found]
    return whole_list(request, rows, lambda row: row)


_W: Final = ("workspace",)
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/volumes", create_volume, "Make a volume", scope="call", body=NewVolume, answer=VolumeAnswer,
        status=201, also=(200,), query=_W,
    ),
    Operation(
        "GET", "/v1/volumes", list_volumes, "List volumes", scope="call", answer=VolumeAnswer, listed=True,
        query=("workspace", "limit", "starting_after"),
    ),
    Operation(
        "GET", "/v1/volumes/{id}", get_volume, "One volume", scope="call", answer=VolumeCard, query=_W,
        errors=(404,),
    ),
    Operation(
        "PATCH", "/v1/volumes/{id}", change_volume, "Change a volume's size limit", body=VolumeChange,
        answer=VolumeAnswer, query=_W, errors=(404,),
    ),
    Operation(
        "DELETE", "/v1/volumes/{id}", delete_volume, "Delete a volume", answer=DeletedVolume, query=_W,
        errors=(404, 409),
    ),
    Operation(
        "GET", "/v1/volumes/{id}/files", list_files, "What a version holds", scope="call", answer=FilesAnswer,
        query=("workspace", Query("version", "Which one; the newest by default.", "integer", least=0)), errors=(404,),
    ),
    Operation(
        "GET", "/v1/volumes/{id}/versions", list_versions, "Versions that are kept", scope="read", answer=VersionLine,
        listed=True, query=("workspace", "limit", "starting_after"), errors=(404,),
    ),
)  # fmt: skip
