"""A real server process for tests, and the peers it talks to: an API client, a fake gateway, a fake node agent."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from nanopod.drivers.link.messages import LinkClosed, MessageLink
from nanopod.model.capacity import Node, Sku
from nanopod.model.endpoint import Failure, InstanceSpec, ObservedInstance
from nanopod.model.layout import Layout
from nanopod.model.wire import (
    AgentHello,
    AgentWelcome,
    Demand,
    EndpointSample,
    GatewayHello,
    Heartbeat,
    MeterAck,
    MeterRecord,
    MeterSegment,
    Observed,
    Samples,
    Tables,
    TablesSeen,
    Wanted,
    WorkerState,
)

T = TypeVar("T")
START_S_MAX = 20.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float = 20.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Answer:
    """What the API said."""

    status: int
    headers: dict[str, str]
    body: Any

    def __getitem__(self, name: str) -> Any:
        return self.body[name]

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        return dict(self.body["error"])


class ServerProcess:
    """`python -m nanopod.server` on a data directory."""

    def __init__(self, data: Path, *options: str, **env: str) -> None:
        self.layout = Layout(data)
        self.options = options
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None
        self.judge: Callable[[str, str, int, Any], None] | None = None
        """Looks at every answer: (method, path, status, body)."""
        self.key = ""
        self.start_s = 0.0

    def start(self) -> ServerProcess:
        """Start and wait until it answers."""
        self.layout.data.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(self.layout.data / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nanopod.server", "--data-dir", str(self.layout.data), *self.options],
                stderr=log,
                stdout=log,
                env={**os.environ, **self.env},
            )
        while True:
            try:
                self.key = self.layout.admin_key.read_text().strip()
                connection = UnixConnection(self.layout.server_socket, 2.0)
                connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {self.key}"})
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() - began > START_S_MAX:
                raise RuntimeError(f"the server did not start:\n{self.log()[-4000:]}")
            time.sleep(0.005)
        self.start_s = time.monotonic() - began
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise

    def log(self) -> str:
        """Everything it logged."""
        return (self.layout.data / "server.log").read_text(errors="replace")

    def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, raw: bytes | None = None
    ) -> Answer:
        """One request."""
        connection = UnixConnection(self.layout.server_socket)
        headers = {"Content-Type": "application/json"}
        if (key or self.key) != "none":
            headers["Authorization"] = f"Bearer {key or self.key}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            content = answer.read()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            found = Answer(answer.status, fields, json.loads(content) if content else None)
        finally:
            connection.close()
        if self.judge is not None:
            self.judge(method, path, found.status, found.body)
        return found

    async def acall(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """One request, beside what else runs in the loop."""
        return await asyncio.to_thread(self.call, method, path, body, **more)


def model(name: str = "tiny", **more: Any) -> dict[str, Any]:
    """The body of a model endpoint."""
    served = {"model_id": name, "engine": "reference", "source": "nanopod-tiny", "slots": 4, **more.pop("model", {})}
    return {"name": name, "kind": "model", "model": served, **more}


async def until(test: Callable[[], T], wait_s_max: float = 10.0, what: str = "") -> T:
    """Poll until `test` is true; its value."""
    limit = time.monotonic() + wait_s_max
    while not (found := test()):
        if time.monotonic() > limit:
            raise TimeoutError(f"{what or test} did not come true within {wait_s_max} s")
        await asyncio.sleep(0.002)
    return found


async def connect(path: Path, wait_s_max: float = 10.0) -> MessageLink:
    """Dial a message socket, again and again until it answers."""
    limit = time.monotonic() + wait_s_max
    while True:
        try:
            return MessageLink(*await asyncio.open_unix_connection(str(path)))
        except OSError:
            if time.monotonic() > limit:
                raise
            await asyncio.sleep(0.01)


@dataclass
class FakeGateway:
    """A gateway without requests: keeps what it is told, says what a test wants."""

    layout: Layout
    gateway_id: str = "gw_test"
    tables: Tables | None = None
    versions: list[int] = field(default_factory=list)
    acks: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    link: MessageLink | None = None
    states: dict[str, WorkerState] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def linked(self) -> AsyncIterator[FakeGateway]:
        """Linked for as long as the block lasts; redials when the server goes away."""
        task = asyncio.create_task(self._run())
        try:
            await until(lambda: self.tables is not None, what="tables")
            yield self
        finally:
            task.cancel()
            if self.link:
                self.link.close()

    async def _run(self) -> None:
        while True:
            self.link = link = await connect(self.layout.control_socket, 30)
            try:
                link.send(GatewayHello(self.gateway_id, os.getpid(), (f"unix:{self.layout.gateway_socket}",)))
                for state in self.states.values():
                    link.send(state)
                async for message in link:
                    if isinstance(message, Tables):
                        self.tables = message
                        self.versions.append(message.version)
                        self.changed.set()
                        link.send(TablesSeen(message.version))
                    elif isinstance(message, MeterAck):
                        self.acks.append(message.segment_id)
            except LinkClosed:
                pass
            await asyncio.sleep(0.02)

    def demand(self, endpoint_id: str, waiting: int = 1) -> None:
        """Somebody waits."""
        assert self.link
        self.link.send(Demand(endpoint_id, waiting))

    def sample(self, endpoint_id: str, concurrency: float, parked: int = 0, at: float | None = None) -> None:
        """A second at an endpoint."""
        assert self.link
        row = EndpointSample(endpoint_id, concurrency, int(concurrency), parked, int(concurrency) - parked)
        self.link.send(Samples(at if at is not None else time.time(), [row]))

    def worker(self, instance_id: str, epoch: int = 1, *, linked: bool = True, ready: bool = True) -> None:
        """A worker's link came, changed or went."""
        state = WorkerState(instance_id, epoch, linked, ready)
        if linked:
            self.states[instance_id] = state
        else:
            self.states.pop(instance_id, None)
        if self.link and not self.link.closed:
            self.link.send(state)

    def meter(self, segment_id: str, *records: MeterRecord) -> None:
        """A segment of the spool."""
        assert self.link
        self.link.send(MeterSegment(segment_id, list(records)))


@dataclass
class FakeAgent:
    """A node agent whose instances run at once, unless `breaks` says how they fail."""

    layout: Layout
    machine_id: str = "machine_test"
    slots: int = 4
    sku_id: str = "isku_cpu"
    gateway: FakeGateway | None = None
    breaks: Callable[[InstanceSpec], Failure | None] = lambda spec: None
    auto: bool = True
    """Instances go through their phases by themselves and link to `gateway`."""
    running: dict[str, ObservedInstance] = field(default_factory=dict)
    generations: list[int] = field(default_factory=list)
    wanted: dict[str, InstanceSpec] = field(default_factory=dict)
    wanted_at: dict[str, float] = field(default_factory=dict)
    started: list[tuple[str, int]] = field(default_factory=list)
    link: MessageLink | None = None
    welcomed: bool = False

    @contextlib.asynccontextmanager
    async def linked(self) -> AsyncIterator[FakeAgent]:
        """Linked for as long as the block lasts; redials when the server goes away."""
        task = asyncio.create_task(self._run())
        try:
            await until(lambda: self.welcomed, what="the server's welcome")
            yield self
        finally:
            task.cancel()
            if self.link:
                self.link.close()

    async def _run(self) -> None:
        node = Node(f"node_{self.machine_id}", self.machine_id, self.sku_id, self.slots)
        sku = Sku(self.sku_id, self.sku_id.removeprefix("isku_"), num_vcpus=2)
        while True:
            self.link = link = await connect(self.layout.agent_socket, 30)
            try:
                beating = asyncio.create_task(self._beat(link))
                hello = AgentHello(self.machine_id, "boot-1", "0", [node], [sku], list(self.running.values()))
                link.send(hello)
                async for message in link:
                    if isinstance(message, AgentWelcome):
                        self.welcomed = True
                    elif isinstance(message, Wanted):
                        assert not self.generations or message.generation > self.generations[-1]
                        self.generations.append(message.generation)
                        self._converge(message)
            except LinkClosed:
                pass
            finally:
                beating.cancel()
            await asyncio.sleep(0.02)

    async def _beat(self, link: MessageLink) -> None:
        while not link.closed:
            await asyncio.sleep(5)
            with contextlib.suppress(LinkClosed):
                link.send(Heartbeat())

    def _converge(self, message: Wanted) -> None:
        now = time.monotonic()
        self.wanted = {spec.instance_id: spec for spec in message.instances}
        for key in [key for key in self.running if key not in self.wanted]:
            known = self.running.pop(key)
            if self.gateway and known.phase in ("starting", "loading", "running"):
                self.gateway.worker(key, known.epoch, linked=False)
        for spec in message.instances:
            self.wanted_at.setdefault(spec.instance_id, now)
            known_here = self.running.get(spec.instance_id)
            if known_here is not None and known_here.epoch >= spec.epoch:
                continue
            self.started.append((spec.instance_id, spec.epoch))
            failure = self.breaks(spec)
            if failure is not None:
                self.running[spec.instance_id] = ObservedInstance(
                    spec.instance_id, spec.epoch, "failed", exit_code=1, failure=failure
                )
                continue
            self.running[spec.instance_id] = ObservedInstance(spec.instance_id, spec.epoch, "loading", pid=4242)
            if self.auto and self.gateway:
                self.gateway.worker(spec.instance_id, spec.epoch)
        self.report()

    def report(self) -> None:
        """Say what runs."""
        if self.link and not self.link.closed:
            self.link.send(Observed(list(self.running.values())))

    def crash(self, instance_id: str) -> None:
        """A worker dies by itself."""
        self.running[instance_id] = replace(
            self.running[instance_id], phase="failed", pid=None, signal=9, reason="killed by signal 9"
        )
        if self.gateway:
            self.gateway.worker(instance_id, self.running[instance_id].epoch, linked=False)
        self.report()


def record(record_id: str, **more: Any) -> MeterRecord:
    """A usage record."""
    values: dict[str, Any] = {
        "record_id": record_id, "request_id": record_id, "workspace_id": "", "key_id": "key", "endpoint_id": "endp_x",
        "revision_id": "rev_x", "instance_id": "inst_x", "kind": "chat", "status": 200, "prompt_tokens": 3,
        "completion_tokens": 5, "compute_us": 1000, "t_arrival": 1000.0, "t_first": 1000.5, "t_end": 1001.0,
    }  # fmt: skip
    return MeterRecord(**{**values, **more})
