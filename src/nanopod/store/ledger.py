"""The ledger in a transaction: the rules of `nanopod.ledger.rules` on rows.

Rows are read as the rules ask for them and written together at the end. The statements go to the driver itself:
posting is the hottest path that ends on the disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from sqlalchemy import delete, select

from nanopod.ledger import chart
from nanopod.ledger.books import fresh, problems
from nanopod.ledger.invoices import Invoice, concerning, final_postings, finalize, pay, void, void_postings
from nanopod.ledger.render import invoice_from_json, invoice_json
from nanopod.ledger.rules import Batch
from nanopod.ledger.statements import month_bounds
from nanopod.ledger.transfers import Account, Entry, Kind, Outcome, Result, Settlement, Transfer, verdict
from nanopod.model.errors import Conflict, NotFound
from nanopod.store import ledger_schema as tables
from nanopod.store.base import Base
from nanopod.store.driver import Driver, driver

HISTORY_MAX: Final = 1_000
"""Most entries of one answer."""
TOGETHER_MAX: Final = 100
"""Most transfers of a batch whose rows are read together; databases limit the parameters of a statement."""
END_US: Final = 1 << 62
"""After every time."""

_ACCOUNT: Final = (
    "SELECT id, guarded, debits_pending, debits_posted, credits_pending, credits_posted FROM ledger_account"
)
_ENTRY: Final = (
    "SELECT seq, id, kind, linked, balancing, debit, credit, asked, amount, pending_id, timeout_s, code, ref, at_us "
    "FROM ledger_entry"
)
_ENTRY_SETTLED: Final = _ENTRY.replace(" FROM", ", settled FROM")
_BURNT: Final = "SELECT id FROM ledger_failed WHERE id IN"
_PUT_ENTRY: Final = (
    "INSERT INTO ledger_entry (seq, id, kind, linked, balancing, debit, credit, asked, amount, pending_id, timeout_s, "
    "code, ref, at_us, expires_at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PUT_BALANCES: Final = (
    "UPDATE ledger_account SET debits_pending = ?, debits_posted = ?, credits_pending = ?, credits_posted = ? "
    "WHERE id = ?"
)
_SUMS: Final = (
    "SELECT {side}, "
    "CAST(COALESCE(SUM(CASE WHEN kind = 'pending' AND settled IS NULL THEN amount ELSE 0 END), 0) AS BIGINT), "
    "CAST(COALESCE(SUM(CASE WHEN kind <> 'pending' THEN amount ELSE 0 END), 0) AS BIGINT) "
    "FROM ledger_entry GROUP BY {side}"
)


class LedgerRows(Base):
    """Accounts and transfers of the ledger. Use it inside a write for everything that changes something."""

    def open_accounts(self, accounts: Iterable[Account]) -> None:
        """Add empty accounts; those that exist are left alone. Raises `Conflict` when one has another guard."""
        with driver(self.connection) as raw:
            rows = _Rows(raw)
            for account in accounts:
                new = fresh(account, rows.account(account.id))
                if new is not None:
                    rows.add(new)

    def post_transfers(self, transfers: Sequence[Transfer], now_us: int) -> tuple[Result, ...]:
        """Post a batch at `now_us`, as `nanopod.ledger.books.post` does; one result per transfer, in order."""
        with driver(self.connection) as raw:
            batch = Batch(_Rows(raw, transfers), now_us)
            results = batch.run(transfers)
            _write(raw, batch)
        return results

    def ledger_account(self, account_id: str) -> Account | None:
        """The account with its balances (holds whose time is over count until the next posting), or None."""
        with driver(self.connection) as raw:
            row = raw.execute(f"{_ACCOUNT} WHERE id = ?", (account_id,)).fetchone()
            return None if row is None else _account(row)

    def ledger_accounts(self, prefix: str = "") -> list[Account]:
        """Accounts whose id starts with `prefix`, in order of their ids."""
        with driver(self.connection) as raw:
            rows = raw.execute(f"{_ACCOUNT} WHERE substr(id, 1, ?) = ? ORDER BY id", (len(prefix), prefix))
            return [_account(row) for row in rows]

    def ledger_entry(self, transfer_id: int) -> tuple[Entry, Settlement | None] | None:
        """A created transfer and, if it was pending, how it ended."""
        with driver(self.connection) as raw:
            rows = _Rows(raw)
            entry = rows.entry(transfer_id)
            return None if entry is None else (entry, rows.settlement(transfer_id))

    def ledger_history(
        self, account_id: str, start_us: int = 0, end_us: int | None = None, after: Entry | None = None
    ) -> list[tuple[Entry, Settlement | None]]:
        """Entries that touch an account with `start_us <= at < end_us`, oldest first, at most `HISTORY_MAX`.

        With how each ended if it was pending. Go on with `after`, the last entry seen.
        """
        columns = _ENTRY_SETTLED.removeprefix("SELECT ").partition(" FROM")[0]
        sides = " UNION ALL ".join(
            f"SELECT * FROM (SELECT {columns} FROM ledger_entry WHERE {side} = ? AND at_us >= ? "
            f"AND (at_us, seq) > (?, ?) AND at_us < ? ORDER BY at_us, seq LIMIT {HISTORY_MAX}) AS {side}s"
            for side in ("debit", "credit")
        )
        since = (start_us, 0) if after is None else (after.at_us, after.seq)
        values = (account_id, max(start_us, since[0]), *since, END_US if end_us is None else end_us)
        with driver(self.connection) as raw:
            rows = raw.execute(
                f"SELECT * FROM ({sides}) AS both_sides ORDER BY at_us, seq LIMIT {HISTORY_MAX}", values * 2
            ).fetchall()
        return [(_entry(row), cast("Settlement | None", row[14])) for row in rows]

    def month_entries(self, workspace_id: str, month: str, grants: Sequence[str] = ()) -> list[Entry]:
        """Everything a workspace's invoice for a month is made of, oldest first: see `invoices.concerning`."""
        start_us, end_us = month_bounds(month)
        own = [chart.prepaid(workspace_id), chart.receivable(workspace_id), *map(chart.grant, grants)]
        found: dict[int, Entry] = {}
        with driver(self.connection) as raw:
            for account_id in own:
                for side in ("debit", "credit"):
                    rows = raw.execute(
                        f"{_ENTRY} WHERE {side} = ? AND at_us >= ? AND at_us < ?", (account_id, start_us, end_us)
                    )
                    found.update((row[0], _entry(row)) for row in rows)
            for ref in {entry.transfer.ref for entry in found.values()}:
                rows = raw.execute(f"{_ENTRY} WHERE ref = ? AND at_us >= ? AND at_us < ?", (ref, start_us, end_us))
                found.update((row[0], _entry(row)) for row in rows)
        return concerning([found[seq] for seq in sorted(found)], workspace_id, grants)

    def balance_at(self, account_id: str, at_us: int) -> int:
        """Posted credits less posted debits of everything before `at_us`: the opening balance of a statement."""
        statement = (
            "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM ledger_entry "
            "WHERE {} = ? AND kind <> 'pending' AND at_us >= ?"
        )
        with driver(self.connection) as raw:
            account = _Rows(raw).account(account_id)
            if account is None:
                return 0
            # Back from the balance of now: the recent entries are few, all of them may be many.
            since = [
                raw.execute(statement.format(side), (account_id, at_us)).fetchone()[0] for side in ("credit", "debit")
            ]
        return account.balance - int(since[0]) + int(since[1])

    # --- invoices ---

    def put_invoice(self, draft: Invoice, now_us: int) -> None:
        """Keep a draft, in place of an earlier one of the same id. Raises `Conflict` when that is final."""
        known = self.invoice(draft.id)
        if draft.status != "draft" or (known is not None and known.status != "draft"):
            status = draft.status if known is None else known.status
            raise Conflict(f"invoice {draft.id} is {status}; only a draft is written anew", field="status")
        self._keep(draft, now_us)

    def finalize_invoice(self, invoice_id: str, now_us: int) -> Invoice:
        """Give a draft the next number of its issuer and post its tax and rounding, all in this transaction.

        Repeating it returns the finalized invoice. Raises `NotFound`, or `Conflict` for a voided one.
        """
        known = self._known(invoice_id)
        if known.status == "finalized":
            return known
        with driver(self.connection) as raw:
            number = raw.execute(
                "SELECT COALESCE(MAX(number), 0) + 1 FROM invoice WHERE issuer = ?", (known.issuer,)
            ).fetchone()[0]
        final = finalize(known, number, now_us)
        self._book(final_postings(final), now_us)
        self._keep(final, now_us)
        return final

    def void_invoice(self, invoice_id: str, now_us: int) -> Invoice:
        """Declare a finalized invoice void and take its tax and rounding back. Raises `NotFound` or `Conflict`."""
        voided = void(self._known(invoice_id), now_us)
        self._book(void_postings(voided), now_us)
        self._keep(voided, now_us)
        return voided

    def pay_invoice(self, invoice_id: str, amount: int, now_us: int) -> Invoice:
        """Note a payment of a finalized invoice; posting it is the caller's. Raises as `ledger.invoices.pay`."""
        paid = pay(self._known(invoice_id), amount, now_us)
        self._keep(paid, now_us)
        return paid

    def invoice(self, invoice_id: str) -> Invoice | None:
        """An invoice, or None."""
        row = self._row(tables.invoice, id=invoice_id)
        return None if row is None else invoice_from_json(row.document)

    def invoices(self, workspace_id: str) -> list[Invoice]:
        """All invoices of a workspace, oldest month first."""
        t = tables.invoice
        rows = self._rows(select(t).where(t.c.workspace_id == workspace_id).order_by(t.c.month, t.c.id))
        return [invoice_from_json(row.document) for row in rows]

    def _known(self, invoice_id: str) -> Invoice:
        found = self.invoice(invoice_id)
        if found is None:
            raise NotFound(f"invoice {invoice_id} does not exist", field="invoice")
        return found

    def _keep(self, invoice: Invoice, now_us: int) -> None:
        self.connection.execute(delete(tables.invoice).where(tables.invoice.c.id == invoice.id))
        self._insert(
            tables.invoice,
            id=invoice.id,
            workspace_id=invoice.workspace_id,
            issuer=invoice.issuer,
            month=invoice.month,
            number=invoice.number,
            status=invoice.status,
            document=invoice_json(invoice).decode(),
            updated_us=now_us,
        )

    def _book(self, chain: Sequence[Transfer], now_us: int) -> None:
        """Post what must succeed: a refusal undoes the whole transaction."""
        self.open_accounts(chart.accounts_of(chain))
        outcome = verdict(self.post_transfers(chain, now_us))
        if outcome not in (Outcome.CREATED, Outcome.EXISTS):
            raise Conflict(f"the ledger refused a posting: {outcome}")

    # --- trust ---

    def check_ledger(self) -> tuple[str, ...]:
        """What is wrong with the books, as `nanopod.ledger.books.check`; empty when nothing is. Reads every entry."""
        wanted: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        with driver(self.connection) as raw:
            for at, side in ((0, "debit"), (2, "credit")):
                for account_id, pending, posted in raw.execute(_SUMS.format(side=side)):
                    wanted[account_id][at : at + 2] = [pending, posted]
            accounts = [_account(row) for row in raw.execute(_ACCOUNT)]
        return problems(accounts, wanted)


class _Rows:
    """`Books` on the tables. Each row is read once; those of `transfers` are read together, to save round trips."""

    def __init__(self, raw: Driver, transfers: Sequence[Transfer] = ()) -> None:
        self._raw = raw
        self._accounts: dict[str, Account | None] = {}
        self._entries: dict[int, tuple[Entry, Settlement | None] | None] = {}
        self._burnt: dict[int, bool] = {}
        self.seq: int = raw.execute("SELECT COALESCE(MAX(seq), 0) FROM ledger_entry").fetchone()[0]
        if 0 < len(transfers) <= TOGETHER_MAX:
            self._look(transfers)

    def _look(self, transfers: Sequence[Transfer]) -> None:
        ids = {asked.id for asked in transfers}
        wanted = ids | {asked.pending_id for asked in transfers if asked.pending_id}
        self._entries = dict.fromkeys(wanted)
        for row in self._among(f"{_ENTRY_SETTLED} WHERE id IN", [id.to_bytes(16) for id in wanted]):
            self._entries[int.from_bytes(row[1])] = (_entry(row), row[14])
        burnt = {int.from_bytes(row[0]) for row in self._among(_BURNT, [id.to_bytes(16) for id in ids])}
        self._burnt = {id: id in burnt for id in ids}
        names = {name for asked in transfers for name in (asked.debit, asked.credit) if name}
        for found in self._entries.values():
            if found is not None:
                names |= {found[0].debit, found[0].credit}
        self._accounts = dict.fromkeys(names)
        for row in self._among(f"{_ACCOUNT} WHERE id IN", sorted(names)):
            self._accounts[row[0]] = _account(row)

    def _among(self, statement: str, values: Sequence[Any]) -> list[Any]:
        if not values:
            return []
        return self._raw.execute(f"{statement} ({', '.join('?' * len(values))})", values).fetchall()

    def account(self, account_id: str) -> Account | None:
        if account_id not in self._accounts:
            row = self._raw.execute(f"{_ACCOUNT} WHERE id = ?", (account_id,)).fetchone()
            self._accounts[account_id] = None if row is None else _account(row)
        return self._accounts[account_id]

    def add(self, account: Account) -> None:
        self._raw.execute("INSERT INTO ledger_account (id, guarded) VALUES (?, ?)", (account.id, account.guarded))
        self._accounts[account.id] = account

    def entry(self, transfer_id: int) -> Entry | None:
        found = self._found(transfer_id)
        return None if found is None else found[0]

    def settlement(self, transfer_id: int) -> Settlement | None:
        found = self._found(transfer_id)
        return None if found is None else found[1]

    def _found(self, transfer_id: int) -> tuple[Entry, Settlement | None] | None:
        if transfer_id not in self._entries:
            row = self._raw.execute(f"{_ENTRY_SETTLED} WHERE id = ?", (transfer_id.to_bytes(16),)).fetchone()
            self._entries[transfer_id] = None if row is None else (_entry(row), row[14])
        return self._entries[transfer_id]

    def burnt(self, transfer_id: int) -> bool:
        if transfer_id not in self._burnt:
            self._burnt[transfer_id] = bool(self._among(_BURNT, [transfer_id.to_bytes(16)]))
        return self._burnt[transfer_id]

    def due(self, now_us: int) -> list[Entry]:
        rows = self._raw.execute(
            f"{_ENTRY} WHERE settled IS NULL AND expires_at_us IS NOT NULL AND expires_at_us <= ?", (now_us,)
        )
        return [_entry(row) for row in rows]


def _write(raw: Driver, batch: Batch) -> None:
    raw.executemany(_PUT_ENTRY, [_row(entry) for entry in batch.entries.values()])
    raw.executemany(
        _PUT_BALANCES,
        [
            (a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted, a.id)
            for a in batch.accounts.values()
        ],
    )
    if batch.settled:
        raw.executemany(
            "UPDATE ledger_entry SET settled = ? WHERE id = ?",
            [(how, id.to_bytes(16)) for id, how in batch.settled.items()],
        )
    if batch.failed:
        raw.executemany(
            "INSERT INTO ledger_failed (id, outcome, at_us) VALUES (?, ?, ?)",
            [(id.to_bytes(16), str(why), batch.now_us) for id, why in batch.failed.items()],
        )


def _row(entry: Entry) -> tuple[Any, ...]:
    asked = entry.transfer
    return (
        entry.seq,
        asked.id.to_bytes(16),
        asked.kind,
        asked.linked,
        asked.balancing,
        entry.debit,
        entry.credit,
        asked.amount,
        entry.amount,
        asked.pending_id.to_bytes(16) if asked.pending_id else None,
        asked.timeout_s,
        asked.code,
        asked.ref,
        entry.at_us,
        entry.expires_at_us,
    )


def _entry(row: Sequence[Any]) -> Entry:
    kind = cast("Kind", row[2])
    settles = kind in ("post", "void")
    asked = Transfer(
        id=int.from_bytes(row[1]),
        kind=kind,
        debit="" if settles else row[5],
        credit="" if settles else row[6],
        amount=row[7],
        pending_id=int.from_bytes(row[9]) if row[9] else 0,
        timeout_s=row[10],
        linked=bool(row[3]),
        balancing=bool(row[4]),
        code=row[11],
        ref=row[12],
    )
    return Entry(row[0], asked, row[5], row[6], row[8], row[13])


def _account(row: Sequence[Any]) -> Account:
    return Account(row[0], bool(row[1]), *row[2:])
