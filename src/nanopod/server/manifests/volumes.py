"""PersistentVolumeClaims as volumes of the workspace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nanopod.model.errors import Conflict, Invalid
from nanopod.server.api.objects import room_for, users_of_volume
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.resources import quantity
from nanopod.server.manifests.services import read_meta
from nanopod.store.transaction import Transaction
from nanopod.store.volumes import Volume

MODES: Final = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
TIERS: Final = ("", "default", "standard", "shared")
"""Values of `storageClassName` for the one tier that there is."""
SIZE_BYTES_MAX: Final = 10**15


@dataclass(frozen=True, slots=True)
class VolumeAsked:
    """A claim as it was read. `size_bytes` 0: no limit."""

    name: str
    size_bytes: int = 0


def read_claim(document: Document, problems: Problems) -> VolumeAsked:
    """A PersistentVolumeClaim."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole, dns=False)
    spec = whole.object("spec", required=True, fix="give resources.requests.storage")
    whole.done()
    if spec is None:
        return VolumeAsked(meta.name)
    tier = spec.text("storageClassName")
    if tier not in TIERS:
        spec.warn("storageClassName", f"{tier!r} is ignored: volumes here have one tier")
    for at, mode in enumerate(spec.texts("accessModes")):
        path = f"{spec.at('accessModes')}[{at}]"
        if mode not in MODES:
            problems.error(path, f"{mode!r} is not possible; choose one of {', '.join(MODES)}")
        elif mode == "ReadWriteMany":
            problems.warn(path, "one node only: what is written there is seen on others once it is committed")
    if spec.text("volumeMode", "Filesystem") != "Filesystem":
        spec.error("volumeMode", "block devices are not possible here; leave it out")
    spec.ignored("a volume is made for each claim", "volumeName", "selector", "volumeAttributesClassName")
    for name in ("dataSource", "dataSourceRef"):
        if spec.has(name):
            spec.error(name, "cannot be copied from here; fill the volume with a Job")
    size = _size(spec)
    spec.done()
    return VolumeAsked(meta.name, size)


def _size(spec: Reader) -> int:
    resources = spec.object("resources")
    requests = resources.object("requests") if resources is not None else None
    size = 0
    if requests is None or not requests.has("storage"):
        spec.error("resources", "requests.storage is missing; say how large the volume may become, such as 10Gi")
    else:
        text = requests.text("storage")
        try:
            size = int(quantity(text))
            if not 0 < size <= SIZE_BYTES_MAX:
                raise ValueError(f"{text!r} must be more than 0 and at most 1P")
        except ValueError as error:
            requests.error("storage", str(error))
            size = 0
        requests.done()
    if resources is not None:
        resources.quietly("limits")
        resources.done()
    return size


def keep_volume(
    write: Transaction, workspace_id: str, asked: VolumeAsked, new_id: Callable[[str], str], now: float
) -> str:
    """Have a volume of this name and limit: its id. What it holds stays. Raises `Invalid` when it holds more."""
    found = write.volume(workspace_id, asked.name)
    if found is None:
        room_for(write.volumes_count(workspace_id), "volumes")
        made = Volume(
            new_id("volume"), workspace_id, asked.name, "", asked.size_bytes, 0, 0, "", 0.0, now, now
        )  # fmt: skip
        write.add_volume(made)
        return made.volume_id
    if 0 < asked.size_bytes < found.used_bytes:
        raise Invalid(
            f"spec.resources.requests.storage: {asked.size_bytes} bytes are less than the {found.used_bytes} in volume "
            f"{asked.name!r}; remove files first",
            field="spec.resources.requests.storage",
        )
    if asked.size_bytes != found.size_bytes_max:
        write.set_volume(found.volume_id, size_bytes_max=asked.size_bytes)
    return found.volume_id


def drop_volume(write: Transaction, workspace_id: str, name: str) -> None:
    """Delete a volume with all it holds. Raises `Conflict` while an endpoint mounts it."""
    found = write.volume(workspace_id, name)
    if found is None:
        return
    if users := users_of_volume(write, workspace_id, name):
        raise Conflict(f"PersistentVolumeClaim {name!r} is used by {', '.join(users)}; delete these first")
    write.delete_volume(found.volume_id)
