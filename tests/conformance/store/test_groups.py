"""Grouping, isolation, durability, hints and news are the same on both databases; so is the ledger, entry by entry."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from nanopod.ledger.books import Ledger, check, open_accounts, post
from nanopod.ledger.transfers import Account, Transfer
from nanopod.model.errors import Conflict, Invalid
from nanopod.store.open import open_store
from nanopod.store.transaction import Transaction
from nanopod.store.writer import BLOCK_SETTING, GROUP_MAX, GroupStore, StoreUnavailable

Run = Callable[[Callable[[GroupStore], Any]], Any]


def put(name: str, value: str = "x") -> Callable[[Transaction], None]:
    return lambda write: write.put_setting(name, value)


async def blocked(store: GroupStore) -> tuple[threading.Event, asyncio.Future[Any]]:
    """Keep the writer busy, so that what is written next becomes one group."""
    gate = threading.Event()
    first = asyncio.ensure_future(store.write(lambda write: gate.wait(5)))
    await asyncio.sleep(0.02)
    return gate, first


def test_writes_that_queue_up_are_committed_together(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        ends: list[int] = []
        end = store._end
        store._end = lambda: (ends.append(1), end())[1]  # type: ignore[method-assign]
        gate, first = await blocked(store)
        others = [asyncio.ensure_future(store.write(put(f"k{n}"))) for n in range(130)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *others)
        assert 1 + 130 // GROUP_MAX <= len(ends) <= 12

    with_store(test)


def test_a_function_that_raises_takes_nothing_else_along(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def refused(write: Transaction) -> None:
            write.put_setting("refused", "1")
            raise Conflict("no")

        def broken(write: Transaction) -> None:
            write.put_setting("broken", "1")
            write.connection.exec_driver_sql("INSERT INTO no_such_table VALUES (1)")

        def inside(write: Transaction) -> None:
            write.put_setting("inside", "1")
            write.announce("inside")
            write.hint("inside")
            write.connection.exec_driver_sql("INSERT INTO no_such_table VALUES (1)")

        def swallowed(write: Transaction) -> str:
            write.put_setting("swallowed", "1")
            with pytest.raises(DBAPIError), write.part():
                inside(write)
            assert write.news == []
            assert write.hints == set()
            return "went on"

        gate, first = await blocked(store)
        outcomes = asyncio.gather(
            store.write(put("before")), store.write(refused), store.write(put("between")), store.write(broken),
            store.write(swallowed), store.write(put("after")), return_exceptions=True,
        )  # fmt: skip
        await asyncio.sleep(0)
        gate.set()
        await first
        before, no, between, error, on, after = await outcomes
        assert (before, between, on, after) == (None, None, "went on", None)
        assert isinstance(no, Conflict)
        assert isinstance(error, DBAPIError)

        def names(read: Transaction) -> list[str]:
            wanted = ("before", "refused", "between", "broken", "swallowed", "inside", "after")
            return [name for name in wanted if read.setting(name)]

        assert await store.read(names) == ["before", "between", "swallowed", "after"]

    with_store(test)


def test_news_come_in_the_order_of_commits_before_the_futures(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        told: list[object] = []
        seen: list[tuple[str, object]] = []
        store.on_news = lambda items: (told.append(len(items)), seen.extend(("news", item) for item in items))[1]

        def say(*items: int) -> Callable[[Transaction], None]:
            def fn(write: Transaction) -> None:
                for item in items:
                    write.announce(item)

            return fn

        def fails(write: Transaction) -> None:
            write.announce(99)
            raise Conflict("no")

        async def call(name: int, fn: Callable[[Transaction], None]) -> None:
            try:
                await store.write(fn)
            except Conflict:
                return
            seen.append(("done", name))

        gate, first = await blocked(store)
        calls = [call(1, say(1, 2)), call(2, fails), call(3, say()), call(4, say(3))]
        waiting = asyncio.gather(*calls)
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, waiting)
        assert [item for kind, item in seen if kind == "news"] == [1, 2, 3]
        assert seen[:3] == [("news", 1), ("news", 2), ("news", 3)], "one group: all news, then the callers"
        assert told == [3]
        for item in range(4, 40):
            await store.write(say(item))
            assert seen[-1] == ("news", item), "known here before the writer goes on"

    with_store(test)


def test_who_stumbles_over_news_holds_nobody_up(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def stumbles(items: list[object]) -> None:
            raise ValueError("no")

        store.on_news = stumbles
        assert await asyncio.wait_for(store.write(lambda write: write.announce(1) or 7), 5) == 7

    with_store(test)


def test_hints_come_after_the_commit_and_only_for_what_was_kept(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        seen: list[frozenset[str]] = []
        store.on_hints = seen.append

        def bad(write: Transaction) -> None:
            write.hint("never")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await store.write(bad)
        await store.write(lambda write: write.signal("endpoint", "e", 1.0))
        assert seen == [frozenset({"endpoint"})]

    with_store(test)


def test_numbers_have_no_gap_where_a_function_failed(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def fails(write: Transaction) -> None:
            write.next_number("order", 10)
            raise Conflict("no")

        gate, first = await blocked(store)
        calls = asyncio.gather(
            *(store.write(lambda write: write.next_number("order")) for _ in range(5)), store.write(fails),
            *(store.write(lambda write: write.next_number("order")) for _ in range(5)), return_exceptions=True,
        )  # fmt: skip
        await asyncio.sleep(0)
        gate.set()
        await first
        numbers = [one for one in await calls if isinstance(one, int)]
        assert numbers == list(range(1, 11))

    with_store(test)


def test_a_reader_sees_one_state_and_cannot_write(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        await store.write(put("a", "1"))
        began, go_on = threading.Event(), threading.Event()

        def twice(read: Transaction) -> tuple[str | None, str | None]:
            first = read.setting("a")
            began.set()
            go_on.wait(5)
            return first, read.setting("a")

        reading = asyncio.ensure_future(store.read(twice))
        await asyncio.to_thread(began.wait, 5)
        await store.write(put("a", "2"))
        go_on.set()
        assert await reading == ("1", "1")
        assert await store.read(lambda read: read.setting("a")) == "2"
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            await store.read(put("a", "3"))
        assert await store.read(lambda read: read.setting("a")) == "2"

    with_store(test)


def test_closing_commits_what_is_queued(backend: Any) -> None:
    async def test() -> None:
        store = backend.open()
        writes = [asyncio.ensure_future(store.write(put(f"k{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*writes)
        with pytest.raises(StoreUnavailable):
            await store.write(put("late"))
        again = backend.open()
        assert await again.read(lambda read: [read.setting(f"k{n}") for n in range(50)]) == ["x"] * 50
        await again.close()

    asyncio.run(test())


def test_the_block_is_fixed_when_a_database_is_made(backend: Any) -> None:
    async def nothing(store: GroupStore) -> int:
        return store.block_s

    assert backend.run(nothing, block_s=6) == 6
    assert backend.run(nothing) == 6
    with pytest.raises(Conflict, match="blocks of 6 seconds, not 60"):
        backend.open(block_s=60)

    async def kept(store: GroupStore) -> str | None:
        return await store.read(lambda read: read.setting(BLOCK_SETTING))

    assert backend.run(kept) == "6", "a refused opening leaves it usable"


def test_other_urls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="'mysql' is not known"):
        open_store(tmp_path / "x.db", "mysql://user:secret@host/db")


WRITER = """
import asyncio, sys
from pathlib import Path
from nanopod.store.open import open_store

async def main():
    store = open_store(Path(sys.argv[1]), sys.argv[2] or None)
    count = 0
    async def one():
        nonlocal count
        while True:
            name = f"{sys.argv[3]}.{count}"; count += 1
            await store.write(lambda write: write.put_setting(name, name))
            sys.stdout.write(name + "\\n"); sys.stdout.flush()
    await asyncio.gather(*(one() for _ in range(16)))

asyncio.run(main())
"""


@pytest.mark.integration
def test_kill_9_of_a_writer_loses_nothing_acknowledged(backend: Any, tmp_path: Path) -> None:
    program = tmp_path / "writer.py"
    program.write_text(WRITER)
    acknowledged: set[str] = set()

    async def missing(store: GroupStore) -> list[str]:
        return await store.read(lambda read: [name for name in acknowledged if read.setting(name) != name])

    for round_ in range(3):
        command = [sys.executable, str(program), str(backend.file), backend.url or "", str(round_)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(200 + 37 * round_)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
        process.wait(10)
        # A line that was cut off in the pipe was not acknowledged to anybody.
        acknowledged |= {line.strip() for line in lines if line.endswith("\n")}

        assert backend.run(missing) == []
    assert len(acknowledged) >= 600


def random_transfers(draw: random.Random, ids: list[int]) -> list[Transfer]:
    def one() -> Transfer:
        id = draw.randint(1, 400)
        ids.append(id)
        kind = draw.choice(["single", "single", "pending", "post", "void"])
        names = ["a", "b", "c", "d", "missing"] if draw.random() < 0.1 else ["a", "b", "c", "d"]
        linked = draw.random() < 0.25
        if kind in ("single", "pending"):
            timeout = draw.choice([0, 0, 1, 3]) if kind == "pending" else 0
            return Transfer(
                id, kind, draw.choice(names), draw.choice(names), draw.randint(0, 12), timeout_s=timeout, linked=linked,
                balancing=draw.random() < 0.2,
            )  # fmt: skip
        other = draw.choice(ids)
        amount = draw.randint(0, 12) if kind == "post" else 0
        return Transfer(id, kind, amount=amount, pending_id=other if other != id else id + 1, linked=linked)

    return [one() for _ in range(draw.randint(1, 7))]


@pytest.mark.parametrize("seed", range(4))
def test_the_ledger_agrees_with_its_value_under_random_traffic(backend: Any, seed: int) -> None:
    accounts = [Account("a", True), Account("B", True), Account("b", True), Account("c"), Account("d")]
    draw = random.Random(seed)

    def test(write: Transaction) -> None:
        start = [Transfer(1001, "single", "c", "a", 200), Transfer(1002, "single", "c", "b", 200)]
        ledger, _ = post(open_accounts(Ledger(), accounts), start, 0)
        write.open_accounts(accounts)
        write.post_transfers(start, 0)
        now, ids = 0, [1]
        for _ in range(60):
            now += draw.randint(0, 1_500_000)
            transfers = random_transfers(draw, ids)
            ledger, wanted = post(ledger, transfers, now)
            assert write.post_transfers(transfers, now) == wanted
        assert write.ledger_accounts() == sorted(ledger.accounts.values(), key=lambda account: account.id)
        assert check(ledger) == () == write.check_ledger()
        assert len(ledger.entries) > 30
        for id, entry in ledger.entries.items():
            assert write.ledger_entry(id) == (entry, ledger.settlement(id))
        for account in accounts:
            assert [entry for entry, _ in write.ledger_history(account.id)] == list(ledger.history(account.id))
            after = write.ledger_history(account.id, end_us=now // 2)
            assert [e for e, _ in after] == [e for e in ledger.history(account.id) if e.at_us < now // 2]

    async def run(store: GroupStore) -> None:
        await store.write(test)

    backend.run(run)
