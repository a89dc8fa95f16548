"""A real gateway process between a fake server (its control link) and worker emulators."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.cloud import free_port

from nanopod.drivers.link import messages
from nanopod.model import calls, websocket
from nanopod.model.endpoint import Failure, FunctionSpec, RetrySpec
from nanopod.model.layout import Layout
from nanopod.model.wire import (
    Demand,
    KeyRow,
    MeterAck,
    MeterRecord,
    MeterSegment,
    RouteRow,
    Samples,
    SamplesAck,
    Tables,
    TablesSeen,
    WorkerRow,
    WorkerState,
)  # fmt: skip

KEY = "sk_np_abcdefgh_" + "s" * 32 + "_00000000"
OTHER_KEY = "sk_np_otheroth_" + "o" * 32 + "_00000000"
SERVER_KEY = "sk_np_internal_" + "i" * 32 + "_00000000"
READ_KEY = "sk_np_readonly_" + "r" * 32 + "_00000000"
PEPPER = b"pepper" * 4
HERE = Path(__file__).parent


def digest(key: str) -> str:
    return hmac.digest(PEPPER, key.encode(), hashlib.sha256).hex()


FUNCTIONS = {
    "square": FunctionSpec("square", concurrency=64),
    "sleep": FunctionSpec("sleep", concurrency=4),
    "one": FunctionSpec("one", concurrency=1),
    "again": FunctionSpec("again", concurrency=4, idempotent=True),
    "count": FunctionSpec("count", kind="generator", concurrency=4),
    "size": FunctionSpec("size", concurrency=4),
    "big": FunctionSpec("big", concurrency=4),
    "refuse_once": FunctionSpec("refuse_once", concurrency=4),
    "who": FunctionSpec("who", concurrency=4),
    "cached": FunctionSpec("cached", concurrency=4, idempotent=True, cache_ttl_s=60.0),
    "flaky": FunctionSpec(
        "flaky", concurrency=4, retries=RetrySpec(max=2, initial_s=0.05, cap_s=0.1, on=("Flaky", "WorkerLost"))
    ),
    "preempted": FunctionSpec("preempted", concurrency=4, idempotent=True, on_preempt="retry"),
}


class Control(threading.Thread):
    """The server's side of the control link, on a loop of its own."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(daemon=True)
        self.layout = layout
        self.loop = asyncio.new_event_loop()
        self.links: set[messages.MessageLink] = set()
        self.tables: Tables | None = None
        self.records: list[MeterRecord] = []
        self.segments: list[str] = []
        self.demands: list[Demand] = []
        self.samples: list[Samples] = []
        self.states: list[WorkerState] = []
        self.acking = True
        self.acking_samples = True
        self.seen = 0
        """Tables that the gateway has answered; what it sends again comes before."""
        self.server: asyncio.Server | None = None
        self.start()
        self.call(self._serve)

    def run(self) -> None:
        self.loop.run_forever()

    def call(self, function: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self.loop).result(10)

    async def _serve(self) -> None:
        self.server = await messages.serve(self.layout.control_socket, self._on_link)

    async def _on_link(self, link: messages.MessageLink) -> None:
        self.links.add(link)
        if self.tables is not None:
            link.send(self.tables)
        async for message in link:
            if isinstance(message, MeterSegment):
                self.segments.append(message.segment_id)
                self.records += message.records
                if self.acking:
                    link.send(MeterAck(message.segment_id))
            elif isinstance(message, Demand):
                self.demands.append(message)
            elif isinstance(message, Samples):
                self.samples.append(message)
                if self.acking_samples and not message.poke:
                    link.send(SamplesAck(message.at))
            elif isinstance(message, WorkerState):
                self.states.append(message)
            elif isinstance(message, TablesSeen):
                self.seen += 1
        self.links.discard(link)

    def push(self, tables: Tables) -> None:
        self.tables = tables

        async def send() -> None:
            for link in self.links:
                link.send(tables)

        self.call(send)

    def cut(self) -> None:
        """Close the links; the gateway dials again."""

        async def end() -> None:
            for link in list(self.links):
                link.close()

        self.call(end)

    def stop(self) -> None:
        async def end() -> None:
            if self.server is not None:
                self.server.close()
            for link in list(self.links):
                link.close()

        self.call(end)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join(5)


class Stage:
    """Everything a test needs; `close` ends it all."""

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="npgw-", dir="/tmp"))
        self.layout = Layout(self.data)
        self.layout.run.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.control = Control(self.layout)
        self.version = 0
        self.workers: dict[str, WorkerRow] = {}
        self.routes: dict[str, RouteRow] = {}
        self.keys = {
            digest(KEY): KeyRow("abcdefgh", "wksp_a"),
            digest(OTHER_KEY): KeyRow("otheroth", "wksp_b"),
            digest(READ_KEY): KeyRow("readonly", "wksp_a", ("read",)),
            digest(SERVER_KEY): KeyRow("internal", "wksp_a", ("internal",)),
        }
        self.processes: list[subprocess.Popen[str]] = []
        self.gateway: subprocess.Popen[bytes] | None = None
        self.route("endp_model", kind="model", name="tiny", model_ids=("tiny",))
        self.route("endp_fn", kind="function", name="maths", functions=FUNCTIONS)

    def route(self, endpoint_id: str, **fields: Any) -> None:
        fields = {
            "workspace_id": "wksp_a",
            "tag": "default",
            "revision_id": "rev_1",
            "phase_text": "starting 1 worker",
            **fields,
        }
        self.routes[endpoint_id] = RouteRow(endpoint_id=endpoint_id, **fields)

    def fail_route(self, endpoint_id: str) -> None:
        failure = Failure("import", "No module named 'nope'", "ModuleNotFoundError", log_tail="last words")
        row = self.routes[endpoint_id]
        self.routes[endpoint_id] = RouteRow(
            row.endpoint_id, row.workspace_id, row.name, row.tag, row.kind, row.revision_id, row.model_ids, row.functions,
            failure=failure,
        )  # fmt: skip
        self.push()

    def push(self) -> None:
        self.version += 1
        self.control.push(Tables(self.version, PEPPER, dict(self.keys), dict(self.routes), dict(self.workers)))

    def start(self, *, wait: bool = True) -> Stage:
        if self.control.tables is None:
            self.push()
        log = open(self.data / "gateway.log", "ab")  # noqa: SIM115 - inherited by the child
        self.gateway = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nanopod.gateway",
                "--data-dir",
                str(self.data),
                "--listen",
                f"127.0.0.1:{self.port}",
            ],
            stderr=log,
        )
        log.close()
        if wait:
            until(lambda: self.health().get("table_age_s") == 0.0, what="the gateway")
        return self

    def health(self) -> dict[str, Any]:
        try:
            return json.loads(self.get("/healthz", key=None)[2])
        except (OSError, http.client.HTTPException, ValueError):
            return {}

    def get(
        self,
        path: str,
        *,
        key: str | None = KEY,
        method: str = "GET",
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        data = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        connection.request(method, path, body=data, headers=given)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def worker(
        self, endpoint_id: str, instance: str = "inst_1", *options: str, linked: bool = True, revision: str = "rev_1"
    ) -> subprocess.Popen[str]:
        """Start an emulator and (usually) wait for its link."""
        token = f"token-{instance}"
        row = WorkerRow(instance, endpoint_id, revision, 1, 64, hashlib.sha256(token.encode()).hexdigest())
        if self.workers.get(instance) != row:
            self.workers[instance] = row
            self.push()
        process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "emulator.py"), "--socket", str(self.layout.gateway_socket)),
                *(
                    "--instance",
                    instance,
                    "--endpoint",
                    endpoint_id,
                    "--revision",
                    revision,
                    "--token",
                    token,
                    *options,
                ),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        if linked:
            until(
                lambda: any(s.instance_id == instance and s.ready for s in self.control.states),
                what=f"worker {instance}",
            )
        return process

    def tell(self, process: subprocess.Popen[str], **state: Any) -> None:
        """Let an emulator send STATE."""
        assert process.stdin is not None
        process.stdin.write(json.dumps({"ready": True, **state}) + "\n")
        process.stdin.flush()

    def kill_gateway(self) -> None:
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait(10)

    def terminate_gateway(self) -> int:
        assert self.gateway is not None
        self.gateway.send_signal(signal.SIGTERM)
        return self.gateway.wait(20)

    @contextlib.contextmanager
    def raw_listener(self) -> Iterator[int]:
        """A port that somebody else listens on."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            yield taken.getsockname()[1]

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if self.gateway is not None and self.gateway.poll() is None:
            self.gateway.kill()
            self.gateway.wait(10)
        self.control.stop()
        shutil.rmtree(self.data, ignore_errors=True)
        if self.layout.run.parent == Path("/tmp"):
            shutil.rmtree(self.layout.run, ignore_errors=True)


def until(condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "condition") -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_s} s for {what}")


class Caller:
    """A blocking SDK link for tests."""

    def __init__(self, stage: Stage, key: str = KEY, client_id: bytes = b"c" * 16) -> None:
        self.sock = stage.raw()
        self.parser = websocket.Parser(server=False)
        self.frames: list[tuple[calls.Header, bytes]] = []
        self.ends: dict[bytes, tuple[calls.Header, bytes]] = {}
        nonce = websocket.client_key(os.urandom(16))
        self.sock.sendall(
            websocket.client_request(
                "gateway", "/v1/link", nonce, calls.SUBPROTOCOL, {"Authorization": f"Bearer {key}"}
            )
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.sock.recv(4096)
        head, _, rest = data.partition(b"\r\n\r\n")
        websocket.check_response(head + b"\r\n\r\n", nonce, calls.SUBPROTOCOL)
        self.closed: bytes | None = None
        self._take(rest)
        self.send(calls.Hello(client_id))
        assert isinstance(self.next()[0], calls.Welcome)

    def send(self, header: calls.Header, payload: bytes = b"") -> None:
        for frame in calls.split(header, payload):
            self.sock.sendall(websocket.encode(websocket.BINARY, frame, os.urandom(4)))

    def _take(self, data: bytes) -> None:
        for opcode, payload in self.parser.feed(data):
            if opcode == websocket.BINARY:
                self.frames.append(calls.decode(payload))
            elif opcode == websocket.CLOSE:
                self.closed = payload

    def next(self, timeout_s: float = 20.0) -> tuple[calls.Header, bytes]:
        """The next frame."""
        self.sock.settimeout(timeout_s)
        while not self.frames:
            data = self.sock.recv(1 << 18)
            if not data or self.closed is not None:
                raise ConnectionError(f"closed: {self.closed!r}")
            self._take(data)
        return self.frames.pop(0)

    def answer(self, call_id: bytes, timeout_s: float = 20.0) -> tuple[calls.Header, bytes]:
        """The last frame of a call, with its whole payload; State, Log and Item frames are skipped.

        Calls end in any order: what comes of others meanwhile is kept for their own `answer`.
        """
        while True:
            held = self.ends.get(call_id)
            if held is not None and len(held[1]) >= getattr(held[0], "size", 0):
                return self.ends.pop(call_id)
            header, payload = self.next(timeout_s)
            if isinstance(header, (calls.Result, calls.Error, calls.End)):
                self.ends[header.id] = (header, payload)
            elif isinstance(header, calls.Part):
                begun = self.ends[header.id]
                self.ends[header.id] = (begun[0], begun[1] + payload)

    def close(self) -> None:
        self.sock.close()
