"""The step from version 2 to 3 of a database: the market's tables, and chains that know of quotas and names."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.schema import CreateColumn

from nanopod.store import market_schema, schema

_GROWN: Final = (schema.workspace, schema.sku, schema.node, schema.capacity, schema.instance)
"""Tables that got columns, all of them with a default."""
# An endpoint that is being deleted may share its name with its successor; only living ones give theirs.
_DEPLOYMENTS: Final = """
INSERT INTO deployment (
    id, name, endpoint_id, workspace_id, capacity_id, revision_id, target_instance_count, generation, reasons, fails,
    not_before, created_at, updated_at
) SELECT
    d.id,
    CASE WHEN e.id IS NULL OR e.deleted_at IS NOT NULL THEN d.id WHEN e.tag = 'default' THEN e.name
    ELSE e.name || ':' || e.tag END,
    d.endpoint_id, d.workspace_id, d.capacity_id, d.revision_id, d.target_instance_count, d.generation, d.reasons,
    d.fails, d.not_before, d.created_at, d.updated_at
FROM deployment_before d LEFT JOIN endpoint e ON e.id = d.endpoint_id
"""
_INSTANCES: Final = (
    # Who came first decides who keeps its place, and numbers say so.
    "UPDATE instance SET seq = ranked.number FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY created_at, id) AS number "
    "FROM instance) AS ranked WHERE ranked.id = instance.id AND instance.seq = 0",
    "UPDATE instance SET name = id WHERE name = ''",
    "UPDATE instance SET sku_id = COALESCE((SELECT n.sku_id FROM node n WHERE n.id = instance.node_id), '') "
    "WHERE sku_id = ''",
    # What runs was granted its place when it was made, and keeps it until the market says otherwise.
    "UPDATE instance SET granted_at = created_at WHERE granted_at IS NULL AND ended_at IS NULL",
    "INSERT INTO counter (name, value) SELECT 'instance', MAX(seq) FROM instance HAVING MAX(seq) > 0 "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
)

# Before there was a choice, a block was a minute.
_BLOCKS: Final = "INSERT INTO setting (name, value) VALUES ('block_s', '60') ON CONFLICT (name) DO NOTHING"


def market_step(connection: Connection) -> None:
    """Bring a database file of version 2 to version 3. Workspaces and capacities get their account at the next start.

    It may find a part done already: every piece looks first.
    """
    for table in _GROWN:
        add_columns(connection, table)
    if "by_sku" in _columns(connection, schema.capacity):
        connection.exec_driver_sql("ALTER TABLE capacity DROP COLUMN by_sku")
    if "template_id" not in _columns(connection, schema.deployment):
        # SQLite cannot take NOT NULL from a column. Nothing refers to this table, so it can be made anew.
        connection.exec_driver_sql("ALTER TABLE deployment RENAME TO deployment_before")
        schema.deployment.create(connection)
        connection.exec_driver_sql(_DEPLOYMENTS)
        connection.exec_driver_sql("DROP TABLE deployment_before")
    schema.metadata.create_all(connection, tables=[schema.account, *market_schema.TABLES])
    for index in schema.instance.indexes:
        index.create(connection, checkfirst=True)
    for statement in (*_INSTANCES, _BLOCKS):
        connection.exec_driver_sql(statement)


def _columns(connection: Connection, table: Table) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(table.name)}


def add_columns(connection: Connection, table: Table) -> None:
    """Add the columns of `table` that the database lacks; each has a default."""
    known = _columns(connection, table)
    for column in table.columns:
        if column.name not in known:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
