"""A fresh database is whole; an older one goes through the steps it lacks, with a copy kept; a newer one is accepted."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from nanopod.store.migrate import STEPS, migrate
from nanopod.store.schema import metadata


def opened(path: Path) -> Connection:
    engine = create_engine(f"sqlite:///{path}", poolclass=StaticPool, isolation_level="AUTOCOMMIT")
    return engine.connect()


def version(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def test_a_fresh_database_has_every_table(tmp_path: Path) -> None:
    with opened(tmp_path / "x.db") as connection:
        assert migrate(connection, tmp_path / "x.db") == version(connection) == 1 + len(STEPS)
        rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").all()
        assert set(metadata.tables) <= {row[0] for row in rows}
        assert migrate(connection, tmp_path / "x.db") == 1 + len(STEPS), "again changes nothing"


def test_an_older_database_is_copied_and_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with opened(path) as connection:
        migrate(connection, path, ())
        connection.exec_driver_sql("INSERT INTO setting VALUES ('a', '1')")
        done: list[str] = []

        def second(c: Connection) -> None:
            done.append("second")
            c.exec_driver_sql("CREATE TABLE extra (id TEXT)")

        def third(c: Connection) -> None:
            done.append("third")
            c.exec_driver_sql("INSERT INTO extra VALUES ('x')")

        assert migrate(connection, path, (second,)) == 2
        assert migrate(connection, path, (second, third)) == 3
        assert done == ["second", "third"]
        assert connection.exec_driver_sql("SELECT value FROM setting").scalar() == "1"
    with sqlite3.connect(tmp_path / "x.db.v1") as copy:
        assert copy.execute("SELECT value FROM setting").fetchone() == ("1",)


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with opened(path) as connection:
        migrate(connection, path, ())

        def bad(c: Connection) -> None:
            c.exec_driver_sql("CREATE TABLE half (id TEXT)")
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError):
            migrate(connection, path, (bad,))
        assert version(connection) == 1
        assert not connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'half'").all()


def test_a_newer_database_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with opened(path) as connection:
        migrate(connection, path)
        connection.exec_driver_sql("PRAGMA user_version = 7")
        assert migrate(connection, path) == 7
