"""Gives an instance its files before it starts: each storage in a directory below the instance's own.

| scheme | how |
| --- | --- |
| fetched ones | hard links to the node's cache (`storage`) |
| `pvc://` | a link into the volume, which is mounted read-only; also at `/mnt/pvc` |
| `file://` | a link into a directory that the node's operator allows (`NANOPOD_STORAGE_FILES`) |
| `config://`, `secret://` | small files, written |

`/mnt/models` becomes `<instance>/storage/mnt/models`. Besides, the path itself is made a link to that where nothing is
there already; `told` does the rest for specifications that name it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from nanopod.model.endpoint import InstanceSpec, StorageSpec
from nanopod.model.errors import NanopodError, NoCapacity
from nanopod.model.layout import Layout
from nanopod.node import files, mounting
from nanopod.node.storage import schemes, told
from nanopod.node.storage.errors import StorageFailed
from nanopod.node.storage.schemes import Place
from nanopod.node.storage.storage import FETCHED, Storage, place_of

ALLOWED: Final = "NANOPOD_STORAGE_FILES"
"""Environment of the agent: directories that `file://` may lead to, with `:` between them; none by default."""
PVC_PATH: Final = "/mnt/pvc"
LINKED: Final = "NANOPOD_STORAGE_LINKS"
"""Environment of the agent: "0" has it make no links outside its data directory."""
SYSTEM: Final = frozenset(
    ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root", "run", "sbin", "sys", "usr", "var")
)
"""Directories of the node's own system, in which no links are made."""
WRITTEN_FILES_MAX: Final = 1000
INHERITED: Final = (
    "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_", "S3_", "awsA", "awsS", "STORAGE_EMULATOR_HOST",
    "GOOGLE_", "AZURE_STORAGE_", "GIT_TOKEN", "GIT_USERNAME",
)  # fmt: skip
"""How variables of an instance begin that count for its storages, too."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One storage of an instance, and the name of the directory for it below `storage/`."""

    spec: StorageSpec
    path: str
    directory: str
    model: str = ""
    """The further model whose files these are; "": they are the instance's own."""


def wanted_of(spec: InstanceSpec, more: Sequence[StorageSpec] = ()) -> list[Wanted]:
    """The storages of an instance: those of its model, then of further models. Raises `StorageFailed`."""
    model = spec.app.model
    found: list[Wanted] = []
    try:
        for one in (*(model.storage if model is not None else ()), *more):
            path = schemes.target(one.path)
            found.append(Wanted(one, path, path.strip("/")))
        whole = [one for one in found if not one.spec.uri.startswith(("config://", "secret://"))]
        top = whole[0].directory if whole else "models"
        for further in model.models if model is not None else ():
            name = quote(further.name, safe=" ")
            if name in ("", ".", ".."):
                raise schemes.BadUri(f"model.models.name: {further.name!r} is no name for a model")
            found.append(Wanted(further.storage, "", f"{top}/{name}", further.name))
    except schemes.BadUri as error:
        raise StorageFailed(str(error)) from None
    return found


def all_of(spec: InstanceSpec, more: Sequence[StorageSpec] = ()) -> tuple[StorageSpec, ...]:
    """The storages of an instance, in no order that means anything."""
    model = spec.app.model
    own = (*model.storage, *(further.storage for further in model.models)) if model is not None else ()
    return (*own, *more)


def secrets_of(spec: InstanceSpec, more: Sequence[StorageSpec] = ()) -> set[str]:
    """Names of the secrets that its storages need."""
    return {one.secret for one in all_of(spec, more)} - {""}


def settings_of(
    spec: StorageSpec, env: Mapping[str, str], secret: Mapping[str, str], pairs: Mapping[str, str]
) -> dict[str, str]:
    """What a scheme goes by: the image's variables of the scheme, `options`, then the pairs of secrets."""
    own = {name: value for name, value in {**env, **secret}.items() if name.startswith(INHERITED)}
    own |= {name: value for name, value in {**env, **secret}.items() if name.endswith("-headers")}
    return {**own, **spec.options, **pairs}


async def bring(
    storage: Storage,
    wanted: Sequence[Wanted],
    directory: Path,
    settings: Callable[[StorageSpec], dict[str, str]],
    tell: Callable[[str], None],
    stop: threading.Event,
    lacking: dict[str, str] | None = None,
) -> None:
    """Have the files of all storages that are fetched or written below `directory`. Raises `StorageFailed`, `GivenUp`.

    What is mounted comes by `mount`, once the instance's volumes are there. With `lacking` a further model that cannot
    be had is noted there with the reason, and the others are brought all the same.
    """
    await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
    for one in wanted:
        with _noted(one, lacking):
            await _bring_one(storage, one, directory, settings, tell, stop)


@contextlib.contextmanager
def _noted(one: Wanted, lacking: dict[str, str] | None) -> Iterator[None]:
    """Note what goes wrong with a further model in `lacking`, where there is one."""
    try:
        yield
    except StorageFailed as error:
        if lacking is None or not one.model:
            raise
        lacking[one.model] = str(error)


async def _bring_one(
    storage: Storage, one: Wanted, directory: Path, settings: Callable[[StorageSpec], dict[str, str]],
    tell: Callable[[str], None], stop: threading.Event,
) -> None:  # fmt: skip
    place = place_of(one.spec)
    where = directory / one.directory
    if place.scheme in FETCHED:
        await asyncio.to_thread(where.mkdir, parents=True, exist_ok=True)
        await storage.bring(one.spec, settings(one.spec), where, tell, stop)
    elif place.scheme in ("config", "secret"):
        pairs = one.spec.options if place.scheme == "config" else settings(one.spec)
        await asyncio.to_thread(_write, one.spec, place, pairs, where)


def _write(spec: StorageSpec, place: Place, pairs: Mapping[str, str], where: Path) -> None:
    """The small files of a ConfigMap or a secret: `text:` or `base64:` and the content, or the content itself."""
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = [name for name in pairs if schemes.wanted(name, spec.allow, spec.ignore)]
        if len(names) > WRITTEN_FILES_MAX:
            raise StorageFailed(f"{place.shown} has {len(names)} files; at most {WRITTEN_FILES_MAX}")
        for name in names:
            text = pairs[name]
            data = text.encode("utf-8", "surrogateescape")
            if place.scheme == "config" and text.startswith("text:"):
                data = data[5:]
            elif place.scheme == "config" and text.startswith("base64:"):
                data = base64.b64decode(text[7:], validate=True)
            path = where / schemes.inside(name)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.write_atomic(path, data)
    except (schemes.BadUri, binascii.Error) as error:
        raise StorageFailed(f"{place.shown}: {error}") from None
    except OSError as error:
        raise StorageFailed(f"{place.shown}: {error}", user_fault=False) from None


def mount(
    layout: Layout, spec: InstanceSpec, directory: Path, wanted: Sequence[Wanted], root: Path, app: Path,
    lacking: dict[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:  # fmt: skip
    """Link what is mounted, make the paths where that can be: (variables, notes for the log). Blocks.

    `root` is where `bring` put the files, `app` the instance's working directory, `lacking` as in `bring`. Raises
    `StorageFailed`.
    """
    table: dict[str, str] = {}
    notes: list[str] = []
    crowded = {one.directory for one in wanted if any(o.directory.startswith(f"{one.directory}/") for o in wanted)}
    for one in wanted:
        with _noted(one, lacking):
            alone = one.directory not in crowded
            notes += _mount_one(layout, spec, directory, one, root / one.directory, table, alone=alone)
        if one.path:
            table[one.path] = str(root / one.directory)
            notes += reach(layout, directory, app / one.path, root / one.directory)  # an absolute path stays as it is
    if not wanted:
        return {}, []
    models = [one.directory for one in wanted if one.path and not one.spec.uri.startswith(("config://", "secret://"))]
    first = models[0] if models else "models"
    return {told.DIRECTORY: str(root / first), told.TABLE: json.dumps(table)}, notes


def _mount_one(
    layout: Layout, spec: InstanceSpec, directory: Path, one: Wanted, where: Path, table: dict[str, str], *, alone: bool
) -> list[str]:  # fmt: skip
    """Link one storage, if it is such; notes for the log."""
    place = place_of(one.spec)
    if place.scheme == "pvc":
        whole = _volume(layout, spec, directory, place)
        _lead(one.spec, place, whole, where, alone=alone)
        volume = whole if not place.path else whole.parents[place.path.count("/")]
        table.setdefault(PVC_PATH, str(volume))
        return reach(layout, directory, Path(PVC_PATH), volume)
    if place.scheme == "file":
        _lead(one.spec, place, _allowed(place), where, alone=alone)
    return []


async def add(
    storage: Storage, layout: Layout, spec: InstanceSpec, directory: Path, name: str,
    settings: Callable[[StorageSpec], dict[str, str]], stop: threading.Event,
) -> Path:  # fmt: skip
    """Have the files of one further model of an instance that runs; where they are.

    Raises `StorageFailed`, and `GivenUp` once `stop` is set.
    """
    wanted = wanted_of(spec)
    one = next(each for each in wanted if each.model == name)
    root, app = directory / files.STORAGE, directory / files.APP
    where = root / one.directory

    def make_room() -> None:
        if where.parent.is_symlink():
            # The whole directory is a volume's: have links to its files in its place, and this model beside them.
            mount(layout, spec, directory, [each for each in wanted if not each.model] + [one], root, app, {})
        discard(where)

    await asyncio.to_thread(make_room)
    await bring(storage, [one], root, settings, lambda _: None, stop)
    await asyncio.to_thread(_mount_one, layout, spec, directory, one, where, {}, alone=True)
    return where


def place_in(spec: InstanceSpec, directory: Path, name: str) -> Path:
    """Where the files of a further model are, or would be. Raises `StorageFailed`."""
    one = next(each for each in wanted_of(spec) if each.model == name)
    return directory / files.STORAGE / one.directory


def discard(where: Path) -> None:
    """Remove a model's files from an instance; what the node keeps of them stays. Blocks, never raises."""
    if where.is_symlink():
        with contextlib.suppress(OSError):
            where.unlink()
    else:
        shutil.rmtree(where, ignore_errors=True)


def _volume(layout: Layout, spec: InstanceSpec, directory: Path, place: Place) -> Path:
    """The directory of a volume that a `pvc://` names."""
    try:
        whole = mounting.also(layout, spec, directory, place.host)
    except NanopodError as error:
        fault = not isinstance(error, NoCapacity)
        raise StorageFailed(f"{place.shown}: {error.message}", user_fault=fault) from None
    except OSError as error:
        raise StorageFailed(f"{place.shown}: {error}", user_fault=False) from None
    found = whole / place.path
    if not found.exists():
        raise StorageFailed(f"{place.shown}: the volume {place.host!r} holds no {place.path!r} (yet); fill it first")
    return found


def _allowed(place: Place) -> Path:
    """A directory of the node that its operator allows."""
    found = Path(os.path.realpath(f"/{place.path}"))
    roots = [Path(os.path.realpath(one)) for one in os.environ.get(ALLOWED, "").split(":") if one]
    if not any(found.is_relative_to(one) for one in roots):
        raise StorageFailed(
            f"{place.shown}: the operator of this node does not allow it; it takes {ALLOWED}=DIRECTORY on the node"
        )
    if not found.exists():
        raise StorageFailed(f"{place.shown}: there is no such file on this node", user_fault=False)
    return found


def _lead(spec: StorageSpec, place: Place, source: Path, where: Path, *, alone: bool) -> None:
    """Have what is at `source` in the directory `where`, by links: one to the whole of it, or one to each file."""
    try:
        if where.is_symlink():
            where.unlink()
        where.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and alone and not spec.allow and not spec.ignore and not where.exists():
            where.symlink_to(source)
            return
        where.mkdir(parents=True, exist_ok=True)
        found = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        top = source.parent if source.is_file() else source
        kept = [path for path in found if schemes.wanted(path.relative_to(top).as_posix(), spec.allow, spec.ignore)]
        if not kept:
            raise StorageFailed(f"{place.shown}: storage.allow and storage.ignore leave none of its files")
        for path in kept:
            link = where / path.relative_to(top)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    except OSError as error:
        raise StorageFailed(f"{place.shown}: {error}", user_fault=False) from None


def reach(layout: Layout, directory: Path, path: Path, where: Path) -> list[str]:
    """Make `path` a link to `where` unless something else is there; lines that say why it could not be."""
    outside = not path.is_relative_to(layout.data)
    barred = outside and (path.parts[1] in SYSTEM or os.environ.get(LINKED) == "0")
    with contextlib.suppress(OSError):
        if barred:
            raise FileExistsError(str(path))
        if path.is_symlink():
            old = Path(os.readlink(path))
            if old == where:
                return []
            dead = old.is_relative_to(layout.data) and (not old.exists() or old.is_relative_to(directory))
            if dead:
                path.unlink()
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(where)
            if where.is_relative_to(directory) and not path.is_relative_to(directory):
                with open(directory / files.LINKS, "a") as made:  # they go with the instance
                    made.write(f"{path}\n")
            return []
    return [f"{path} cannot be made on this node; the files are in {where} ({told.DIRECTORY})"]
