"""The tables. Structured values (specs, failures, reasons) are JSON text; times are Unix seconds unless named `_us`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata: Final = MetaData()
NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")
"""A number that the database draws: SQLite does so for columns of the type INTEGER only."""


def _id(name: str = "id") -> Column[str]:
    return Column(name, String, primary_key=True)


def _json(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


setting: Final = Table("setting", metadata, _id("name"), Column("value", Text, nullable=False))
"""Single values of the cluster: its id, how often its server started."""

account: Final = Table(
    "account",
    metadata,
    _id(),
    Column("name", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("created_at", Float, nullable=False),
)

workspace: Final = Table(
    "workspace",
    metadata,
    _id(),
    Column("name", String, nullable=False, unique=True),
    Column("account_id", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
)

api_key: Final = Table(
    "api_key",
    metadata,
    _id(),
    Column("workspace_id", ForeignKey("workspace.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("digest", String, nullable=False, unique=True),
    _json("scopes"),
    _json("endpoints", nullable=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    Column("revoked_at", Float),
)

sku: Final = Table(
    "sku",
    metadata,
    _id(),
    Column("alias", String, nullable=False),
    _json("properties"),
    Column("life", Text, nullable=False, server_default=""),
)
"""`life` is what the operator says of it, as JSON; "" when that is nothing."""


node: Final = Table(
    "node",
    metadata,
    _id(),
    Column("machine_id", String, nullable=False),
    Column("sku_id", ForeignKey("sku.id"), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("boot_id", String, nullable=False, server_default=""),
    Column("version", String, nullable=False, server_default=""),
    _json("inventory"),
    Column("provider_id", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Index("node_machine", "machine_id"),
)

capacity: Final = Table(
    "capacity",
    metadata,
    _id(),
    Column("workspace_id", ForeignKey("workspace.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("account_id", String, nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default="{}"),
    Column("generation", Integer, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("capacity_name", "workspace_id", "name", unique=True),
)

endpoint: Final = Table(
    "endpoint",
    metadata,
    _id(),
    Column("workspace_id", ForeignKey("workspace.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("tag", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("generation", Integer, nullable=False, server_default="0"),
    Column("revision_id", String, nullable=False),
    _json("scale"),
    Column("scale_fingerprint", String, nullable=False, server_default=""),
    Column("target", Integer, nullable=False, server_default="-1"),
    _json("reasons"),
    Column("scale_state", LargeBinary, nullable=False),
    _json("failure", nullable=True),
    Column("ttl_s", Float),
    Column("version_label", String, nullable=False, server_default=""),
    Column("heartbeat_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("deleted_at", Float),
    Column("stable_revision_id", String, nullable=False, server_default=""),
    Column("canary_percent", Integer, nullable=False, server_default="0"),
    Column("canary_at", Float),
    Column("canary_state", Text, nullable=False, server_default=""),
    Column("rollout", Text, nullable=False, server_default=""),
    Column("cold", Integer, nullable=False, server_default="0"),
    Column("traffic", Text, nullable=False, server_default=""),
    Column("stopped", Boolean, nullable=False, server_default=text("false")),
)
Index(
    "endpoint_name",
    endpoint.c.workspace_id,
    endpoint.c.name,
    endpoint.c.tag,
    unique=True,
    sqlite_where=text("deleted_at IS NULL"),
    postgresql_where=text("deleted_at IS NULL"),
)

revision: Final = Table(
    "revision",
    metadata,
    _id(),
    Column("endpoint_id", ForeignKey("endpoint.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    _json("spec"),
    Column("model_id", String),
    Column("failures", Integer, nullable=False, server_default="0"),
    _json("failure", nullable=True),
    Column("healthy_at", Float),
    Column("created_at", Float, nullable=False),
    Column("version_label", String, nullable=False, server_default=""),
    Column("state", String, nullable=False, server_default=""),
    Index("revision_endpoint", "endpoint_id", "number", unique=True),
)

deployment: Final = Table(
    "deployment",
    metadata,
    _id(),
    Column("name", String, nullable=False, server_default=""),
    Column("kind", String, nullable=False, server_default="generic"),
    Column("endpoint_id", ForeignKey("endpoint.id", ondelete="CASCADE"), unique=True),
    Column("workspace_id", ForeignKey("workspace.id"), nullable=False),
    Column("capacity_id", ForeignKey("capacity.id"), nullable=False),
    Column("sku_id", String, nullable=False, server_default=""),
    Column("template_id", String, nullable=False, server_default=""),
    Column("instance_name_template", String, nullable=False, server_default=""),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("procurement_id", String, nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default="{}"),
    Column("revision_id", String, nullable=False),
    Column("target_instance_count", Integer, nullable=False, server_default="0"),
    Column("generation", Integer, nullable=False, server_default="0"),
    _json("reasons"),
    Column("fails", Integer, nullable=False, server_default="0"),
    Column("not_before", Float, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("deployment_name", "workspace_id", "name", unique=True),
    Index("deployment_capacity", "capacity_id"),
)
"""`endpoint_id` is NULL for one that stands alone."""

instance: Final = Table(
    "instance",
    metadata,
    _id(),
    Column("deployment_id", String, nullable=False),
    Column("endpoint_id", String, nullable=False),
    Column("workspace_id", ForeignKey("workspace.id"), nullable=False),
    Column("revision_id", String, nullable=False),
    Column("capacity_id", String, nullable=False),
    Column("node_id", String),
    Column("epoch", Integer, nullable=False),
    Column("generation", Integer, nullable=False, server_default="0"),
    Column("intent", String, nullable=False),
    Column("phase", String, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("pid", Integer),
    Column("exit_code", Integer),
    Column("reason", Text, nullable=False, server_default=""),
    _json("failure", nullable=True),
    Column("fails", Integer, nullable=False, server_default="0"),
    Column("not_before", Float, nullable=False, server_default="0"),
    Column("ready_at", Float),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("name", String, nullable=False, server_default=""),
    Column("sku_id", String, nullable=False, server_default=""),
    Column("template_id", String, nullable=False, server_default=""),
    Column("image_id", String, nullable=False, server_default=""),
    Column("cloud_init", Text, nullable=False, server_default=""),
    Column("priority", String, nullable=False, server_default="normal"),
    Column("granted_at", Float),
    Column("early_until", BigInteger),
    Column("early_block", BigInteger),
    Column("warned", Text, nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default="{}"),
    Column("start_kind", String, nullable=False, server_default="provision"),
    Column("start_at", Float),
    Column("hibernated_at", Float),
    Column("home", String, nullable=False, server_default=""),
    Index("instance_endpoint", "endpoint_id", "ended_at"),
    Index("instance_capacity", "capacity_id", "ended_at"),
    Index("instance_deployment", "deployment_id", "ended_at"),
    Index("instance_node", "node_id", "ended_at"),
    Index("instance_created", "workspace_id", "created_at"),
)
"""History outlives its endpoint, so there is no foreign key to it."""

usage_record: Final = Table(
    "usage_record",
    metadata,
    Column("seq", NUMBER, primary_key=True, autoincrement=True),
    Column("record_id", String, nullable=False, unique=True),
    Column("request_id", String, nullable=False),
    Column("workspace_id", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("endpoint_id", String, nullable=False),
    Column("revision_id", String, nullable=False),
    Column("instance_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("compute_us", BigInteger, nullable=False),
    Column("t_arrival", Float, nullable=False),
    Column("t_first", Float, nullable=False),
    Column("t_end", Float, nullable=False),
    Column("moves", Integer, nullable=False),
    Column("function", String, nullable=False),
    Index("usage_time", "workspace_id", "t_end"),
    sqlite_autoincrement=True,
)

activation: Final = Table(
    "activation",
    metadata,
    Column("kind", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("due_us", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("lock_token", String),
    Column("lock_owner", String),
    Column("lock_expires_us", BigInteger),
    Column("fails", Integer, nullable=False, server_default="0"),
    Index("activation_due", "kind", "due_us"),
)
"""Who has to look at what, and when: the queue of the reconcilers."""

event: Final = Table(
    "event",
    metadata,
    Column("seq", NUMBER, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("key", String, nullable=False),
    Column("endpoint_id", String, nullable=False),
    Column("message", Text, nullable=False),
    Index("event_endpoint", "endpoint_id", "seq"),
    sqlite_autoincrement=True,
)
"""The story of each object: every decision with its reason."""
