"""What other people's engines say of themselves on `/metrics`, and how it reaches the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from nanopod.node.engines.base import Engine, Load
from nanopod.node.engines.scraping import Scraping, read
from nanopod.node.runtime import serving
from nanopod.node.runtime.serving import Models

VLLM = b"""# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (VLLM, (0.5, 3)),
        (b'vllm:gpu_cache_usage_perc{model_name="a } b"} 1e-1\n', (0.1, 0)),
        (b'vllm:gpu_cache_usage_perc{model_name="a"} 1e-1\nvllm:num_requests_waiting 0\n', (0.1, 0)),
        (b'sglang:token_usage 0.75\nsglang:num_queue_reqs{x="1"} 4.0\n', (0.75, 4)),
        (b"tgi_queue_size 7\r\ntgi_queue_size_sum 900\n", (-1.0, 7)),
        (b"llamacpp:kv_cache_usage_ratio 1.5\nllamacpp:requests_deferred 1\n", (1.0, 1)),
        (b"vllm:kv_cache_usage_perc NaN\n", None),
        (b"vllm:kv_cache_usage_perc_total 0.5\n# vllm:num_requests_waiting 5\n", None),
        (b"", None),
        (b"<html>", None),
    ],
)
def test_lines_of_the_engines_that_are_known(text: bytes, found: tuple[float, int] | None) -> None:
    assert read(text) == found


@contextlib.asynccontextmanager
async def engine_saying(answers: list[tuple[int, bytes]]) -> AsyncIterator[aiohttp.ClientSession]:
    """A server whose `/metrics` gives these answers in turn, then no more."""

    async def metrics(request: web.Request) -> web.Response:
        status, text = answers.pop(0) if answers else (404, b"")
        if "gzip" in request.headers.get("accept-encoding", ""):
            return web.Response(status=status, body=gzip.compress(text), headers={"content-encoding": "gzip"})
        return web.Response(status=status, body=text)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as session:
            yield session
    finally:
        await runner.cleanup()


def test_what_cannot_be_had_is_not_known_any_more() -> None:
    async def main() -> list[Load]:
        seen = []
        async with engine_saying([(200, VLLM), (500, VLLM), (200, b"sglang:token_usage 0.5\n")]) as session:
            scraping = Scraping(session, lambda: 4)
            seen.append(scraping.load())
            for _ in range(4):
                await scraping.look()
                seen.append(scraping.load())
        return seen

    nothing = Load(4, 0, -1.0)
    assert asyncio.run(main()) == [nothing, Load(4, 3, 0.5), nothing, Load(4, 0, 0.5), nothing]


def test_an_idle_engine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    running = 1

    class Counting(Scraping):
        async def look(self) -> None:
            looks.append(running)

    async def main() -> None:
        nonlocal running
        turns = 0
        real = asyncio.sleep

        async def step(seconds: float) -> None:
            nonlocal running, turns
            turns += 1
            running = 1 if turns < 3 else 0
            if turns == 10:
                raise asyncio.CancelledError
            await real(0)

        monkeypatch.setattr(asyncio, "sleep", step)
        with contextlib.suppress(asyncio.CancelledError):
            await Counting(cast(aiohttp.ClientSession, None), lambda: running).run()

    asyncio.run(main())
    assert looks == [1, 1, 1, 0], "once more when the last request has ended, then no more"


def test_changed_load_is_told_and_the_same_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = [Load(), Load(1, 0, 0.101), Load(2, 0, 0.104), Load(1, 3, 0.104), Load(0, 0, -1.0)]
    told: list[Any] = []

    class Told(Models):
        def __init__(self) -> None:
            self.engine = cast(Engine, self)
            self.engine_load = None

        def load(self) -> Load:
            if not loads:
                raise asyncio.CancelledError
            return loads.pop(0)

        def tell(self) -> None:
            told.append(self.engine_load)

    monkeypatch.setattr(serving, "LOAD_S", 0.0)

    async def main() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await Told().watch_load()

    asyncio.run(main())
    assert told == [(0, 0.1), (3, 0.1), (0, -1.0)]
