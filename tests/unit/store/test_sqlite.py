"""Conformance of the store: grouping, isolation, durability, hints, and what a failing disk looks like."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanopod.model.errors import Conflict, NoCapacity
from nanopod.store.sqlite import SqliteStore, StoreUnavailable
from nanopod.store.transaction import Transaction

Run = Callable[[Callable[[SqliteStore], Any]], Any]


def put(name: str, value: str = "x") -> Callable[[Transaction], None]:
    return lambda write: write.put_setting(name, value)


def test_what_was_written_can_be_read(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        await store.write(put("a", "1"))
        assert await store.read(lambda read: read.setting("a")) == "1"

    with_store(test)


def test_writes_that_queue_up_are_committed_together(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        commits: list[int] = []
        original = store._commit

        def counted(group: list[Any]) -> None:
            commits.append(len(group))
            original(group)

        store._commit = counted  # type: ignore[method-assign]
        gate = threading.Event()
        first = asyncio.ensure_future(store.write(lambda write: gate.wait(5)))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(store.write(put(f"k{n}"))) for n in range(130)]
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, *others)
        assert sum(commits) == 131
        assert max(commits) <= 64, "a group is bounded"
        assert len(commits) <= 12, "130 writes took a commit each"

    with_store(test)


def test_a_function_that_raises_takes_nothing_else_along(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        def bad(write: Transaction) -> None:
            write.put_setting("bad", "1")
            raise Conflict("no")

        gate = threading.Event()
        blocker = asyncio.ensure_future(store.write(lambda write: gate.wait(5)))
        await asyncio.sleep(0)
        results = asyncio.gather(
            store.write(put("before")), store.write(bad), store.write(put("after")), return_exceptions=True
        )
        await asyncio.sleep(0.01)
        gate.set()
        await blocker
        before, refused, after = await results
        assert before is None
        assert isinstance(refused, Conflict)
        assert after is None

        def names(read: Transaction) -> list[str | None]:
            return [read.setting(name) for name in ("before", "bad", "after")]

        assert await store.read(names) == ["x", None, "x"]

    with_store(test)


def test_hints_come_after_the_commit_and_only_for_what_was_kept(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        seen: list[frozenset[str]] = []
        store.on_hints = seen.append

        def bad(write: Transaction) -> None:
            write.hint("never")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await store.write(bad)
        assert seen == []
        await store.write(lambda write: write.signal("endpoint", "e", 1.0))
        assert seen == [frozenset({"endpoint"})]

    with_store(test)


def test_readers_cannot_write(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        with pytest.raises(StoreUnavailable):
            await store.read(put("a"))
        assert await store.read(lambda read: read.setting("a")) is None

    with_store(test)


def test_a_full_disk_is_one_clear_error_and_passes(with_store: Run) -> None:
    async def test(store: SqliteStore) -> None:
        await store.write(put("kept"))
        pages = store._raw.execute("PRAGMA page_count").fetchone()[0]
        store._raw.execute(f"PRAGMA max_page_count = {pages}")
        big = "y" * 200_000
        outcomes = await asyncio.gather(store.write(put("big", big)), store.write(put("small")), return_exceptions=True)
        assert isinstance(outcomes[0], NoCapacity)
        assert "disk is full" in str(outcomes[0])
        assert outcomes[0].retry_after_s
        assert await store.read(lambda read: read.setting("kept")) == "x"
        store._raw.execute("PRAGMA max_page_count = 1000000")
        await store.write(put("big", big))
        assert await store.read(lambda read: read.setting("big")) == big

    with_store(test)


def test_the_queue_is_bounded(with_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanopod.store.writer.PENDING_MAX", 3)

    async def test(store: SqliteStore) -> None:
        gate = threading.Event()
        waiting = [asyncio.ensure_future(store.write(lambda write: gate.wait(5))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="wait to be written"):
            await store.write(put("a"))
        gate.set()
        await asyncio.gather(*waiting)
        await store.write(put("a"))

    with_store(test)


def test_closing_commits_what_is_queued(tmp_path: Path) -> None:
    async def test() -> None:
        store = SqliteStore(tmp_path / "x.db")
        writes = [asyncio.ensure_future(store.write(put(f"k{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*writes)
        with pytest.raises(StoreUnavailable):
            await store.write(put("late"))
        again = SqliteStore(tmp_path / "x.db")
        assert await again.read(lambda read: [read.setting(f"k{n}") for n in range(50)]) == ["x"] * 50
        await again.close()

    asyncio.run(test())


WRITER = """
import asyncio, sys
from pathlib import Path
from nanopod.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    count = 0
    async def one():
        nonlocal count
        while True:
            name = f"k{count}"; count += 1
            await store.write(lambda write: write.put_setting(name, name))
            sys.stdout.write(name + "\\n"); sys.stdout.flush()
    await asyncio.gather(*(one() for _ in range(16)))

asyncio.run(main())
"""


async def missing(path: Path, names: set[str]) -> list[str]:
    store = SqliteStore(path)
    try:
        assert store._raw.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return await store.read(lambda read: [name for name in names if read.setting(name) != name])
    finally:
        await store.close()


def test_kill_9_of_a_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    program = tmp_path / "writer.py"
    program.write_text(textwrap.dedent(WRITER))
    acknowledged: set[str] = set()
    for round_ in range(3):
        path = tmp_path / "killed.db"
        process = subprocess.Popen([sys.executable, str(program), str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        lines = [process.stdout.readline().strip() for _ in range(200 + 37 * round_)]
        os.kill(process.pid, signal.SIGKILL)
        # A line that was cut off in the pipe was not acknowledged to anybody.
        lines += [line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.wait(10)
        acknowledged |= set(lines)

        assert asyncio.run(missing(path, acknowledged)) == []
    assert len(acknowledged) >= 200
