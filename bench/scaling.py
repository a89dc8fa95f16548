"""What scaling costs: decisions for idle services, the gateway at a steady rate, the first answer from zero.

The yardsticks are one core of the same machine, the same model server asked directly in the same run, and the start of
the stub server itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cloud import Cloud
from bench.figures import Figure, cpu_s, median, percentile, say
from bench.gateway import Stage, Target
from bench.upstream import PATH, request_body
from nanopod.model.endpoint import ScaleSpec
from nanopod.scheduler.autoscale.engine import step
from nanopod.scheduler.autoscale.settings import resolve
from nanopod.scheduler.autoscale.values import Observed, ScaleState, Second

RATE_PER_S = 500
CONNECTIONS = 64
STUB_START_S = 0.2
STUB = f"""
import time
BEGAN = time.monotonic()
import http.server, os, sys
class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self): self.say(b'{{"object": "list", "data": [{{"id": "stub"}}]}}')
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.say(b'{{"id": "x", "object": "chat.completion", "created": 1, "model": "stub", "choices": [{{"index": 0, '
                 b'"message": {{"role": "assistant", "content": "hi"}}, "finish_reason": "stop"}}], '
                 b'"usage": {{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}}}')
    def say(self, body):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *about): pass
time.sleep(max(0.0, {STUB_START_S} - (time.monotonic() - BEGAN)))
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answers).serve_forever()
"""


SERVICES = 1_000


# --- deciding ---


def _stepped(seconds: int, *, parked: bool) -> tuple[float, int]:
    """(CPU seconds, evaluations) of deciding for idle services over simulated time, a gateway's silence included."""
    spec = resolve(ScaleSpec(cold_workers=1, min_load=0.0, max_workers=4), 1, False)
    now = 1_800_000_000.0
    states = [ScaleState() for _ in range(SERVICES)]
    seen = Observed(ready=0, starting=0, current=0, cold=1)
    due = [0.0] * SERVICES
    for index, state in enumerate(states):
        due[index] = step(spec, state, seen, now).next_at or math.inf
    for _ in range(400):  # what a new endpoint goes through, until it rests
        now += spec.tick_s
        for index, state in enumerate(states):
            if due[index] <= now:
                due[index] = step(spec, state, seen, now).next_at or math.inf
    count = 0
    begin = time.process_time()
    for _ in range(seconds // spec.tick_s):
        now += spec.tick_s
        for index, state in enumerate(states):
            if parked and due[index] > now:
                continue
            due[index] = step(spec, state, seen, now).next_at or math.inf
            count += 1
    return time.process_time() - begin, count


def _busy_step_us(count: int) -> float:
    """CPU time of recording one second and deciding, for a service under load, microseconds."""
    spec = resolve(ScaleSpec(cold_workers=1, min_load=0.0, max_workers=64), 1, False)
    state, now = ScaleState(), 1_800_000_000.0
    begin = time.process_time()
    for number in range(count):
        now += spec.tick_s
        at = int(now) - 1
        seconds = (Second(at - 1, 2.0, 3.0, 300.0), Second(at, 2.5 + number % 3, 3.0, 300.0, served=(300.0, 2.0, 3)))
        step(spec, state, Observed(seconds=seconds, ready=3, current=3, in_service=2, mu=120.0), now)
    return (time.process_time() - begin) / count * 1e6


def idle_services(*, quick: bool = False) -> Iterator[Figure]:
    """What 1,000 idle services cost at a tick of 2 s: looked at in every tick, left alone, and in a real server."""
    seconds = 60 if quick else 600
    ticked, count = _stepped(seconds, parked=False)
    left, looks = _stepped(seconds, parked=True)
    busy_us = _busy_step_us(2_000 if quick else 20_000)
    detail = {
        "us_per_evaluation": round(ticked / count * 1e6, 2),
        "parked_percent": round(100 * left / seconds, 4),
        "evaluations_while_parked": looks,
        "busy_us_per_evaluation": round(busy_us, 2),
    }
    yield Figure("scale_idle_percent", 100 * ticked / seconds, "% of a core", "one core, simulated time", "< 2", detail)
    with Cloud() as cloud:
        body = {
            "kind": "model",
            "scale": {"cold_workers": 0, "min_load": 0, "inactivity_timeout": 1, "tuning": {"initial_scale": 0}},
        }
        for number in range(SERVICES):
            model = {"model_id": f"idle-{number}", "engine": "reference", "source": "nanopod-tiny"}
            cloud.api("POST", "/v1/endpoints", {**body, "name": f"idle-{number}", "model": model})
        cloud.wait_for(lambda: not cloud.pids("nanopod.node.worker"), 120, "no worker of an idle service")
        pids = cloud.pids("nanopod.server")
        time.sleep(5 if quick else 20)  # what making them left to do
        span_s = 5 if quick else 30
        used = -cpu_s(pids)
        time.sleep(span_s)
        used += cpu_s(pids)
        share = 100 * used / span_s
        yield Figure("scale_idle_server_percent", share, "% of a core", "one core, a real server of 1,000 endpoints")


# --- 500 requests a second ---


class OpenLoop:
    """Requests at a fixed rate, whatever the answers take; latency counts from when a request was due."""

    def __init__(self, target: Target, key: str) -> None:
        body = request_body("plain")
        self._request = (
            f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._port = target.port
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.took: list[float] = []
        self.failed = 0

    async def run(self, seconds: float) -> None:
        """Send `RATE_PER_S * seconds` requests."""
        for _ in range(CONNECTIONS):
            self._idle.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))
        begin = time.perf_counter() + 0.05
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(RATE_PER_S * seconds)):
                due = begin + number / RATE_PER_S
                if (wait_s := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait_s)
                tasks.create_task(self._one(due))
        while not self._idle.empty():
            self._idle.get_nowait()[1].close()

    async def _one(self, due: float) -> None:
        reader, writer = await self._idle.get()
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            self.failed += not head.startswith(b"HTTP/1.1 200")
            self.took.append(time.perf_counter() - due)
        finally:
            self._idle.put_nowait((reader, writer))


def added_at_rate(*, quick: bool = False) -> Iterator[Figure]:
    """What the gateway adds to the median answer at 500 requests a second, against the worker's model server alone."""
    repeats, seconds = (1, 2.0) if quick else (5, 5.0)
    found: dict[str, list[float]] = {"gateway": [], "direct": []}
    with Stage() as stage:
        for _ in range(repeats):
            for target in (stage.direct, stage.gateway):
                loop = OpenLoop(target, stage.secrets.key)
                asyncio.run(loop.run(seconds))
                if loop.failed:
                    raise RuntimeError(f"{target.name}: {loop.failed} requests failed:\n{stage.log()}")
                found[target.name].append(percentile(loop.took, 0.5) * 1000)
                p50, p99 = (percentile(loop.took, share) * 1000 for share in (0.5, 0.99))
                say(f"{target.name}: p50 {p50:.3f} ms, p99 {p99:.2f} ms")
    added = [one - other for one, other in zip(found["gateway"], found["direct"], strict=True)]
    detail = {
        "repeats": [round(one, 3) for one in added],
        "gateway_p50_ms": round(median(found["gateway"]), 3),
        "direct_p50_ms": round(median(found["direct"]), 3),
    }
    yield Figure("scale_added_p50_ms_500rps", median(added), "ms", "the model server alone, same run", "<= 3", detail)


# --- from zero ---


def _stub_alone(stub: Path) -> float:
    """Seconds from starting the stub server until it answers, without a cloud."""
    import socket

    from bench.cloud import free_port

    port = free_port()
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(stub)], env={"PORT": str(port), "PATH": "/usr/bin:/bin"})
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return time.perf_counter() - begin
            except OSError:
                time.sleep(0.005)
    finally:
        process.kill()
        process.wait()


def from_zero(*, quick: bool = False) -> Iterator[Figure]:
    """One request at an endpoint without workers, whose stub server takes 0.2 s to start."""
    import http.client
    import tempfile

    took: list[float] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory(prefix="np-stub-") as directory, Cloud() as cloud:
        stub = Path(directory) / "stub.py"
        stub.write_text(STUB)
        cloud.serve(
            "stub",
            model={"engine": "command", "source": "", "argv": [sys.executable, str(stub)]},
            scale={"cold_workers": 0, "min_load": 0, "max_workers": 1, "inactivity_timeout": 1},
        )
        body = json.dumps({"model": "stub", "messages": [{"role": "user", "content": "hi"}]})
        headers = {"Authorization": f"Bearer {cloud.key}", "Content-Type": "application/json"}
        for number in range((2 if quick else 7) + 1):
            cloud.wait_for(lambda: not cloud.pids("nanopod.node.worker"), 60, "scaled to zero")
            connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=60)
            begin = time.perf_counter()
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            if number:  # the first one makes what every later one finds
                took.append(time.perf_counter() - begin)
                alone.append(_stub_alone(stub))
                say(f"from zero: {took[-1] * 1000:.0f} ms, the stub alone {alone[-1] * 1000:.0f} ms")
            connection.close()
    detail = {"repeats": [round(one, 3) for one in took], "stub_alone_s": round(median(alone), 3)}
    yield Figure(
        "scale_from_zero_s", median(took), "s", "the stub's own start, same run, in the detail", "< 0.5", detail
    )
