"""A database file written by version 2 becomes one like a fresh one, keeps everything, and survives a kill half-way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanopod.model.capacity import SkuLife
from nanopod.model.chain import Deployment
from nanopod.model.errors import Conflict
from nanopod.store.migrate import STEPS
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

DUMP = Path(__file__).with_name("version_2.sql")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of version 2: four endpoints (one on its way out, replaced by one of its name), three instances."""
    path = tmp_path / "nanopod.db"
    with sqlite3.connect(path) as raw:
        raw.executescript(DUMP.read_text())
        assert raw.execute("PRAGMA user_version").fetchone() == (2,)
    raw.close()
    return path


def with_file(path: Path, test: Callable[[Transaction], Any]) -> Any:
    async def run() -> Any:
        store = SqliteStore(path)
        try:
            return await store.write(test)
        finally:
            await store.close()

    return asyncio.run(run())


def tables(path: Path) -> dict[str, Any]:
    """Per table its columns (name, type, not null, primary key), indexes with their columns, and foreign keys."""
    raw = sqlite3.connect(path)
    found: dict[str, Any] = {}
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
        columns = {(row[1], row[2], row[3], row[5]) for row in raw.execute(f"PRAGMA table_info({name})")}
        indexes = {
            (
                row[1].startswith("sqlite_autoindex") or row[1],
                row[2],
                tuple(c[2] for c in raw.execute(f"PRAGMA index_info({row[1]})")),
            )
            for row in raw.execute(f"PRAGMA index_list({name})")
        }
        keys = {(row[2], row[3], row[4], row[6]) for row in raw.execute(f"PRAGMA foreign_key_list({name})")}
        found[name] = (columns, indexes, keys)
    raw.close()
    return found


def test_it_ends_up_like_a_fresh_one(old: Path, tmp_path: Path) -> None:
    with_file(old, lambda write: None)
    with_file(tmp_path / "fresh.db", lambda write: None)
    brought, fresh = tables(old), tables(tmp_path / "fresh.db")
    # Amounts of 64 bits have had the same type in SQLite all along, whatever the column was called.
    brought["usage_record"][0].remove(("compute_us", "INTEGER", 1, 0))
    brought["usage_record"][0].add(("compute_us", "BIGINT", 1, 0))
    assert brought == fresh
    raw = sqlite3.connect(old)
    assert raw.execute("PRAGMA user_version").fetchone() == (1 + len(STEPS),)
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_everything_is_kept(old: Path) -> None:
    def test(write: Transaction) -> None:
        assert [(w.workspace_id, w.account_id) for w in write.workspaces_all()] == [("w1", "")]
        assert [(c.name, c.account_id, c.tags) for c in write.capacities("w1")] == [("default", "", {})]
        assert [(d.deployment_id, d.name, d.endpoint_id) for d in write.deployments("w1")] == [
            ("d1", "square", "e1"), ("d2", "square:dev", "e2"), ("d3", "d3", "e3"), ("d4", "gone", "e4"),
        ]  # fmt: skip
        first = write.deployment_of("e1")
        assert first is not None
        assert (first.target_instance_count, first.enabled, first.kind, first.template_id, first.generation) == (
            *(2, True, "generic", ""), 1,
        )  # fmt: skip
        found = {i.instance_id: i for i in write.instances_of("e1", ended=True)}
        assert {id: i.seq for id, i in found.items()} == {"i_c": 1, "i_b": 2, "i_a": 3}
        assert {id: i.granted_at for id, i in found.items()} == {"i_c": None, "i_b": 20.0, "i_a": 21.0}
        assert {id: i.sku_id for id, i in found.items()} == {"i_c": "", "i_b": "s1", "i_a": ""}
        assert found["i_b"].name == "i_b"
        assert write.next_number("instance") == 4
        account = write.ledger_account("prepaid:w1")
        assert account is not None
        assert account.balance == 10_000
        assert write.story("e1")[0][3] == "hello"

    with_file(old, test)
    assert old.with_name("nanopod.db.v2").exists()


def test_a_purged_endpoint_still_takes_its_deployment_along(old: Path) -> None:
    def test(write: Transaction) -> None:
        write.purge_endpoint("e3")
        assert write.deployment("d3") is None
        alone = Deployment("d9", "", "w1", "c1", "", 0, 0, (), 0, 0.0, 1.0, 1.0, name="alone")
        write.add_deployment(alone)
        assert write.deployment("d9") == alone

    with_file(old, test)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import nanopod.store.market_step as step
from nanopod.store.sqlite import SqliteStore

class Fatal(tuple):
    def __iter__(self):
        for statement in tuple.__iter__(self):
            if "granted_at" in statement:
                os.kill(os.getpid(), signal.SIGKILL)
            yield statement

step._INSTANCES = Fatal(step._INSTANCES)
SqliteStore(Path(sys.argv[1]))
"""


def test_a_kill_half_way_changes_nothing_and_the_next_start_finishes(old: Path, tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    done = subprocess.run([sys.executable, str(program), str(old)], timeout=60, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    raw = sqlite3.connect(old)
    assert raw.execute("PRAGMA user_version").fetchone() == (2,)
    assert raw.execute("SELECT COUNT(*) FROM sqlite_master WHERE name IN ('market_order', 'account')").fetchone() == (
        0,
    )
    raw.close()
    test_everything_is_kept(old)


def test_an_older_cluster_has_blocks_of_a_minute(old: Path) -> None:
    assert with_file(old, lambda write: write.setting("block_s")) == "60"

    async def reopen() -> None:
        with pytest.raises(Conflict, match="blocks of 60 seconds, not 30"):
            SqliteStore(old, block_s=30)

    asyncio.run(reopen())


def test_what_an_operator_says_of_a_sku_is_kept(old: Path) -> None:
    life = SkuLife(alias="box", lifecycle="deprecated", deprecated_at=5.0)

    def say(write: Transaction) -> None:
        assert write.sku_lives() == {}
        write.set_sku_life("s1", life)

    with_file(old, say)
    assert with_file(old, lambda read: (read.sku_lives(), [sku.alias for sku in read.skus()])) == (
        {"s1": life},
        ["box"],
    )
