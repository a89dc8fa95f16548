"""Load processes that are asked over a pipe, so that several kinds take turns on a machine, and who they call.

`python -m bench.driver KIND [ARG]` reads one JSON request a line and writes one JSON answer a line. It runs in other
environments too (a peer's), so what it needs is imported where it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.figures import percentile

ROOT = Path(__file__).parent.parent
START_S_MAX = 60.0
ANSWER_S_MAX = 120.0
ECHO = """
import sys
from aiohttp import web
async def echo(request):
    x = (await request.json())["x"]
    return web.json_response({"result": x * x})
app = web.Application(client_max_size=1 << 30)
app.router.add_post("/predict", echo)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""

Call = Callable[[int], Awaitable[Any]]


# --- the parent's side ---


class Driver:
    """One load process."""

    def __init__(self, argv: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in argv], cwd=ROOT, env={**(env or os.environ), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._told("ready", START_S_MAX)

    def ask(self, **request: Any) -> Any:
        """What it measured. Raises `RuntimeError` when it ended, or says nothing for too long."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._told("done", ANSWER_S_MAX + request.get("seconds", 0.0))

    def _told(self, word: str, wait_s_max: float) -> Any:
        assert self._process.stdout is not None
        watchdog = threading.Timer(wait_s_max, self._process.kill)
        watchdog.start()
        try:
            for line in self._process.stdout:
                if line.startswith('{"' + word):
                    return json.loads(line)[word]
        finally:
            watchdog.cancel()
        raise RuntimeError(f"{self._process.args!r} ended, or said nothing within {wait_s_max:.0f} s")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def driver(kind: str, *args: object, env: dict[str, str] | None = None, python: Path | None = None) -> Iterator[Driver]:
    """A load process of a kind, ended afterwards."""
    made = Driver([python or sys.executable, "-m", "bench.driver", kind, *map(str, args)], env)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def server(argv: Sequence[str | Path], port: int, env: dict[str, str] | None = None) -> Iterator[None]:
    """A process that listens on a loopback port; waited for, and ended with its children afterwards."""
    import signal
    import socket

    process = subprocess.Popen([str(word) for word in argv], env=env, start_new_session=True)
    limit = time.monotonic() + START_S_MAX
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{argv!r} does not listen on port {port}")
            time.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def echo(port: int) -> Iterator[Driver]:
    """The yardstick: a plain aiohttp JSON echo as a process, and its load."""
    with server([sys.executable, "-c", ECHO, str(port)], port), driver("http", port) as load:
        yield load


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the load ---


async def drive(call: Call, callers: int, seconds: float) -> tuple[float, float]:
    """Closed loop of `callers`; returns (p50 seconds, calls per second)."""
    times: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds

    async def one() -> None:
        while (begin := clock()) < end:
            await call(2)
            times.append(clock() - begin)

    begin = clock()
    await asyncio.gather(*(one() for _ in range(callers)))
    return percentile(times, 0.5), len(times) / (clock() - begin)


@contextlib.asynccontextmanager
async def http(port: str) -> AsyncIterator[Call]:
    """POST {"x": x} to /predict on a loopback port."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(x: int) -> Any:
            async with session.post(f"http://127.0.0.1:{port}/predict", json={"x": x}) as answer:
                return (await answer.json())["result"]

        yield call


@contextlib.asynccontextmanager
async def product() -> AsyncIterator[Call]:
    """The smallest deployment on the cloud of the environment."""
    from bench.deployments.square import app, square

    await app.async_ensure_ready()
    yield square


@contextlib.asynccontextmanager
async def ray() -> AsyncIterator[Call]:
    """An asynchronous actor on a cluster of this process's own."""
    import tempfile

    import ray as peer

    directory = tempfile.TemporaryDirectory(prefix="np-", ignore_cleanup_errors=True)
    peer.init(
        num_cpus=2, include_dashboard=False, logging_level="ERROR", _node_ip_address="127.0.0.1",
        _temp_dir=directory.name,
    )  # fmt: skip

    @peer.remote(max_concurrency=32)
    class Square:
        async def square(self, x: int) -> int:
            return x * x

    actor = Square.remote()

    async def call(x: int) -> Any:
        return await actor.square.remote(x)

    try:
        yield call
    finally:
        peer.shutdown()
        directory.cleanup()


KINDS: dict[str, Callable[..., contextlib.AbstractAsyncContextManager[Call]]] = {
    "http": http, "product": product, "ray": ray,
}  # fmt: skip


async def answer(call: Call, request: dict[str, Any]) -> Any:
    """One measurement: `callers` for `seconds`, or one of the product's further forms."""
    form = request.get("form", "call")
    if form == "call":
        return await drive(call, request["callers"], request["seconds"])
    from bench import forms

    return await getattr(forms, form)(**{name: value for name, value in request.items() if name != "form"})


async def main(kind: str, *args: str) -> None:
    """Measure what is asked for until the pipe closes."""
    async with KINDS[kind](*args) as call:
        assert await call(5) == 25, f"{kind} answers wrongly"
        print(json.dumps({"ready": kind}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps({"done": await answer(call, json.loads(line))}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("NANOPOD_MODE", "deploy")
    asyncio.run(main(*sys.argv[1:]))
