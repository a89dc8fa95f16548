"""Random SIGKILLs under load: what was acknowledged stays, what was metered is metered once, nothing is orphaned.

`NANOPOD_CHAOS_ROUNDS` and `NANOPOD_CHAOS_SEED` repeat a run; a failure prints the seed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e
PARTS = [
    "nanopod.server",
    "nanopod.gateway",
    "nanopod.node.agent",
    "nanopod.node.run",
    "nanopod.node.worker",
    "nanopod.node.worker",
    "up",
    "everything",
]

LOAD = """
import asyncio, json, os, sys, time
from nanopod import Deployment, current_call
import nanopod

app = Deployment(name="chaos")
app.image("python").env(CHAOS_FILE=os.environ["CHAOS_FILE"])
app.configure_autoscaling(cold_workers=1, max_workers=1)

@app.remote(concurrency=8)
async def once(x: int):
    call = current_call().call_id
    with open(os.environ["CHAOS_FILE"], "a") as log:
        log.write(f"{x} {call}\\n")
    await asyncio.sleep(0.05)
    return x, call

async def main():
    await app.async_ensure_ready()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)
    tickets = iter(range(10**9))
    print("ready", flush=True)
    async def caller():
        while not stop.is_set():
            x = next(tickets)
            try:
                got, call = await once(x)
            except (nanopod.NanopodError, ConnectionError) as error:
                print(json.dumps({"x": x, "error": type(error).__name__}), flush=True)
                await asyncio.sleep(0.1)
            else:
                assert got == x, (got, x)
                print(json.dumps({"x": x, "call": call}), flush=True)
    await asyncio.gather(*(caller() for _ in range(6)))

if __name__ == "__main__":
    asyncio.run(main())
"""


class Load:
    """The SDK program, and streams of the tiny model, until told to stop."""

    def __init__(self, cloud: Cloud, directory: Path) -> None:
        self.cloud = cloud
        self.program = directory / "chaos_load.py"
        self.program.write_text(LOAD)
        self.starts = directory / "starts.log"
        self.starts.touch()
        self.acknowledged: dict[int, str] = {}
        self.failures: Counter[str] = Counter()
        self.chats: list[str] = []
        self.broken_chats = 0
        self.stopping = False

    async def run(self) -> None:
        env = {**self.cloud.client_env(), "CHAOS_FILE": str(self.starts)}
        env["NANOPOD_TEST_MARK"] = "load"  # it is not part of the cloud
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(self.program)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=env,
        )
        assert process.stdout
        assert process.stdin
        assert (await asyncio.wait_for(process.stdout.readline(), 60)).strip() == b"ready"
        chats = asyncio.create_task(self.chat())
        reading = asyncio.create_task(self.read(process.stdout))
        while not self.stopping:
            await asyncio.sleep(0.1)
        process.stdin.write(b"stop\n")
        await asyncio.wait_for(process.wait(), 120)
        await asyncio.wait_for(reading, 10)
        await asyncio.wait_for(chats, 120)
        assert process.returncode == 0

    async def read(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            row = json.loads(line)
            if "call" in row:
                self.acknowledged[row["x"]] = row["call"]
            else:
                self.failures[row["error"]] += 1

    async def chat(self) -> None:
        """Short completions; remembers the request ids of those that were answered."""
        import openai

        client = openai.AsyncOpenAI(base_url=f"{self.cloud.url}/v1", api_key=self.cloud.key, max_retries=0, timeout=60)
        while not self.stopping:
            try:
                answer = await client.chat.completions.create(
                    model="nanopod-tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=8
                )
                assert answer._request_id
                self.chats.append(answer._request_id)
            except openai.APIError:
                self.broken_chats += 1
                await asyncio.sleep(0.2)


def strike(cloud: Cloud, part: str) -> None:
    """Kill one part; a dead supervisor is started again as an init system would."""
    if part == "everything":
        cloud.kill_all()
    elif part == "up":
        assert cloud.up is not None
        cloud.up.kill()
        cloud.up.wait(10)
    else:
        victims = cloud.pids(part)
        if victims:
            os.kill(random.choice(victims), signal.SIGKILL)
        return
    cloud.wait_for(lambda: not cloud.processes(), 10, "nothing outlives the supervisor")
    cloud.start()


def verify(cloud: Cloud, load: Load) -> dict[str, Any]:
    """Every promise, checked against the ledger of starts and the usage records."""
    starts = Counter(line.split()[1] for line in load.starts.read_text().splitlines())
    doubled = [call for call, count in starts.items() if count > 1]
    assert not doubled, f"{len(doubled)} calls were started twice"
    missing = [call for call in load.acknowledged.values() if call not in starts]
    assert not missing, "an acknowledged call never ran"

    wanted = set(load.acknowledged.values()) | set(load.chats)

    def recorded() -> Counter[str] | None:
        found = Counter(record["request_id"] for record in cloud.usage_records() if record["status"] == 200)
        return found if wanted <= set(found) else None

    records = cloud.wait_for(recorded, 30, "a usage record of every acknowledged request")
    assert not [request for request in wanted if records[request] != 1]
    return {"calls": len(load.acknowledged), "chats": len(load.chats), "failed": dict(load.failures)}


async def rounds(cloud: Cloud, directory: Path, count: int, rng: random.Random) -> Load:
    load = Load(cloud, directory)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(1.5)
    for number in range(count):
        assert not running.done(), running.exception()
        part = rng.choice(PARTS)
        before = len(load.acknowledged)
        await asyncio.to_thread(strike, cloud, part)
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        # The cloud has to come back to work between rounds, else later kills would hit nothing.
        limit = time.monotonic() + 40
        while len(load.acknowledged) <= before and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        assert len(load.acknowledged) > before, f"round {number}: no call was answered within 40 s of killing {part}"
    load.stopping = True
    await running
    return load


def chaos(directory: Path, count: int) -> None:
    seed = int(os.environ.get("NANOPOD_CHAOS_SEED", random.randrange(10**6)))
    print(f"chaos seed {seed}, {count} rounds")
    random.seed(seed)
    cloud = Cloud(directory / "data")
    cloud.start()
    try:
        cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
        cloud.wait_ready("nanopod-tiny")
        load = asyncio.run(rounds(cloud, directory, count, random.Random(seed)))
        print(verify(cloud, load))
        assert load.chats
    finally:
        cloud.stop()
    assert not cloud.processes(), "an orphan is left"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_eight_rounds(tmp_path: Path) -> None:
    chaos(tmp_path, 8)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_hundred_rounds(tmp_path: Path) -> None:
    chaos(tmp_path, int(os.environ.get("NANOPOD_CHAOS_ROUNDS", "100")))
