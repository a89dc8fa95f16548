"""What an agent writes down for a worker about the machine that it starts on."""

from __future__ import annotations

from pathlib import Path

from nanopod.model.endpoint import EndpointSpec, InstanceSpec
from nanopod.model.layout import Layout
from nanopod.node import preparing, records
from nanopod.node.held import Held
from nanopod.node.inventory import Gpu, Inventory
from nanopod.node.machine import Life


def start_on(machine: Inventory, layout: Layout) -> records.Start:
    spec = InstanceSpec("inst_1", 1, "wksp", "endp_1", "rev", "node", EndpointSpec("a"), 4, "token")
    held = Held(spec, layout.instances / "inst_1", Life("inst_1", 1, 5.0))
    preparing.prepare(held, preparing.Surroundings(layout, ("unix:/x",), True, machine), {})
    found = records.read_start(held.directory)
    assert found is not None
    return found


def test_a_worker_is_told_what_it_runs_on_and_where_the_node_keeps_what_outlives_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    gpus = (Gpu("H100 SXM", 80 << 30), Gpu("H100 SXM", 80 << 30))
    start = start_on(Inventory(8, 1 << 34, 10**12, gpus, "eu", {"cpu_name": "Some CPU"}), layout)
    assert (start.gpu, start.cpu, start.region) == ("H100 SXM", "Some CPU", "eu")
    assert Path(start.snapshots_dir) == layout.snapshots / "endp_1"
    assert Path(start.benchmarks_dir) == layout.benchmarks
    bare = start_on(Inventory(8, 1 << 34, 10**12, facts={"cpu_arch": "riscv64"}), layout)
    assert (bare.gpu, bare.cpu, bare.region) == ("", "riscv64", "local")
