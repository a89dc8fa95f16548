"""Orders, contracts and transfers in a transaction: what users ask of the market, and what came of it.

Placing an order is the hottest write there is, so what it needs is written as plain statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, Select, or_, select, text

from nanopod.model.money import Money, Rate
from nanopod.model.order import CLOSED, Contract, Order, OrderStatus, Side, Transfer
from nanopod.model.schedule import Schedule
from nanopod.store.base import Base
from nanopod.store.market_schema import capacity_transfer, contract, market_order

NO_AUTOMATION: Final = "none"
"""As a filter for the procurement of orders: those that no procurement placed."""
IDS_MAX: Final = 500
"""Most ids in one look-up: databases limit the parameters of a statement."""

_ORDER_COLUMNS: Final = (
    "seq", "id", "workspace_id", "account_id", "capacity_id", "sku_id", "side", "shape", "open", "filled", "start_at",
    "rate", "requested_price", "allow_standing", "allow_partial", "status", "cancel_reason", "procurement_id", "hold",
    "created_by", "created_at", "filled_at", "cancelled_at",
)  # fmt: skip
_ADD_ORDER: Final = (
    f"INSERT INTO market_order ({', '.join(_ORDER_COLUMNS)}) VALUES ({', '.join('?' * len(_ORDER_COLUMNS))})"
)
_GET_FACTS: Final = (
    "SELECT id, workspace_id, capacity_id, sku_id, side, rate, status, procurement_id, created_by, filled, hold "
    "FROM market_order WHERE id = ?"
)
_CONTRACT_COLUMNS: Final = (
    "id", "sku_id", "number", "buyer_order", "seller_order", "buyer_capacity", "seller_capacity", "buyer_workspace",
    "seller_workspace", "provider_id", "shape", "start_at", "end_at", "rate", "amount", "fee", "filled_at",
    "delivered", "refunded", "settled",
)  # fmt: skip
_ADD_CONTRACT: Final = (
    f"INSERT INTO contract ({', '.join(_CONTRACT_COLUMNS)}) VALUES ({', '.join('?' * len(_CONTRACT_COLUMNS))})"
)
_ORDER_NAMES: Final = {"limit": "rate", "requested_limit_price": "requested_price"}
_ORDER_SET: Final = frozenset(_ORDER_COLUMNS) - {"seq", "id"}
_CONTRACT_SET: Final = frozenset(_CONTRACT_COLUMNS) - {"id", "sku_id", "number"}
ENDLESS_AT: Final = (1 << 62) - 1
"""The end of a contract without one, in seconds."""


@dataclass(frozen=True, slots=True)
class OrderFacts:
    """An order in short; `filled` is a shape as JSON, `hold` what the ledger reserved."""

    order_id: str
    workspace_id: str
    capacity_id: str
    sku_id: str
    side: Side
    rate: int
    status: OrderStatus
    procurement_id: str
    created_by: str
    filled: str
    hold: str


def _bounds(schedule: Schedule) -> tuple[int, int]:
    if not schedule.entries:
        return 0, 0
    end = schedule.entries[-1].window.end_at
    return schedule.entries[0].window.start_at, ENDLESS_AT if end is None else end


class TradeRows(Base):
    """Reads and writes of what was traded."""

    # --- orders ---

    def add_order(self, order: Order, seq: int, hold: str = "") -> None:
        """A new order; `seq` is its number among all orders, `hold` what the ledger reserved for it, as text."""
        self._raw(
            _ADD_ORDER,
            (
                seq, order.order_id, order.workspace_id, order.account_id, order.capacity_id, order.sku_id, order.side,
                self._shape(order.shape), self._shape(order.open), self._shape(order.filled),
                _bounds(order.shape)[0], order.limit.micro_per_block, order.requested_limit_price,
                order.allow_standing, order.allow_partial, order.status, order.cancel_reason, order.procurement_id,
                hold, order.created_by, order.created_at, order.filled_at, order.cancelled_at,
            ),
        )  # fmt: skip

    def order(self, order_id: str) -> Order | None:
        """One order."""
        row = self._row(market_order, id=order_id)
        return self._order(row) if row else None

    def order_facts(self, order_id: str) -> OrderFacts | None:
        """What a trade needs to know of an open order, without the schedules that only people read."""
        row = self._first(_GET_FACTS, (order_id,))
        return OrderFacts(*row) if row else None

    def orders_numbered(self, order_ids: Iterable[str]) -> dict[str, Order]:
        """Orders by their ids; those that do not exist are left out."""
        found: dict[str, Order] = {}
        ids = list(order_ids)
        for start in range(0, len(ids), IDS_MAX):
            rows = self._rows(select(market_order).where(market_order.c.id.in_(ids[start : start + IDS_MAX])))
            found.update((row.id, self._order(row)) for row in rows)
        return found

    def set_order(self, order_id: str, **columns: Any) -> None:
        """Change an order: fields of `Order`, or `hold`. Schedules are values, or shapes as JSON already."""
        self._set("market_order", order_id, columns, _ORDER_NAMES, _ORDER_SET)

    def order_hold(self, order_id: str) -> str:
        """What the ledger reserved for an open buy, as text; "" for nothing."""
        row = self._first("SELECT hold FROM market_order WHERE id = ?", (order_id,))
        return str(row[0] or "") if row else ""

    def orders_open_of(self, capacity_id: str) -> int:
        """How many orders of a capacity are neither filled, cancelled nor rejected."""
        marks = ", ".join("?" * len(CLOSED))
        statement = f"SELECT COUNT(*) FROM market_order WHERE capacity_id = ? AND status NOT IN ({marks})"
        return int(self._first(statement, (capacity_id, *CLOSED))[0])

    def orders_page(
        self, workspace_id: str | None = None, *, ids: Sequence[str] = (), capacity_id: str | None = None,
        side: str | None = None, statuses: Sequence[str] = (), created_after: float | None = None,
        created_before: float | None = None, procurement_id: str | None = None, sku_id: str | None = None,
        sort: str = "-created_at", limit: int = 50, after: str | None = None, before: str | None = None,
    ) -> list[Order]:  # fmt: skip
        """Orders that meet every filter, sorted by `created_at` or `start_at` (`-` in front: falling).

        `procurement_id` "none" leaves out what automation placed. At most `limit`: those right after the order
        `after`, or right before `before`.
        """
        t = market_order.c
        statement: Select[Any] = select(market_order)
        equal = ((t.workspace_id, workspace_id), (t.capacity_id, capacity_id), (t.side, side), (t.sku_id, sku_id))
        for column, wanted in equal:
            if wanted is not None:
                statement = statement.where(column == wanted)
        if ids:
            statement = statement.where(t.id.in_(ids))
        if statuses:
            statement = statement.where(t.status.in_(statuses))
        if created_after is not None:
            statement = statement.where(t.created_at > created_after)
        if created_before is not None:
            statement = statement.where(t.created_at < created_before)
        if procurement_id is not None:
            wanted = "" if procurement_id == NO_AUTOMATION else procurement_id
            statement = statement.where(t.procurement_id == wanted)
        by = t.start_at if sort.lstrip("-") == "start_at" else t.created_at
        rows = self._page(
            statement, by, t.id, descending=sort.startswith("-"), limit=limit, after=after, before=before, tie=t.seq
        )  # fmt: skip
        return [self._order(row) for row in rows]

    def _order(self, row: Row[Any]) -> Order:
        return Order(
            row.id, row.workspace_id, row.account_id, row.capacity_id, row.sku_id, row.side,
            self._schedule(row.shape), Rate(row.rate), bool(row.allow_standing), bool(row.allow_partial), row.status,
            self._schedule(row.open), self._schedule(row.filled), row.cancel_reason, row.requested_price,
            row.procurement_id, row.created_at, row.created_by, row.filled_at, row.cancelled_at,
        )  # fmt: skip

    # --- contracts ---

    def add_contract(self, made: Contract, *, settled: bool | None = None) -> None:
        """A new contract. `settled`: nothing is to be posted for it any more; by default true of a resale."""
        start_at, end_at = _bounds(made.schedule)
        self._raw(
            _ADD_CONTRACT,
            (
                made.contract_id, made.sku_id, made.number, made.buyer_order_id, made.seller_order_id,
                made.buyer_capacity_id, made.seller_capacity_id, made.buyer_workspace_id, made.seller_workspace_id,
                made.provider_id, self._shape(made.schedule), start_at, end_at, made.rate.micro_per_block,
                made.amount.micro, made.fee.micro, made.filled_at, made.delivered, made.refunded,
                not made.provider_id if settled is None else settled,
            ),
        )  # fmt: skip

    def contract(self, contract_id: str) -> Contract | None:
        """One contract."""
        row = self._row(contract, id=contract_id)
        return self._contract(row) if row else None

    def set_contract(self, contract_id: str, **columns: Any) -> None:
        """Change a contract: `delivered`, `refunded`, `settled`."""
        self._set("contract", contract_id, columns, {}, _CONTRACT_SET)

    def contracts_of(self, order_ids: Sequence[str]) -> list[Contract]:
        """The contracts of these orders, on either side, oldest first."""
        found: dict[str, Row[Any]] = {}
        for start in range(0, len(order_ids), IDS_MAX):
            some = order_ids[start : start + IDS_MAX]
            for side in ("buyer_order", "seller_order"):
                found.update((row.id, row) for row in self._rows_among(contract, side, some))
        rows = sorted(found.values(), key=lambda row: (row.filled_at, row.sku_id, row.number))
        return [self._contract(row) for row in rows]

    def contracts_page(
        self, workspace_id: str | None = None, *, ids: Sequence[str] = (), capacity_id: str | None = None,
        sku_id: str | None = None, order_id: str | None = None, provider_id: str | None = None,
        filled_after: float | None = None, filled_before: float | None = None,
        ends_after: float | None = None, starts_before: float | None = None,
        starts_after: float | None = None, ends_before: float | None = None, side: str | None = None,
        limit: int = 50, after: str | None = None, before: str | None = None,
    ) -> list[Contract]:  # fmt: skip
        """Contracts a workspace bought or sold (None: of everyone) that meet every filter, newest first.

        `side` says on which side workspace, capacity and order have to be; None: on either.
        """
        t = contract.c
        statement: Select[Any] = select(contract)
        # From what holds for the fewest contracts to what holds for the most.
        pairs = (
            (t.buyer_order, t.seller_order, order_id),
            (t.buyer_capacity, t.seller_capacity, capacity_id),
            (t.buyer_workspace, t.seller_workspace, workspace_id),
        )
        either: tuple[Any, ...] = ()
        for buyer, seller, wanted in pairs:
            sides = {"buy": buyer == wanted, "sell": seller == wanted}
            if wanted is not None and side:
                statement = statement.where(sides[side])
            elif wanted is not None and either:
                statement = statement.where(or_(*sides.values()))
            elif wanted is not None:
                either = tuple(sides.values())
        for column, wanted in ((t.sku_id, sku_id), (t.provider_id, provider_id)):
            if wanted is not None:
                statement = statement.where(column == wanted)
        if ids:
            statement = statement.where(t.id.in_(ids))
        for column, least in ((t.filled_at, filled_after), (t.end_at, ends_after), (t.start_at, starts_after)):
            if least is not None:
                statement = statement.where(column > least)
        for column, most in ((t.filled_at, filled_before), (t.start_at, starts_before), (t.end_at, ends_before)):
            if most is not None:
                statement = statement.where(column < most)
        rows = self._page(statement, t.filled_at, t.id, limit=limit, after=after, before=before, either=either)
        return [self._contract(row) for row in rows]

    def contracts_undelivered(self, provider_id: str) -> list[Contract]:
        """What a provider sold and is not settled, oldest first."""
        t = contract.c
        # In the words of the index, which holds nothing else.
        statement = select(contract).where(t.provider_id == provider_id, text("NOT settled"))
        return [self._contract(row) for row in self._rows(statement.order_by(t.filled_at, t.sku_id, t.number))]

    def contracts_covering(self, sku_id: str, provider_id: str, start_at: float, end_at: float) -> list[Contract]:
        """What a provider sold of a SKU with time in `[start_at, end_at)`, newest number first."""
        t = contract.c
        statement = select(contract).where(
            t.sku_id == sku_id, t.provider_id == provider_id, t.end_at > start_at, t.start_at < end_at
        )
        rows = self._rows(statement.order_by(t.number.desc()))
        found = [self._contract(row) for row in rows]
        return [one for one in found if _overlaps(one.schedule, start_at, end_at)]

    def fills_since(self, sku_ids: Sequence[str], since_at: float, limit: int = 1_000) -> list[Contract]:
        """Contracts of these SKUs that were made at `since_at` or later, newest first."""
        t = contract.c
        statement = select(contract).where(t.sku_id.in_(sku_ids), t.filled_at >= since_at)
        rows = self._rows(statement.order_by(t.filled_at.desc(), t.number.desc(), t.id).limit(limit))
        return [self._contract(row) for row in rows]

    def _contract(self, row: Row[Any]) -> Contract:
        return Contract(
            row.id, row.sku_id, row.number, row.buyer_order, row.seller_order, row.buyer_capacity,
            row.seller_capacity, self._schedule(row.shape), Rate(row.rate), Money(row.amount), Money(row.fee),
            row.filled_at, row.buyer_workspace, row.seller_workspace, row.provider_id, row.delivered, row.refunded,
        )  # fmt: skip

    # --- transfers ---

    def add_transfer(self, made: Transfer) -> None:
        """A new transfer, executed or rejected."""
        self._insert(
            capacity_transfer,
            id=made.transfer_id, workspace_id=made.workspace_id, from_capacity=made.from_capacity_id,
            to_capacity=made.to_capacity_id, sku_id=made.sku_id, shape=self._shape(made.schedule), status=made.status,
            rejected_reason=made.rejected_reason, created_by=made.created_by, created_at=made.created_at,
        )  # fmt: skip

    def transfer(self, transfer_id: str) -> Transfer | None:
        """One transfer."""
        row = self._row(capacity_transfer, id=transfer_id)
        return self._transfer(row) if row else None

    def transfers_page(
        self, workspace_id: str | None = None, *, ids: Sequence[str] = (), capacity_id: str | None = None,
        sku_id: str | None = None, statuses: Sequence[str] = (),
        limit: int = 50, after: str | None = None, before: str | None = None,
    ) -> list[Transfer]:  # fmt: skip
        """Transfers that meet every filter, newest first; `capacity_id` on either end."""
        t = capacity_transfer.c
        statement: Select[Any] = select(capacity_transfer)
        if workspace_id is not None:
            statement = statement.where(t.workspace_id == workspace_id)
        if capacity_id is not None:
            statement = statement.where(or_(t.from_capacity == capacity_id, t.to_capacity == capacity_id))
        if sku_id is not None:
            statement = statement.where(t.sku_id == sku_id)
        if ids:
            statement = statement.where(t.id.in_(ids))
        if statuses:
            statement = statement.where(t.status.in_(statuses))
        rows = self._page(statement, t.created_at, t.id, limit=limit, after=after, before=before)
        return [self._transfer(row) for row in rows]

    def _transfer(self, row: Row[Any]) -> Transfer:
        return Transfer(
            row.id, row.workspace_id, row.from_capacity, row.to_capacity, row.sku_id, self._schedule(row.shape),
            row.status, row.rejected_reason, row.created_at, row.created_by,
        )  # fmt: skip

    def _set(
        self, table: str, id: str, columns: dict[str, Any], names: dict[str, str], known: frozenset[str]
    ) -> None:  # fmt: skip
        values: dict[str, Any] = {names.get(name, name): self._plain(value) for name, value in columns.items()}
        strange = values.keys() - known
        assert not strange, f"{table} has no column {', '.join(sorted(strange))} that may be set"
        if values:
            sets = ", ".join(f"{name} = ?" for name in values)
            self._raw(f"UPDATE {table} SET {sets} WHERE id = ?", (*values.values(), id))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Schedule):
            return self._shape(value)
        if isinstance(value, Rate):
            return value.micro_per_block
        return value.micro if isinstance(value, Money) else value


def _overlaps(schedule: Schedule, start_at: float, end_at: float) -> bool:
    return any(
        entry.window.start_at < end_at and (entry.window.end_at is None or entry.window.end_at > start_at)
        for entry in schedule.entries
    )
