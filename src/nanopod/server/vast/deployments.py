"""Deployments in Vast's shape: put, upload, download, look, stop, start, delete."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Denied, Invalid, NotFound, Unauthenticated
from nanopod.server.api.bodies import TooLarge, parse, read_body
from nanopod.server.api.context import Context
from nanopod.server.api.endpoints import put_spec, remove_endpoint
from nanopod.server.vast.answers import fields_of, key_text, keyholder, number_of
from nanopod.server.vast.spec import Wish, asleep, changed, spec_of, wish_of
from nanopod.server.vast.state import Vast
from nanopod.store.blobs import BLOB_BYTES_MAX
from nanopod.store.transaction import Transaction
from nanopod.store.vast import VastDeployment, VastVersion

VERSIONS_KEPT: Final = 10


def base_of(request: Request) -> str:
    """The address under which the caller reached this cloud."""
    scheme = request.headers.get("x-forwarded-proto", "http")
    return f"{scheme}://{request.headers.get('host', '127.0.0.1')}"


async def put(context: Context, _vast: Vast, request: Request) -> Response:
    """PUT /deployments/: create or update; the answer says whether the tar is wanted."""
    key = await keyholder(context, request)
    wish = parse(await read_body(request), Wish)
    wish.check()
    now = context.clock()
    token = secrets.token_urlsafe(24)

    def write(write: Transaction) -> tuple[VastDeployment, str, list[int], bool]:
        found = write.vast_deployment_named(key.workspace_id, wish.name, wish.tag)
        if found is not None and not found.config.get("file_hash"):
            raise Conflict(f"name: {wish.name} is an endpoint without a deployment; delete it first", field="name")
        action = "created" if found is None else changed(wish_of(found.config), wish)
        if found is None:
            found = write.add_vast_deployment(key.workspace_id, wish.name, wish.tag, wish.kept(), now)
        have = any(
            version.blob and version.file_hash == wish.file_hash for version in write.vast_versions(found.number)
        )
        values: dict[str, Any] = {"config": wish.kept(), "updated_at": now, "heartbeat_at": now, "state": "active"}
        evicted: list[int] = []
        if not have:
            # The one who may upload is the one who was told so, whoever finds the address.
            values |= {"upload": hashlib.sha256(token.encode()).hexdigest()}
            write.add_vast_version(found.number, wish.file_hash, wish.version_label, now)
            evicted = write.drop_vast_versions(found.number, VERSIONS_KEPT)
        else:
            match = next(v for v in write.vast_versions(found.number) if v.blob and v.file_hash == wish.file_hash)
            values |= {"blob": match.blob, "version_id": match.number, "upload": ""}
        write.set_vast_deployment(found.number, **values)
        kept = write.vast_deployment(found.number)
        assert kept is not None, "just written"
        return kept, action, evicted, have

    found, action, evicted, have = await context.store.write(write)
    if have and action != "exists":
        await apply(context, key, found)
    body: dict[str, Any] = {
        "success": True,
        "action": action,
        "deployment_id": found.number,
        "endpoint_id": found.number,
        "workergroup_id": found.number,
    }
    if not have:
        body |= {
            "upload_url": f"{base_of(request)}/vast/{found.number}/upload",
            "upload_fields": {"key": f"deployments/{found.number}/{wish.file_hash}.tar.gz", "token": token},
        }
    if evicted:
        body["evicted_versions"] = evicted
    return JSONResponse(body)


async def upload(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /vast/{id}/upload: the tar as a form, after its fields; good once, with the token that `put` gave."""
    number = number_of(request.path_params["id"], "id")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BLOB_BYTES_MAX + 65_536:
        raise TooLarge(f"a deployment may have at most {BLOB_BYTES_MAX >> 20} MiB")
    found = await context.store.read(lambda read: read.vast_deployment(number))
    if found is None or not found.upload:
        raise Denied("nothing is to be uploaded here; PUT /api/v0/deployments/ first")
    try:
        form = await request.form(max_files=1, max_fields=16)
    except MultiPartException as error:
        raise Invalid(f"the body is no form: {error.message}") from None
    try:
        token, file = form.get("token"), form.get("file")
        digest = hashlib.sha256(str(token or "").encode()).hexdigest()
        if not hmac.compare_digest(digest, found.upload):
            raise Denied("token: is not the one that was given for this upload", field="token")
        if file is None or isinstance(file, str):
            raise Invalid("file: the form has no file of that name", field="file")
        blob = await _keep(context, await file.read())
    finally:
        await form.close()
    key = await _owner(context, found)
    pending = await _version_awaited(context, found)
    await _accept(context, key, found, pending, blob)
    return Response(status_code=204)


async def _keep(context: Context, data: bytes) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    digest = hashlib.sha256(data).hexdigest()
    await context.blobs.put(digest, chunks())
    return digest


async def _version_awaited(context: Context, found: VastDeployment) -> VastVersion:
    versions = await context.store.read(lambda read: read.vast_versions(found.number))
    wanted = str(found.config.get("file_hash"))
    for version in versions:
        if version.file_hash == wanted and not version.blob:
            return version
    raise Conflict("this version was uploaded already; PUT /api/v0/deployments/ again")


async def _owner(context: Context, found: VastDeployment) -> Key:
    """A key's worth of rights in the deployment's workspace, for what its own token allows."""
    return Key(
        key_id="vast", workspace_id=found.workspace_id, name="vast upload", digest="", scopes=("admin",),
        endpoints=None, created_at=found.created_at, expires_at=None, last_used_at=None, revoked_at=None,
    )  # fmt: skip


async def _accept(context: Context, key: Key, found: VastDeployment, version: VastVersion, blob: str) -> None:
    """The file is here: run it."""
    # What is wrong with the tar must be told before anything points at it.
    spec_of(wish_of(found.config), context.blobs.path(blob), blob)

    def write(write: Transaction) -> VastDeployment:
        write.set_vast_version(version.number, blob)
        write.set_vast_deployment(found.number, blob=blob, version_id=version.number, upload="")
        kept = write.vast_deployment(found.number)
        assert kept is not None, "just written"
        return kept

    await apply(context, key, await context.store.write(write))


async def apply(context: Context, key: Key, found: VastDeployment) -> None:
    """Bring the endpoint behind a deployment to what is stored of it."""
    spec = spec_of(wish_of(found.config), context.blobs.path(found.blob), found.blob)
    if found.state == "stopped":
        spec = asleep(spec)
    whole, _ = await put_spec(context, key, spec)
    endpoint_id = whole[0].endpoint_id
    if endpoint_id != found.endpoint_id:
        await context.store.write(lambda write: write.set_vast_deployment(found.number, endpoint_id=endpoint_id))


async def find(context: Context, key: Key, number: int) -> VastDeployment:
    """A deployment of the key's workspace. Raises `NotFound`."""
    found = await context.store.read(lambda read: read.vast_deployment(number))
    if found is None or found.workspace_id != key.workspace_id:
        raise NotFound(f"there is no deployment {number}")
    return found


async def heartbeat(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /deployment/{id}/heartbeat/: a client is alive."""
    key = await keyholder(context, request, scope="call")
    found = await find(context, key, number_of(request.path_params["id"], "id"))
    now = context.clock()

    def beat(write: Transaction) -> None:
        write.set_vast_deployment(found.number, heartbeat_at=now)
        if found.endpoint_id:
            write.heartbeat(found.endpoint_id, now)

    await context.store.write(beat)
    return JSONResponse({"success": True})


async def list_all(context: Context, _vast: Vast, request: Request) -> Response:
    """GET /deployments."""
    key = await keyholder(context, request, scope="read")
    rows = await context.store.read(lambda read: read.vast_deployments(key.workspace_id))
    shown_rows = [await shown(context, row) for row in rows if row.config.get("file_hash")]
    return JSONResponse({"success": True, "deployments": shown_rows})


async def get(context: Context, vast: Vast, request: Request) -> Response:
    """GET /deployment/{id}/."""
    key = await keyholder(context, request, scope="read")
    found = await find(context, key, number_of(request.path_params["id"], "id"))
    body = await shown(context, found)
    if "admin" in key.scopes:
        body["worker_key"] = vast.worker_key(found.number)
    return JSONResponse({"success": True, "deployment": body})


async def versions(context: Context, _vast: Vast, request: Request) -> Response:
    """GET /deployment/{id}/versions/."""
    key = await keyholder(context, request, scope="read")
    found = await find(context, key, number_of(request.path_params["id"], "id"))
    rows = await context.store.read(lambda read: read.vast_versions(found.number))
    shown_rows = [
        {"id": row.number, "deployment_id": found.number, "file_hash": row.file_hash, "version_label": row.label,
         "s3_key": _s3_key(found.number, row.file_hash) if row.blob else None, "created_at": row.created_at,
         "is_current": row.number == found.version_id}
        for row in rows
    ]  # fmt: skip
    return JSONResponse({"success": True, "versions": shown_rows})


async def stop(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /deployment/{id}/stop/: no workers until it is started again."""
    return await _set_state(context, request, "stopped")


async def start(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /deployment/{id}/start/."""
    return await _set_state(context, request, "active")


async def _set_state(context: Context, request: Request, state: str) -> Response:
    key = await keyholder(context, request)
    found = await find(context, key, number_of(request.path_params["id"], "id"))

    def write(write: Transaction) -> VastDeployment:
        write.set_vast_deployment(found.number, state=state, updated_at=context.clock())
        kept = write.vast_deployment(found.number)
        assert kept is not None, "found above"
        return kept

    kept = await context.store.write(write)
    if kept.blob:
        await apply(context, key, kept)
    return JSONResponse({"success": True, "msg": f"deployment {found.number} is {state}"})


async def delete(context: Context, vast: Vast, request: Request) -> Response:
    """DELETE /deployment/{id}/."""
    key = await keyholder(context, request)
    found = await find(context, key, number_of(request.path_params["id"], "id"))
    await remove(context, vast, key, found)
    return JSONResponse({"success": True})


async def delete_named(context: Context, vast: Vast, request: Request) -> Response:
    """DELETE /deployments/ with `{name, tag?}`; without a tag every one of that name."""
    key = await keyholder(context, request)
    body = await fields_of(request)
    name, tag = body.get("name"), body.get("tag")
    if not isinstance(name, str):
        raise Invalid("name: say which deployment", field="name")
    rows = await context.store.read(lambda read: read.vast_deployments(key.workspace_id))
    gone = [row for row in rows if row.name == name and tag in (None, row.tag)]
    for row in gone:
        await remove(context, vast, key, row)
    return JSONResponse({"success": True, "count": len(gone)})


async def remove(context: Context, vast: Vast, key: Key, found: VastDeployment) -> None:
    """Delete a deployment and the endpoint behind it."""
    if found.endpoint_id:
        try:
            await remove_endpoint(context, key, found.endpoint_id)
        except NotFound:
            pass  # deleted by other means already
    await context.store.write(lambda write: write.delete_vast_deployment(found.number))
    vast.forget(found.number)


async def download_url(context: Context, vast: Vast, request: Request) -> Response:
    """GET /deployment/{id}/download_url/: where a worker finds the code; for its worker key, or an admin's."""
    found = await _for_worker(context, vast, request)
    if not found.blob:
        raise NotFound(f"deployment {found.number} has no file yet")
    token = vast.worker_key(found.number)
    return JSONResponse(
        {"success": True, "download_url": f"{base_of(request)}/vast/{found.number}/code/{_proof(token, found.blob)}"}
    )


async def download(context: Context, vast: Vast, request: Request) -> Response:
    """GET /vast/{id}/code/{proof}: the tar. The address itself is the permission, for this file alone."""
    number = number_of(request.path_params["id"], "id")
    found = await context.store.read(lambda read: read.vast_deployment(number))
    right = _proof(vast.worker_key(number), found.blob) if found is not None and found.blob else ""
    if found is None or not right or not hmac.compare_digest(right, request.path_params["proof"]):
        raise NotFound("there is no such file; ask download_url for its address")
    path: Path = context.blobs.path(found.blob)
    return FileResponse(os.fspath(path), media_type="application/gzip")


def _proof(worker_key: str, blob: str) -> str:
    return hmac.digest(worker_key.encode(), blob.encode(), hashlib.sha256).hex()


async def _for_worker(context: Context, vast: Vast, request: Request) -> VastDeployment:
    number = number_of(request.path_params["id"], "id")
    if vast.deployment_of(key_text(request), "worker") == number:
        found = await context.store.read(lambda read: read.vast_deployment(number))
        if found is None:
            raise Unauthenticated("the deployment of this key is gone")
        return found
    return await find(context, await keyholder(context, request), number)


def _s3_key(number: int, file_hash: str) -> str:
    return f"deployments/{number}/{file_hash}.tar.gz"


async def shown(context: Context, row: VastDeployment) -> dict[str, Any]:
    """A deployment as Vast's client reads it."""
    wish = wish_of(row.config)

    def look(read: Transaction) -> tuple[int, int | None]:
        endpoint = read.endpoint(row.endpoint_id) if row.endpoint_id else None
        if endpoint is None:
            return 0, None
        count = sum(1 for instance in read.instances_of(endpoint.endpoint_id) if instance.live)
        revision = read.revision(endpoint.revision_id)
        healthy = row.version_id if revision is not None and revision.healthy_at is not None else None
        return count, healthy

    workers, healthy = await context.store.read(look)
    return {
        "id": row.number,
        "name": row.name,
        "tag": row.tag,
        "endpoint_id": row.number,
        "endpoint_state": row.state,
        "worker_count": workers,
        "s3_key": _s3_key(row.number, wish.file_hash) if row.blob else None,
        "env": wish.env,
        "image": wish.image,
        "storage": wish.storage,
        "search_params": wish.search_params,
        "file_hash": wish.file_hash,
        "current_version_id": row.version_id,
        "last_healthy_version_id": healthy,
        "ttl": wish.ttl,
        "last_client_heartbeat": row.heartbeat_at,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "version_label": wish.version_label,
    }
