"""A node for tests: a real agent on a data directory; the server and the gateway are the test's own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fake_gateway import FakeGateway
from node_instances import HEADER, INSTANCE, bundle_of, eventually

from nanopod.drivers.link.messages import MessageLink, serve
from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ImageSpec, InstanceSpec, ObservedInstance
from nanopod.model.layout import Layout
from nanopod.model.wire import (
    AgentHello,
    AgentWelcome,
    ExecExit,
    ExecOutput,
    Heartbeat,
    LogLine,
    LogPage,
    LogQuery,
    Observed,
    ShutdownNotice,
    Wanted,
)
from nanopod.node import procs, records

CODE = "@remote()\nasync def square(x): return x * x\n"


class FakeServer:
    """The server's end of the agent link."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.hellos: list[AgentHello] = []
        self.observed: dict[str, ObservedInstance] = {}
        self.history: list[tuple[int, str]] = []
        """(epoch, phase) changes of the instance `INSTANCE`."""
        self.beats = 0
        self.generation = 0
        self.pages: dict[str, LogPage] = {}
        self.output: dict[str, dict[int, bytearray]] = {}
        """{exec: {stream: what it printed}}"""
        self.exits: dict[str, ExecExit] = {}
        self.link: MessageLink | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await serve(self.layout.agent_socket, self._handle)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self.link is not None:
            self.link.close()
        self.layout.agent_socket.unlink(missing_ok=True)

    async def _handle(self, link: MessageLink) -> None:
        async for message in link:
            if isinstance(message, AgentHello):
                self.hellos.append(message)
                self.link = link
                self._saw(message.instances)
                link.send(AgentWelcome())
            elif isinstance(message, Observed):
                self._saw(message.instances)
            elif isinstance(message, Heartbeat):
                self.beats += 1
                assert message.memory_free > 0
            elif isinstance(message, LogPage):
                self.pages[message.request_id] = message
            elif isinstance(message, ExecOutput):
                assert len(message.data) <= 32_768
                streams = self.output.setdefault(message.exec_id, {1: bytearray(), 2: bytearray()})
                streams[message.stream] += message.data
            elif isinstance(message, ExecExit):
                assert message.exec_id not in self.exits
                self.exits[message.exec_id] = message

    def _saw(self, instances: list[ObservedInstance]) -> None:
        self.observed = {instance.instance_id: instance for instance in instances}
        for instance in instances:
            now = (instance.epoch, instance.phase)
            if instance.instance_id == INSTANCE and now not in self.history[-1:]:
                self.history.append(now)

    def want(
        self,
        *instances: InstanceSpec,
        generation: int | None = None,
        notices: dict[str, ShutdownNotice] | None = None,
        killed: tuple[str, ...] = (),
    ) -> None:
        assert self.link is not None
        self.generation = self.generation + 1 if generation is None else generation
        gateways = (f"unix:{self.layout.gateway_socket}",)
        self.link.send(Wanted(self.generation, list(instances), gateways, notices or {}, killed))

    async def lines(self, instance_id: str = INSTANCE, **query: Any) -> list[LogLine]:
        """A page of an instance's log."""
        return (await self.page(instance_id, **query)).lines

    async def page(self, instance_id: str = INSTANCE, **query: Any) -> LogPage:
        assert self.link is not None
        request_id = os.urandom(6).hex()
        self.link.send(LogQuery(request_id, instance_id, **query))
        await eventually(lambda: request_id in self.pages, 5, "the page of the log")
        return self.pages.pop(request_id)

    async def exit(self, exec_id: str, wait_s_max: float = 10.0) -> ExecExit:
        """How a command ended."""
        await eventually(lambda: exec_id in self.exits, wait_s_max, f"the end of {exec_id}")
        return self.exits[exec_id]

    def printed(self, exec_id: str, stream: int = 1) -> bytes:
        return bytes(self.output.get(exec_id, {}).get(stream, b""))

    async def phase(self, phase: str, instance_id: str = INSTANCE, epoch: int = 1) -> ObservedInstance:
        """The instance, once it is in this phase."""

        def found() -> ObservedInstance | None:
            seen = self.observed.get(instance_id)
            return seen if seen is not None and (seen.phase, seen.epoch) == (phase, epoch) else None

        try:
            return await eventually(found, 20, f"{instance_id} {phase}")
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {self.history} {self.observed.get(instance_id)}") from None


class Node:
    """A data directory, its agent, a fake server and a fake gateway."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.mark = f"node-test-{os.urandom(6).hex()}"
        for directory in (self.layout.run, self.layout.instances):
            directory.mkdir(parents=True)
        self.server = FakeServer(self.layout)
        self.gateway = FakeGateway(self.layout.gateway_socket)
        self.agent: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Node:
        await self.server.start()
        await self.gateway.start()
        self.start_agent()
        await eventually(lambda: self.server.hellos, 10, "the agent's hello")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait(5)
        await self.gateway.stop()
        await self.server.stop()
        procs.kill_session(0, f"NANOPOD_TEST_MARK={self.mark}")
        assert not self.processes()
        assert "Traceback" not in self.log, self.log

    def start_agent(self, **env: str) -> None:
        with open(self.layout.data / "agent.log", "ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "nanopod.node.agent", "--data-dir", str(self.layout.data)],
                stderr=log, env={**os.environ, "NANOPOD_TEST_MARK": self.mark, **env},
            )  # fmt: skip

    async def restart_agent(self) -> None:
        """kill -9, then a new one, as the supervisor does."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait(5)
        count = len(self.server.hellos)
        self.start_agent()
        await eventually(lambda: len(self.server.hellos) > count, 10, "the next agent's hello")

    def processes(self) -> list[int]:
        """Everything that carries this test's mark."""
        return procs.members(0, f"NANOPOD_TEST_MARK={self.mark}")

    @property
    def log(self) -> str:
        return (self.layout.data / "agent.log").read_text()

    def running(self, instance_id: str = INSTANCE) -> records.Running:
        found = records.read_running(self.layout.instances / instance_id)
        assert found is not None
        return found

    def app(self, code: str = CODE, data: bytes | None = None, **image: Any) -> EndpointSpec:
        """A function endpoint whose bundle lies in the blob store."""
        bundle, digest = bundle_of({"deployment.py": HEADER + code})
        if data is not None:
            bundle, digest = data, hashlib.sha256(data).hexdigest()
        path = self.layout.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle)
        return EndpointSpec(
            "test", bundle=digest, functions=(FunctionSpec("square"),), image=ImageSpec(**image)
        )  # fmt: skip


def on_a_node(root: Path, story: Callable[[Node], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(90):
            async with Node(root) as node:
                try:
                    await story(node)
                except BaseException:
                    print(node.log)
                    raise

    asyncio.run(limited())
