"""How long things take to begin: the import, a whole cloud, a worker from nothing, a wake from zero.

The yardstick is `python -c pass` of the same run: what the interpreter alone costs on this machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.cloud import Cloud
from bench.figures import Figure, median, say

ROOT = Path(__file__).parent.parent
CALL_ONCE = """
import asyncio, sys, time
from bench.deployments.sleepy import app, square
async def main():
    await app.async_ensure_ready()
    begin = time.perf_counter()
    await square(5)
    print(time.perf_counter() - begin)
asyncio.run(main())
"""


def timed(argv: list[str]) -> float:
    """Seconds that a command takes."""
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - begin


def repeated(measure: Callable[[], float], repeats: int) -> float:
    """The median of some repeats."""
    return median([measure() for _ in range(repeats)])


def call_once(cloud: Cloud) -> float:
    """Seconds of one call from a fresh client process."""
    done = subprocess.run(
        [sys.executable, "-c", CALL_ONCE],
        cwd=ROOT,
        env=cloud.client_env(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return float(done.stdout)


def up_once() -> float:
    """Seconds from the command to a ready cloud."""
    with tempfile.TemporaryDirectory(prefix="np-") as directory:
        cloud = Cloud(Path(directory) / "data")
        begin = time.perf_counter()
        cloud.start()
        took = time.perf_counter() - begin
        cloud.stop()
    return took


def import_time(*, quick: bool = False) -> Iterator[Figure]:
    """What importing the SDK and the query columns adds to an interpreter's start."""
    rows = []
    for _ in range(9 if quick else 31):
        bare = timed([sys.executable, "-c", "pass"])
        rows.append((timed([sys.executable, "-c", "import nanopod, nanopod.data.query"]), bare))
    seconds = median([imported - bare for imported, bare in rows])
    detail = {
        "python_s": round(median([bare for _, bare in rows]), 4),
        "ratio": round(median([imported / bare for imported, bare in rows]), 2),
    }
    yield Figure("import_time", seconds, "s", "python -c pass, same run, subtracted", "<= 0.15", detail)


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Figures of this cell."""
    repeats = 3 if quick else 7
    bare = repeated(lambda: timed([sys.executable, "-c", "pass"]), 9)
    yardstick = "python -c pass, same run"
    say(f"python -c pass: {bare * 1000:.1f} ms")

    up = repeated(up_once, repeats)
    yield Figure("start_up_vs_python", up / bare, "ratio", yardstick, "", {"seconds": round(up, 3)})

    with Cloud() as cloud:
        cold = call_once(cloud)
        yield Figure("start_cold_call_vs_python", cold / bare, "ratio", yardstick, "", {"seconds": round(cold, 3)})
        wakes = []
        for _ in range(repeats):
            cloud.wait_for(lambda: not cloud.pids("nanopod.node.worker"), 60, "scaled to zero")
            wakes.append(call_once(cloud))
        wake = median(wakes)
        yield Figure("start_wake_vs_python", wake / bare, "ratio", yardstick, "", {"seconds": round(wake, 3)})
