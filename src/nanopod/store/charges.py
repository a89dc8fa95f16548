"""Plans, rated usage and pages of the ledger in a transaction: what becomes money, and where it is read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, Table, and_, delete, func, insert, or_, select, update

from nanopod.ledger.transfers import Entry, Settlement, Transfer
from nanopod.model.chain import Instance
from nanopod.model.wire import MeterRecord
from nanopod.store.base import Base
from nanopod.store.chain import _instance
from nanopod.store.ledger_schema import ledger_account, ledger_entry
from nanopod.store.market_schema import rated_line, workspace_plan
from nanopod.store.schema import instance, usage_record
from nanopod.store.usage import FIELDS

NUMBERS_MAX: Final = 500
"""Most numbers in one look-up: databases limit the parameters of a statement."""
DAY_US: Final = 86_400_000_000


class RatedLine(msgspec.Struct, frozen=True):
    """Usage of a month added up: units, events, and the micro-dollars that were charged for them so far."""

    workspace_id: str
    month: str
    meter: str
    attributes: str
    """JSON with sorted keys."""
    plan: str
    units: int
    events: int
    posted: int


def _line(row: Row[Any]) -> RatedLine:
    return RatedLine(
        *(row.workspace_id, row.month, row.meter, row.attributes, row.plan), row.units, row.events, row.posted
    )


def _entry(row: Row[Any]) -> tuple[Entry, Settlement | None]:
    settles = row.kind in ("post", "void")
    asked = Transfer(
        id=int.from_bytes(bytes(row.id)),
        kind=row.kind,
        debit="" if settles else row.debit,
        credit="" if settles else row.credit,
        amount=row.asked,
        pending_id=int.from_bytes(bytes(row.pending_id)) if row.pending_id else 0,
        timeout_s=row.timeout_s,
        linked=bool(row.linked),
        balancing=bool(row.balancing),
        code=row.code,
        ref=row.ref,
    )
    return Entry(row.seq, asked, row.debit, row.credit, row.amount, row.at_us), row.settled


class ChargeRows(Base):
    """Reads and writes of plans and rated lines; reads of usage and ledger entries in order."""

    # --- plans ---

    def plans(self) -> dict[str, str]:
        """The plan of every workspace that has one, as JSON."""
        return {row.workspace_id: row.plan for row in self._rows(select(workspace_plan))}

    def workspace_plan(self, workspace_id: str) -> tuple[str, float] | None:
        """(plan as JSON, when it was set); None: usage costs nothing."""
        row = self._row(workspace_plan, workspace_id=workspace_id)
        return (row.plan, row.updated_at) if row else None

    def put_plan(self, workspace_id: str, plan: str, now: float) -> None:
        """Give a workspace a plan."""
        self._put(workspace_plan, {"workspace_id": workspace_id}, {"plan": plan, "updated_at": now})

    def drop_plan(self, workspace_id: str) -> None:
        """Usage of this workspace costs nothing from now on."""
        self.connection.execute(delete(workspace_plan).where(workspace_plan.c.workspace_id == workspace_id))

    # --- what was rated ---

    def rated_line(self, workspace_id: str, month: str, meter: str, attributes: str, plan: str) -> RatedLine | None:
        """One line so far."""
        row = self._row(
            rated_line, workspace_id=workspace_id, month=month, meter=meter, attributes=attributes, plan=plan
        )
        return _line(row) if row else None

    def rated_lines(self, workspace_id: str, month: str) -> list[RatedLine]:
        """All lines of a month."""
        statement = select(rated_line).where(rated_line.c.workspace_id == workspace_id, rated_line.c.month == month)
        return [_line(row) for row in self._rows(statement.order_by(rated_line.c.meter, rated_line.c.attributes))]

    def put_rated_line(self, line: RatedLine) -> None:
        """Keep a line in place of what it was."""
        values = msgspec.structs.asdict(line)
        sums = {name: values.pop(name) for name in ("units", "events", "posted")}
        self._put(rated_line, values, sums)

    def _put(self, table: Table, where: dict[str, Any], values: dict[str, Any]) -> None:
        match = and_(*(table.c[name] == value for name, value in where.items()))
        if self.connection.execute(update(table).where(match), values).rowcount == 0:
            self.connection.execute(insert(table), {**where, **values})

    # --- usage in order ---

    def usage_last(self) -> int:
        """The highest number of a usage record; 0 when there is none."""
        return int(self.connection.execute(select(func.max(usage_record.c.seq))).scalar() or 0)

    def usage_after(self, seq: int, limit: int) -> list[tuple[int, MeterRecord]]:
        """(number, record) of all workspaces, oldest first, of those numbered above `seq`."""
        return self._usage(select(usage_record).where(usage_record.c.seq > seq).limit(limit))

    def usage_numbered(self, seqs: Sequence[int]) -> list[tuple[int, MeterRecord]]:
        """(number, record) of these numbers, oldest first."""
        found: list[tuple[int, MeterRecord]] = []
        for start in range(0, len(seqs), NUMBERS_MAX):
            some = seqs[start : start + NUMBERS_MAX]
            found += self._usage(select(usage_record).where(usage_record.c.seq.in_(some)))
        return found

    def _usage(self, statement: Select[Any]) -> list[tuple[int, MeterRecord]]:
        rows = self._rows(statement.order_by(usage_record.c.seq))
        return [(row.seq, MeterRecord(**{name: row._mapping[name] for name in FIELDS})) for row in rows]

    def instances_granted(self, start_at: float, end_at: float) -> list[Instance]:
        """Instances that held a place at some time of `[start_at, end_at)`."""
        statement = select(instance).where(
            instance.c.granted_at.is_not(None),
            instance.c.granted_at < end_at,
            or_(instance.c.ended_at.is_(None), instance.c.ended_at > start_at),
        )
        return [_instance(row) for row in self._rows(statement.order_by(instance.c.id))]

    # --- the ledger, newest first ---

    def entries_page(
        self, accounts: Sequence[str], limit: int, *,
        below: int | None = None, above: int | None = None, start_us: int | None = None, end_us: int | None = None,
        codes: Sequence[str] = (), kinds: Sequence[str] = (),
    ) -> list[tuple[Entry, Settlement | None]]:  # fmt: skip
        """Entries that touch one of the accounts, newest first; of those numbered `below` or, just, `above` a seq."""
        t = ledger_entry
        statement = select(t).where(or_(t.c.debit.in_(accounts), t.c.credit.in_(accounts)))
        if below is not None:
            statement = statement.where(t.c.seq < below)
        if above is not None:
            statement = statement.where(t.c.seq > above)
        if start_us is not None:
            statement = statement.where(t.c.at_us >= start_us)
        if end_us is not None:
            statement = statement.where(t.c.at_us < end_us)
        if codes:
            statement = statement.where(t.c.code.in_(codes))
        if kinds:
            statement = statement.where(t.c.kind.in_(kinds))
        order = t.c.seq.asc() if above is not None else t.c.seq.desc()
        found = [_entry(row) for row in self._rows(statement.order_by(order).limit(limit))]
        return found[::-1] if above is not None else found

    def balance_through(self, accounts: Sequence[str], entry: Entry) -> int:
        """What the accounts had together after an entry, holds not counted: back from what they have now."""
        t = ledger_entry.c
        # The index knows times; the clock of a later entry may be behind, but not by a day.
        newer = (t.kind != "pending", t.seq > entry.seq, t.at_us >= entry.at_us - DAY_US)

        def since(side: Any) -> int:
            total = select(func.coalesce(func.sum(t.amount), 0)).where(side.in_(accounts), *newer)
            return int(self.connection.execute(total).scalar() or 0)

        a = ledger_account.c
        now = select(func.coalesce(func.sum(a.credits_posted - a.debits_posted), 0)).where(a.id.in_(accounts))
        return int(self.connection.execute(now).scalar() or 0) - since(t.credit) + since(t.debit)
