"""The market's API through the front door: every verb and header passes, and streams are not held back."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import free_port
from marketplace import DELTA, LIMIT, Marketplace, frames, opened

pytestmark = pytest.mark.integration
READY_S_MAX = 20.0


@contextlib.contextmanager
def front_door(market: Marketplace, log: Path) -> Iterator[int]:
    """A gateway process on a free port."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "nanopod.gateway", "--data-dir", str(market.server.layout.data)),
        *("--listen", f"127.0.0.1:{port}"),
    ]
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
    try:
        end = time.monotonic() + READY_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.01)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def call(
    port: int, key: str, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], Any]:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, sent)
        found = connection.getresponse()
        content = found.read()
        return found.status, {k.lower(): v for k, v in found.getheaders()}, json.loads(content) if content else None
    finally:
        connection.close()


def test_everything_passes_the_front_door(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as market, front_door(market, tmp_path / "gateway.log") as port:
        market.machine("machine_g", 4, market.sku)
        market.rebase()
        key = market.server.key
        status, _, made = call(port, key, "POST", "/v1/capacities", {"name": "lab"})
        assert status == 201
        status, _, changed = call(port, key, "PATCH", f"/v1/capacities/{made['resource_path']}", {"tags": {"a": "b"}})
        assert (status, changed["tags"]) == (200, {"a": "b"})
        events = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        events.request("GET", "/v1/events?stream=true", headers={"Authorization": f"Bearer {key}"})
        stream = events.getresponse()
        assert stream.readline() == b": connected\n"
        body = {
            "capacity": "lab", "side": "buy", "instance_sku": market.sku, LIMIT: "1.20",
            DELTA: [market.entry(1, 0, 60)],
        }  # fmt: skip
        answers = [call(port, key, "POST", "/v1/orders", body, **{"Idempotency-Key": "once"}) for _ in range(2)]
        assert [status for status, _, _ in answers] == [201, 200]
        assert answers[0][2]["id"] == answers[1][2]["id"]
        assert answers[1][1]["idempotency-replayed"] == "true"
        began = time.monotonic()
        assert {kind for _, kind, _ in frames(stream, 3)} == {"order.created", "order.filled", "contract.created"}
        assert time.monotonic() - began < 5.0, "events come when they happen, not with the next sign of life"
        events.close()
        assert call(port, key, "DELETE", f"/v1/orders/{answers[0][2]['id']}")[0] == 200
        status, _, refused = call(port, key, "POST", "/v1/orders", {**body, LIMIT: "1"})
        assert (status, refused["error"]["details"][0]["field"]) == (422, LIMIT)
        assert call(port, key, "GET", "/v1/pools?tag=a=b&limit=1")[2]["data"][0]["object"] == "pool"
