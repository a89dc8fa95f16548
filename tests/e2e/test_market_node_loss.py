"""A machine is gone: what was sold on it is taken back and refunded, minute by minute, until it returns."""

from __future__ import annotations

import base64
import os
import signal
from typing import Any

import pytest
from bench.cloud import Cloud
from market_desk import Hand, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MINUTE = 60
HOUR = 3600
LOST_S_MAX = 100
SLEEPER = base64.b64encode(b"#!/bin/sh\nexec sleep 100000\n").decode()


@pytest.mark.timeout(240)
def test_lost_blocks_are_refunded_while_the_machine_is_missing() -> None:
    with Cloud(flags=["--test-clock"]) as cloud:
        operator = Hand(cloud, cloud.key)
        (offer,) = operator.get("/v1/offers")["data"]
        operator.patch(f"/v1/offers/{offer['id']}", {"floor_price_dollars_per_node_hour": "1.20"})
        ann = operator.tenant("ann", "1000.00")
        sku = ann.sku
        ann.post("/v1/capacities", {"name": "c"})
        begin = operator.now() + MINUTE
        assert ann.buy("c", begin, begin + 2 * HOUR, 1, "1.20")["total"] == "2.400000"
        body = {"name": "one", "capacity": "c", "image": "host", "instance_sku": sku, "cloud_init_user_data": SLEEPER}
        one = ann.post("/v1/instances", body)
        operator.advance(begin)

        def shown() -> dict[str, Any]:
            return dict(ann.get(f"/v1/instances/{one['id']}"))

        def current() -> str:
            return str(ann.get("/v1/balances")["data"][0]["current"])

        until(lambda: shown()["phase"] == "ready", "the instance runs")
        assert current() == "997.600000"
        # Nobody restarts the agent, and after a minute of silence the machine counts as lost.
        assert cloud.up is not None
        os.kill(cloud.up.pid, signal.SIGSTOP)
        try:
            assert cloud.kill("nanopod.node.agent") is not None
            until(lambda: shown()["status"] == "failed", "the machine is lost", LOST_S_MAX)
            assert shown()["status_reason"], "it says why"
            # Ten blocks ahead at 0.02 a minute are given back, and each minute that passes adds one.
            assert current() == f"{997.6 + 10 * 0.02:.6f}"
            operator.advance(begin + 5 * MINUTE)
            assert current() == f"{997.6 + 15 * 0.02:.6f}"
            left = ann.get("/v1/capacities/c")["allocation_schedule"]["total"]
            assert sum((e["end_at"] - e["start_at"]) * e["node_count"] for e in left) <= 2 * HOUR - 15 * MINUTE
            asks = ann.get(f"/v1/orderbook/depth?start_at={begin + 6 * MINUTE}&end_at={begin + HOUR}")["asks"]
            assert not asks, "nothing is on sale on machines that are not there"
            (refunded,) = ann.all("/v1/contracts")
            assert refunded["refunded_node_blocks"] == 15
        finally:
            os.kill(cloud.up.pid, signal.SIGCONT)
        until(lambda: all(node["state"] == "up" for node in ann.get("/v1/nodes")["data"]), "the machine is back")
        operator.advance(begin + 10 * MINUTE)
        assert current() == f"{997.6 + 15 * 0.02:.6f}", "nothing more is lost"
        assert ann.buy("c", begin + HOUR, begin + 2 * HOUR, 2, "1.20")["status"] == "filled", (
            "and time is on sale again"
        )
