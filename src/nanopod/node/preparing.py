"""Everything that is put into an instance's directory before its shim starts. On a thread: it may take minutes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanopod.model.endpoint import ImageSpec, InstanceSpec, StorageSpec, VolumeMount
from nanopod.model.layout import Layout
from nanopod.node import bundle, environment, files, guests, journal, launch, mounting, records, secrets
from nanopod.node.held import Held
from nanopod.node.inventory import Inventory
from nanopod.node.remodelled import Remodelled
from nanopod.node.storage import furnishing, told
from nanopod.node.storage.storage import Storage
from nanopod.node.zygotes import libraries_of, may_fork


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the node has for all its instances. `local`: embedded local mode, see `environment.prepare`."""

    layout: Layout
    gateways: tuple[str, ...]
    local: bool
    machine: Inventory


def begin(held: Held, around: Surroundings) -> None:
    """Make the directory and say whose it is: an agent that takes over from here must know of the instance."""
    held.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_start(held, around, records.Launch([], {}, ""))


def needs(spec: InstanceSpec) -> tuple[ImageSpec, tuple[StorageSpec, ...]]:
    """Variables, secrets and volumes of an instance, and its storages beside those of a model. Raises `BootFailed`."""
    run = guests.run_of(spec)
    if run is None:
        return spec.app.image, ()
    named = dict.fromkeys(mount.volume for mount in run.mounts if mount.volume)
    volumes = tuple(
        VolumeMount(f"volumes/{name}", name, read_only=all(m.read_only for m in run.mounts if m.volume == name))
        for name in named
    )
    return ImageSpec(env=run.env, secrets=run.secrets, volumes=volumes), run.storage


async def bring(
    storage: Storage,
    held: Held,
    around: Surroundings,
    pairs: Mapping[str, Mapping[str, str]],
    on_change: Callable[[], None],
) -> None:
    """Have the files of its storages; how far they are is said as the reason of its phase, and `on_change` called.

    `pairs` opens them, by secret. Raises `StorageFailed`, and `GivenUp` once the instance is to stop.
    """
    spec = held.spec
    image, more = needs(spec)
    if not furnishing.all_of(spec, more):
        return

    def tell(text: str) -> None:
        held.note = text
        on_change()

    def settings(one: StorageSpec) -> dict[str, str]:
        return furnishing.settings_of(one, image.env, held.secrets, pairs.get(one.secret, {}))

    wanted = furnishing.wanted_of(spec, more)
    await asyncio.to_thread(begin, held, around)
    try:
        root = held.directory / files.STORAGE
        await furnishing.bring(storage, wanted, root, settings, tell, held.stop, held.lacking)
    finally:
        held.note = ""


async def further(
    storage: Storage, layout: Layout, directory: Path, spec: InstanceSpec, name: str, ask: secrets.Ask | None,
    stop: threading.Event,
) -> Path:  # fmt: skip
    """Have the files of a further model of an instance that runs; where they are.

    Raises `StorageFailed` and `EnvironmentFailed`, and `GivenUp` once `stop` is set.
    """
    image = spec.app.image
    values = await secrets.values_of(image, spec.instance_id, ask, furnishing.secrets_of(spec))
    env = dict(values.env) if values is not None else {}
    pairs = values.mounts if values is not None else {}

    def settings(one: StorageSpec) -> dict[str, str]:
        return furnishing.settings_of(one, image.env, env, pairs.get(one.secret, {}))

    return await furnishing.add(storage, layout, spec, directory, name, settings, stop)


def remodel(
    held: Held, storage: Storage, layout: Layout, ask: secrets.Ask | None,
    spawn: Callable[[Coroutine[Any, Any, None]], None],
) -> None:  # fmt: skip
    """Have an instance go on with the other models of `Held.coming`; one that is not prepared yet begins with them.

    While it is prepared and started nothing is done: it is to be called again once it runs.
    """
    spec = held.coming
    if spec is None or held.life.state not in ("queued", "running"):
        return
    old, held.spec, held.coming = held.spec, spec, None
    if held.life.state == "queued":
        return
    if held.models is None:

        async def fetch(spec: InstanceSpec, name: str, stop: threading.Event) -> Path:
            return await further(storage, layout, held.directory, spec, name, ask, stop)

        async def give_up(why: str) -> None:
            await launch.ask(held.directory, "stop", reason=why)

        held.models = Remodelled(held.directory, old, fetch, spawn, give_up)
    held.models.want(spec)


def prepare(held: Held, around: Surroundings, pairs: Mapping[str, Mapping[str, str]]) -> None:
    """Fill the directory; what the tools for that print belongs to the instance's journal, too.

    `pairs` opens buckets, by secret. Raises `BundleError`, `EnvironmentFailed`, `BootFailed`, `StorageFailed` or
    OSError.
    """
    log = held.directory / files.LOG
    start = log.stat().st_size if log.exists() else 0
    try:
        _prepare(held, around, pairs)
    finally:
        journal.record(held.directory / files.JOURNAL, log, start)


def _prepare(held: Held, around: Surroundings, pairs: Mapping[str, Mapping[str, str]]) -> None:
    spec, directory, layout = held.spec, held.directory, around.layout
    image = spec.app.image
    begin(held, around)
    if guests.is_machine(spec):
        there = _placed(held, layout, pairs)
        _write_start(held, around, guests.prepare(spec, directory, layout.blob, held.stop, there))
        return
    app = directory / files.APP
    if spec.app.bundle:
        bundle.unpack(layout.blob(spec.app.bundle), spec.app.bundle, app, image.copies)
    else:
        app.mkdir(exist_ok=True)
    placed = mounting.furnish(layout, spec, directory, pairs) if image.volumes else {}
    wanted = furnishing.wanted_of(spec)
    root = directory / files.STORAGE
    stored, notes = furnishing.mount(layout, spec, directory, wanted, root, app, held.lacking)
    if held.lacking:
        stored[told.LACKING] = json.dumps(held.lacking)
    ready = environment.prepare(image, layout.environments, directory, local=around.local, stop=held.stop)
    if said := (*notes, *ready.notes):
        with open(directory / files.LOG, "a") as log:
            log.writelines(f"{note}\n" for note in said)
    argv = [ready.python, "-P", "-m", "nanopod.node.worker", str(directory)]
    given = {**launch.told_in(directory), **launch.own_cloud(spec), **placed, **stored}
    paths = told.table_of(stored)
    own = {name: told.located(value, paths) if name in image.env else value for name, value in ready.env.items()}
    whole = launch.environment_of(spec.instance_id, {**given, **own})
    # The agent may have a secret's variable itself (in local mode it has its user's): it must not be written down.
    env = {name: value for name, value in whole.items() if name not in held.secrets}
    held.python = ready.python
    held.libraries = () if image.env or held.secrets else libraries_of(app, spec.app.module)
    fork = may_fork({**env, **held.secrets})
    _write_start(held, around, records.Launch(argv, env, str(app), spec.lease_s, spec.stop_s, fork))


def _placed(held: Held, layout: Layout, pairs: Mapping[str, Mapping[str, str]]) -> guests.Placed | None:
    """Volumes and files of a machine with one command; None for other machines."""
    run = guests.run_of(held.spec)
    if run is None:
        return None
    image, more = needs(held.spec)
    spec, directory = replace(held.spec, app=replace(held.spec.app, image=image)), held.directory
    app = directory / files.APP
    app.mkdir(exist_ok=True)
    env = mounting.furnish(layout, spec, directory, pairs) if image.volumes else {}
    stored, notes = furnishing.mount(
        layout, spec, directory, furnishing.wanted_of(spec, more), directory / files.STORAGE, app
    )  # fmt: skip
    table = told.table_of(stored)
    for mount in run.mounts:
        top = files.VOLUMES if mount.volume else files.STORAGE
        place = directory / top / (mount.volume or mount.path.strip("/")) / mount.sub_path
        if not mount.read_only:
            place.mkdir(parents=True, exist_ok=True)
        table[mount.path] = str(place)
        notes += furnishing.reach(layout, directory, Path(mount.path), place)
    if notes:
        with open(directory / files.LOG, "a") as log:
            log.writelines(f"{note}\n" for note in notes)
    kept = tuple(dict.fromkeys(mount.volume for mount in run.mounts if mount.volume and not mount.read_only))
    return guests.Placed({**env, **stored}, table, kept)


def _write_start(held: Held, around: Surroundings, how: records.Launch) -> None:
    layout, sku = around.layout, around.machine.sku()
    endpoint = held.spec.endpoint_id
    start = records.Start(
        held.spec, list(around.gateways), how, str(layout.models), around.local,
        snapshots_dir=str(layout.snapshots / endpoint) if endpoint else "", benchmarks_dir=str(layout.benchmarks),
        gpu=sku.accelerator if sku.num_accelerators else "", region=sku.region,
        cpu=str(around.machine.facts.get("cpu_name") or around.machine.facts.get("cpu_arch") or ""),
    )  # fmt: skip
    records.write_start(held.directory, start)
