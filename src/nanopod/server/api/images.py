"""Images: root file systems as tar archives, uploaded in parts. `host`, the machine's own system, is built in."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from nanopod.model.chain import Image, Key
from nanopod.model.errors import Conflict, Denied, Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import TooLarge, body_as, parse, read_body
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import given
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.parts import IMAGE_BYTES_MAX, PART_BYTES_MAX, PARTS_MAX, PartStore
from nanopod.server.api.references import Scope, check_name, find_image, scope_of, workspace_reference
from nanopod.server.api.showing import Changeable, Owners, changeable
from nanopod.store.transaction import Transaction

HOST: Final = "host"
RESERVED: Final = ("generations", "edits", "variations", "host")
"""Names below /v1/images that the gateway serves itself, and the built-in image."""
COMPLETE_S_MAX: Final = 20.0
"""How long `complete` waits for the parts to be joined before it answers that they still are."""

_joining: dict[str, asyncio.Task[Image]] = {}
"""Uploads whose parts are being joined, by image; one event loop has them."""


class ImageWish(msgspec.Struct, frozen=True):
    """An image to be uploaded. A public one can be used from every workspace; only the operator makes such."""

    name: str
    is_public: bool = False
    workspace: str | None = None


class ImageChange(msgspec.Struct, frozen=True):
    """What to change of an image; its content never changes."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    is_public: bool | msgspec.UnsetType = msgspec.UNSET


class PartFacts(msgspec.Struct, frozen=True):
    """What a client knows of a part that it sent."""

    part_number: int
    size: int | None = None
    sha256: str | None = None


class CompleteWish(msgspec.Struct, frozen=True):
    """The end of an upload. What is given is compared with what arrived: all parts, the whole size, the digest."""

    parts: tuple[PartFacts, ...] | None = None
    size: int | None = None
    sha256: str | None = None


class ImageAnswer(Changeable):
    """An image."""

    upload_status: str
    sha256: str | None
    size: int
    is_public: bool
    parts: int


class PartAnswer(TypedDict):
    """A part of an image that has arrived."""

    object: str
    image_id: str
    part_number: int
    size: int
    sha256: str


def _part(image_id: str, number: int, size: int, digest: str) -> PartAnswer:
    return {"object": "image_part", "image_id": image_id, "part_number": number, "size": size, "sha256": digest}


def show(read: Transaction, image: Image) -> ImageAnswer:
    """An image as the API shows it."""
    return {
        **changeable(
            Owners(read), "image", image.image_id, image.workspace_id, image.name, image.created_at, image.updated_at
        ),
        "upload_status": image.upload_status,
        "sha256": image.sha256 or None,
        "size": image.size,
        "is_public": image.is_public,
        "parts": sum(1 for digest in image.parts if digest),
    }


def _changeable(scope: Scope, image: Image, what: str) -> Image:
    """Raises `Denied` for somebody else's image and for the built-in one."""
    if not scope.sees(image.workspace_id):
        raise Denied(f"image {image.name} belongs to another workspace, which alone may {what} it")
    if image.name == HOST and image.is_public and not image.sha256:
        raise Denied(f"image {HOST} is the machine's own system; nobody can {what} it")
    return image


def _mine(write: Transaction, request: Request, key: Key, what: str) -> Image:
    scope = scope_of(write, key, workspace_reference(request))
    return _changeable(scope, find_image(write, scope, request.path_params["id"], None), what)


def _image(read: Transaction, image_id: str) -> Image:
    found = read.image(image_id)
    if found is None:
        raise Conflict("the image was deleted meanwhile")
    return found


def _checked(write: Transaction, workspace_id: str, name: str) -> str:
    check_name(name)
    if name in RESERVED:
        raise Invalid(f"name: {name!r} is reserved; choose another", field="name")
    if write.image_named(workspace_id, name) is not None:
        raise BadRequest(f"name: an image {name!r} exists already; delete it, or choose another name", field="name")
    return name


async def create_image(context: Context, request: Request, key: Key) -> Response:
    """Begin the upload of an image; its parts follow."""
    wish = await body_as(request, ImageWish)
    image_id, now = context.new_id("image"), context.clock()

    def write(write: Transaction) -> ImageAnswer:
        scope = scope_of(write, key, workspace_reference(request, wish.workspace))
        if wish.is_public and not scope.operator:
            raise Denied("is_public: only the cluster's operator makes public images")
        workspace_id = scope.workspace.workspace_id
        name = _checked(write, workspace_id, wish.name)
        made = Image(image_id, workspace_id, name, "started", "", 0, wish.is_public, (), now, now)
        write.add_image(made)
        write.add_notice(now, workspace_id, "image.created", image_id, {"name": name})
        return show(write, made)

    return answer(await context.store.write(write), 201)


async def list_images(context: Context, request: Request, key: Key) -> Response:
    """Images, own and public, newest first."""
    page = page_of(request, "image_")

    def read(read: Transaction) -> list[ImageAnswer]:
        scope = scope_of(read, key, workspace_reference(request))
        places = [scope.listed] if scope.listed else [w.workspace_id for w in read.workspaces_all()]
        found = {image.image_id: image for place in places for image in read.images(place)}
        rows = sorted(found.values(), key=lambda i: (i.created_at, i.image_id), reverse=True)
        return [show(read, image) for image in cut(page, rows, lambda i: i.image_id)]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


async def get_image(context: Context, request: Request, key: Key) -> Response:
    """One image."""

    def read(read: Transaction) -> ImageAnswer:
        scope = scope_of(read, key, workspace_reference(request))
        return show(read, find_image(read, scope, request.path_params["id"], None))

    return answer(await context.store.read(read))


async def change_image(context: Context, request: Request, key: Key) -> Response:
    """Rename an image, or make it public."""
    wish = await body_as(request, ImageChange)
    now = context.clock()

    def write(write: Transaction) -> ImageAnswer:
        found = _mine(write, request, key, "change")
        values = {name: value for name, value in given(wish).items() if value != getattr(found, name)}
        if "name" in values:
            _checked(write, found.workspace_id, values["name"])
        if values.get("is_public") and not scope_of(write, key, None).operator:
            raise Denied("is_public: only the cluster's operator makes public images")
        if values:
            write.set_image(found.image_id, **values, updated_at=now)
        return show(write, _image(write, found.image_id))

    return answer(await context.store.write(write))


# --- the upload ---


def _part_number(request: Request) -> int:
    text = request.path_params.get("number") or request.query_params.get("part_number") or ""
    if not text.isdigit() or not 1 <= int(text) <= PARTS_MAX:
        raise Invalid(f"part_number: {text!r} is not a number from 1 to {PARTS_MAX}", field="part_number")
    return int(text)


async def put_part(context: Context, request: Request, key: Key) -> Response:
    """Upload one part (numbered from 1) as the body; sending it again replaces it."""
    number = _part_number(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > PART_BYTES_MAX:
        raise TooLarge(f"a part may have at most {PART_BYTES_MAX >> 30} GiB; send more parts")
    digest = request.query_params.get("sha256") or request.headers.get("x-content-sha256")
    store = PartStore(context.blobs)

    def read(read: Transaction) -> Image:
        return _open(_mine(read, request, key, "upload to"))

    image = await context.store.read(read)
    room = IMAGE_BYTES_MAX - await asyncio.to_thread(store.total, image.image_id, _without(image.parts, number))
    found, size = await store.put(image.image_id, number, request.stream(), bytes_max=max(0, room), digest=digest)
    now = context.clock()

    def write(write: Transaction) -> Image:
        now_image = _open(_image(write, image.image_id))
        parts = list(now_image.parts) + [""] * (number - len(now_image.parts))
        parts[number - 1] = found
        write.set_image(image.image_id, parts=tuple(parts), upload_status="uploading", updated_at=now)
        return _image(write, image.image_id)

    await context.store.write(write)
    return answer(_part(image.image_id, number, size, found), 201)


def _without(parts: tuple[str, ...], number: int) -> list[str]:
    return ["" if index == number else digest for index, digest in enumerate(parts, 1)]


def _open(image: Image) -> Image:
    """Raises `Conflict` unless parts may still come."""
    if image.upload_status not in ("started", "uploading", "failed") or image.image_id in _joining:
        state = "being completed" if image.image_id in _joining else image.upload_status
        raise Conflict(f"the upload of image {image.name} is {state}; make a new image for other content")
    return image


async def list_parts(context: Context, request: Request, key: Key) -> Response:
    """The parts that have arrived; what an interrupted upload goes on from."""
    image = await context.store.read(lambda read: _mine(read, request, key, "look into"))
    store = PartStore(context.blobs)
    rows = [
        _part(image.image_id, number, store.size(image.image_id, number, digest) or 0, digest)
        for number, digest in enumerate(image.parts, 1)
        if digest
    ]
    return answer({"object": "list", "data": rows, "has_more": False, "cursor": None})


async def complete_image(context: Context, request: Request, key: Key) -> Response:
    """Join the parts into the image: 200 when it is done, 202 while a large one is still being joined."""
    data = await read_body(request)
    wish = parse(data, CompleteWish) if data else CompleteWish()
    image = await context.store.read(lambda read: _mine(read, request, key, "complete"))
    if image.upload_status == "completed":
        # A server that was killed right after it had joined them left the parts behind.
        await asyncio.to_thread(PartStore(context.blobs).forget, image.image_id)
    elif image.image_id not in _joining:
        _check_parts(PartStore(context.blobs), _open(image), wish)
        task = asyncio.create_task(_join(context, image, wish))
        _joining[image.image_id] = task
        task.add_done_callback(lambda _: _joining.pop(image.image_id, None))
    running = _joining.get(image.image_id)
    if running is not None:
        done, _ = await asyncio.wait({running}, timeout=COMPLETE_S_MAX)
        if done:
            running.result()  # what it raised is this request's answer
    shown = await context.store.read(lambda read: show(read, _image(read, image.image_id)))
    return answer(shown, 200 if shown["upload_status"] == "completed" else 202)


def _check_parts(store: PartStore, image: Image, wish: CompleteWish) -> None:
    """Raises `Invalid` when parts are missing, or are not what the client says it sent."""
    missing = [number for number, digest in enumerate(image.parts, 1) if not digest]
    if not image.parts or missing:
        words = ", ".join(map(str, missing[:20])) or "1"
        raise Invalid(f"parts: part {words} did not arrive yet; upload it first", field="parts")
    sizes = [store.size(image.image_id, n, digest) or 0 for n, digest in enumerate(image.parts, 1)]
    if wish.size is not None and wish.size != sum(sizes):
        raise Invalid(f"size: {wish.size} bytes were sent and {sum(sizes)} arrived; upload again", field="size")
    if wish.parts is None:
        return
    if [part.part_number for part in wish.parts] != list(range(1, len(image.parts) + 1)):
        raise Invalid(f"parts: {len(image.parts)} parts arrived; name each of them once, in order", field="parts")
    for part, size, digest in zip(wish.parts, sizes, image.parts, strict=True):
        if part.size is not None and part.size != size:
            raise Invalid(
                f"parts: part {part.part_number} has {size} bytes here, not {part.size}; upload it again", field="parts"
            )
        if part.sha256 is not None and part.sha256 != digest:
            raise Invalid(f"parts: part {part.part_number} has SHA-256 {digest} here; upload it again", field="parts")


async def _join(context: Context, image: Image, wish: CompleteWish) -> Image:
    """Join the parts and write it down. Raises `Invalid` when the whole is not what was promised."""
    store = PartStore(context.blobs)
    try:
        digest, size = await asyncio.to_thread(store.join, image.image_id, image.parts)
    except Invalid:
        known = await context.store.read(lambda read: _image(read, image.image_id))
        if known.upload_status == "completed":
            return known  # another request was a moment earlier
        raise
    now = context.clock()
    good = wish.sha256 is None or wish.sha256 == digest

    def write(write: Transaction) -> Image:
        if write.image(image.image_id) is None:
            raise Conflict("the image was deleted meanwhile")
        if good:
            write.set_image(
                image.image_id, upload_status="completed", sha256=digest, size=size, parts=(), updated_at=now
            )
            write.add_notice(now, image.workspace_id, "image.completed", image.image_id, {"name": image.name})
        else:
            write.set_image(image.image_id, upload_status="failed", updated_at=now)
        return _image(write, image.image_id)

    after = await context.store.write(write)
    if not good:
        raise Invalid(f"sha256: the image has {digest}, not {wish.sha256}; upload its parts again", field="sha256")
    await asyncio.to_thread(store.forget, image.image_id)
    return after


async def download_image(context: Context, request: Request, key: Key) -> Response:
    """The image's archive."""

    def read(read: Transaction) -> Image:
        scope = scope_of(read, key, workspace_reference(request))
        return find_image(read, scope, request.path_params["id"], None)

    image = await context.store.read(read)
    if not image.sha256 or not context.blobs.has(image.sha256):
        words = "is the machine's own system" if image.name == HOST else f"has no content ({image.upload_status})"
        raise Conflict(f"image {image.name} {words}; there is nothing to download")
    return FileResponse(
        context.blobs.path(image.sha256), media_type="application/x-tar", filename=f"{image.name}.tar",
        headers={"X-Content-SHA256": image.sha256},
    )  # fmt: skip


# --- its life ---


async def revoke_image(context: Context, request: Request, key: Key) -> Response:
    """No new instances are made from it; running ones go on."""
    return await _turn(context, request, key, "completed", "revoked")


async def reinstate_image(context: Context, request: Request, key: Key) -> Response:
    """New instances may be made from it again."""
    return await _turn(context, request, key, "revoked", "completed")


async def _turn(context: Context, request: Request, key: Key, before: str, after: str) -> Response:
    now = context.clock()
    what = "revoke" if after == "revoked" else "reinstate"

    def write(write: Transaction) -> ImageAnswer:
        found = _mine(write, request, key, what)
        if found.upload_status not in (before, after):
            raise Conflict(f"image {found.name} is {found.upload_status}; only a {before} one can be {after}")
        if found.upload_status == before:
            write.set_image(found.image_id, upload_status=after, updated_at=now)
            kind = "image.revoked" if after == "revoked" else "image.reinstated"
            write.add_notice(now, found.workspace_id, kind, found.image_id, {"name": found.name})
            _look_again(context, write, found, now)
        return show(write, _image(write, found.image_id))

    return answer(await context.store.write(write))


def _look_again(context: Context, write: Transaction, image: Image, now: float) -> None:
    """Deployments whose template has this image may make instances again, or no more."""
    places = [w.workspace_id for w in write.workspaces_all()] if image.is_public else [image.workspace_id]
    templates = {t.template_id for place in places for t in write.templates(place) if t.image_id == image.image_id}
    capacities = {d.capacity_id for place in places for d in write.deployments(place) if d.template_id in templates}
    if capacities:
        with context.desk.session(write, now) as market:
            for capacity_id in sorted(capacities):
                market.changed(capacity_id)


async def delete_image(context: Context, request: Request, key: Key) -> Response:
    """Delete an image that no template and no live instance uses."""
    now = context.clock()

    def write(write: Transaction) -> tuple[Image, bool]:
        found = _mine(write, request, key, "delete")
        if found.image_id in _joining:
            raise Conflict(f"image {found.name} is being completed; delete it when that is over")
        places = [w.workspace_id for w in write.workspaces_all()] if found.is_public else [found.workspace_id]
        templates = [template for place in places for template in write.templates(place)]
        users = [f"template {t.name}" for t in templates if t.image_id == found.image_id]
        users += [f"instance {i.name or i.instance_id}" for i in write.instances_live() if i.image_id == found.image_id]
        if users:
            raise Conflict(
                f"image {found.name} is used by {', '.join(users[:10])}; change or delete these first, or revoke the "
                "image so that nothing new is made from it"
            )
        write.delete_image(found.image_id)
        write.add_notice(now, found.workspace_id, "image.deleted", found.image_id, {"name": found.name})
        others = any(
            image.sha256 == found.sha256 for w in write.workspaces_all() for image in write.images(w.workspace_id)
        )
        return found, others

    found, others = await context.store.write(write)
    await asyncio.to_thread(PartStore(context.blobs).forget, found.image_id)
    if found.sha256 and not others:
        await asyncio.to_thread(context.blobs.remove, found.sha256)
    gone: Deleted = {"object": "image", "id": found.image_id, "deleted": True}
    return answer(gone)


_WORKSPACE: Final = Query("workspace", "Another workspace; for the operator.")
_BODY: Final = "The body is the part itself (application/octet-stream), at most 5 GiB; an image has at most 128 GiB."
_SHA256: Final = Query("sha256", "The part's SHA-256, to be compared with what arrives.")
_OWN: Final[dict[str, Any]] = {"query": (_WORKSPACE,), "answer": ImageAnswer, "errors": (403, 404, 409)}
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/images", create_image, "Begin the upload of an image", body=ImageWish, query=(_WORKSPACE,),
        answer=ImageAnswer, status=201, errors=(400, 403),
    ),
    Operation(
        "GET", "/v1/images", list_images, "List images", scope="read", query=(_WORKSPACE, *PAGING), answer=ImageAnswer,
        listed=True,
    ),
    Operation(
        "GET", "/v1/images/{id}", get_image, "One image", scope="read", query=(_WORKSPACE,), answer=ImageAnswer,
        errors=(404,),
    ),
    Operation("PATCH", "/v1/images/{id}", change_image, "Change an image", body=ImageChange, **_OWN),
    Operation(
        "PUT", "/v1/images/{id}/parts/{number}", put_part, "Upload a part of an image", query=(_WORKSPACE, _SHA256),
        answer=PartAnswer, status=201, errors=(403, 404, 409, 413), text=_BODY,
    ),
    Operation(
        "POST", "/v1/images/{id}/parts", put_part, "Upload a part of an image (`?part_number=`)",
        query=(_WORKSPACE, _SHA256, Query("part_number", "Its number.", "integer", least=1, most=PARTS_MAX)),
        answer=PartAnswer, status=201, errors=(403, 404, 409, 413), text=_BODY,
    ),
    Operation(
        "GET", "/v1/images/{id}/parts", list_parts, "List the parts of an unfinished upload", query=(_WORKSPACE,),
        answer=PartAnswer, listed=True, errors=(404,),
    ),
    Operation(
        "POST", "/v1/images/{id}/complete", complete_image, "Finish the upload of an image", body=CompleteWish,
        text="202 while a large image is still being joined: ask again.", **_OWN
    ),
    Operation(
        "GET", "/v1/images/{id}/download", download_image, "The archive of an image", scope="read",
        query=(_WORKSPACE,), media="application/x-tar", errors=(404, 409),
    ),
    Operation("POST", "/v1/images/{id}/revoke", revoke_image, "Make nothing new from an image", **_OWN),
    Operation("POST", "/v1/images/{id}/reinstate", reinstate_image, "Undo a revocation", **_OWN),
    Operation(
        "DELETE", "/v1/images/{id}", delete_image, "Delete an image", query=(_WORKSPACE,), answer=Deleted,
        errors=(403, 404, 409),
    ),
)  # fmt: skip
