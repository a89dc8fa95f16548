"""A trivial remote call through the whole product against a plain aiohttp JSON echo, interleaved in one run.

Auth, queueing and metering are on. The echo server and the load are processes of their own, as the cloud's are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from bench.cloud import Cloud
from bench.figures import Figure, median, percentile, say

HERE = Path(__file__).parent
ECHO = """
import sys
from aiohttp import web
async def echo(request):
    x = (await request.json())["x"]
    return web.json_response({"result": x * x})
app = web.Application()
app.router.add_post("/", echo)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


async def drive(call: Callable[[int], Awaitable[Any]], callers: int, seconds: float) -> tuple[float, float]:
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


async def drive_map(function: Any, seconds: float) -> float:
    """Results per second of `function.map` over as many items as take about that long."""
    clock = time.perf_counter
    begin, count = clock(), 0
    async with function.map(itertools.count()) as results:
        async for _ in results:
            count += 1
            if count % 64 == 0 and clock() - begin >= seconds:
                break
    return count / (clock() - begin)


async def measure(echo_port: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Interleave echo and product at 1 and 32 callers; runs in the load process."""
    import aiohttp

    from bench.deployments.square import app, square

    await app.async_ensure_ready()
    assert await square(5) == 25
    rows = []
    async with aiohttp.ClientSession() as session:

        async def echo(x: int) -> Any:
            async with session.post(f"http://127.0.0.1:{echo_port}/", json={"x": x}) as answer:
                return (await answer.json())["result"]

        for callers in (1, 32):
            await drive(echo, callers, 0.3)
            await drive(square, callers, 0.3)
            for _ in range(repeats):
                echo_p50, echo_rate = await drive(echo, callers, seconds)
                call_p50, call_rate = await drive(square, callers, seconds)
                row = {"c": callers, "echo_p50": echo_p50, "echo_rate": echo_rate, "p50": call_p50, "rate": call_rate}
                rows.append({**row, "map_rate": await drive_map(square, seconds) if callers > 1 else 0.0})
    return rows


@contextlib.contextmanager
def echo_server(port: int) -> Iterator[None]:
    """The yardstick as a process."""
    process = subprocess.Popen([sys.executable, "-c", ECHO, str(port)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Figures of this cell."""
    repeats, seconds = (2, 1.0) if quick else (5, 2.0)
    with Cloud() as cloud:
        echo_port = cloud.port + 1
        with echo_server(echo_port):
            time.sleep(1.0)
            done = subprocess.run(
                [sys.executable, "-m", "bench.remote_call", str(echo_port), str(repeats), str(seconds)],
                cwd=HERE.parent,
                env=cloud.client_env(),
                stdout=subprocess.PIPE,
                check=True,
                timeout=300,
            )
    rows = json.loads(done.stdout)
    for callers in (1, 32):
        cell = [row for row in rows if row["c"] == callers]
        detail = {key: round(median([row[key] for row in cell]), 6) for key in ("p50", "rate", "echo_p50", "echo_rate")}
        say(f"c={callers}: {detail}")
        p50 = median([row["p50"] / row["echo_p50"] for row in cell])
        rate = median([row["rate"] / row["echo_rate"] for row in cell])
        yardstick = "plain aiohttp JSON echo, same run"
        bar_p50, bar_rate = ("<= 1.5", "") if callers == 1 else ("", ">= 1.0")
        yield Figure(f"remote_call_p50_vs_echo_c{callers}", p50, "ratio", yardstick, bar_p50, detail)
        yield Figure(f"remote_call_rate_vs_echo_c{callers}", rate, "ratio", yardstick, bar_rate, detail)
    mapped = [row for row in rows if row["map_rate"]]
    yield Figure(
        "remote_map_rate_vs_echo_c32", median([row["map_rate"] / row["echo_rate"] for row in mapped]), "ratio",
        yardstick, ">= 0.6", {"map_rate": round(median([row["map_rate"] for row in mapped]), 1)},
    )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("NANOPOD_MODE", "deploy")
    found = asyncio.run(measure(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
    print(json.dumps(found))
