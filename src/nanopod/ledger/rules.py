"""The rules of posting, apart from where the books are kept.

`Batch` reads from `Books` (values in memory, or rows of a database), collects changes on top of them and hands them
over at the end. The order in which conditions are tested is part of the rules: it decides which outcome is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from nanopod.ledger.transfers import (
    BALANCE_MAX,
    BATCH_MAX,
    BURNING,
    Account,
    Entry,
    Outcome,
    Result,
    Settlement,
    Transfer,
)
from nanopod.model.errors import Invalid

_ABSENT: Final = object()
_SETTLED: Final[dict[Settlement, Outcome]] = {
    "posted": Outcome.PENDING_TRANSFER_ALREADY_POSTED,
    "voided": Outcome.PENDING_TRANSFER_ALREADY_VOIDED,
    "expired": Outcome.PENDING_TRANSFER_EXPIRED,
}


class Books(Protocol):
    """What the rules need to look up. Every method answers as of one moment."""

    @property
    def seq(self) -> int:
        """Number of the last entry, 0 in empty books."""
        ...

    def account(self, account_id: str) -> Account | None:
        """The account, or None."""
        ...

    def entry(self, transfer_id: int) -> Entry | None:
        """The created transfer of this id, or None."""
        ...

    def settlement(self, transfer_id: int) -> Settlement | None:
        """How this pending transfer ended; None while it is open."""
        ...

    def burnt(self, transfer_id: int) -> bool:
        """True when a transfer of this id failed for a reason of its moment."""
        ...

    def due(self, now_us: int) -> Sequence[Entry]:
        """Open pending transfers whose time is over."""
        ...


class Batch:
    """Transfers applied one after another at one moment; the attributes are what changed."""

    def __init__(self, books: Books, now_us: int) -> None:
        self.books = books
        self.now_us = now_us
        self.accounts: dict[str, Account] = {}
        self.entries: dict[int, Entry] = {}
        """New entries in their order."""
        self.settled: dict[int, Settlement] = {}
        """Pending transfers that ended."""
        self.failed: dict[int, Outcome] = {}
        """Ids that were burnt, and why."""
        self._first = books.seq + 1
        self._undo: list[tuple[dict[Any, Any], Any, Any]] | None = None

    def expire(self) -> None:
        """Give back every hold whose time is over."""
        for held in self.books.due(self.now_us):
            if held.transfer.id not in self.settled:
                self._release(held, 0)
                self._put(self.settled, held.transfer.id, "expired")

    def run(self, transfers: Sequence[Transfer]) -> tuple[Result, ...]:
        """One result per transfer, in order. Expiry comes first. Raises `Invalid` for more than `BATCH_MAX`."""
        if len(transfers) > BATCH_MAX:
            raise Invalid(f"transfers: {len(transfers)} are more than {BATCH_MAX} in one batch", field="transfers")
        self.expire()
        results: list[Result] = []
        start: int | None = None
        broken = False
        last = len(transfers) - 1
        for index, asked in enumerate(transfers):
            if asked.linked and start is None:
                start, broken, self._undo = index, False, []
            if asked.linked and index == last:
                result = Result(asked.id, Outcome.LINKED_EVENT_CHAIN_OPEN)
            elif broken:
                result = Result(asked.id, Outcome.LINKED_EVENT_FAILED)
            else:
                result = self._apply(asked)
            if result.outcome is not Outcome.CREATED:
                if start is not None and not broken:
                    broken = True
                    self._roll_back()
                    results[start:] = [Result(t.id, Outcome.LINKED_EVENT_FAILED) for t in transfers[start:index]]
                if result.outcome in BURNING:
                    self.failed[asked.id] = result.outcome
            results.append(result)
            if start is not None and not asked.linked:
                start, broken, self._undo = None, False, None
        return tuple(results)

    # --- one transfer ---

    def _apply(self, asked: Transfer) -> Result:
        known = self.entries.get(asked.id) or self.books.entry(asked.id)
        if known is not None:
            outcome = _compare(asked, known)
            return Result(asked.id, outcome, known.amount, known.at_us)
        if asked.id in self.failed or self.books.burnt(asked.id):
            return Result(asked.id, Outcome.ID_ALREADY_FAILED)
        if asked.kind == "post" or asked.kind == "void":
            return self._settle(asked)
        return self._move(asked)

    def _move(self, asked: Transfer) -> Result:
        """A `single` or `pending` transfer."""
        if asked.debit == asked.credit:
            return Result(asked.id, Outcome.ACCOUNTS_MUST_BE_DIFFERENT)
        debit = self._account(asked.debit)
        if debit is None:
            return Result(asked.id, Outcome.DEBIT_ACCOUNT_NOT_FOUND)
        credit = self._account(asked.credit)
        if credit is None:
            return Result(asked.id, Outcome.CREDIT_ACCOUNT_NOT_FOUND)
        amount = asked.amount
        if asked.balancing:
            amount = max(0, min(amount, debit.available))
        if debit.debits_pending + debit.debits_posted + amount > BALANCE_MAX:
            return Result(asked.id, Outcome.OVERFLOWS_DEBITS)
        if credit.credits_pending + credit.credits_posted + amount > BALANCE_MAX:
            return Result(asked.id, Outcome.OVERFLOWS_CREDITS)
        if debit.guarded and amount > debit.available:
            return Result(asked.id, Outcome.EXCEEDS_CREDITS)
        held, moved = (amount, 0) if asked.kind == "pending" else (0, amount)
        self._shift(debit, credit, held, moved)
        return self._create(asked, asked.debit, asked.credit, amount)

    def _settle(self, asked: Transfer) -> Result:
        """A `post` or `void` transfer."""
        held = self.entries.get(asked.pending_id) or self.books.entry(asked.pending_id)
        if held is None:
            return Result(asked.id, Outcome.PENDING_TRANSFER_NOT_FOUND)
        if held.transfer.kind != "pending":
            return Result(asked.id, Outcome.PENDING_TRANSFER_NOT_PENDING)
        if asked.kind == "post" and asked.amount > held.amount:
            return Result(asked.id, Outcome.EXCEEDS_PENDING_TRANSFER_AMOUNT)
        ended = self.settled.get(asked.pending_id) or self.books.settlement(asked.pending_id)
        if ended is not None:
            return Result(asked.id, _SETTLED[ended])
        posted = asked.amount if asked.kind == "post" else 0
        self._release(held, posted)
        self._put(self.settled, asked.pending_id, "posted" if asked.kind == "post" else "voided")
        return self._create(asked, held.debit, held.credit, posted)

    # --- balances ---

    def _account(self, account_id: str) -> Account | None:
        return self.accounts.get(account_id) or self.books.account(account_id)

    def _release(self, held: Entry, posted: int) -> None:
        """End a hold; `posted` of it moves for good."""
        debit, credit = self._account(held.debit), self._account(held.credit)
        assert debit is not None and credit is not None, "accounts are never removed"
        self._shift(debit, credit, -held.amount, posted)

    def _shift(self, debit: Account, credit: Account, held: int, moved: int) -> None:
        """Add to the pending and the posted side of both accounts (which differ)."""
        self._put(
            self.accounts,
            debit.id,
            Account(
                debit.id,
                debit.guarded,
                debit.debits_pending + held,
                debit.debits_posted + moved,
                debit.credits_pending,
                debit.credits_posted,
            ),
        )
        self._put(
            self.accounts,
            credit.id,
            Account(
                credit.id,
                credit.guarded,
                credit.debits_pending,
                credit.debits_posted,
                credit.credits_pending + held,
                credit.credits_posted + moved,
            ),
        )

    def _create(self, asked: Transfer, debit: str, credit: str, amount: int) -> Result:
        entry = Entry(self._first + len(self.entries), asked, debit, credit, amount, self.now_us)
        self._put(self.entries, asked.id, entry)
        return Result(asked.id, Outcome.CREATED, amount, self.now_us)

    # --- chains ---

    def _put(self, where: dict[Any, Any], key: object, value: object) -> None:
        if self._undo is not None:
            self._undo.append((where, key, where.get(key, _ABSENT)))
        where[key] = value

    def _roll_back(self) -> None:
        """Undo what the open chain did."""
        assert self._undo is not None, "only a chain is rolled back"
        for where, key, before in reversed(self._undo):
            if before is _ABSENT:
                del where[key]
            else:
                where[key] = before
        self._undo = None


def _compare(asked: Transfer, known: Entry) -> Outcome:
    """The first difference between a transfer and the one that its id already names."""
    old = known.transfer
    if (asked.kind, asked.linked, asked.balancing) != (old.kind, old.linked, old.balancing):
        return Outcome.EXISTS_WITH_DIFFERENT_FLAGS
    if asked.pending_id != old.pending_id:
        return Outcome.EXISTS_WITH_DIFFERENT_PENDING_ID
    if asked.timeout_s != old.timeout_s:
        return Outcome.EXISTS_WITH_DIFFERENT_TIMEOUT
    if asked.debit != old.debit:
        return Outcome.EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT_ID
    if asked.credit != old.credit:
        return Outcome.EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT_ID
    # A balancing transfer asks for a ceiling, so any ceiling that what was moved stays below is the same wish.
    differs = asked.amount < known.amount if asked.balancing else asked.amount != old.amount
    return Outcome.EXISTS_WITH_DIFFERENT_AMOUNT if differs else Outcome.EXISTS
