"""What only a database server can do: go away, come back, lose an answer, be used by two."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nanopod.model.errors import Conflict, Invalid
from nanopod.store import app_schema
from nanopod.store.migrate import STEPS
from nanopod.store.open import open_store
from nanopod.store.postgres import PostgresStore
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore, StoreUnavailable


@pytest.fixture
def database(server: Any, request: pytest.FixtureRequest) -> Any:
    """The name of an empty database."""
    name = "only_" + str(abs(hash(request.node.name)) % 10**8)
    server.psql(f"CREATE DATABASE {name}")
    yield name
    server.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def put(name: str, value: str = "x") -> Callable[[Transaction], None]:
    return lambda write: write.put_setting(name, value)


def with_store(server: Any, database: str, test: Callable[[PostgresStore], Any]) -> Any:
    async def run() -> Any:
        store = open_store(Path("/nowhere"), server.url(database))
        assert isinstance(store, PostgresStore)
        try:
            return await test(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_a_second_server_is_refused(server: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanopod.store.postgres.LOCK_WAIT_S_MAX", 0.3)

    async def test(store: PostgresStore) -> None:
        await store.write(put("a"))
        began = time.monotonic()
        with pytest.raises(Conflict, match="another nanopod server uses the database"):
            PostgresStore(server.url(database))
        assert time.monotonic() - began < 5
        await store.write(put("b"))

    with_store(server, database, test)
    with_store(server, database, test)


def test_a_killed_server_process_makes_way(server: Any, database: str) -> None:
    code = (
        "import sys, time\nfrom nanopod.store.postgres import PostgresStore\n"
        "store = PostgresStore(sys.argv[1])\nprint('open', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url(database)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    process.kill()
    process.wait(10)

    async def test(store: PostgresStore) -> None:
        await store.write(put("a"))

    with_store(server, database, test)


def terminate(server: Any, database: str) -> None:
    server.psql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
    )


def test_connections_that_were_cut_are_made_again(server: Any, database: str) -> None:
    async def test(store: PostgresStore) -> None:
        await store.write(put("a", "1"))
        assert await store.read(lambda read: read.setting("a")) == "1"
        for round_ in range(3):
            terminate(server, database)
            await store.write(put("a", str(round_)))
            assert await store.read(lambda read: read.setting("a")) == str(round_)
        with pytest.raises(Conflict):
            PostgresStore(server.url(database))

    with_store(server, database, test)


def test_a_cut_in_the_middle_of_a_function_undoes_it(server: Any, database: str) -> None:
    async def test(store: PostgresStore) -> None:
        def cut(write: Transaction) -> None:
            write.put_setting("half", "1")
            terminate(server, database)
            write.put_setting("rest", "1")

        with pytest.raises(StoreUnavailable, match=r"stopping or starting|cannot be reached"):
            await store.write(cut)
        assert await store.read(lambda read: read.setting("half")) is None
        await store.write(put("a", "1"))
        assert await store.read(lambda read: read.setting("a")) == "1"

    with_store(server, database, test)


class Answerless:
    """A connection whose COMMIT arrives (or does not) but is never answered."""

    def __init__(self, raw: Any, arrives: bool) -> None:
        self._raw, self._arrives = raw, arrives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if statement != "COMMIT":
            return self._raw.execute(statement, *values)
        if self._arrives:
            self._raw.execute(statement)
        self._raw.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")


@pytest.mark.parametrize("arrives", [True, False])
def test_the_fate_of_an_unanswered_commit_is_looked_up(server: Any, database: str, arrives: bool) -> None:
    async def test(store: PostgresStore) -> None:
        await store.write(put("before"))
        store._raw = Answerless(store._raw, arrives)  # type: ignore[assignment]
        told: list[object] = []
        store.on_news = told.extend

        def fn(write: Transaction) -> str:
            write.put_setting("a", "1")
            write.announce("a")
            return "done"

        if arrives:
            assert await store.write(fn) == "done"
            assert told == ["a"]
        else:
            with pytest.raises(StoreUnavailable):
                await store.write(fn)
            assert told == []
        assert await store.read(lambda read: read.setting("a")) == ("1" if arrives else None)
        await store.write(put("after"))

    with_store(server, database, test)


def test_a_crash_of_the_database_server_loses_nothing_acknowledged(server: Any, database: str) -> None:
    """Crashes it while 16 callers write, then starts it: callers hear 503 meanwhile, and writing goes on by itself."""

    async def test(store: GroupStore) -> None:
        acknowledged: list[str] = []
        refused: list[StoreUnavailable] = []
        stop = False

        async def caller(who: int) -> None:
            number = 0
            while not stop:
                number += 1
                name = f"{who}.{number}"
                try:
                    await store.write(put(name))
                    acknowledged.append(name)
                except StoreUnavailable as error:
                    refused.append(error)
                    await asyncio.sleep(0.05)

        callers = [asyncio.ensure_future(caller(n)) for n in range(16)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(0.5)
        before = len(acknowledged)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.read(lambda read: read.setting("1.1"))
        assert time.monotonic() - began < 3, "whoever waits is told quickly"
        await asyncio.to_thread(server.start)
        until = time.monotonic() + 20
        while len(acknowledged) < before + 100 and time.monotonic() < until:
            await asyncio.sleep(0.05)
        stop = True
        await asyncio.gather(*callers)
        assert before > 50
        assert len(acknowledged) >= before + 100
        assert refused
        assert all(error.retry_after_s and error.status == 503 for error in refused)
        kept = await store.read(lambda read: [name for name in acknowledged if read.setting(name) is None])
        assert kept == []

    with_store(server, database, test)


def test_what_cannot_be_opened_says_why_and_no_secrets(server: Any) -> None:
    with pytest.raises(StoreUnavailable, match='refuses: database "no_such_database" does not exist') as raised:
        PostgresStore(server.url("no_such_database"))
    assert str(server.directory) in str(raised.value)
    with pytest.raises(StoreUnavailable, match="cannot be reached") as raised:
        PostgresStore("postgresql://someone:hunter2@127.0.0.1:1/db?connect_timeout=2")
    assert "hunter2" not in str(raised.value)
    with pytest.raises(Invalid, match="not the URL") as refused:
        PostgresStore("postgresql://someone:hunter2@host:port:x/db?nonsense")
    assert "hunter2" not in str(refused.value)


def test_the_version_is_kept_in_a_setting(server: Any, database: str) -> None:
    async def test(store: PostgresStore) -> None:
        assert await store.read(lambda read: read.setting("schema_version")) == str(1 + len(STEPS))

    with_store(server, database, test)
    with_store(server, database, test)


def test_a_database_of_version_3_grows_and_keeps_its_rows(server: Any, database: str) -> None:
    async def fill(store: PostgresStore) -> None:
        await store.write(put("kept", "yes"))

    async def look(store: PostgresStore) -> None:
        assert await store.read(lambda read: read.setting("schema_version")) == str(1 + len(STEPS))
        assert await store.read(lambda read: read.setting("kept")) == "yes"
        assert await store.read(lambda read: read.endpoints()) == []
        assert await store.read(lambda read: read.vast_deployments("w")) == []

    with_store(server, database, fill)
    with psycopg.connect(server.url(database), autocommit=True) as raw:
        for table in reversed(app_schema.TABLES):
            raw.execute(f'DROP TABLE "{table.name}"')
        for column in ("stable_revision_id", "canary_percent", "canary_at", "canary_state", "rollout"):
            raw.execute(f"ALTER TABLE endpoint DROP COLUMN {column}")
        for column in ("version_label", "state"):
            raw.execute(f"ALTER TABLE revision DROP COLUMN {column}")
        raw.execute("UPDATE setting SET value = '3' WHERE name = 'schema_version'")
    with_store(server, database, look)
