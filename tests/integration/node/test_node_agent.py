"""A real agent with real shims and workers; the server and the gateway are the test's own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from node_instances import INSTANCE, eventually, inst, instance_spec
from node_stage import Node, on_a_node

from nanopod.model.endpoint import EndpointSpec, FunctionSpec
from nanopod.node import files, launch, procs, records

pytestmark = pytest.mark.integration


def test_from_wanted_to_serving_to_gone(root: Path) -> None:
    async def story(node: Node) -> None:
        hello = node.server.hellos[0]
        assert hello.machine_id.startswith("machine_")
        (sku,) = hello.skus
        (machine,) = hello.nodes
        assert machine.sku_id == sku.sku_id
        assert machine.slots >= 4
        assert sku.num_vcpus >= 1
        assert sku.memory > 0
        assert hello.inventory["isolation"] == ["process"]
        began = asyncio.get_running_loop().time()
        node.server.want(instance_spec(node.app()))
        worker = await node.gateway.ready()
        assert asyncio.get_running_loop().time() - began < 5
        assert await worker.run("square", 7) == 49
        seen = await node.server.phase("loading")
        assert seen.pid == node.running().pid
        assert procs.parent_of(node.running().pid) != node.agent.pid  # type: ignore[union-attr]
        node.server.want()
        seen = await node.server.phase("ended")
        assert seen.failure is None
        phases = [phase for _, phase in node.server.history]
        assert phases == [p for p in ("queued", "preparing", "starting", "loading", "stopping", "ended") if p in phases]
        directory = node.layout.instances / INSTANCE
        await eventually(
            lambda: {p.name for p in directory.iterdir()} == {files.LOG, files.JOURNAL, files.EXIT}, 3, "it is cleaned"
        )
        # The same epoch does not come back.
        node.server.want(instance_spec(node.app()))
        await asyncio.sleep(0.5)
        assert node.server.observed[INSTANCE].phase == "ended"
        assert len(node.gateway.workers) == 1
        await eventually(lambda: node.server.beats >= 1, 10)

    on_a_node(root, story)


def test_kill_9_of_the_agent_loses_no_instance(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(instance_spec(node.app()))
        worker = await node.gateway.ready()
        await node.server.phase("loading")
        running, machine = node.running(), node.server.hellos[0].machine_id
        await node.restart_agent()
        hello = node.server.hellos[-1]
        assert hello.machine_id == machine
        assert [(seen.instance_id, seen.phase, seen.pid) for seen in hello.instances] == [
            (INSTANCE, "loading", running.pid)
        ]
        assert await worker.run("square", 3) == 9, "it served all the while"
        node.server.want(instance_spec(node.app()))
        await asyncio.sleep(0.3)
        assert node.running() == running
        # The new agent notices its end, and stops it when asked, as the old one would have.
        node.server.want()
        await node.server.phase("ended")

    on_a_node(root, story)


def test_what_died_while_no_agent_looked_is_reported(root: Path) -> None:
    async def story(node: Node) -> None:
        specs = [instance_spec(node.app(), inst(number)) for number in range(3)]
        node.server.want(*specs)
        await node.gateway.ready(3)
        for number in range(3):
            await node.server.phase("loading", inst(number))
        assert node.agent is not None
        node.agent.kill()
        node.agent.wait(5)
        shim = node.running(inst(0)).pid
        worker = procs.children_of(node.running(inst(1)).pid)[0]
        os.kill(shim, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        await eventually(lambda: procs.start_time(shim) is None)
        await eventually(lambda: records.read_verdict(node.layout.instances / inst(1)) is not None)
        count = len(node.server.hellos)
        node.start_agent()
        await eventually(lambda: len(node.server.hellos) > count)
        seen = {instance.instance_id: instance for instance in node.server.hellos[-1].instances}
        assert {name: instance.phase for name, instance in seen.items()} == {
            inst(0): "failed", inst(1): "failed", inst(2): "loading",
        }  # fmt: skip
        for name in (inst(0), inst(1)):
            failure = seen[name].failure
            assert failure is not None
            assert not failure.user_fault
            assert not procs.members(0, launch.mark_of(name))
        # A newer epoch of a dead one starts; the same epoch does not.
        node.server.want(specs[0], instance_spec(node.app(), inst(1), epoch=2), specs[2])
        await node.server.phase("loading", inst(1), 2)
        assert node.server.observed[inst(0)].phase == "failed"

    on_a_node(root, story)


def test_a_newer_epoch_replaces_and_never_overlaps(root: Path) -> None:
    code = (
        "def note(text):\n"
        "    with open(os.environ['NOTES'], 'a') as log: log.write(text + '\\n')\n"
        "@remote()\nasync def square(x): return x\n"
        "@context()\nclass Life:\n"
        "    async def __aenter__(self): note('begin')\n"
        "    async def __aexit__(self, *a): await asyncio.sleep(0.3); note('end')\n"
    )

    async def story(node: Node) -> None:
        app = node.app(code, env={"NOTES": str(root / "notes")})
        node.server.want(instance_spec(app))
        await node.gateway.ready()
        await node.server.phase("loading")
        for epoch in (2, 3):
            node.server.want(instance_spec(app, epoch=epoch))
            await node.gateway.ready(epoch)
            await node.server.phase("loading", epoch=epoch)
        # An older generation, and an older epoch in a newer generation, change nothing.
        node.server.want(generation=1)
        node.server.generation = 10
        node.server.want(instance_spec(app, epoch=2))
        await asyncio.sleep(0.5)
        assert node.server.observed[INSTANCE].epoch == 3
        assert node.server.observed[INSTANCE].phase == "loading"
        node.server.want()
        await node.server.phase("ended", epoch=3)
        assert (root / "notes").read_text().split() == ["begin", "end"] * 3
        assert "refused" in node.log

    on_a_node(root, story)


def test_instances_go_on_without_server_and_agent(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(instance_spec(node.app()))
        worker = await node.gateway.ready()
        await node.server.stop()
        assert await worker.run("square", 2) == 4
        await asyncio.sleep(0.5)
        await node.server.start()
        await eventually(lambda: len(node.server.hellos) >= 2, 10, "the agent dials again")
        assert node.server.hellos[-1].instances[0].phase == "loading"
        node.server.want(instance_spec(node.app()))
        assert node.agent is not None
        node.agent.terminate()
        assert node.agent.wait(5) == 0
        assert await worker.run("square", 3) == 9, "an agent that ends leaves its instances alone"

    on_a_node(root, story)


def test_a_worker_that_dies_is_told_at_once(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(instance_spec(node.app()))
        await node.gateway.ready()
        await node.server.phase("loading")
        worker = procs.children_of(node.running().pid)[0]
        began = asyncio.get_running_loop().time()
        os.kill(worker, signal.SIGKILL)
        seen = await node.server.phase("failed")
        assert asyncio.get_running_loop().time() - began < 1
        assert seen.signal == signal.SIGKILL
        assert seen.failure is not None
        assert not seen.failure.user_fault

    on_a_node(root, story)


def test_a_stubborn_worker_is_killed_after_its_grace(root: Path) -> None:
    code = (
        "import signal\n@remote()\nasync def square(x):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); time.sleep(60)\n"
    )

    async def story(node: Node) -> None:
        node.server.want(instance_spec(node.app(code), grace_s=0.5))
        worker = await node.gateway.ready()
        worker.call("square", 1)
        await asyncio.sleep(0.2)
        began = asyncio.get_running_loop().time()
        node.server.want()
        await node.server.phase("ended")
        assert asyncio.get_running_loop().time() - began < 6

    on_a_node(root, story)


def evil_bundle() -> bytes:
    import io
    import tarfile

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:gz") as archive:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return plain.getvalue()


def test_what_cannot_be_prepared_is_told_with_its_stage(root: Path) -> None:
    async def story(node: Node) -> None:
        missing = EndpointSpec("test", bundle="0" * 64, functions=(FunctionSpec("square"),))
        cases = {
            inst("evil"): (node.app(data=evil_bundle()), "bundle", "leads out", True),
            inst("nothing"): (missing, "bundle", "is not here", False),
            inst("apt"): (node.app(apt_get=("cowsay",)), "environment", "NANOPOD_ALLOW_APT", True),
            inst("run"): (node.app(runs=("echo to the log; exit 7",)), "environment", "exit status 7", True),
            inst("argv"): (node.app(runs=(("no-such-program", "x"),)), "environment", "no-such-program", True),
            inst("venv"): (node.app(python="/no/such/env"), "environment", "/no/such/env", True),
        }
        node.server.want(*(instance_spec(app, name) for name, (app, *_) in cases.items()))
        for name, (_, stage, text, user_fault) in cases.items():
            seen = await node.server.phase("failed", name)
            assert seen.failure is not None
            assert (seen.failure.stage, seen.failure.user_fault) == (stage, user_fault), name
            assert text in seen.failure.message + seen.failure.log_tail, name
        assert "to the log" in node.server.observed[inst("run")].failure.log_tail  # type: ignore[union-attr]
        assert not (root / "escaped").exists()
        assert not list(root.rglob("escaped"))
        assert not node.gateway.workers

    on_a_node(root, story)


def test_variables_commands_and_copies_reach_the_worker(root: Path) -> None:
    code = (
        "@remote()\nasync def square(x):\n"
        "    return os.environ['COLOUR'], open('made').read(), os.getcwd(), [k for k in os.environ if 'API_KEY' in k]\n"
    )

    async def story(node: Node) -> None:
        assert node.agent is not None
        node.agent.kill()
        node.agent.wait()
        node.start_agent(NANOPOD_API_KEY="sk_secret", VAST_API_KEY="also")
        await eventually(lambda: len(node.server.hellos) >= 2)
        runs = (("sh", "-c", "echo by argv > made"), 'echo "$COLOUR" >> made')
        app = node.app(code, env={"COLOUR": "teal"}, runs=runs, copies=(("config.json", "/data/c.json"),))
        node.server.want(instance_spec(app))
        worker = await node.gateway.ready()
        colour, made, directory, secrets = await worker.run("square", 1)
        assert (colour, made, secrets) == ("teal", "by argv\nteal\n", [])
        assert Path(directory) == node.layout.instances / INSTANCE / "app"
        assert (Path(directory) / "data" / "c.json").is_file()

    on_a_node(root, story)


def wheel(directory: Path) -> Path:
    """A tiny wheel, so that pip needs no network."""
    path = directory / "colourful-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("colourful.py", "NAME = 'teal'\n")
        about = "colourful-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: colourful\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.mark.slow
def test_packages_get_an_environment_of_their_own_built_once(root: Path) -> None:
    code = "import colourful\n@remote()\nasync def square(x): return colourful.NAME, sys.prefix\n"

    async def story(node: Node) -> None:
        app = node.app(code, pip_install=(str(wheel(root)),))
        node.server.want(instance_spec(app, inst("a")), instance_spec(app, inst("b")))
        workers = [await node.gateway.ready(1, 60), await node.gateway.ready(2, 60)]
        answers = [await worker.run("square", 1) for worker in workers]
        assert answers[0] == answers[1]
        name, prefix = answers[0]
        assert name == "teal"
        assert Path(prefix).parent == node.layout.environments
        built = [path for path in node.layout.environments.iterdir() if path.is_dir()]
        assert len(built) == 1
        logs = [(node.layout.instances / name / files.LOG).read_text() for name in (inst("a"), inst("b"))]
        assert sum("built in" in log for log in logs) == 1
        # What cannot be installed leaves nothing half built, and shows what pip said.
        broken = root / "broken-1.0-py3-none-any.whl"
        broken.write_bytes(b"no wheel")
        node.server.want(instance_spec(node.app(code, pip_install=(str(broken),)), inst("c")))
        seen = await node.server.phase("failed", inst("c"))
        assert seen.failure is not None
        assert seen.failure.stage == "environment"
        assert "broken" in seen.failure.log_tail
        assert [path for path in node.layout.environments.iterdir() if path.is_dir()] == built

    on_a_node(root, story)


def test_local_mode_installs_nothing_and_says_so(root: Path) -> None:
    async def story(node: Node) -> None:
        assert node.agent is not None
        node.agent.kill()
        node.agent.wait()
        node.start_agent(NANOPOD_LOCAL="1")
        await eventually(lambda: len(node.server.hellos) >= 2)
        app = node.app(pip_install=("no-such-package-at-all",), apt_get=("cowsay",), runs=("exit 1",))
        node.server.want(instance_spec(app))
        worker = await node.gateway.ready()
        assert await worker.run("square", 2) == 4
        log = (node.layout.instances / INSTANCE / files.LOG).read_text()
        assert "not installed or run: no-such-package-at-all, cowsay, exit 1" in log

    on_a_node(root, story)


def test_many_starts_at_once_are_bounded_and_all_arrive(root: Path) -> None:
    async def story(node: Node) -> None:
        app = node.app()
        node.server.want(*(instance_spec(app, inst(number)) for number in range(8)))
        most = 0

        def busy() -> bool:
            nonlocal most
            phases = [seen.phase for seen in node.server.observed.values()]
            most = max(most, sum(phase in ("preparing", "starting") for phase in phases))
            return phases.count("loading") == 8

        await eventually(busy, 30, "eight workers")
        assert 1 <= most <= max(4, os.cpu_count() or 1)
        await node.gateway.ready(8, 30)

    on_a_node(root, story)


UP = textwrap.dedent(
    """
    import ctypes, os, signal, subprocess, sys, time
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    me = os.getpid()
    def tie():
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)
    subprocess.Popen([sys.executable, "-m", "nanopod.node.agent", "--data-dir", sys.argv[1]],
                     env={**os.environ, "NANOPOD_UP_PID": str(me)}, preexec_fn=tie)
    while True:
        time.sleep(1)
    """
)


def test_nothing_outlives_the_supervisor(root: Path) -> None:
    async def story(node: Node) -> None:
        assert node.agent is not None
        node.agent.kill()
        node.agent.wait()
        count = len(node.server.hellos)
        node.agent = subprocess.Popen(
            [sys.executable, "-c", UP, str(root)], env={**os.environ, "NANOPOD_TEST_MARK": node.mark}
        )
        await eventually(lambda: len(node.server.hellos) > count, 10)
        node.server.want(instance_spec(node.app()))
        await node.gateway.ready()
        assert procs.parent_of(node.running().pid) == node.agent.pid
        assert len(node.processes()) == 5, "supervisor, agent, fork server, shim, worker"
        node.agent.kill()
        node.agent.wait(5)
        await eventually(lambda: not node.processes(), 3, "everything is gone with the supervisor")

    on_a_node(root, story)


def test_two_agents_do_not_share_a_directory(root: Path) -> None:
    async def story(node: Node) -> None:
        command = [sys.executable, "-m", "nanopod.node.agent", "--data-dir", str(root)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 1
        assert "another agent already runs" in done.stderr

    on_a_node(root, story)


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_an_agent_killed_at_any_moment_of_a_start_leaves_one_worker(root: Path) -> None:
    async def story(node: Node) -> None:
        for number, delay_s in enumerate((0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)):
            name = inst(number)
            spec = instance_spec(node.app(), name)
            node.server.want(spec)
            await asyncio.sleep(delay_s)
            await node.restart_agent()
            node.server.want(spec)

            def settled(name: str = name) -> bool:
                seen = node.server.observed.get(name)
                return seen is not None and seen.phase in ("loading", "failed")

            await eventually(settled, 15, f"{name} settles after {delay_s} s")
            if node.server.observed[name].phase == "loading":
                shims = [
                    pid for pid in procs.members(0, launch.mark_of(name))
                    if b"nanopod.node.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
                ]  # fmt: skip
                # A worker that was forked a moment ago still looks like its shim.
                assert sum(parent_of(pid) not in shims for pid in shims) == 1
            last = "ended" if node.server.observed[name].phase == "loading" else "failed"
            node.server.want()
            await node.server.phase(last, name)
            assert not procs.members(0, launch.mark_of(name))

    on_a_node(root, story)
