"""Orders per second through the HTTP API of a whole server process, each durable before it is answered.

Yardstick: a plain aiohttp server that parses a JSON body and answers with JSON, asked by the same clients over the same
kind of socket in the same run; the two take turns. The orders are immediate buys that fill against one provider's
time, so each writes an order, a contract, ledger entries and an event, and is on the disk when its answer leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.figures import Figure, median, percentile, say
from nanopod.model.capacity import Sku
from nanopod.model.layout import Layout
from nanopod.store.open import open_store

CLIENTS = 32
START_S_MAX = 30.0
SKU = "isku_bench"
HOUR = 3600

ECHO = """
import asyncio, sys
from aiohttp import web

async def echo(request):
    return web.json_response(await request.json())

app = web.Application()
app.router.add_post("/v1/orders", echo)
web.run_app(app, path=sys.argv[1], print=None)
"""


class Process:
    """A server on a Unix socket, ended with the block."""

    def __init__(self, words: list[str], socket: Path, log: Path) -> None:
        self.words, self.socket, self.log = words, socket, log

    async def __aenter__(self) -> aiohttp.ClientSession:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([sys.executable, *self.words], stdout=log, stderr=log)
        self.session = aiohttp.ClientSession(
            base_url="http://localhost", connector=aiohttp.UnixConnector(path=str(self.socket), limit=CLIENTS)
        )
        limit = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.session.get("/v1/status"):
                    return self.session
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{self.words[-1]} did not start: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def server_words(data: Path) -> list[str]:
    """How the server of a data directory is started."""
    return ["-m", "nanopod.server", "--data-dir", str(data), "--test-clock", "--log-level", "WARNING"]


class Market:
    """The traders' side: one capacity that buys from one provider."""

    def __init__(self, session: aiohttp.ClientSession, key: str) -> None:
        self.session = session
        self.headers = {"Authorization": f"Bearer {key}"}
        self.draw = random.Random(4)
        self.number = 0

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One request that has to work."""
        async with self.session.request(method, path, json=body, headers={**self.headers, **headers}) as answer:
            found = await answer.json()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {found}")
            return found

    async def stock(self) -> None:
        """A provider with plenty, and the clock."""
        await self.call("POST", "/v1/providers", {"name": "fleet"})
        offer = {
            "provider": "fleet", "instance_sku": SKU, "floor_price_dollars_per_node_hour": "1.00", "elastic": True,
            "max_nodes": 1024, "horizon_minutes": 14 * 1440,
        }  # fmt: skip
        await self.call("POST", "/v1/offers", offer)
        now = int((await self.call("GET", "/v1/test_clock"))["now_at"])
        self.base = (now // HOUR + 1) * HOUR

    def order(self) -> dict[str, Any]:
        """An immediate buy of one node for an hour within two weeks."""
        start = self.base + HOUR * self.draw.randrange(300)
        return {
            "capacity": "default",
            "side": "buy",
            "instance_sku": SKU,
            "allocation_schedule_delta": [{"start_at": start, "end_at": start + HOUR, "node_count": 1}],
            "limit_price_dollars_per_node_hour": "2.00",
        }

    async def place(self) -> None:
        """One order; it has to fill."""
        self.number += 1
        body = self.order()
        answer = await self.call("POST", "/v1/orders", body, **{"Idempotency-Key": f"k{self.number}"})
        if answer["status"] != "filled":
            raise RuntimeError(f"an order was not filled: {answer}")


async def rate(once: Any, count: int) -> tuple[float, list[float]]:
    """Requests per second with `CLIENTS` at once, and the seconds of each."""
    left = iter(range(count))
    times: list[float] = []

    async def client() -> None:
        for _ in left:
            begun = time.perf_counter()
            await once()
            times.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.perf_counter() - begun), times


async def measure(directory: Path, rounds: int, count: int) -> dict[str, list[float]]:
    """Rates and times of both, round by round."""
    data = directory / "d"
    layout = Layout(data)
    async with Process(server_words(data), layout.server_socket, directory / "first.log"):
        pass
    store = open_store(layout.database)
    await store.write(lambda write: write.put_sku(Sku(SKU, "bench-1x", num_vcpus=2)))
    await store.close()
    echo_file = directory / "echo.py"
    echo_file.write_text(ECHO)
    socket = directory / "e.sock"
    seen: dict[str, list[float]] = {"ours": [], "echo": [], "times": []}
    async with (
        Process(server_words(data), layout.server_socket, directory / "server.log") as session,
        Process([str(echo_file), str(socket)], socket, directory / "echo.log") as plain,
    ):
        market = Market(session, layout.admin_key.read_text().strip())
        await market.stock()
        body = json.dumps(market.order())

        async def echo() -> None:
            async with plain.post("/v1/orders", data=body, headers={"Content-Type": "application/json"}) as answer:
                await answer.json()

        await rate(market.place, count // 4)
        await rate(echo, count // 4)
        for _ in range(rounds):
            ours, times = await rate(market.place, count)
            other, _ = await rate(echo, 4 * count)
            seen["ours"].append(ours)
            seen["echo"].append(other)
            seen["times"] += times
    return seen


def run(*, quick: bool = False) -> Iterator[Figure]:
    """One figure: our orders per second over the echo's requests per second."""
    say("orders through HTTP")
    with tempfile.TemporaryDirectory(prefix="npb-", dir="/tmp") as directory:
        seen = asyncio.run(measure(Path(directory), 2 if quick else 5, 400 if quick else 2000))
    ratios = [ours / echo for ours, echo in zip(seen["ours"], seen["echo"], strict=True)]
    yield Figure(
        "market_orders_per_s_http",
        median(ratios),
        "x",
        "requests per second to a plain aiohttp JSON echo, same clients",
        "",
        {
            "orders_per_s": round(median(seen["ours"])),
            "echo_per_s": round(median(seen["echo"])),
            "clients": CLIENTS,
            "p50_ms": round(1e3 * median(seen["times"]), 2),
            "p99_ms": round(1e3 * percentile(seen["times"], 0.99), 2),
            "cores": os.cpu_count(),
        },
    )
