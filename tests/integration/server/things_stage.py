"""A server with a talking node agent beside it, for tests of what users keep and run: instances, images, money."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from described import Document
from peers import Answer, FakeAgent, FakeGateway, ServerProcess, UnixConnection, connect

from nanopod.drivers.link.messages import LinkClosed, MessageLink
from nanopod.model.capacity import Node, Sku
from nanopod.model.wire import (
    AgentHello,
    AgentWelcome,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecStart,
    LogLine,
    LogPage,
    LogQuery,
    Wanted,
)

T = TypeVar("T")
WAIT_S_MAX = 15.0
SCRIPT = "IyEvYmluL3NoCmVjaG8gaGkK"
"""`#!/bin/sh`, `echo hi`."""


def eventually(test: Callable[[], T], what: str = "", wait_s_max: float = WAIT_S_MAX) -> T:
    """Poll until `test` is true; its value."""
    limit = time.monotonic() + wait_s_max
    while not (found := test()):
        assert time.monotonic() < limit, f"{what or test} did not come true within {wait_s_max} s"
        time.sleep(0.02)
    return found


@dataclass
class TalkingAgent(FakeAgent):
    """A node agent that answers questions about logs and runs make-believe commands: `echo`, `cat`, `flood`, `wait`."""

    ssh: dict[str, Any] | None = None
    lines: dict[str, list[LogLine]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    commands: dict[str, ExecStart] = field(default_factory=dict)

    async def _run(self) -> None:
        node = Node(f"node_{self.machine_id}", self.machine_id, "isku_cpu", self.slots)
        sku = Sku("isku_cpu", "cpu", num_vcpus=2)
        inventory = {"ssh": self.ssh} if self.ssh else {}
        while True:
            self.link = link = await connect(self.layout.agent_socket, 30)
            beating = asyncio.create_task(self._beat(link))
            try:
                hello = AgentHello(
                    self.machine_id, "boot-1", "0", [node], [sku], list(self.running.values()), inventory
                )
                link.send(hello)
                async for message in link:
                    self._on(link, message)
            except LinkClosed:
                pass
            finally:
                beating.cancel()
            await asyncio.sleep(0.02)

    def _on(self, link: MessageLink, message: Any) -> None:
        if isinstance(message, AgentWelcome):
            self.welcomed = True
        elif isinstance(message, Wanted):
            self.generations.append(message.generation)
            self._converge(message)
            self._machines_ready()
        elif isinstance(message, LogQuery):
            link.send(self._log_page(message))
        elif isinstance(message, ExecStart):
            self._start(link, message)
        elif isinstance(message, ExecInput):
            self._input(link, message)

    def _machines_ready(self) -> None:
        for key, spec in self.wanted.items():
            if spec.app.kind == "machine" and self.running[key].phase == "loading":
                self.running[key] = replace(self.running[key], phase="ready")
        self.report()

    def _log_page(self, query: LogQuery) -> LogPage:
        if query.instance_id not in self.lines:
            return LogPage(query.request_id, [], "it has no log here")
        rows = [
            line
            for line in self.lines[query.instance_id]
            if (query.after is None or line.seq >= query.after)
            and (query.before is None or line.seq <= query.before)
            and (query.since is None or line.at >= query.since)
            and (query.until is None or line.at <= query.until)
        ]
        return LogPage(query.request_id, (rows[::-1] if query.newest_first else rows)[: query.limit])

    def _start(self, link: MessageLink, start: ExecStart) -> None:
        name, *words = start.command
        self.commands[start.exec_id] = start
        if name == "echo":
            text = " ".join([*words, *(f"{key}={value}" for key, value in sorted(start.env.items()))])
            link.send(ExecOutput(start.exec_id, 1, f"{text}\n".encode()))
            link.send(ExecExit(start.exec_id, 0))
        elif name == "flood":
            for _ in range(int(words[0])):
                link.send(ExecOutput(start.exec_id, 1, bytes(32 << 10)))
            link.send(ExecExit(start.exec_id, 3))
        elif name not in ("cat", "wait"):
            link.send(ExecExit(start.exec_id, 127, f"{name}: no such command"))

    def _input(self, link: MessageLink, given: ExecInput) -> None:
        start = self.commands[given.exec_id]
        if given.resize is not None:
            self.sizes.append(given.resize)
        if given.signal is not None:
            link.send(ExecExit(given.exec_id, 128 + given.signal))
            return
        if start.command[0] == "cat" and given.data:
            link.send(ExecOutput(given.exec_id, 1, given.data))
        if given.eof:
            link.send(ExecExit(given.exec_id, 0))


class Cloud:
    """A server process, an agent and a gateway whose links live in a thread of their own."""

    def __init__(self, data: Path, *options: str, ssh: dict[str, Any] | None = None, slots: int = 8) -> None:
        self.server = ServerProcess(data, *options)
        self.loop = asyncio.new_event_loop()
        self.agent = TalkingAgent(self.server.layout, slots=slots, ssh=ssh)
        self.gateway = FakeGateway(self.server.layout)
        self.document = Document({"paths": {}})
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def running(self) -> Iterator[Cloud]:
        """Up for as long as the block lasts; no traceback may be in its log afterwards."""
        self.server.start()
        self.document = Document(self.server.call("GET", "/openapi.json").body)
        self._thread.start()
        stack = contextlib.AsyncExitStack()
        try:
            self.on_loop(stack.enter_async_context(self.agent.linked()))
            self.on_loop(stack.enter_async_context(self.gateway.linked()))
            yield self
        finally:
            self.on_loop(stack.aclose())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(5)
            status = self.server.stop()
        assert status == 0
        assert "Traceback" not in self.server.log(), self.server.log()[-4000:]

    def on_loop(self, coroutine: Any) -> Any:
        """Run a coroutine where the links are."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S_MAX)

    def call(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        """One request; its answer is as the server's own document describes it."""
        if headers is None:
            answer = self.server.call(method, path, body, **more)
        else:
            data = b"" if body is None else json.dumps(body).encode()
            status, content, fields = self.raw(method, path, data, headers=headers, **more)
            answer = Answer(status, fields, json.loads(content) if content else None)
        self.document.check(method, path, answer.status, answer.body)
        return answer

    def raw(
        self,
        method: str,
        path: str,
        data: bytes = b"",
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """One request whose answer need not be JSON: (status, content, headers)."""
        connection = UnixConnection(self.server.layout.server_socket)
        fields = {"Authorization": f"Bearer {key or self.server.key}", **(headers or {})}
        try:
            connection.request(method, path, data or None, fields)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def make(self, path: str, body: Any, **more: Any) -> Answer:
        """A POST that must succeed."""
        made = self.call("POST", path, body, **more)
        assert made.status in (200, 201), made.body
        return made

    def name(self, kind: str = "thing") -> str:
        """A name that no other test has."""
        return f"{kind}-{next(self._numbers)}"

    def workspace(self) -> tuple[str, str]:
        """A new workspace with an admin key: (name, key)."""
        name = self.name("team")
        self.make("/v1/workspaces", {"name": name})
        return name, self.make("/v1/keys", {"name": "admin", "workspace": name})["key"]

    def runs(self, **more: Any) -> Answer:
        """An instance that runs, bought by a spot deployment in a capacity of its own."""
        name = self.name("run")
        self.make("/v1/capacities", {"name": name})
        self.make("/v1/instance_templates", {"name": name, "cloud_init_user_data": SCRIPT})
        self.make(
            "/v1/deployments",
            {"name": name, "kind": "spot", "capacity": name, "instance_template": name, "target_instance_count": 1,
             "instance_sku": "isku_cpu", "max_buy_price_dollars_per_node_hour": "1.00", **more},
        )  # fmt: skip

        def ready() -> Answer | None:
            rows = self.call("GET", f"/v1/instances?deployment={name}").body["data"]
            up = [row for row in rows if row["status"] == "running" and row["id"] in self.agent.running]
            return self.call("GET", f"/v1/instances/{up[0]['id']}") if up else None

        return eventually(ready, f"an instance of {name} runs")
