"""Updates and a scale-down under 200 streams and calls at once: none of them fails, none breaks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

from nanopod.client.sdk import Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SERVER = str(Path(__file__).with_name("slow_server.py"))
STREAMS = 200
LONG = 4
"""Streams that last longer than everything else; the workers that have them must not end before."""


class Load:
    """Streams that are asked for again and again, read to their end and looked at."""

    def __init__(self, cloud: Cloud, model: str) -> None:
        self.cloud, self.model = cloud, model
        self.ended: Counter[str] = Counter()
        """Whole streams by the version that answered."""
        self.wrong: list[str] = []
        self.stopping = False
        self.open = 0

    async def stream(self, count: int, delay_ms: int) -> None:
        """One stream of `count` words over a connection of its own; what is wrong with it is noted."""
        body = {
            "model": self.model, "stream": True, "max_tokens": count, "delay_ms": delay_ms,
            "messages": [{"role": "user", "content": "count"}],
        }  # fmt: skip
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.cloud.port)
        self.open += 1
        try:
            writer.write(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.cloud.key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
                + data
            )
            raw = await reader.read()
        except OSError as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return
        finally:
            self.open -= 1
            writer.close()
        self.judge(raw, count)

    def judge(self, raw: bytes, count: int) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            self.wrong.append(raw[:400].decode(errors="replace"))
            return
        lines = [line for line in rest.decode().split("\n") if line.startswith("data: ")]
        try:
            chunks = [json.loads(line[6:]) for line in lines[:-1]]
            words = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks if chunk["choices"])
            assert words == "".join(f"{index} " for index in range(count))
            assert lines[-1].strip() == "data: [DONE]"
            assert rest.endswith(b"0\r\n\r\n")
            self.ended[chunks[0]["model"]] += 1
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            self.wrong.append(f"{error!r}: ...{rest[-300:].decode(errors='replace')}")

    async def again(self, number: int) -> None:
        """Streams one after another, each of about 2 seconds, until told to stop."""
        while not self.stopping and not self.wrong:
            await self.stream(20 + number % 7, 90 + number % 5)


class Calls:
    """Remote calls that are made again and again; each must come back with its own argument."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stopping = False
        self.open = 0

    async def again(self, number: int) -> None:
        """Calls one after another, each of about a second, until told to stop."""
        function = Deployment.from_name("holds").function("slow")
        while not self.stopping and not self.wrong:
            self.open += 1
            try:
                version, given = await function.remote.aio(number, 0.8 + number % 5 / 10)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                return
            finally:
                self.open -= 1
            if given != number:
                self.wrong.append(f"{number} came back as {given}")
            self.ended[version] += 1


async def until(test: Callable[[], Any], what: str, limit_s: float = 90.0) -> Any:
    """Wait for `test` (run in a thread: it may ask the cloud) to be true; its value."""
    async with asyncio.timeout(limit_s):
        while True:
            try:
                if found := await asyncio.to_thread(test):
                    return found
            except OSError as error:
                print(f"{what}: {error}")
            await asyncio.sleep(0.1)


def spec(name: str, version: str, workers: int, **image: Any) -> dict[str, Any]:
    argv = [sys.executable, SERVER, "{port}", "{model}", version]
    return {
        "name": name,
        "kind": "model",
        "model": {"model_id": name, "engine": "command", "argv": argv, "slots": 120},
        "scale": {
            "cold_workers": workers, "max_workers": workers, "max_queue_time": 600,
            "tuning": {"min_scale": workers, "scale_down_delay_s": 0, "stable_window_s": 6},
        },
        "image": image,
    }  # fmt: skip


async def settled(cloud: Cloud, name: str, workers: int) -> dict[str, Any]:
    """Wait until exactly so many workers are ready, all of the newest revision, and no other takes work."""

    def calm() -> dict[str, Any] | None:
        shown = dict(cloud.api("GET", f"/v1/endpoints/{name}"))
        running = [one for one in shown["instances"] if one["intent"] == "run"]
        good = all(one["ready"] and one["revision_id"] == shown["revision_id"] for one in running)
        return shown if good and len(running) == workers else None

    return dict(await until(calm, f"{name} with {workers} workers of its newest revision"))


async def steadily(load: Load | Calls, change: Callable[[], Awaitable[Any]]) -> None:
    """Make a change while all streams run; afterwards each has begun anew at least once."""
    before = load.ended.total()
    await change()
    await until(lambda: load.wrong or load.ended.total() >= before + STREAMS, "streams after a change")
    assert not load.wrong, load.wrong[:3]


PROGRAM = """
import asyncio

from nanopod import Deployment

app = Deployment(name="holds")
app.image("python").env(SOMETHING="ENV")
app.configure_autoscaling(min_scale=WORKERS, cold_workers=0, max_workers=WORKERS, max_queue_time=600, scale_down_delay=0)


@app.remote(concurrency=120)
async def slow(number: int, seconds: float) -> tuple[str, int]:
    await asyncio.sleep(seconds)
    return "VERSION", number
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """A cloud of its own: its workers are as busy as they can be."""
    with Cloud() as running:
        yield running


@pytest.mark.timeout(240)
def test_streams_hold_through_updates_and_a_scale_down(cloud: Cloud) -> None:
    async def put(version: str, workers: int, **image: Any) -> None:
        await asyncio.to_thread(cloud.api, "POST", "/v1/endpoints", spec("slow", version, workers, **image))
        await settled(cloud, "slow", workers)

    async def run() -> Load:
        await put("one", 2)
        load = Load(cloud, "slow")
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(load.again(number))
            await until(lambda: load.open == STREAMS, "all streams open")
            for _ in range(LONG):
                group.create_task(load.stream(240, 100))
            await steadily(load, lambda: put("two", 2))
            await steadily(load, lambda: put("two", 2, env={"SOMETHING": "else"}))
            await steadily(load, lambda: put("two", 1, env={"SOMETHING": "else"}))
            load.stopping = True
        return load

    load = asyncio.run(run())
    assert not load.wrong, load.wrong[:3]
    assert load.ended["one"] >= STREAMS, "streams of before the update"
    assert load.ended["two"] >= STREAMS
    assert load.ended.total() >= 4 * STREAMS
    cloud.api("DELETE", "/v1/endpoints/slow")


@pytest.mark.timeout(240)
def test_calls_hold_through_updates_and_a_scale_down(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud.client_env().items():
        if name.startswith("NANOPOD_"):
            monkeypatch.setenv(name, value)
    file = tmp_path / "holds.py"

    def deploy(version: str, env: str, workers: int) -> None:
        file.write_text(PROGRAM.replace("VERSION", version).replace("ENV", env).replace("WORKERS", str(workers)))
        argv = [sys.executable, "-m", "nanopod", "deploy", str(file)]
        done = subprocess.run(argv, env=cloud.client_env(), capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr + done.stdout

    async def put(version: str, env: str, workers: int) -> None:
        await asyncio.to_thread(deploy, version, env, workers)
        await settled(cloud, "holds", workers)

    async def run() -> Calls:
        await put("one", "a", 2)
        load = Calls()
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(load.again(number))
            await until(lambda: load.open == STREAMS, "all calls open")
            await steadily(load, lambda: put("two", "a", 2))
            await steadily(load, lambda: put("two", "b", 2))
            await steadily(load, lambda: put("two", "b", 1))
            load.stopping = True
        return load

    load = asyncio.run(run())
    assert not load.wrong, load.wrong[:3]
    assert min(load.ended["one"], load.ended["two"]) >= STREAMS
    cloud.api("DELETE", "/v1/endpoints/holds")
