"""The market's tables. Rates are micro-dollars per node-block, amounts micro-dollars; schedules and shapes are JSON.

A shape is a list of `[first block, end block, nodes]`. The event log of a SKU and its last snapshot are the truth of
its book; orders, contracts and transfers are what users ask for, written in the same transaction.
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
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

from nanopod.store.schema import metadata

_OPEN: Final = text("NOT settled")


def _created() -> tuple[Column[float], Column[float]]:
    return Column("created_at", Float, nullable=False), Column("updated_at", Float, nullable=False)


market_book: Final = Table(
    "market_book",
    metadata,
    Column("sku_id", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("block", BigInteger, nullable=False),
    Column("first_block", BigInteger, nullable=False),
    Column("snapshot_seq", BigInteger, nullable=False, server_default="0"),
    Column("snapshot", Text, nullable=False, server_default=""),
)
"""One row per SKU: where its log ends. An exchange in memory whose `seq` differs from it is stale.

`first_block` is the block its exchange began with, `snapshot` an `Exchange.canonical` as JSON ("" for none yet).
"""

market_event: Final = Table(
    "market_event",
    metadata,
    Column("sku_id", String, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),
    PrimaryKeyConstraint("sku_id", "seq"),
)
"""The log: `nanopod.market.events.encode` of every event that was applied."""

market_order: Final = Table(
    "market_order",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String, nullable=False, unique=True),
    Column("workspace_id", String, nullable=False),
    Column("account_id", String, nullable=False),
    Column("capacity_id", String, nullable=False),
    Column("sku_id", String, nullable=False),
    Column("side", String, nullable=False),
    Column("shape", Text, nullable=False),
    Column("open", Text, nullable=False),
    Column("filled", Text, nullable=False),
    Column("start_at", BigInteger, nullable=False),
    Column("rate", BigInteger, nullable=False),
    Column("requested_price", String, nullable=False),
    Column("allow_standing", Boolean, nullable=False),
    Column("allow_partial", Boolean, nullable=False),
    Column("status", String, nullable=False),
    Column("cancel_reason", String),
    Column("procurement_id", String, nullable=False, server_default=""),
    Column("hold", Text, nullable=False, server_default=""),
    Column("created_by", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("filled_at", Float),
    Column("cancelled_at", Float),
    Index("order_workspace", "workspace_id", "created_at", "id"),
    Index("order_capacity", "capacity_id", "status"),
    Index("order_procurement", "procurement_id", "status"),
)
"""`hold` is the ledger's `Hold` as JSON while a buy is open, "" otherwise. `seq` counts all orders upwards."""

contract: Final = Table(
    "contract",
    metadata,
    Column("id", String, primary_key=True),
    Column("sku_id", String, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("buyer_order", String, nullable=False),
    Column("seller_order", String, nullable=False),
    Column("buyer_capacity", String, nullable=False),
    Column("seller_capacity", String, nullable=False),
    Column("buyer_workspace", String, nullable=False),
    Column("seller_workspace", String, nullable=False),
    Column("provider_id", String, nullable=False, server_default=""),
    Column("shape", Text, nullable=False),
    Column("start_at", BigInteger, nullable=False),
    Column("end_at", BigInteger, nullable=False),
    Column("rate", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("fee", BigInteger, nullable=False),
    Column("filled_at", Float, nullable=False),
    Column("delivered", BigInteger, nullable=False, server_default="0"),
    Column("refunded", BigInteger, nullable=False, server_default="0"),
    Column("settled", Boolean, nullable=False, server_default=text("false")),
    Index("contract_number", "sku_id", "number", unique=True),
    Index("contract_buyer", "buyer_workspace", "filled_at"),
    Index("contract_seller", "seller_workspace", "filled_at"),
    Index("contract_buyer_order", "buyer_order"),
    Index("contract_seller_order", "seller_order"),
    Index("contract_open", "provider_id", "filled_at", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("contract_provider", "provider_id", "filled_at"),
    Index("contract_end", "sku_id", "end_at"),
    Index("contract_filled", "sku_id", "filled_at"),
)
"""`settled`: everything is delivered, refunded or was paid at once; nothing is to be posted any more."""

capacity_transfer: Final = Table(
    "capacity_transfer",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("from_capacity", String, nullable=False),
    Column("to_capacity", String, nullable=False),
    Column("sku_id", String, nullable=False),
    Column("shape", Text, nullable=False),
    Column("status", String, nullable=False),
    Column("rejected_reason", Text, nullable=False, server_default=""),
    Column("created_by", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Index("transfer_workspace", "workspace_id", "created_at"),
)

procurement: Final = Table(
    "procurement",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("capacity_id", String, nullable=False),
    Column("sku_id", String, nullable=False),
    Column("target", Integer),
    Column("max_buy", BigInteger, nullable=False),
    Column("min_sell", BigInteger, nullable=False),
    Column("managed_window_minutes", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("protect_manual", Boolean, nullable=False),
    Column("extend_quantum_minutes", Integer, nullable=False),
    Column("deployment_id", String, nullable=False, server_default=""),
    Column("status", Text),
    Column("generation", Integer, nullable=False, server_default="0"),
    *_created(),
    Index("procurement_pair", "capacity_id", "sku_id", unique=True),
    Index("procurement_name", "workspace_id", "name", unique=True),
)
"""`target` NULL follows the number of live instances (`node_count`)."""

provider: Final = Table(
    "provider",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("account_id", String, nullable=False),
    Column("workspace_id", String, nullable=False),
    Column("capacity_id", String, nullable=False, unique=True),
    Column("notice_s", Integer, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
)

offer: Final = Table(
    "offer",
    metadata,
    Column("id", String, primary_key=True),
    Column("provider_id", String, nullable=False),
    Column("sku_id", String, nullable=False),
    Column("policy", Text, nullable=False),
    Column("minted", Text, nullable=False, server_default="[]"),
    Column("generation", Integer, nullable=False, server_default="0"),
    *_created(),
    Index("offer_pair", "provider_id", "sku_id", unique=True),
)
"""`policy` is the `OfferPolicy` as JSON but for what other columns hold; `minted` is a shape."""

instance_template: Final = Table(
    "instance_template",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("image_id", String, nullable=False, server_default=""),
    Column("cloud_init", Text, nullable=False, server_default=""),
    Column("endpoint_id", String, nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default="{}"),
    *_created(),
    Index("template_name", "workspace_id", "name", unique=True),
)

image: Final = Table(
    "image",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("upload_status", String, nullable=False),
    Column("sha256", String, nullable=False, server_default=""),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Column("is_public", Boolean, nullable=False, server_default=text("false")),
    Column("parts", Text, nullable=False, server_default="[]"),
    *_created(),
    Index("image_name", "workspace_id", "name", unique=True),
)

idempotency: Final = Table(
    "idempotency",
    metadata,
    Column("workspace_id", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("key", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("workspace_id", "operation", "key"),
)

notice: Final = Table(
    "notice",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("workspace_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("data", Text, nullable=False),
    Index("notice_workspace", "workspace_id", "seq"),
)
"""What users are told; `/v1/events` reads it. The oldest are forgotten."""

allocation_history: Final = Table(
    "allocation_history",
    metadata,
    Column("capacity_id", String, nullable=False),
    Column("sku_id", String, nullable=False),
    Column("block", BigInteger, nullable=False),
    Column("node_count", Integer, nullable=False),
    PrimaryKeyConstraint("capacity_id", "sku_id", "block"),
)
"""The allocation from `block` on until the next row: what a schedule's past is shown from. Kept for a day."""

counter: Final = Table(
    "counter",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Numbers that only rise: of orders, instances, notices."""

workspace_plan: Final = Table(
    "workspace_plan",
    metadata,
    Column("workspace_id", String, primary_key=True),
    Column("plan", Text, nullable=False),
    Column("updated_at", Float, nullable=False),
)
"""The price list a workspace's usage is rated by, as JSON of `ledger.plans.Plan`; a workspace without a row pays
nothing for usage."""

rated_line: Final = Table(
    "rated_line",
    metadata,
    Column("workspace_id", String, nullable=False),
    Column("month", String, nullable=False),
    Column("meter", String, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("plan", String, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("posted", BigInteger, nullable=False),
    PrimaryKeyConstraint("workspace_id", "month", "meter", "attributes", "plan"),
)
"""Usage of a month added up, and what was posted of its price: rounding happens once for the whole line."""

webhook: Final = Table(
    "webhook",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("url", Text, nullable=False),
    Column("types", Text, nullable=False, server_default="[]"),
    Column("enabled", Boolean, nullable=False),
    Column("secret", String, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("message", Text, nullable=False, server_default=""),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("failed_since", Float),
    Column("next_at", Float, nullable=False, server_default="0"),
    Column("last_delivered_at", Float),
    Column("generation", Integer, nullable=False, server_default="0"),
    *_created(),
    Index("webhook_name", "workspace_id", "name", unique=True),
)
"""Who is told of notices over HTTP. `cursor` is the last notice that was delivered, left out or given up; `failures`
and `failed_since` count attempts since the last delivery, `next_at` (wall time) is when the next one is due. The secret
is kept as it is, because every delivery is signed with it."""

TABLES: Final = (
    market_book, market_event, market_order, contract, capacity_transfer, procurement, provider, offer,
    instance_template, image, idempotency, notice, allocation_history, counter, workspace_plan, rated_line, webhook,
)  # fmt: skip
