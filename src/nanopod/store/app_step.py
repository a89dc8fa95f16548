"""The steps of a database from version 3: what applications use, canaries (4); manifests, cold workers (5)."""

from __future__ import annotations

from sqlalchemy import Connection

from nanopod.store import app_schema, schema
from nanopod.store.market_step import add_columns


def app_step(connection: Connection) -> None:
    """Bring a database of version 3 to version 4. It may find a part done already: every piece looks first."""
    add_columns(connection, schema.endpoint)
    add_columns(connection, schema.revision)
    schema.metadata.create_all(connection, tables=list(app_schema.TABLES))


def manifest_step(connection: Connection) -> None:
    """Bring a database of version 4 to version 5. It may find a part done already: every piece looks first."""
    add_columns(connection, schema.endpoint)
    add_columns(connection, schema.instance)
    schema.metadata.create_all(connection, tables=[app_schema.manifest])
