"""What an instance finds in place when it starts: its volumes and buckets at their paths; and `Volume` on a worker."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, Final

from nanopod.model import registry
from nanopod.model.endpoint import InstanceSpec, VolumeMount
from nanopod.model.errors import NanopodError, NoCapacity
from nanopod.model.layout import Layout
from nanopod.node import buckets, files
from nanopod.node.cloud import Cloud
from nanopod.node.environment import EnvironmentFailed
from nanopod.node.volumes import Cache, Mount

USERS: Final = "users"
VARIABLE: Final = "NANOPOD_VOLUMES"


def cloud_of(layout: Layout, spec: InstanceSpec) -> Cloud:
    """The server as this instance may ask it."""
    return Cloud(layout.server_socket, spec.url, spec.join_token)


def furnish(
    layout: Layout, spec: InstanceSpec, directory: Path, pairs: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:  # fmt: skip
    """Have the image's volumes and buckets in place; variables that say where. `pairs` opens buckets, by secret.

    Blocks. Raises `EnvironmentFailed`.
    """
    cloud = cloud_of(layout, spec)
    cache = Cache(layout, cloud)
    root = directory / files.VOLUMES
    root.mkdir(exist_ok=True, mode=0o700)
    table: list[dict[str, Any]] = []
    for mount in spec.app.image.volumes:
        try:
            if mount.volume:
                place = _mount(layout, directory, mount, cache, cloud)
                place.load(discard=not _in_use(place.root))
                target = place.files
                table.append({"name": mount.volume, "root": str(place.root), "read_only": mount.read_only})
                _link(layout, root / mount.volume, target, mount)
            else:
                target = buckets.sync(layout.data / "cache" / "buckets", mount.bucket, pairs.get(mount.secret, {}))
        except NanopodError as error:
            what = f"image.volume: {mount.volume}: {error.message}"
            raise EnvironmentFailed(what, user_fault=not isinstance(error, NoCapacity)) from error
        except buckets.BucketFailed as error:
            raise EnvironmentFailed(str(error), user_fault=error.user_fault) from error
        _link(layout, directory / files.APP / mount.path, target, mount)  # an absolute path stays what it is
    files.write_atomic(directory / files.MOUNTS, json.dumps(table).encode())
    return {VARIABLE: str(root)}


def also(layout: Layout, spec: InstanceSpec, directory: Path, name: str) -> Path:
    """The files of a volume that an instance needs besides those of its image, read-only; they are shared on the node.

    Blocks. Raises the errors of the API, and OSError.
    """
    table: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        table = json.loads((directory / files.MOUNTS).read_bytes())
    for row in table:
        if row["name"] == name:
            return Path(row["root"]) / "files"
    cloud = cloud_of(layout, spec)
    wanted = VolumeMount("/", volume=name, read_only=True)
    place = _mount(layout, directory, wanted, Cache(layout, cloud), cloud)
    place.load(discard=not _in_use(place.root))
    table.append({"name": name, "root": str(place.root), "read_only": True})
    files.write_atomic(directory / files.MOUNTS, json.dumps(table).encode())
    return place.files


def _mount(layout: Layout, directory: Path, mount: VolumeMount, cache: Cache, cloud: Cloud) -> Mount:
    if mount.path.startswith("/"):
        volume_id = str(cloud.ask("GET", f"/v1/volumes/{mount.volume}")["id"])
        root = layout.data / "node" / "mounts" / (volume_id + (".ro" if mount.read_only else ""))
    else:
        root = directory / files.VOLUMES / f".{mount.volume}"
    return Mount(root, mount.volume, cache, cloud, read_only=mount.read_only)


def _in_use(root: Path) -> bool:
    """True while a worker has this mount."""
    try:
        with open(root / USERS, "rb") as users:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _link(layout: Layout, place: Path, target: Path, mount: VolumeMount) -> None:
    """Make `place` a link to `target`. What is there already is never overwritten, unless it is an old link of ours."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            old = os.readlink(place) if place.is_symlink() else None
            if old == str(target):
                return
            if old is None:
                raise FileExistsError(17, "something is there already")
            if not _replaceable(layout, Path(old)):
                raise FileExistsError(17, f"it is a link to {old}")
            place.unlink()
        os.symlink(target, place)
    except OSError as error:
        name = mount.volume or "data"
        advice = f"give a relative path such as {name!r}"
        if mount.volume:
            advice += f", or leave this one and open Volume({name!r}).path"
        raise EnvironmentFailed(
            f"image.{'volume' if mount.volume else 'bucket'}: {mount.path} cannot be made on this node "
            f"({error.strerror or error}); {advice}"
        ) from error


def _replaceable(layout: Layout, old: Path) -> bool:
    """True for a link that leads nowhere, or to something of ours that nobody uses."""
    if not old.exists():
        return True
    ours = (layout.data / "node" / "mounts", layout.data / "cache" / "buckets")
    return any(one in old.parents for one in ours) and not _in_use(old.parent)


class Here:
    """The volumes of this worker; see `model.registry.Mounts`."""

    def __init__(self, mounts: Mapping[str, Mount]) -> None:
        self._mounts = mounts
        self._held: list[IO[str]] = []

    def hold(self) -> None:
        """Say for as long as this process lives that its mounts are in use."""
        for mount in self._mounts.values():
            users = open(mount.root / USERS, "a")  # noqa: SIM115 - held until the process ends
            fcntl.flock(users, fcntl.LOCK_SH)
            self._held.append(users)

    def names(self) -> Collection[str]:
        """Volumes that are mounted here."""
        return self._mounts.keys()

    def path(self, name: str) -> str:
        """Where the files of a volume are."""
        return str(self._mounts[name].files)

    def commit(self, name: str) -> int:
        """Make the files the next version; its number."""
        return self._mounts[name].commit()

    def reload(self, name: str, discard: bool) -> int:
        """Bring the newest version; its number."""
        return self._mounts[name].load(discard=discard)


def attach(spec: InstanceSpec, directory: Path) -> None:
    """In a worker: let `Volume` find what is mounted."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        rows = json.loads((directory / files.MOUNTS).read_bytes())
    if not rows:
        return
    layout = Layout(directory.parents[2])
    cloud = cloud_of(layout, spec)
    cache = Cache(layout, cloud)
    here = Here(
        {
            row["name"]: Mount(Path(row["root"]), row["name"], cache, cloud, read_only=bool(row["read_only"]))
            for row in rows
        }
    )
    here.hold()
    registry.mounts = here
