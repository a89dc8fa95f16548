"""Further forms of a call, as a load process measures them: many at once, large ones, ones that outlive the program."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from bench.deployments.square import same, square
from bench.figures import median


async def mapped(items: int) -> float:
    """Results per second of `.map` over so many items, all of them checked."""
    begin = time.perf_counter()
    at = 0
    async with square.map(range(items)) as results:
        async for value in results:
            if value != at * at:
                raise AssertionError(f"item {at} became {value}")
            at += 1
    took_s = time.perf_counter() - begin
    assert at == items, f"{at} of {items} results came"
    return items / took_s


async def mapped_in_thread(items: int) -> float:
    """The same with a plain `for`, in a thread, as a program without an event loop has it."""

    def run() -> float:
        begin = time.perf_counter()
        count = sum(1 for _ in square.map(range(items)))
        assert count == items, f"{count} of {items} results came"
        return items / (time.perf_counter() - begin)

    return await asyncio.to_thread(run)


async def large(size: int, port: int, relay: int, repeats: int) -> dict[str, float]:
    """Median seconds of one call with `size` bytes there and back, and of the same bytes over plain sockets.

    The call and both copies take turns: `socket` to a process that sends them back, `relayed` by one in between.
    """
    data = bytes(bytearray(range(256))) * (size // 256)
    rows: dict[str, list[float]] = {"call": [], "socket": [], "relayed": []}
    assert await same(data) == data
    for _ in range(repeats):
        for name, at in (("socket", port), ("relayed", relay)):
            rows[name].append(_copied(data, at))
        begin = time.perf_counter()
        answer = await same(data)
        rows["call"].append(time.perf_counter() - begin)
        assert len(answer) == len(data)
    found = {name: median(times) for name, times in rows.items()}
    for name in ("socket", "relayed"):
        found[f"vs_{name}"] = median([a / b for a, b in zip(rows["call"], rows[name], strict=True)])
    return found


def _copied(data: bytes, port: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        into = memoryview(bytearray(len(data)))
        begin = time.perf_counter()
        peer.sendall(data)
        at = 0
        while at < len(into):
            at += peer.recv_into(into[at:])
        return time.perf_counter() - begin


async def spawned(callers: int, seconds: float) -> dict[str, float]:
    """Spawned calls per second, each on disk when its `spawn` returns, and until all of them are done."""
    made: list[Any] = []
    begin = time.perf_counter()
    end = begin + seconds

    async def one() -> None:
        while time.perf_counter() < end:
            made.append(await square.spawn.aio(2))

    await asyncio.gather(*(one() for _ in range(callers)))
    took_s = time.perf_counter() - begin
    for call in made[-callers:]:
        assert await call.aget() == 4
    return {"rate": len(made) / took_s, "done_rate": len(made) / (time.perf_counter() - begin)}


async def spawned_together(items: int) -> dict[str, float]:
    """The same with one `spawn_map`."""
    begin = time.perf_counter()
    made = await square.spawn_map.aio(range(items))
    took_s = time.perf_counter() - begin
    assert await made[-1].aget() == (items - 1) ** 2
    return {"rate": items / took_s, "done_rate": items / (time.perf_counter() - begin)}
