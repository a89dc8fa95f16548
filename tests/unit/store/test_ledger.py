"""The ledger through the store: racing writers, killed writers, invoices with numbers, and what a refusal undoes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from nanopod.ledger import chart, funding, recipes
from nanopod.ledger.funding import Part
from nanopod.ledger.statements import month_bounds
from nanopod.ledger.transfers import Account, Outcome, Result, Transfer, transfer_id, verdict
from nanopod.store.ledger import LedgerRows
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

Run = Callable[[Callable[[SqliteStore], Any]], Any]
START, END = month_bounds("2026-07")
W = "wksp_1"
SKU = "isku_1"


def rows(transaction: Transaction) -> LedgerRows:
    return LedgerRows(transaction.connection)


async def post(store: SqliteStore, chain: recipes.Chain, now_us: int = START) -> tuple[Result, ...]:
    def write(transaction: Transaction) -> tuple[Result, ...]:
        rows(transaction).open_accounts(chart.accounts_of(chain))
        return rows(transaction).post_transfers(chain, now_us)

    return await store.write(write)


async def done(store: SqliteStore, chain: recipes.Chain, now_us: int = START) -> None:
    assert verdict(await post(store, chain, now_us)) is Outcome.CREATED


async def account(store: SqliteStore, account_id: str) -> Account:
    found = await store.read(lambda read: rows(read).ledger_account(account_id))
    assert found is not None
    return found


async def sound(store: SqliteStore) -> None:
    assert await store.read(lambda read: rows(read).check_ledger()) == ()


WRITER = """
import asyncio, sys
from pathlib import Path
from nanopod.ledger.transfers import Transfer, transfer_id
from nanopod.store.ledger import LedgerRows
from nanopod.store.sqlite import SqliteStore

async def main(path, who, count):
    store = SqliteStore(Path(path))
    n = 0
    async def caller(mine):
        nonlocal n
        while n < count:
            n += 1
            asked = Transfer(transfer_id(who, str(n)), "single", "a", "b", 3)
            result, = await store.write(lambda t: LedgerRows(t.connection).post_transfers([asked], 1))
            print(f"{asked.id:x} {result.outcome}", flush=True)
    await asyncio.gather(*(caller(m) for m in range(8)))
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def filled(path: Path, amount: int) -> None:
    store = SqliteStore(path)
    await store.write(lambda write: rows(write).open_accounts([Account("a", True), Account("b"), Account("cash")]))
    up = Transfer(transfer_id("up"), "single", "cash", "a", amount)
    assert (await store.write(lambda write: rows(write).post_transfers([up], 0)))[0].done
    await store.close()


def start(path: Path, who: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), who, str(count)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.integration
def test_racing_processes_never_overspend(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    asyncio.run(filled(path, 1_000))
    writers = [start(path, f"w{n}", 200) for n in range(4)]
    said = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    created = sum(line.endswith(" created") for text in said for line in text.splitlines())
    refused = sum(line.endswith(" exceeds_credits") for text in said for line in text.splitlines())
    assert created == 333
    assert created + refused >= 800

    async def test() -> None:
        store = SqliteStore(path)
        assert (await account(store, "a")).available == 1
        await sound(store)
        await store.close()

    asyncio.run(test())


@pytest.mark.integration
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    asyncio.run(filled(path, 10**9))
    acknowledged: list[int] = []
    for round_ in range(3):
        writer = start(path, f"w{round_}", 10**6)
        assert writer.stdout is not None
        for _ in range(150 + 100 * round_):
            id, outcome = writer.stdout.readline().split()
            assert outcome == "created"
            acknowledged.append(int(id, 16))
        os.kill(writer.pid, signal.SIGKILL)
        # Whole lines that were still in the pipe were acknowledged, too. (`communicate` with a limit would not see what
        # `readline` has read ahead.)
        with writer.stdout:
            rest = writer.stdout.read()
        writer.wait(20)
        acknowledged += [int(line.split()[0], 16) for line in rest.splitlines() if line.endswith(" created")]

    async def test() -> None:
        store = SqliteStore(path)
        await sound(store)
        for id in acknowledged:
            assert await store.read(lambda read, id=id: rows(read).ledger_entry(id)) is not None
        spent = (await account(store, "a")).debits_posted
        assert spent >= 3 * len(acknowledged)
        assert spent <= 3 * (len(acknowledged) + 3 * 8), "at most what was on its way was done unheard"
        await store.close()

    asyncio.run(test())


def test_a_hold_outlives_a_restart_and_then_expires(tmp_path: Path) -> None:
    hold = recipes.Hold("h", chart.revenue(SKU), (Part(funding.prepaid(W), 60),), timeout_s=30)

    async def before() -> None:
        store = SqliteStore(tmp_path / "x.db")
        await done(store, recipes.top_up("p", W, 100))
        await done(store, hold.chain())
        await store.close()

    async def after() -> None:
        store = SqliteStore(tmp_path / "x.db")
        assert (await account(store, chart.prepaid(W))).available == 40
        assert await post(store, (), START + 30_000_000) == ()
        assert (await account(store, chart.prepaid(W))).available == 100
        late = await post(store, recipes.settle("s", hold, 9)[0], START + 30_000_000)
        assert late[0].outcome is Outcome.PENDING_TRANSFER_EXPIRED
        await sound(store)
        await store.close()

    asyncio.run(before())
    asyncio.run(after())


def test_errors_of_the_database_are_those_that_the_store_knows(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        def drop(write: Transaction) -> None:
            write.connection.exec_driver_sql("DROP TABLE ledger_failed")
            rows(write).post_transfers([Transfer(1, "single", "x", "y", 1)], 0)

        with pytest.raises(OperationalError) as raised:
            await store.write(drop)
        assert isinstance(raised.value.orig, sqlite3.OperationalError)
        assert (await post(store, recipes.top_up("p", W, 1)))[0].done, "the drop was taken back"

    with_store(test)


def test_an_older_database_gets_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    code = textwrap.dedent(
        """
        import sys
        from sqlalchemy import create_engine
        from nanopod.store import schema
        engine = create_engine(f"sqlite:///{sys.argv[1]}")
        with engine.begin() as connection:
            schema.metadata.create_all(connection)
            connection.exec_driver_sql("PRAGMA user_version = 1")
        """
    )
    # In its own process, where nothing has added the ledger's tables to the others yet.
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    with sqlite3.connect(path) as raw:
        names = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert "ledger_entry" not in names
        assert "workspace" in names

    async def test() -> None:
        store = SqliteStore(path)
        await done(store, recipes.top_up("p", W, 5))
        await sound(store)
        await store.close()

    asyncio.run(test())
    assert (tmp_path / "x.db.v1").exists()
