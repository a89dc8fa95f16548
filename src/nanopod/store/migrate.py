"""Brings a database to this version: a fresh one is made whole, an older one goes through the steps it lacks.

Each step is its own transaction and the file is copied first. A newer database is accepted as it is: schema changes
expand first and contract a release later, so an older server can run on it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from nanopod.store import ledger_schema, schema

log = logging.getLogger(__name__)

Step = Callable[[Connection], None]
STEPS: Final[tuple[Step, ...]] = (ledger_schema.create,)
"""Step number n brings version n to n + 1; version 1 is the first one there was."""


def migrate(connection: Connection, path: Path, steps: Sequence[Step] = STEPS) -> int:
    """Bring the database behind `connection` (in autocommit mode) to the newest version; returns that version."""
    newest = 1 + len(steps)
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if found == 0:
        _in_transaction(connection, schema.metadata.create_all, newest)
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
