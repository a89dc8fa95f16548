"""SIGKILL at any moment, a second server on the same directory, a full disk: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers import FakeAgent, FakeGateway, ServerProcess, model, record, until

pytestmark = pytest.mark.integration


def test_it_starts_in_little_more_than_the_time_of_its_imports(tmp_path: Path) -> None:
    """In turns with an interpreter that only loads the server: a busy machine makes both slow."""
    ratios = []
    for number in range(4):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import nanopod.server.assemble, uvicorn"], check=True)
        imports_s = time.monotonic() - began
        server = ServerProcess(tmp_path / str(number)).start()
        ratios.append(server.start_s / imports_s)
        assert server.stop() == 0
    print("start to answering, in times of the imports:", [round(ratio, 2) for ratio in ratios])
    assert min(ratios) < 2.5


def test_killed_and_restarted_everything_goes_on(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data").start()

    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway)
        async with gateway.linked(), agent.linked():
            made = await server.acall("POST", "/v1/endpoints", model("kept", scale={"tuning": {"min_scale": 2}}))
            key = await server.acall("POST", "/v1/keys", {"name": "kept"})
            await until(lambda: server.call("GET", "/v1/endpoints/kept")["ready_instance_count"] == 2)
            before, started, version = set(agent.wanted), list(agent.started), gateway.versions[-1]
            server.kill()
            await asyncio.to_thread(server.start)
            await until(lambda: server.call("GET", "/v1/endpoints/kept")["ready_instance_count"] == 2)
            # The API answers from rows before everybody has found the new server.
            await until(lambda: gateway.versions[-1] > version, what="tables of the new server")
            assert set(agent.wanted) == before
            assert agent.started == started, "nothing was started again"
            assert made["endpoint"]["id"] in gateway.tables.routes  # type: ignore[union-attr]
            assert server.call("GET", "/v1/status", key=key["key"]).status == 200
            server.kill()
            # What happened while nobody looked is noticed.
            agent.crash(next(iter(before)))
            await asyncio.to_thread(server.start)
            await until(lambda: (next(iter(before)), 2) in agent.started, what="the next epoch")
            assert max(epoch for _, epoch in agent.started) == 2

    try:
        asyncio.run(test())
    finally:
        server.stop()


def test_killed_at_random_moments_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    rng = random.Random(7)
    server = ServerProcess(tmp_path / "data").start()
    names: set[str] = set()
    segments: set[str] = set()

    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway, slots=64)
        async with gateway.linked(), agent.linked():
            for round_ in range(5):
                stop = asyncio.Event()

                async def create(round_: int = round_, stop: asyncio.Event = stop) -> None:
                    number = 0
                    while not stop.is_set():
                        name = f"e{round_}-{number}"
                        number += 1
                        try:
                            made = await server.acall("POST", "/v1/endpoints", model(name))
                        except (OSError, ValueError):
                            return
                        if made.status == 201:
                            names.add(name)

                async def meter(round_: int = round_, stop: asyncio.Event = stop) -> None:
                    number = 0
                    while not stop.is_set():
                        segment = f"s{round_}-{number}"
                        number += 1
                        if gateway.link and not gateway.link.closed:
                            gateway.meter(segment, record(segment, workspace_id="w"))
                        await asyncio.sleep(0.005)

                tasks = [asyncio.create_task(create()), asyncio.create_task(meter())]
                await asyncio.sleep(rng.uniform(0.05, 0.4))
                server.kill()
                stop.set()
                await asyncio.gather(*tasks, return_exceptions=True)
                segments.update(gateway.acks)
                await asyncio.to_thread(server.start)
            found = server.call("GET", "/v1/endpoints?limit=200")
            assert names <= {row["name"] for row in found["data"]}
            assert names
            wanted = len(found["data"])
            await until(lambda: len(agent.wanted) == wanted, 20, f"{wanted} workers")
            epochs: dict[str, list[int]] = {}
            for instance_id, epoch in agent.started:
                epochs.setdefault(instance_id, []).append(epoch)
            assert all(seen == sorted(set(seen)) for seen in epochs.values()), "an epoch was started twice"

    try:
        asyncio.run(test())
        server.stop()
        import sqlite3

        with sqlite3.connect(server.layout.database) as database:
            kept = {row[0] for row in database.execute("SELECT record_id FROM usage_record")}
        assert segments <= kept
        assert segments
    finally:
        if server.process and server.process.poll() is None:
            server.stop()


def test_killed_during_its_first_start_the_next_one_finishes_it(tmp_path: Path) -> None:
    rng = random.Random(3)
    data = tmp_path / "data"
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "nanopod.server", "--data-dir", str(data)], stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.25, 0.55))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    server = ServerProcess(data).start()
    keys = server.call("GET", "/v1/keys")["data"]
    assert [key["name"] for key in keys] == ["admin"]
    assert server.call("GET", "/v1/capacities")["data"][0]["name"] == "default"
    assert server.stop() == 0


def test_a_second_server_is_refused_with_a_sentence(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data").start()
    done = subprocess.run(
        [sys.executable, "-m", "nanopod.server", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "nanopod down" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.call("GET", "/v1/status").status == 200
    assert server.stop() == 0


def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data").start()
    try:
        server.call("POST", "/v1/endpoints", model("before"))
        assert server.process
        # The kernel refuses every byte beyond this size of a file, as a full disk does.
        soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
        refused = server.call("POST", "/v1/keys", {"name": "refused"})
        assert refused.status == 503
        assert "disk" in refused.error["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert server.call("GET", "/v1/endpoints/before").status == 200, "reading goes on"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

        async def again() -> None:
            await until(lambda: server.call("POST", "/v1/keys", {"name": "after"}).status == 201, 10)

        asyncio.run(again())
        assert "available again" in server.log()
        assert server.stop() == 0
    finally:
        if server.process and server.process.poll() is None:
            server.kill()
