"""Everything that is put into an instance's directory before its shim starts. On a thread: it may take minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanopod.model.layout import Layout
from nanopod.node import bundle, environment, files, guests, journal, launch, mounting, records
from nanopod.node.held import Held
from nanopod.node.inventory import Inventory
from nanopod.node.zygotes import libraries_of, may_fork


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the node has for all its instances. `local`: embedded local mode, see `environment.prepare`."""

    layout: Layout
    gateways: tuple[str, ...]
    local: bool
    machine: Inventory


def prepare(held: Held, around: Surroundings, pairs: Mapping[str, Mapping[str, str]]) -> None:
    """Make the directory; what the tools for that print belongs to the instance's journal, too.

    `pairs` opens buckets, by secret. Raises `BundleError`, `EnvironmentFailed`, `BootFailed` or OSError.
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
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written first: an agent that takes over from here must know of the instance.
    _write_start(held, around, records.Launch([], {}, ""))
    if guests.is_machine(spec):
        _write_start(held, around, guests.prepare(spec, directory, layout.blob, held.stop))
        return
    app = directory / files.APP
    if spec.app.bundle:
        bundle.unpack(layout.blob(spec.app.bundle), spec.app.bundle, app, image.copies)
    else:
        app.mkdir(exist_ok=True)
    placed = mounting.furnish(layout, spec, directory, pairs) if image.volumes else {}
    ready = environment.prepare(image, layout.environments, directory, local=around.local, stop=held.stop)
    if ready.notes:
        with open(directory / files.LOG, "a") as log:
            log.writelines(f"{note}\n" for note in ready.notes)
    argv = [ready.python, "-P", "-m", "nanopod.node.worker", str(directory)]
    told = {**launch.told_in(directory), **launch.own_cloud(spec), **placed}
    whole = launch.environment_of(spec.instance_id, {**told, **ready.env})
    # The agent may have a secret's variable itself (in local mode it has its user's): it must not be written down.
    env = {name: value for name, value in whole.items() if name not in held.secrets}
    held.python = ready.python
    held.libraries = () if image.env or held.secrets else libraries_of(app, spec.app.module)
    fork = may_fork({**env, **held.secrets})
    _write_start(held, around, records.Launch(argv, env, str(app), spec.lease_s, spec.grace_s, fork))


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
