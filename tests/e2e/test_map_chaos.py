"""Workers and gateways are killed at random under `map`, and calls are cancelled by the thousand.

Each item of a function that is not idempotent starts at most once, counted by lines in a file; what did not return says
`WorkerLost`. Items of an idempotent function all return. `NANOPOD_CHAOS_ROUNDS` and `NANOPOD_CHAOS_SEED` repeat a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e
ITEMS = 10_000
KILLS = 5

PROGRAM = """
import asyncio, json, os, random, sys, threading
from nanopod import Deployment

app = Deployment(name="map-chaos")
app.image("python").env(CHAOS_FILE=os.environ["CHAOS_FILE"])
app.configure_autoscaling(min_scale=2, max_workers=2)
running = 0
LIMIT = int(os.environ.get("CHAOS_ITEMS", "0"))
PAUSE_S = float(os.environ.get("CHAOS_PAUSE_S", "0.05"))

def note(kind, x):
    with open(os.environ["CHAOS_FILE"], "a") as log:
        log.write(f"{kind} {x} {os.getpid()}\\n")

@app.remote(concurrency=16)
async def once(x: int):
    note("once", x)
    await asyncio.sleep(PAUSE_S)
    return x

@app.remote(concurrency=16, idempotent=True)
async def again(x: int):
    note("again", x)
    await asyncio.sleep(PAUSE_S)
    return x

@app.remote(concurrency=16)
async def brief(seconds: float):
    global running
    running += 1
    try:
        await asyncio.sleep(seconds)
    finally:
        running -= 1

@app.remote(concurrency=4)
async def left():
    return running

async def chaos():
    stop = threading.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)

    def items():
        number = 0
        while not stop.is_set() and (not LIMIT or number < LIMIT):
            yield number
            number += 1

    async def through(function):
        found = []
        async for got in function.map(items(), return_exceptions=True, concurrency=64):
            found.append(type(got).__name__ if isinstance(got, BaseException) else got)
        return found

    print("ready", flush=True)
    results = await asyncio.gather(through(once), through(again))
    print(json.dumps(results), flush=True)

async def storm(count):
    print("ready", flush=True)
    rng = random.Random(11)

    async def one():
        task = asyncio.ensure_future(brief(rng.choice((0.0, 0.002, 0.02))))
        await asyncio.sleep(rng.expovariate(20))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "returned"

    ends = []
    for _ in range(0, count, 500):
        ends += await asyncio.gather(*(one() for _ in range(500)))
    for _ in range(300):
        busy = [await left() for _ in range(6)]
        if not any(busy):
            break
        await asyncio.sleep(0.1)
    print(json.dumps([ends.count("cancelled"), ends.count("returned"), busy]), flush=True)

async def main():
    await app.async_ensure_ready()
    await (storm(int(sys.argv[2])) if sys.argv[1] == "storm" else chaos())

if __name__ == "__main__":
    asyncio.run(main())
"""


class Program:
    """The SDK program, as a process of its own."""

    def __init__(self, cloud: Cloud, directory: Path, *words: str, **more: str) -> None:
        path = directory / "map_chaos_app.py"
        path.write_text(PROGRAM)
        self.starts = directory / "starts.log"
        self.starts.touch()
        env = {**cloud.client_env(), "CHAOS_FILE": str(self.starts), "NANOPOD_TEST_MARK": "load", **more}
        self.process = subprocess.Popen(
            [sys.executable, str(path), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self.process.stdout
        assert self.process.stdout.readline().strip() == "ready"

    def lines(self) -> list[list[str]]:
        """(function, item, pid) of every start so far."""
        return [line.split() for line in self.starts.read_text().splitlines()]

    def wait_for_starts(self, count: int) -> None:
        """Wait until so many items were started."""
        limit = time.monotonic() + 60
        while len(self.lines()) < count:
            assert self.process.poll() is None, "the program ended by itself"
            assert time.monotonic() < limit, f"only {len(self.lines())} of {count} starts within 60 s"
            time.sleep(0.02)

    def end(self, *, wait: bool = False) -> Any:
        """Tell it to read no more items, or `wait` until it has all of them; what it printed at its end."""
        if wait:
            assert self.process.stdout
            out = self.process.stdout.readline()
            self.process.wait(30)
        else:
            out, _ = self.process.communicate("stop\n", timeout=120)
        assert self.process.returncode == 0
        return json.loads(out)

    def kill(self) -> None:
        """Whatever happened."""
        self.process.kill()
        self.process.wait(10)


def strike(cloud: Cloud, program: Program, part: str) -> bool:
    """Kill a worker that just started something, or the gateway; False when there is none at the moment."""
    if part == "gateway":
        return cloud.kill("nanopod.gateway") is not None
    pids = {int(pid) for _, _, pid in program.lines()[-40:]}
    for pid in sorted(pids, key=lambda _: random.random()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def chaos(directory: Path, rounds: int) -> None:
    seed = int(os.environ.get("NANOPOD_CHAOS_SEED", random.randrange(10**6)))
    print(f"chaos seed {seed}, {rounds} rounds")
    random.seed(seed)
    parts = ["worker", "gateway"] + [random.choice(["worker", "worker", "gateway"]) for _ in range(rounds - 2)]
    with Cloud(directory / "data") as cloud:
        program = Program(cloud, directory, "chaos")
        try:
            for part in parts:
                program.wait_for_starts(len(program.lines()) + 150)
                while not strike(cloud, program, part):
                    time.sleep(0.05)
            program.wait_for_starts(len(program.lines()) + 150)
            once, again = program.end()
        finally:
            program.kill()
        verify(program, once, again)


def verify(program: Program, once: list[Any], again: list[Any]) -> None:
    """Every item's fate against the lines that the functions wrote."""
    starts = Counter((kind, int(item)) for kind, item, _ in program.lines())
    doubled = {item: count for (kind, item), count in starts.items() if kind == "once" and count > 1}
    assert not doubled, f"started more than once: {doubled}"
    failures = Counter(got for got in once if isinstance(got, str))
    assert set(failures) <= {"WorkerLost"}, failures
    assert failures["WorkerLost"] < len(once) / 2
    for item, got in enumerate(once):
        assert isinstance(got, str) or (got == item and starts["once", item] == 1)
    assert again == list(range(len(again))), "an idempotent item was lost"
    rerun = sum(count > 1 for (kind, _), count in starts.items() if kind == "again")
    print(f"{len(once)} + {len(again)} items, lost {failures['WorkerLost']}, run again {rerun}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_map_of_ten_thousand_items_while_workers_are_killed(tmp_path: Path) -> None:
    """Whole maps: every one of the items has its value or its `WorkerLost`, in the order of the input."""
    random.seed(int(os.environ.get("NANOPOD_CHAOS_SEED", random.randrange(10**6))))
    with Cloud(tmp_path / "data") as cloud:
        program = Program(cloud, tmp_path, "chaos", CHAOS_ITEMS=str(ITEMS), CHAOS_PAUSE_S="0.01")
        try:
            for share in sorted(random.uniform(0.02, 0.8) for _ in range(KILLS)):
                program.wait_for_starts(round(2 * ITEMS * share))
                while not strike(cloud, program, "worker"):
                    time.sleep(0.05)
            once, again = program.end(wait=True)
        finally:
            program.kill()
        assert (len(once), len(again)) == (ITEMS, ITEMS)
        verify(program, once, again)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_map_with_sixty_kills(tmp_path: Path) -> None:
    chaos(tmp_path, int(os.environ.get("NANOPOD_CHAOS_ROUNDS", "60")))


@pytest.mark.timeout(240)
def test_ten_thousand_cancellations_leave_nothing_running(cloud: Cloud, tmp_path: Path) -> None:
    program = Program(cloud, tmp_path, "storm", "10000")
    try:
        out, _ = program.process.communicate(timeout=200)
    finally:
        program.kill()
    cancelled, returned, busy = json.loads(out)
    assert cancelled + returned == 10_000
    assert cancelled > 1000
    assert not any(busy), f"functions that still run: {busy}"

    cloud.wait_for(lambda: cloud.api("GET", "/healthz")["in_flight"] == 0, 30, "a gateway without calls")
    cloud.api("DELETE", "/v1/endpoints/map-chaos")
