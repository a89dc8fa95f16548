"""The same traffic on both databases leaves the same log, orders, contracts, ledger and notices, row by row."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from nanopod.control.market.books import Books
from nanopod.control.market.desk import Desk
from nanopod.store import ledger_schema, market_schema, schema
from nanopod.store.open import open_store

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "unit" / "control" / "market"), str(ROOT / "properties" / "desk")]
import test_desk_holds  # noqa: E402
from desk_stage import Stage  # noqa: E402

TABLES = (
    market_schema.market_event, market_schema.market_book, market_schema.market_order, market_schema.contract,
    market_schema.capacity_transfer, market_schema.procurement, market_schema.offer, market_schema.notice,
    market_schema.counter, market_schema.allocation_history, ledger_schema.ledger_entry, ledger_schema.ledger_account,
    ledger_schema.ledger_failed, schema.instance, schema.deployment, schema.capacity, schema.node,
)  # fmt: skip


def staged(url: str | None) -> type[Stage]:
    """The desk's stage on another database."""

    class OnThis(Stage):
        def _open(self) -> None:
            async def make() -> Any:
                return open_store(self.path / "server.db", url, block_s=self.block_s)

            self.store = self.loop.run_until_complete(make())
            self.store.on_news = self._on_news
            self.desk = Desk(self.new_id, self.settings, monotonic=lambda: 0.0)
            self.books = Books(self.store, self.block_s)
            self.loop.run_until_complete(self.books.start())

    return OnThis


def contents(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
        for table in TABLES
    }


def played(seed: int, length: int, path: Path, url: str | None, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(test_desk_holds, "Stage", staged(url))
    draw = random.Random(seed)
    path.mkdir()
    traffic = test_desk_holds.Traffic(path)
    try:
        traffic.stage.nodes(3, name="n0", floor=50, quantum_minutes=10, horizon_minutes=60)
        for _ in range(length):
            kind, *numbers = draw.randrange(13), *(draw.randrange(61) for _ in range(5))
            traffic.act(kind, numbers)
        traffic.check()
        found: dict[str, Any] = traffic.stage.read(lambda read: contents(read.connection))
        return found
    finally:
        traffic.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_both_databases_tell_the_same_story(
    server: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"story_{seed}"
    server.psql(f"CREATE DATABASE {name}")
    try:
        here = played(seed, 100, tmp_path / "a", None, monkeypatch)
        there = played(seed, 100, tmp_path / "b", server.url(name), monkeypatch)
    finally:
        server.psql(f"DROP DATABASE {name} WITH (FORCE)")
    for table in TABLES:
        assert there[table.name] == here[table.name], table.name
    assert len(here["market_event"]) > 30
    assert here["contract"]
