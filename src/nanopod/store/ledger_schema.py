"""The ledger's tables. Amounts are micro-dollars, times microseconds since 1970; ids of transfers are 16 bytes."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Connection, Index, Integer, LargeBinary, String, Table, Text, text

from nanopod.store.schema import metadata

_OPEN: Final = text("settled IS NULL AND expires_at_us IS NOT NULL")

ledger_account: Final = Table(
    "ledger_account",
    metadata,
    Column("id", String, primary_key=True),
    Column("guarded", Boolean, nullable=False),
    Column("debits_pending", BigInteger, nullable=False, server_default="0"),
    Column("debits_posted", BigInteger, nullable=False, server_default="0"),
    Column("credits_pending", BigInteger, nullable=False, server_default="0"),
    Column("credits_posted", BigInteger, nullable=False, server_default="0"),
)

ledger_entry: Final = Table(
    "ledger_entry",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("id", LargeBinary, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("linked", Boolean, nullable=False),
    Column("balancing", Boolean, nullable=False),
    Column("debit", String, nullable=False),
    Column("credit", String, nullable=False),
    Column("asked", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("pending_id", LargeBinary),
    Column("timeout_s", Integer, nullable=False),
    Column("code", String, nullable=False),
    Column("ref", String, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger),
    Column("settled", String),
    Index("ledger_entry_debit", "debit", "at_us", "seq"),
    Index("ledger_entry_credit", "credit", "at_us", "seq"),
    Index("ledger_entry_ref", "ref"),
    Index("ledger_entry_due", "expires_at_us", sqlite_where=_OPEN, postgresql_where=_OPEN),
)
"""Created transfers, never changed but for `settled`: how a pending one ended (NULL: still open)."""

ledger_failed: Final = Table(
    "ledger_failed",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("outcome", String, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
"""Burnt ids: a late duplicate of a refused transfer must stay refused."""

invoice: Final = Table(
    "invoice",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("issuer", String, nullable=False),
    Column("month", String, nullable=False),
    Column("number", Integer),
    Column("status", String, nullable=False),
    Column("document", Text, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Index("invoice_number", "issuer", "number", unique=True),
    Index("invoice_workspace", "workspace_id", "month"),
)
"""The document as JSON. `number` counts upwards without gaps per issuer, from the moment an invoice is final."""

TABLES: Final = (ledger_account, ledger_entry, ledger_failed, invoice)


def create(connection: Connection) -> None:
    """The migration step that adds these tables."""
    metadata.create_all(connection, tables=TABLES)
