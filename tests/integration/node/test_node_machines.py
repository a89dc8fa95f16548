"""Machines: a real agent, real shims and guests, real start-up scripts; logs, commands, notices, the end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from node_instances import INSTANCE, eventually, inst, instance_spec
from node_stage import Node, on_a_node

from nanopod.model.endpoint import EndpointSpec, InstanceSpec
from nanopod.model.wire import ExecInput, ExecStart, ShutdownNotice
from nanopod.node import files, procs, records

pytestmark = pytest.mark.integration


def machine(script: str = "", instance_id: str = INSTANCE, **fields: Any) -> InstanceSpec:
    """A machine that runs `script`."""
    app = EndpointSpec("web-1", kind="machine")
    text = base64.b64encode(script.encode()).decode()
    return instance_spec(app, instance_id, **{"cloud_init": text, "name": "web-1", **fields})


def image_of(node: Node, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> str:
    """Put an image into the blob store; its digest."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    path = node.layout.blob(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())
    return digest


def home(node: Node, instance_id: str = INSTANCE) -> Path:
    return node.layout.instances / instance_id / files.HOME


async def text_of(node: Node, **query: Any) -> str:
    return b"".join(line.data for line in await node.server.lines(limit=2500, **query)).decode()


def test_a_script_runs_and_its_machine_stays_until_it_is_stopped(root: Path) -> None:
    async def story(node: Node) -> None:
        script = """#!/bin/sh
echo "hello from $NANOPOD_INSTANCE_NAME $NANOPOD_INSTANCE_ID in $PWD"
echo "oops" >&2
echo made > "$HOME/made"
env -i setsid sleep 1000 &
trap 'echo asked; exit 0' TERM
"""
        began = time.monotonic()
        node.server.want(machine(script))
        seen = await node.server.phase("ready")
        assert time.monotonic() - began < 3
        assert seen.reason == ""
        await eventually(lambda: (home(node) / "made").read_text() == "made\n", 15)
        # Its script has ended with 0; the machine is still there, and so is what the script left behind.
        shim = node.running().pid
        await eventually(lambda: json.loads((home(node).parent / files.STATE).read_bytes())["done"], 15)
        assert len(procs.descendants(shim)) == 2, "the guest and the sleeper"
        lines = await node.server.lines()
        assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
        found = {(line.stream, line.data.decode()) for line in lines}
        assert (1, f"hello from web-1 {INSTANCE} in {home(node)}\n") in found
        assert (2, "oops\n") in found
        assert all(abs(line.at - time.time()) < 10 and line.monotonic_ns > 0 for line in lines)
        assert "hello from web-1" in (home(node).parent / files.LOG).read_text(), "the plain log goes on"
        left = procs.descendants(shim)
        node.server.want()
        ended = await node.server.phase("ended")
        assert ended.failure is None
        assert [pid for pid in left if procs.start_time(pid) is not None] == []

    on_a_node(root, story)


def test_a_script_that_fails_leaves_its_machine_running(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine("#!/bin/sh\necho trying\nexit 3\n"), machine("#!/no/such/thing\n", inst("b")))
        seen = await eventually(lambda: (s := node.server.observed.get(INSTANCE)) and s.reason and s, 20)
        assert (seen.phase, seen.reason) == ("ready", "start-up script exited 3")
        assert "trying\nstart-up script exited 3\n" in await text_of(node)
        other = await eventually(lambda: (s := node.server.observed.get(inst("b"))) and s.reason and s, 20)
        assert other.reason == "start-up script exited 127"
        assert "/no/such/thing" not in node.log
        # A later agent knows it as well.
        await node.restart_agent()
        (again,) = [seen for seen in node.server.hellos[-1].instances if seen.instance_id == INSTANCE]
        assert (again.phase, again.reason, again.pid) == ("ready", "start-up script exited 3", seen.pid)

    on_a_node(root, story)


def test_cloud_config_writes_files_and_runs_commands_in_order(root: Path) -> None:
    config = """#cloud-config
write_files:
  - path: ~/etc/app.conf
    content: |
      a: 1
    permissions: '0600'
  - {path: bin/tool, content: ZWNobyB0b29sICIkQCIK, encoding: b64, permissions: 0755}
  - {path: /etc/motd, content: inside}
bootcmd: [echo first]
runcmd:
  - [echo, "two  words", $HOME]
  - cat etc/app.conf && sh bin/tool x; false
  - echo last
ssh_authorized_keys: [ssh-ed25519 AAAA me]
"""

    async def story(node: Node) -> None:
        motd = tarfile.TarInfo("etc/motd")
        digest = image_of(node, [(motd, b"old")])
        node.server.want(machine(config, image_sha256=digest))
        await node.server.phase("ready")
        await eventually(lambda: "last" in (home(node).parent / files.LOG).read_text(), 10)
        assert await text_of(node) == "first\ntwo  words $HOME\na: 1\ntool x\nlast\n"
        assert (home(node) / "etc/app.conf").stat().st_mode & 0o777 == 0o600
        assert (home(node) / ".ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA me\n"
        assert (home(node).parent / files.IMAGE / "etc/motd").read_text() == "inside"
        assert node.server.observed[INSTANCE].reason == ""

    on_a_node(root, story)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#cloud-config\npackages: [nginx]\n", "cloud_init_user_data.packages: packages cannot be installed"),
        ("#cloud-config\nwrite_files: [{path: /etc/x, content: y}]\n", "write_files[0].path: /etc/x is absolute"),
        ("echo no first line", "first line must be '#!'"),
    ],
)
def test_what_cannot_be_done_fails_the_start_and_is_named(root: Path, script: str, words: str) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine(script))
        seen = await node.server.phase("failed")
        assert seen.failure is not None
        assert words in seen.failure.message
        assert seen.failure.user_fault
        assert seen.failure.stage == "start"

    on_a_node(root, story)


def test_an_image_is_checked_unpacked_and_kept_inside(root: Path) -> None:
    async def story(node: Node) -> None:
        link = tarfile.TarInfo("lib")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/lib"
        good = image_of(node, [(tarfile.TarInfo("usr/lib/x"), b"data"), (link, b"")])
        evil = image_of(node, [(tarfile.TarInfo("../../evil"), b"data")])
        damaged = image_of(node, [(tarfile.TarInfo("a"), b"b")])
        node.layout.blob(damaged).write_bytes(b"something else")
        script = '#!/bin/sh\ncat "$NANOPOD_IMAGE_DIR/lib/x"; echo; readlink "$NANOPOD_IMAGE_DIR/lib"\n'
        node.server.want(
            machine(script, image_sha256=good),
            machine(script, inst("evil"), image_sha256=evil),
            machine(script, inst("damaged"), image_sha256=damaged),
            machine(script, inst("none"), image_sha256="0" * 64),
        )
        await node.server.phase("ready")
        await eventually(lambda: "usr/lib" in (home(node).parent / files.LOG).read_text(), 15)
        assert await text_of(node) == "data\nusr/lib\n"
        faults = {}
        for name in (inst("evil"), inst("damaged"), inst("none")):
            seen = await node.server.phase("failed", name)
            assert seen.failure is not None
            faults[name] = (seen.failure.user_fault, "image" in seen.failure.message)
        assert faults == {inst("evil"): (True, True), inst("damaged"): (False, True), inst("none"): (False, True)}
        assert not list(root.rglob("evil"))

    on_a_node(root, story)


def test_logs_are_paged_by_number_and_time_and_go_on_after_a_restart(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine("#!/bin/sh\nseq 1 3000\nprintf unfinished\nsleep 1\nprintf ' end\\n'\n"))
        await node.server.phase("ready")
        await eventually(lambda: " end" in (home(node).parent / files.LOG).read_text(), 10)
        first = await node.server.lines()
        assert [line.data for line in first] == [b"%d\n" % number for number in range(1, 101)]
        later = await node.server.lines(after=2999, limit=2500)
        assert [line.data for line in later] == [b"2999\n", b"3000\n", b"unfinished", b" end\n"]
        assert later[-1].at - later[-2].at > 0.5
        newest = await node.server.lines(newest_first=True, limit=2)
        assert [line.seq for line in newest] == [3002, 3001]
        middle = await node.server.lines(after=10, before=12)
        assert [line.seq for line in middle] == [10, 11, 12]
        assert [line.data for line in await node.server.lines(since=later[-1].at)] == [b" end\n"]
        assert len(await node.server.lines(until=later[1].at, limit=9999)) == 2500
        assert "no log" in (await node.server.page(inst("unknown"))).error
        assert "not an id" in (await node.server.page("../x")).error
        # A new epoch goes on counting.
        node.server.want(machine("#!/bin/sh\necho again\n", epoch=2))
        await node.server.phase("ready", epoch=2)
        await eventually(lambda: "again" in (home(node).parent / files.LOG).read_text(), 15)
        (again,) = await node.server.lines(after=3003)
        assert (again.seq, again.data) == (3003, b"again\n")
        # What an ended instance printed stays readable.
        node.server.want()
        await node.server.phase("ended", epoch=2)
        assert (await node.server.lines(after=3003))[0].data == b"again\n"

    on_a_node(root, story)


def test_commands_with_pipes(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine())
        await node.server.phase("ready")
        link = node.server.link
        assert link is not None
        script = 'echo "$A in $PWD"; echo err >&2; cat; echo done; exit 7'
        link.send(ExecStart("exec_1", INSTANCE, ("sh", "-c", script), {"A": "b"}))
        link.send(ExecInput("exec_1", b"some input\n"))
        link.send(ExecInput("exec_1", b"more\n", eof=True))
        ended = await node.server.exit("exec_1")
        assert (ended.exit_code, ended.error) == (7, "")
        assert node.server.printed("exec_1").decode() == f"b in {home(node)}\nsome input\nmore\ndone\n"
        assert node.server.printed("exec_1", 2) == b"err\n"
        # A lot of output arrives whole and in order.
        link.send(ExecStart("exec_2", INSTANCE, ("seq", "1", "300000")))
        assert (await node.server.exit("exec_2", 20)).exit_code == 0
        assert node.server.printed("exec_2") == b"".join(b"%d\n" % number for number in range(1, 300_001))
        # What cannot be run says so.
        link.send(ExecStart("exec_3", INSTANCE, ("/no/such/program",)))
        failed = await node.server.exit("exec_3")
        assert "No such file" in failed.error
        link.send(ExecStart("exec_4", INSTANCE, ("true",), cwd="nowhere"))
        assert "nowhere" in (await node.server.exit("exec_4")).error
        link.send(ExecStart("exec_5", inst("other"), ("true",)))
        assert "does not run" in (await node.server.exit("exec_5")).error
        # What a command leaves in the background holds its pipes, not its end.
        link.send(ExecStart("exec_8", INSTANCE, ("sh", "-c", "sleep 100 & exit 3")))
        assert (await node.server.exit("exec_8")).exit_code == 3
        # Signals, and the kill of everything a command started.
        link.send(ExecStart("exec_6", INSTANCE, ("sh", "-c", "trap 'exit 9' TERM; sleep 100 & echo up; wait")))
        await eventually(lambda: node.server.printed("exec_6"), 15)
        link.send(ExecInput("exec_6", signal=int(signal.SIGTERM)))
        assert (await node.server.exit("exec_6")).exit_code == 9
        before = set(procs.descendants(node.running().pid))
        link.send(ExecStart("exec_7", INSTANCE, ("sh", "-c", "setsid sleep 100 & echo up; sleep 100")))
        await eventually(lambda: node.server.printed("exec_7"), 15)
        link.send(ExecInput("exec_7", signal=9))
        assert (await node.server.exit("exec_7")).exit_code == 137
        shim = node.running().pid
        await eventually(lambda: before.issuperset(procs.descendants(shim)), 5, "the end of all it started")

    on_a_node(root, story)


def test_commands_on_a_terminal(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine())
        await node.server.phase("ready")
        link = node.server.link
        assert link is not None
        link.send(ExecStart("exec_1", INSTANCE, ("sh",), {"PS1": "> "}, "", True, 40, 100))
        link.send(ExecInput("exec_1", b"stty size; tty; echo $TERM\n"))
        await eventually(lambda: b"xterm-256color" in node.server.printed("exec_1"), 15)
        printed = node.server.printed("exec_1")
        assert b"40 100\r\n" in printed
        assert b"/dev/pts/" in printed
        link.send(ExecInput("exec_1", resize=(50, 132)))
        link.send(ExecInput("exec_1", b"stty size; sleep 100\n"))
        await eventually(lambda: b"50 132" in node.server.printed("exec_1"), 15)
        await asyncio.sleep(0.3)
        link.send(ExecInput("exec_1", b"\x03"))
        link.send(ExecInput("exec_1", b"exit 4\n"))
        assert (await node.server.exit("exec_1")).exit_code == 4

    on_a_node(root, story)


def test_commands_end_by_time_with_their_instance_and_with_the_agent(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine(), machine("", inst("b")))
        await node.server.phase("ready")
        await node.server.phase("ready", inst("b"))
        link = node.server.link
        assert link is not None
        before = len(procs.descendants(node.running().pid))
        began = time.monotonic()
        link.send(ExecStart("exec_1", INSTANCE, ("sh", "-c", "sleep 100 & sleep 100"), timeout_s=0.5))
        ended = await node.server.exit("exec_1")
        assert (ended.exit_code, time.monotonic() - began < 3) == (124, True)
        assert b"timeout_s" in node.server.printed("exec_1", 2)
        assert len(procs.descendants(node.running().pid)) == before
        # At most so many at once.
        for number in range(33):
            link.send(ExecStart(f"exec_b{number}", inst("b"), ("sleep", "100")))
        await eventually(lambda: node.server.exits.keys() & {f"exec_b{n}" for n in range(33)}, 5, "one is refused")
        refused = [exit for name, exit in node.server.exits.items() if name.startswith("exec_b")]
        assert ["at most 32" in exit.error for exit in refused] == [True]
        node.server.want(machine())
        await node.server.phase("ended", inst("b"))
        for number in range(32):
            await node.server.exit(f"exec_b{number}")
        # The agent is killed: the machine stays, the command does not.
        link.send(ExecStart("exec_c", INSTANCE, ("sh", "-c", "echo up; sleep 100")))
        await eventually(lambda: node.server.printed("exec_c"), 15)
        shim = node.running().pid
        await node.restart_agent()
        await eventually(lambda: len(procs.descendants(shim)) == before, 5, "the end of the command")
        assert (await node.server.phase("ready")).pid == shim

    on_a_node(root, story)


HOOKED = """#cloud-config
nanopod:
  on_shutdown:
    - echo "hook $NANOPOD_SHUTDOWN_REASON $(cat "$NANOPOD_SHUTDOWN_FILE" | tr -d ' ')"
"""


def test_a_hook_that_comes_after_its_notice_is_run_once(root: Path) -> None:
    script = "#!/bin/sh\nsleep 1\nprintf '#!/bin/sh\\necho hook $NANOPOD_SHUTDOWN_AT\\n' > on_shutdown\nchmod +x on_shutdown\n"

    async def story(node: Node) -> None:
        at = int(time.time()) + 300
        notices = {INSTANCE: ShutdownNotice(at, "schedule")}
        node.server.want(machine(script), notices=notices)
        await node.server.phase("ready")
        await eventually(lambda: f"hook {at}\n" in (home(node).parent / files.LOG).read_text(), 15)
        await node.restart_agent()
        node.server.want(machine(script), notices=notices)
        await asyncio.sleep(2.0)
        assert (await text_of(node)).count("hook") == 1

    on_a_node(root, story)


async def get(path: Path, what: str) -> tuple[str, Any]:
    """(status line, JSON) of a GET on the metadata socket."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(f"GET {what} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 15)).partition(b"\r\n\r\n")
    writer.close()
    return head.split(b"\r\n")[0].decode(), json.loads(body)


def test_the_end_that_is_near_is_told_inside(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine(HOOKED))
        await node.server.phase("ready")
        directory = home(node).parent
        await eventually(lambda: (directory / files.METADATA).exists(), 15)
        assert await get(directory / files.METADATA, "/v1/shutdown") == (
            "HTTP/1.1 200 OK", {"at": None, "lead_s": None, "reason": None}
        )  # fmt: skip
        at = int(time.time()) + 300
        notices = {INSTANCE: ShutdownNotice(at, "price")}
        node.server.want(machine(HOOKED), notices=notices)
        told = await eventually(lambda: json.loads((directory / files.SHUTDOWN).read_bytes()), 15)
        assert (told["at"], told["reason"]) == (at, "price")
        assert 295 <= told["lead_s"] <= 300
        await eventually(lambda: "hook price" in (directory / files.LOG).read_text(), 15)
        assert f'hook price {{"at":{at}' in await text_of(node)
        _, facts = await get(directory / files.METADATA, "/v1/instance")
        assert (facts["id"], facts["name"], facts["shutdown"]["at"]) == (INSTANCE, "web-1", at)
        assert "secret" not in json.dumps(facts)
        # Said again it changes nothing, by another agent neither.
        node.server.want(machine(HOOKED), notices=notices)
        await node.restart_agent()
        node.server.want(machine(HOOKED), notices=notices)
        await eventually(lambda: (directory / files.METADATA).exists(), 15)
        await asyncio.sleep(0.3)
        assert (await text_of(node)).count("hook") == 1
        assert (await get(directory / files.METADATA, "/v1/shutdown"))[1]["at"] == at
        # Taken back, and announced anew.
        node.server.want(machine(HOOKED))
        await eventually(lambda: not (directory / files.SHUTDOWN).exists(), 15)
        node.server.want(machine(HOOKED), notices={INSTANCE: ShutdownNotice(at + 60, "sold")})
        await eventually(lambda: "hook sold" in (directory / files.LOG).read_text(), 15)

    on_a_node(root, story)


def test_workers_are_told_too_and_take_commands(root: Path) -> None:
    async def story(node: Node) -> None:
        spec = instance_spec(node.app("@remote()\nasync def square(x): return os.environ['NANOPOD_SHUTDOWN_FILE']\n"))
        node.server.want(spec)
        worker = await node.gateway.ready()
        path = await worker.run("square", 1)
        await node.server.phase("loading")
        node.server.want(spec, notices={INSTANCE: ShutdownNotice(int(time.time()) + 100, "schedule")})
        await eventually(lambda: json.loads(Path(path).read_bytes())["reason"] == "schedule", 15)
        link = node.server.link
        assert link is not None
        link.send(ExecStart("exec_1", INSTANCE, ("sh", "-c", "ls; echo $NANOPOD_INSTANCE")))
        assert (await node.server.exit("exec_1")).exit_code == 0
        assert b"deployment.py" in node.server.printed("exec_1")
        assert INSTANCE.encode() in node.server.printed("exec_1")
        # What is run before the worker starts is in its log as well.
        other = instance_spec(node.app(runs=("echo prepared",)), inst("b"))
        node.server.want(spec, other)
        await node.server.phase("loading", inst("b"))
        assert b"prepared\n" in [line.data for line in await node.server.lines(inst("b"))]

    on_a_node(root, story)


def test_killed_means_at_once(root: Path) -> None:
    async def story(node: Node) -> None:
        stubborn = machine(
            "#!/bin/sh\ntrap '' TERM\nenv -i setsid sleep 1000 &\nwhile true; do sleep 1; done\n", grace_s=30.0
        )
        node.server.want(stubborn)
        await node.server.phase("ready")
        await eventually(lambda: len(procs.descendants(node.running().pid)) >= 4, 15)
        left = [node.running().pid, *procs.descendants(node.running().pid)]
        began = time.monotonic()
        node.server.want(stubborn, killed=(INSTANCE,))
        ended = await node.server.phase("ended")
        assert time.monotonic() - began < 10, "without waiting for its grace"
        assert ended.reason == "its time is over"
        assert ended.failure is None
        assert [pid for pid in left if procs.start_time(pid) is not None] == []

    on_a_node(root, story)


def test_killed_while_it_starts(root: Path) -> None:
    async def story(node: Node) -> None:
        spec = machine("#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 1; done\n", grace_s=30.0)
        for number in range(8):
            name = inst(number)
            spec = machine("#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 1; done\n", name, grace_s=30.0)
            node.server.want(spec)
            await asyncio.sleep(0.01 * number)
            node.server.want(spec, killed=(name,))
            began = time.monotonic()
            await node.server.phase("ended", name)
            assert time.monotonic() - began < 10
            assert procs.members(0, f"NANOPOD_INSTANCE={name}") == []

    on_a_node(root, story)


def test_a_stubborn_machine_has_its_grace_and_no_more(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine("#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 1; done\n", grace_s=0.5))
        await node.server.phase("ready")
        shim = node.running().pid
        await eventually(lambda: len(procs.descendants(shim)) >= 2, 15)
        left = procs.descendants(shim)
        node.server.want()
        await node.server.phase("ended")
        assert [pid for pid in left if procs.start_time(pid) is not None] == []

    on_a_node(root, story)


def test_the_shim_dies_and_nothing_stays(root: Path) -> None:
    async def story(node: Node) -> None:
        node.server.want(machine("#!/bin/sh\nenv -i setsid sleep 1000 &\nsleep 1000\n"))
        await node.server.phase("ready")
        shim = node.running().pid
        await eventually(lambda: len(procs.descendants(shim)) >= 3, 15)
        left = procs.descendants(shim)
        os.kill(shim, signal.SIGKILL)
        seen = await node.server.phase("failed")
        assert seen.failure is not None
        assert not seen.failure.user_fault
        await eventually(lambda: not [pid for pid in left if procs.start_time(pid) is not None], 15)
        verdict = records.read_verdict(home(node).parent)
        assert verdict is not None
        assert verdict.signal == 9

    on_a_node(root, story)
