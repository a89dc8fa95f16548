"""Brings a database to this version: a fresh one is made whole, an older one goes through the steps it lacks.

Each step is its own transaction, and a database file is copied first. Steps look at what is there before they change
it, because a later schema may have made a table already. A newer database is accepted as it is.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, MetaData, create_mock_engine, inspect
from sqlalchemy.dialects import sqlite

from nanopod.store import ledger_schema, schema
from nanopod.store.app_step import app_step, manifest_step
from nanopod.store.market_step import market_step

log = logging.getLogger(__name__)

Step = Callable[[Connection], None]
STEPS: Final[tuple[Step, ...]] = (ledger_schema.create, market_step, app_step, manifest_step)
"""Step number n brings version n to n + 1; version 1 is the first one there was."""
WHOLE: Final[MetaData] = schema.metadata
"""Every table: the steps import all modules that define some."""
VERSION_SETTING: Final = "schema_version"
"""Where a server database keeps its version; a file has it in its header."""


def migrate(connection: Connection, path: Path, steps: Sequence[Step] = STEPS) -> int:
    """Bring the file behind `connection` (in autocommit mode) to the newest version; returns that version."""
    newest = 1 + len(steps)
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if found == 0:
        _in_transaction(connection, _create, newest)
        log.info("database=created version=%d path=%s", newest, path)
        return newest
    if found > newest:
        log.warning("database=newer version=%d known=%d: going on with what is known", found, newest)
        return found
    if found < newest:
        copy = path.with_name(f"{path.name}.v{found}")
        _copy(connection, copy)
        for version in range(found, newest):
            _in_transaction(connection, steps[version - 1], version + 1)
            log.info("database=migrated version=%d copy=%s", version + 1, copy)
    return newest


def migrate_server(connection: Connection, whole: MetaData, steps: Sequence[Step] = STEPS) -> int:
    """The same for a database of a server with transactional schema changes; `whole` are its tables.

    The first such database had version 3. Making it fresh and every step are one transaction each.
    """
    newest = 1 + len(steps)
    if not inspect(connection).has_table(schema.setting.name):
        connection.exec_driver_sql("BEGIN")
        try:
            whole.create_all(connection)
            _put_version(connection, newest)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        log.info("database=created version=%d", newest)
        return newest
    statement = f"SELECT value FROM setting WHERE name = '{VERSION_SETTING}'"
    found = int(connection.exec_driver_sql(statement).scalar_one())
    for version in range(found, newest):
        connection.exec_driver_sql("BEGIN")
        try:
            steps[version - 1](connection)
            _put_version(connection, version + 1)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        log.info("database=migrated version=%d", version + 1)
    return max(found, newest)


def _put_version(connection: Connection, version: int) -> None:
    connection.exec_driver_sql(f"DELETE FROM setting WHERE name = '{VERSION_SETTING}'")
    connection.exec_driver_sql(f"INSERT INTO setting (name, value) VALUES ('{VERSION_SETTING}', '{version:d}')")


@lru_cache(1)
def _creation() -> tuple[str, ...]:
    """The statements that make every table of a file. To word them takes longer than to run them: once a process."""
    found: list[str] = []

    def word(statement: Any, *_: Any, **__: Any) -> None:
        found.append(str(statement.compile(dialect=sqlite.dialect())))

    WHOLE.create_all(create_mock_engine("sqlite://", word), checkfirst=False)
    return tuple(found)


def _create(connection: Connection) -> None:
    for statement in _creation():
        connection.exec_driver_sql(statement)


def _in_transaction(connection: Connection, step: Step, version: int) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        step(connection)
        # The version lives in the file's header and commits together with the step.
        connection.exec_driver_sql(f"PRAGMA user_version = {version:d}")
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise


def _copy(connection: Connection, path: Path) -> None:
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with sqlite3.connect(part) as target:
        source.backup(target)
    target.close()
    part.replace(path)
