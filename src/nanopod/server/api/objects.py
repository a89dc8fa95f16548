"""What secrets, volumes, dictionaries and queues share: names, who may touch their content, who uses them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request

from nanopod.model.chain import Key, Revision
from nanopod.model.endpoint import EndpointSpec, SecretRef, StorageSpec, VolumeMount
from nanopod.model.errors import Denied, Invalid
from nanopod.model.ids import NAME_PATTERN
from nanopod.node.storage import schemes
from nanopod.server.api.bodies import TooLarge
from nanopod.server.api.context import Context
from nanopod.store.transaction import Transaction
from nanopod.store.volumes import Volume

OBJECTS_MAX: Final = 1000
"""Of one kind in a workspace."""
GB: Final = 1_000_000_000
AUTOMATIC: Final = "auto."
"""Names that the SDK gives to secrets which a file brings along begin so."""
BUCKET_SCHEMES: Final = ("s3", "http", "https", "file")
_PARENT: Final = re.compile(r"(^|/)\.\.(/|$)")
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def check_name(name: str, field: str = "name") -> str:
    """`name` itself. Raises `Invalid` naming the field."""
    if not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"{field}: {name!r} must be letters, digits and . _ -, beginning with a letter or digit", field=field
        )
    return name


def room_for(count: int, noun: str) -> None:
    """Raises `Invalid` when a workspace has as many of a kind as it may."""
    if count >= OBJECTS_MAX:
        raise Invalid(f"name: this workspace has {OBJECTS_MAX} {noun} already; delete some first", field="name")


def content_key(key: Key) -> None:
    """Raises `Denied` for a key that may not touch the content of volumes, dictionaries and queues.

    Keys that may only call some endpoints are for those endpoints' users; keys that may only read, for management.
    """
    if key.endpoints is not None or not {"admin", "call"} & set(key.scopes):
        raise Denied("this key may not use stored content: take a key with the scope 'call' for all endpoints")


async def octets(request: Request, most: int) -> bytes:
    """The whole body. Raises `TooLarge` beyond `most` bytes."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise TooLarge(f"the body is larger than {most >> 20} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


# --- who uses what ---


def revisions_in_use(read: Transaction, workspace_id: str) -> Iterator[tuple[str, Revision]]:
    """(endpoint, revision) of everything in a workspace that runs or may be gone back to."""
    for endpoint in read.endpoints(workspace_id):
        for revision in read.revisions_of(endpoint.endpoint_id):
            yield endpoint.full_name, revision


def _current(read: Transaction, workspace_id: str) -> Iterator[tuple[str, EndpointSpec]]:
    """(endpoint, specification) of what runs or is about to."""
    for endpoint in read.endpoints(workspace_id):
        deployment = read.deployment_of(endpoint.endpoint_id)
        ids = {endpoint.revision_id, endpoint.stable_revision_id, deployment.revision_id if deployment else ""}
        for revision_id in sorted(ids - {""}):
            if (revision := read.revision(revision_id)) is not None:
                yield endpoint.full_name, revision.spec


def users_of_secret(read: Transaction, workspace_id: str, name: str) -> list[str]:
    """The endpoints that start with a secret, or open a bucket or storage with it."""
    return sorted(
        {
            user
            for user, spec in _current(read, workspace_id)
            if any(ref.name == name for ref in spec.image.secrets)
            or any(mount.secret == name for mount in spec.image.volumes)
            or any(one.secret == name for one in _storages(spec))
        }
    )


def _storages(spec: EndpointSpec) -> Iterator[StorageSpec]:
    if spec.model is not None:
        yield from spec.model.storage
        yield from (further.storage for further in spec.model.models)


def users_of_volume(read: Transaction, workspace_id: str, name: str) -> list[str]:
    """The endpoints that mount a volume."""
    return sorted(
        {
            user
            for user, spec in _current(read, workspace_id)
            if any(mount.volume == name for mount in spec.image.volumes)
            or any(one.uri.partition("://")[2].partition("/")[0] == name for one in _storages(spec) if _is_pvc(one))
        }
    )


def _is_pvc(one: StorageSpec) -> bool:
    return one.uri.startswith("pvc://")


def versions_in_use(read: Transaction, workspace_id: str, name: str) -> frozenset[int]:
    """Versions of a secret that some revision starts with."""
    return frozenset(
        ref.version
        for _, revision in revisions_in_use(read, workspace_id)
        for ref in revision.spec.image.secrets
        if ref.name == name
    )


# --- what a deployment asks for ---


async def furnish(context: Context, key: Key, spec: EndpointSpec, *, write: bool) -> EndpointSpec:
    """`spec` with the versions of its secrets, which are part of its image's fingerprint. Its volumes are made unless
    they exist (with `write` only). Raises `Invalid` naming a secret that does not exist, or a mount that cannot be."""
    image, place = spec.image, key.workspace_id
    if spec.model is not None and (spec.model.storage or spec.model.models):
        await context.store.read(lambda read: _check_storages(read, place, spec, write=write))
    if not image.secrets and not image.volumes:
        return spec

    def look(read: Transaction) -> tuple[tuple[SecretRef, ...], bool]:
        refs = [
            _resolved(read, place, ref, f"image.secrets[{at}]", write=write) for at, ref in enumerate(image.secrets)
        ]
        _check_mounts(read, place, image.volumes, write=write)
        return tuple(refs), any(one.volume and read.volume(place, one.volume) is None for one in image.volumes)

    refs, lacks = await context.store.read(look)
    if lacks and write:
        now = context.clock()

        def make(rows: Transaction) -> None:
            for mount in image.volumes:
                if mount.volume and rows.volume(place, mount.volume) is None:
                    room_for(rows.volumes_count(place), "volumes")
                    rows.add_volume(new_volume(context, place, mount.volume, mount.size_gb, mount.region, now))

        await context.store.write(make)
    digest = hashlib.sha256(_encode([spec.fingerprints.image, refs, image.volumes])).hexdigest()
    return replace(spec, image=replace(image, secrets=refs), fingerprints=replace(spec.fingerprints, image=digest))


def _check_storages(rows: Transaction, workspace_id: str, spec: EndpointSpec, *, write: bool) -> None:
    """Raises `Invalid` for a storage that no node could fetch, or that is opened by a secret that is not there."""
    assert spec.model is not None
    named = [(f"model.storage[{at}]", one) for at, one in enumerate(spec.model.storage)]
    named += [(f"model.models[{at}].storage", one.storage) for at, one in enumerate(spec.model.models)]
    for field, one in named:
        try:
            schemes.parse(one.uri, f"{field}.uri")
            schemes.target(one.path, f"{field}.path")
        except schemes.BadUri as error:
            raise Invalid(str(error), field=str(error).partition(":")[0]) from None
        planned = one.secret.startswith(AUTOMATIC) and not write
        if one.secret and not planned and rows.secret(workspace_id, one.secret) is None:
            raise Invalid(
                f"{field}.secret: there is no secret {one.secret!r} in this workspace; make it with: "
                f"nanopod secrets create {one.secret} KEY=VALUE",
                field=f"{field}.secret",
            )


def new_volume(
    context: Context, workspace_id: str, name: str, size_gb: float, region: str, now: float
) -> Volume:  # fmt: skip
    """A volume that is not there yet."""
    limit = int(size_gb * GB)
    return Volume(context.new_id("volume"), workspace_id, name, region, limit, 0, 0, "", 0.0, now, now)


def _resolved(rows: Transaction, workspace_id: str, ref: SecretRef, field: str, *, write: bool) -> SecretRef:
    found = rows.secret(workspace_id, ref.name)
    if found is None and ref.name.startswith(AUTOMATIC) and not write:
        return replace(ref, version=1)  # a plan: deploying makes it first
    if found is None:
        raise Invalid(
            f"{field}: there is no secret {ref.name!r} in this workspace; make it with: "
            f"nanopod secrets create {ref.name} KEY=VALUE",
            field=field,
        )
    if ref.version and ref.version not in rows.secret_versions(found.secret_id):
        raise Invalid(
            f"{field}: secret {ref.name!r} has no version {ref.version}; leave the version out for the newest "
            f"({found.version})",
            field=field,
        )
    lacking = [key for _, key in ref.keys if key not in found.keys]
    if lacking:
        raise Invalid(f"{field}.keys: secret {ref.name!r} has no key {lacking[0]!r}; it has {', '.join(found.keys)}")
    return replace(ref, version=ref.version or found.version)


def _check_mounts(rows: Transaction, workspace_id: str, mounts: tuple[VolumeMount, ...], *, write: bool) -> None:
    seen: set[str] = set()
    names: set[str] = set()
    for at, mount in enumerate(mounts):
        field = f"image.volumes[{at}]"
        path = mount.path.rstrip("/")
        if not path or "\0" in path or _PARENT.search(path):
            raise Invalid(f"{field}.path: {mount.path!r} is no place to mount at; give a path without ..", field=field)
        if any(path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in seen):
            raise Invalid(
                f"{field}.path: {mount.path!r} lies in or around another mount; move one of them", field=field
            )
        seen.add(path)
        if bool(mount.volume) == bool(mount.bucket):
            raise Invalid(f"{field}: give the name of a volume or the URL of a bucket, one of both", field=field)
        if mount.volume:
            check_name(mount.volume, f"{field}.volume")
            check_size(mount.size_gb, f"{field}.size_gb")
            if mount.volume in names:
                raise Invalid(f"{field}.volume: {mount.volume!r} is mounted twice; once is enough", field=field)
            names.add(mount.volume)
        elif urlsplit(mount.bucket).scheme not in BUCKET_SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in BUCKET_SCHEMES)
            raise Invalid(f"{field}.bucket: {mount.bucket!r} must begin with one of {known}", field=f"{field}.bucket")
        planned = mount.secret.startswith(AUTOMATIC) and not write
        if mount.secret and not planned and rows.secret(workspace_id, mount.secret) is None:
            raise Invalid(
                f"{field}.secret: there is no secret {mount.secret!r} in this workspace; make it with: "
                f"nanopod secrets create {mount.secret} KEY=VALUE",
                field=f"{field}.secret",
            )


def check_size(size_gb: float, field: str = "size_gb") -> None:
    """Raises `Invalid` for a size that no volume can have."""
    if not 0 <= size_gb <= 1_000_000:
        raise Invalid(f"{field}: {size_gb} must be a number of GB from 0 (no limit) to 1000000", field=field)
