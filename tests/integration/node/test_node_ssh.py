"""The SSH front, with the system's own client. Skipped where the extra `ssh` or the client is not installed."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from node_instances import INSTANCE, eventually, inst, instance_spec
from node_stage import Node, on_a_node

from nanopod.model.endpoint import EndpointSpec
from nanopod.node import procs

pytest.importorskip("asyncssh")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("ssh") is None or shutil.which("ssh-keygen") is None, reason="no ssh client"),
]


def keys(root: Path, name: str) -> tuple[Path, str]:
    """(file of a new private key, its public key)."""
    path = root / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20)
    return path, path.with_suffix(".pub").read_text().strip()


class Client:
    """`ssh` as a person would use it, with the host key that the node's facts give."""

    def __init__(self, root: Path, facts: dict[str, Any], key: Path) -> None:
        self._known = root / "known_hosts"
        (host_key,) = facts["host_keys"]
        self._known.write_text(f"[{facts['hostname']}]:{facts['port']} {host_key['key_type']} {host_key['key']}\n")
        self._facts, self._key = facts, key

    async def run(
        self, user: str, *command: str, data: bytes = b"", options: tuple[str, ...] = ()
    ) -> tuple[int, bytes, bytes]:
        argv = [
            "ssh", "-F", "none", "-p", str(self._facts["port"]), "-i", str(self._key), "-o", "IdentitiesOnly=yes",
            "-o", "IdentityAgent=none", "-o", f"UserKnownHostsFile={self._known}", "-o", "StrictHostKeyChecking=yes",
            "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", *options, f"{user}@{self._facts['hostname']}", *command,
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(30):
                out, err = await process.communicate(data)
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, out, err


def test_people_come_in_by_the_keys_of_the_instance(root: Path) -> None:
    mine, public = keys(root, "mine")
    other, _ = keys(root, "other")
    config = f"#cloud-config\nssh_authorized_keys: ['{public}']\n"
    app = EndpointSpec("web-1", kind="machine")
    spec = instance_spec(app, cloud_init=base64.b64encode(config.encode()).decode(), name="web-1")

    async def story(node: Node) -> None:
        facts = node.server.hellos[0].inventory["ssh"]
        assert facts["hostname"] == "127.0.0.1"
        node.server.want(spec, instance_spec(app, inst("shut"), name="shut"))
        await node.server.phase("ready")
        await node.server.phase("ready", inst("shut"))
        client = Client(root, facts, mine)
        code, out, err = await client.run(
            "web-1", "echo $NANOPOD_INSTANCE_ID; pwd; cat; echo no >&2; exit 5", data=b"in\n"
        )
        assert (code, err) == (5, b"no\n")
        home = node.layout.instances / INSTANCE / "home"
        assert out.decode() == f"{INSTANCE}\n{home}\nin\n"
        # By id, with much input, and with a terminal.
        code, out, _ = await client.run(INSTANCE, "sha256sum", data=b"x" * 20_000_000)
        assert (code, len(out)) == (0, 68)
        _, out, _ = await client.run("web-1", "tty; exit 0", options=("-tt",))
        assert b"/dev/pts/" in out
        code, out, _ = await client.run("web-1", data=b"echo shell\nexit 3\n")
        assert (code, out) == (3, b"shell\n")
        # Nobody else comes in, and nobody to an instance that lists no keys or does not exist.
        for stranger, user in ((other, "web-1"), (mine, "shut"), (mine, "nobody")):
            code, _, err = await Client(root, facts, stranger).run(user, "true")
            assert (code, b"Permission denied" in err) == (255, True), err
        # No way through to other ports.
        code, _, err = await client.run("web-1", "-N", options=("-W", f"127.0.0.1:{facts['port']}"))
        assert code == 255
        # A client that goes away ends its command.
        before = len(procs.descendants(node.running().pid))
        running = asyncio.ensure_future(client.run("web-1", "sleep 100"))
        await eventually(lambda: len(procs.descendants(node.running().pid)) > before, 5)
        running.cancel()
        await eventually(lambda: len(procs.descendants(node.running().pid)) == before, 5)
        # The next agent has the same key and port.
        await node.restart_agent()
        assert node.server.hellos[-1].inventory["ssh"] == facts
        assert (await client.run("web-1", "true"))[0] == 0

    on_a_node(root, story)
