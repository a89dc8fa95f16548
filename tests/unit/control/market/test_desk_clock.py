"""Boundaries, downtime, the test clock, the replica, snapshots and history (R24)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from desk_stage import SKU, T0, Stage

from nanopod.control.market import passing
from nanopod.control.market.desk import MarketSettings
from nanopod.control.market.drafts import CLOCK_SETTING, check_block_s
from nanopod.control.market.replay import replay_all
from nanopod.control.market.ticker import Ticker
from nanopod.model.errors import Conflict, Invalid
from nanopod.server.clock import ClusterClock, frozen_since

FIRST = int(T0 // 60) + 1


def test_r24_what_was_bought_is_granted_with_its_first_block_and_what_ran_out_stops_first(stage: Stage) -> None:
    stage.nodes(1)
    stage.order("ann", "buy", 1, 0, 1, 1)
    stage.order("bob", "buy", 1, 1, 1, 1)
    for who in ("ann", "bob"):
        stage.deploy(who, 1)
    stage.blocks(2)
    assert [one.granted_at for one in stage.instances("bob")] == [stage.now]
    assert all(one.granted_at is None for one in stage.instances("ann"))


def test_r24_downtime_is_passed_block_by_block(tmp_path: Path) -> None:
    """A server that was away does what one that was there did."""
    digests = []
    for name in ("there", "away"):
        place = tmp_path / name
        place.mkdir()
        stage = Stage(place)
        stage.nodes(2, floor=10, horizon_minutes=120, quantum_minutes=10)
        stage.procure("ann", max_buy=20, window=20, target=1)
        stage.order("bob", "buy", 9, 0, 50, 1, standing=True, partial=True)
        stage.deploy("ann", 1)
        if name == "there":
            stage.blocks(45)
        else:
            stage.restart()
            stage.to(T0 + 45 * 60)
        stage.check()
        exchange = stage.do(lambda market: market.exchange(SKU))
        held, paid = stage.held("bob"), stage.balance("prepaid:wksp_ann")
        digests.append((exchange.block, exchange.holdings["cap_ann"].canonical(), held, paid))
        stage.close()
    assert digests[0] == digests[1]


def test_r24_a_boundary_does_some_and_says_that_more_are_due(stage: Stage) -> None:
    stage.nodes(1)
    stage.procure("ann", target=1, max_buy=5)
    stage.now = T0 + 600.0
    assert stage.write(lambda write: stage.desk.boundary(write, stage.now, blocks_max=3))
    assert stage.do(lambda market: market.exchange(SKU).block) == FIRST + 3
    assert stage.write(lambda write: stage.desk.boundary(write, stage.now, budget_s=0.0))
    assert stage.do(lambda market: market.exchange(SKU).block) == FIRST + 4
    assert not stage.write(lambda write: stage.desk.boundary(write, stage.now, budget_s=60.0))
    assert not stage.write(lambda write: stage.desk.boundary(write, stage.now))


def test_idle_blocks_are_jumped_over_and_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("jump", "walk"):
        place = tmp_path / name
        place.mkdir()
        if name == "walk":
            monkeypatch.setattr(passing, "next_due", lambda market, exchanges, block, last: block + 1)
        stage = Stage(place)
        stage.nodes(2, floor=10, horizon_minutes=240, quantum_minutes=60)
        stage.order("ann", "buy", 10, 30, 90, 1)
        stage.order("bob", "buy", 9, 100, 20, 1, standing=True, partial=True)
        stage.to(T0 + 600 * 60)
        exchange = stage.do(lambda market: market.exchange(SKU))
        state = exchange.canonical()
        clocks = exchange.seq
        stage.check()
        balances = [stage.balance(f"prepaid:wksp_{who}") for who in ("ann", "bob")]
        paid = stage.balance("supplier_payable:wksp_north")
        history = stage.read(lambda read: read.allocations("cap_ann", FIRST))
        book = (state["supply"], state["holdings"], [one[6] for one in state["orders"]])
        found.append((book, balances, paid, history, stage.held("bob")))
        stage.close()
        assert clocks < 200 if name == "jump" else clocks > 600
    assert found[0] == found[1]


def test_history_keeps_what_was_owned(stage: Stage) -> None:
    stage.nodes(2)
    stage.order("ann", "buy", 1, 2, 3, 2)
    stage.blocks(10)
    rows = stage.read(lambda read: read.allocations("cap_ann", FIRST - 1))
    assert rows == [(SKU, FIRST + 2, 2), (SKU, FIRST + 5, 0)]


def test_a_snapshot_and_the_tail_are_the_whole_log(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "SNAPSHOT_EVENTS", 20)
    stage.nodes(2, floor=10)
    stage.procure("ann", target=1, max_buy=20, window=10)
    stage.blocks(30)
    row = stage.read(lambda read: read.market_book(SKU))
    assert row is not None and row.snapshot_seq > 20
    stage.restart()
    stage.blocks(1)
    row = stage.read(lambda read: read.market_book(SKU))
    assert row is not None
    again = stage.read(lambda read: replay_all(read, row))
    assert again.digest() == stage.do(lambda market: market.exchange(SKU)).digest()


def test_the_replica_follows_and_reads_again_after_a_gap(stage: Stage) -> None:
    stage.nodes(2)
    stage.books._exchanges.pop(SKU)
    stage.order("ann", "buy", 1, 0, 5, 1)
    stage.order("bob", "buy", 1, 0, 5, 1)

    async def settle() -> None:
        await asyncio.gather(*stage.books._tasks)

    stage.loop.run_until_complete(settle())
    replica = stage.books.exchange(SKU)
    assert replica is not None
    assert replica.digest() == stage.do(lambda market: market.exchange(SKU)).digest()
    assert stage.books.schedule("cap_ann")[SKU].nodes_at(T0 + 60) == 1


def test_everybody_reads_what_he_wrote(stage: Stage) -> None:
    stage.nodes(1)
    made = stage.order("ann", "buy", 5, 0, 5, 3, standing=True)
    replica = stage.books.exchange(SKU)
    assert replica is not None and made.order_id in replica.orders


def test_advancing_a_test_clock(stage: Stage) -> None:
    clock = ClusterClock(float(T0))
    ticker = Ticker(stage.store, stage.desk, clock)
    stage.nodes(1)
    stage.procure("ann", target=1, max_buy=20, window=10)
    stage.loop.run_until_complete(ticker.advance(T0 + 3600 + 7))
    stage.now = clock()
    assert clock() == T0 + 3607
    assert stage.read(lambda read: float(read.setting(CLOCK_SETTING) or 0)) == T0 + 3607
    assert stage.owned("ann") == 1
    with pytest.raises(Invalid, match="does not go back"):
        stage.loop.run_until_complete(ticker.advance(T0))
    wall = Ticker(stage.store, stage.desk, ClusterClock())
    with pytest.raises(Conflict, match="test-clock"):
        stage.loop.run_until_complete(wall.advance(T0 + 9999))


def test_a_test_clock_is_decided_when_a_cluster_is_made(stage: Stage) -> None:
    assert stage.write(lambda write: frozen_since(write, False, fresh=True, now=5.0)) is None
    with pytest.raises(Invalid, match="--test-clock"):
        stage.write(lambda write: frozen_since(write, True, fresh=False, now=5.0))
    assert stage.write(lambda write: frozen_since(write, True, fresh=True, now=125.0)) == 120.0
    assert stage.write(lambda write: frozen_since(write, False, fresh=False, now=999.0)) == 120.0


def test_short_blocks(tmp_path: Path) -> None:
    stage = Stage(tmp_path, settings=MarketSettings(block_s=1))
    stage.nodes(1, horizon_minutes=60, quantum_minutes=1)
    stage.procure("ann", target=1, max_buy=5, window=1)
    assert stage.do(lambda market: market.exchange(SKU).block) == T0 + 1
    stage.to(T0 + 30)
    assert stage.owned("ann") == 1
    stage.check()
    stage.close()
    for bad in (0, 7, 61, 120):
        with pytest.raises(Invalid, match="block_s"):
            check_block_s(bad)
