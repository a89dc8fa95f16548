"""SIGKILL of the server while orders stream in: whatever was acknowledged is there once, and all books agree."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_stage import SKU, Server, Trader, audit, fresh, prepare

pytestmark = pytest.mark.integration
TRADERS = 4


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path: sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="npm-", dir="/tmp") as directory:
        yield Path(directory)


def acknowledged(traders: list[Trader]) -> int:
    """Orders answered so far."""
    return sum(len(trader.acknowledged) + trader.refused for trader in traders)


def check(server: Server, traders: list[Trader], draw: random.Random) -> None:
    """The database of the dead server, then the restarted one's answers to repeats."""
    before = {order for trader in traders for order in list(trader.acknowledged.values())}
    gone = {order for trader in traders for order in list(trader.cancelled)}
    found = audit(server)
    assert not found.wrong, found.wrong[:5]
    assert not found.twice
    assert before <= set(found.orders), f"{len(before - set(found.orders))} acknowledged orders are gone"
    assert all(found.orders[order] == "cancelled" for order in gone), "a cancel that was answered was undone"
    server.start()
    for trader in traders:
        known = list(trader.acknowledged.items())
        for idempotency, order_id in draw.sample(known, min(5, len(known))):
            again = server.once("POST", "/v1/orders", trader._order(), trader.key, idempotency)
            assert again.replayed and again.body["id"] == order_id, again


def stream_and_kill(directory: Path, url: str | None, orders: int, kills: int, seed: int) -> None:
    """`orders` orders by several clients, the server killed `kills` times in between at random moments."""
    draw = random.Random(seed)
    server = fresh(directory, url)
    try:
        traders = prepare(server, TRADERS, orders, seed)
        for trader in traders:
            trader.start()
        points = sorted(draw.sample(range(orders // 20, orders), kills))
        for point in points:
            wait(traders, point)
            time.sleep(draw.uniform(0, 0.05))
            server.kill()
            check(server, traders, draw)
            if draw.random() < 0.5:
                # A block passes in between: what has begun is clipped, holds shrink.
                server.must("POST", "/v1/test_clock", {"blocks": draw.choice((1, 30, 90))})
        wait(traders, orders)
        for trader in traders:
            trader.join(60)
            assert not trader.trouble, trader.trouble[:3]
        live = live_orders(server, traders)
        server.kill()
        found = audit(server)
        assert not found.wrong, found.wrong[:5]
        ours = {order for trader in traders for order in trader.acknowledged.values()}
        assert ours <= set(found.orders)
        assert sum(len(trader.acknowledged) for trader in traders) == len(ours), "two requests got the same order"
        assert acknowledged(traders) == orders // TRADERS * TRADERS
        assert len(ours) > orders / 2
        resting = {order_id for order_id in found.exchange.orders if order_id in ours}
        assert live == resting, "what the server showed is what its log makes"
        placed = {order for order in found.orders if order not in ours}
        offers = {name for name, one in found.exchange.orders.items() if one.owner.startswith("prov_")}
        assert offers <= placed
    finally:
        server.stop()


def live_orders(server: Server, traders: list[Trader]) -> set[str]:
    """Every order that the running server calls open."""
    found: set[str] = set()
    for trader in traders:
        after = ""
        while True:
            path = f"/v1/orders?status=standing&status=partially_filled&limit=200{after}"
            page: Any = server.must("GET", path, key=trader.key)
            found |= {row["id"] for row in page["data"]}
            if not page["has_more"]:
                break
            after = f"&starting_after={page['cursor']}"
    return found


def wait(traders: list[Trader], count: int, wait_s_max: float = 300.0) -> None:
    """Until so many orders are answered."""
    limit = time.monotonic() + wait_s_max
    while acknowledged(traders) < count:
        trouble = [text for trader in traders for text in trader.trouble]
        assert not trouble, trouble[:3]
        assert time.monotonic() < limit, f"{acknowledged(traders)} of {count} orders within {wait_s_max:.0f} s"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_while_orders_stream_in_nothing_acknowledged_is_lost(backend: Any, short: Path) -> None:
    """As many kills as in the long form below, closer together: it is the kills that can lose something."""
    stream_and_kill(short, backend.url, 2_000, 6, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_killed_while_ten_thousand_orders_stream_in(backend: Any, short: Path) -> None:
    stream_and_kill(short, backend.url, 10_000, 6, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_many_times_on_many_seeds(backend: Any, short: Path, seed: int) -> None:
    stream_and_kill(short, backend.url, 20_000, 20, seed)


def test_a_key_is_one_order_however_often_it_is_sent(short: Path) -> None:
    server = fresh(short, None)
    try:
        (trader,) = prepare(server, 1, 1, 9)
        body = trader._order() | {"side": "buy", "limit_price_dollars_per_node_hour": "1.20"}
        first = server.once("POST", "/v1/orders", body, trader.key, "same")
        assert first.status == 201 and not first.replayed and first.body["status"] == "filled"
        for _ in range(3):
            server.kill()
            server.start()
            again = server.once("POST", "/v1/orders", body, trader.key, "same")
            assert again.status == 200 and again.replayed and again.body == first.body
        assert len(server.must("GET", "/v1/orders", key=trader.key)["data"]) == 1
        assert first.body["instance_sku"]["id"] == SKU
    finally:
        server.stop()
