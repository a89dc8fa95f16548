"""Opens the store a cloud is configured with: a file beside the server, or a database of a PostgreSQL server."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nanopod.model.errors import Invalid
from nanopod.store.sqlite import SqliteStore
from nanopod.store.writer import GroupStore, Hints

SCHEMES: Final = ("postgresql://", "postgres://")


def open_store(
    file: Path, url: str | None = None, on_hints: Hints | None = None, *, block_s: int | None = None
) -> GroupStore:  # fmt: skip
    """The store at `url`, or the SQLite file when that is None or "". `block_s` fixes the block of a new cluster.

    Raises `Invalid` for a URL of something else, `Conflict` for a database that another server uses or that was
    created with another `block_s`, `StoreUnavailable` when it cannot be opened.
    """
    if not url:
        return SqliteStore(file, on_hints, block_s=block_s)
    if not url.startswith(SCHEMES):
        scheme = url.partition(":")[0][:20]
        raise Invalid(
            f"database: {scheme!r} is not known; use postgresql://user@host/name, or nothing for a file",
            field="database",
        )
    try:
        from nanopod.store.postgres import PostgresStore
    except ImportError as error:
        raise Invalid(
            "database: PostgreSQL needs a driver: pip install 'nanopod[postgres]'", field="database"
        ) from error  # fmt: skip
    return PostgresStore(url, on_hints, block_s=block_s)
