"""The tables of what applications use: spawned calls, schedules, secrets, volumes, dictionaries, queues.

Times are Unix seconds, durations seconds, payloads are encoded values (`model.codec`) or names of blobs (SHA-256, hex).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from nanopod.store.schema import NUMBER as _NUMBER
from nanopod.store.schema import metadata

_OPEN: Final = text("ended_at IS NULL")
_UNSENT: Final = text("ended_at IS NULL AND sent_at IS NULL")
_WAITING: Final = text("webhook_at IS NOT NULL")


def _name() -> tuple[Column[str], Column[str], Column[str]]:
    return (
        Column("id", String, primary_key=True),
        Column("workspace_id", String, nullable=False),
        Column("name", String, nullable=False),
    )


call: Final = Table(
    "call",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("endpoint_id", String, nullable=False),
    Column("function", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("schedule_id", String, nullable=False, server_default=""),
    Column("status", String, nullable=False),
    Column("header", LargeBinary, nullable=False),
    Column("payload", LargeBinary),
    Column("payload_blob", String, nullable=False, server_default=""),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("result", LargeBinary),
    Column("result_blob", String, nullable=False, server_default=""),
    Column("error_type", String, nullable=False, server_default=""),
    Column("error_code", String, nullable=False, server_default=""),
    Column("error_message", Text, nullable=False, server_default=""),
    Column("logs", Text, nullable=False, server_default=""),
    Column("worker", String, nullable=False, server_default=""),
    Column("run_us", BigInteger, nullable=False, server_default="0"),
    Column("cost_micro", BigInteger, nullable=False, server_default="0"),
    Column("webhook", Text, nullable=False, server_default=""),
    Column("webhook_state", Text, nullable=False, server_default=""),
    Column("share_digest", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("expires_at", Float),
    Column("sent_at", Float),
    Column("cancelled_at", Float),
    Column("webhook_at", Float),
    Index("call_open", "created_at", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("call_unsent", "endpoint_id", "created_at", sqlite_where=_UNSENT, postgresql_where=_UNSENT),
    Index("call_webhook", "webhook_at", sqlite_where=_WAITING, postgresql_where=_WAITING),
    Index("call_expiry", "expires_at"),
    Index("call_created", "workspace_id", "created_at"),
)
"""Calls that survive their caller. `header` is an encoded `model.calls.Call`; `result` the frames that answer it.

`sent_at`: given to the gateway for the first time; `cancelled_at`: somebody asked to give it up; `webhook_at`: when its
webhook is to be tried next.
"""

schedule: Final = Table(
    "schedule",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("endpoint_id", String, nullable=False),
    Column("function", String, nullable=False),
    Column("spec", Text, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("next_at", Float, nullable=False),
    Column("last_at", Float),
    Column("last_call_id", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("endpoint_id", "function"),
    Index("schedule_next", "next_at"),
)
"""One row per function with a schedule; written when its endpoint is deployed."""

secret: Final = Table(
    "secret",
    metadata,
    *_name(),
    Column("version", Integer, nullable=False),
    Column("keys", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("workspace_id", "name"),
)
"""`keys`: the names of its pairs as a JSON list, which are no secret."""

secret_version: Final = Table(
    "secret_version",
    metadata,
    Column("secret_id", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("secret_id", "version"),
)
"""`sealed`: the pairs as JSON, encrypted with the cluster's key."""

volume: Final = Table(
    "volume",
    metadata,
    *_name(),
    Column("region", String, nullable=False, server_default=""),
    Column("size_bytes_max", BigInteger, nullable=False, server_default="0"),
    Column("version", Integer, nullable=False, server_default="0"),
    Column("used_bytes", BigInteger, nullable=False, server_default="0"),
    Column("writer", String, nullable=False, server_default=""),
    Column("writer_until", Float, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("workspace_id", "name"),
)
"""`writer` holds the one lease to commit, until `writer_until`."""

volume_version: Final = Table(
    "volume_version",
    metadata,
    Column("volume_id", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("volume_id", "version"),
)
"""`manifest`: {path: [blob, bytes, mode]} as JSON."""

shared_dict: Final = Table(
    "shared_dict",
    metadata,
    *_name(),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("workspace_id", "name"),
)

dict_entry: Final = Table(
    "dict_entry",
    metadata,
    Column("dict_id", String, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False, server_default="1"),
    Column("expires_at", Float, nullable=False),
    PrimaryKeyConstraint("dict_id", "key"),
    Index("dict_entry_expiry", "expires_at"),
)

shared_queue: Final = Table(
    "shared_queue",
    metadata,
    *_name(),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("workspace_id", "name"),
)

queue_item: Final = Table(
    "queue_item",
    metadata,
    Column("queue_id", String, nullable=False),
    Column("partition", String, nullable=False, server_default=""),
    Column("seq", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("lease", String, nullable=False, server_default=""),
    Column("leased_until", Float, nullable=False, server_default="0"),
    Column("deliveries", Integer, nullable=False, server_default="0"),
    Column("expires_at", Float, nullable=False),
    PrimaryKeyConstraint("queue_id", "seq"),
    Index("queue_item_next", "queue_id", "partition", "seq"),
    Index("queue_item_expiry", "expires_at"),
)

vast_deployment: Final = Table(
    "vast_deployment",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("workspace_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("tag", String, nullable=False),
    Column("config", Text, nullable=False),
    Column("endpoint_id", String, nullable=False, server_default=""),
    Column("blob", String, nullable=False, server_default=""),
    Column("upload", String, nullable=False, server_default=""),
    Column("state", String, nullable=False, server_default="active"),
    Column("version_id", BigInteger, nullable=False, server_default="0"),
    Column("heartbeat_at", Float),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("workspace_id", "name", "tag"),
    sqlite_autoincrement=True,
)
"""A deployment that came over the Vast-shaped routes. `config` is what its client sent, `upload` waits for its file."""

vast_version: Final = Table(
    "vast_version",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("deployment_id", BigInteger, nullable=False),
    Column("file_hash", String, nullable=False),
    Column("blob", String, nullable=False, server_default=""),
    Column("label", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Index("vast_version_deployment", "deployment_id", "id"),
    sqlite_autoincrement=True,
)

manifest: Final = Table(
    "manifest",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("namespace", String, nullable=False),
    Column("api_version", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("generation", Integer, nullable=False, server_default="1"),
    Column("document", Text, nullable=False),
    Column("digest", String, nullable=False),
    Column("native", Text, nullable=False, server_default="[]"),
    Column("status", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("workspace_id", "namespace", "kind", "name"),
)
"""Kubernetes objects as they were applied; values of Secrets are not among them."""

TABLES: Final = (
    call, schedule, secret, secret_version, volume, volume_version, shared_dict, dict_entry, shared_queue, queue_item,
    vast_deployment, vast_version, manifest,
)  # fmt: skip
"""All of them, in the order of making."""
