"""The ledger as a value: `post` returns the next ledger and leaves the old one as it was.

Reading and posting on the newest ledger costs as much as on a plain dict. An older one that is still in use pays for
its own copy when it is read: histories are kept by whoever wants them, at their cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from nanopod.ledger.rules import Batch
from nanopod.ledger.transfers import Account, Entry, Outcome, Result, Settlement, Transfer
from nanopod.model.errors import Conflict

K = TypeVar("K")
V = TypeVar("V")
_ABSENT: Final = object()


class Versions(Mapping[K, V], Generic[K, V]):
    """An immutable mapping whose newest version owns the dict; older ones know what was different in them.

    (Baker's shallow binding.) `plus` costs what changes. An older version that is read makes itself a copy.
    """

    __slots__ = ("_data", "_newer", "_undo")

    def __init__(self, data: dict[K, V] | None = None) -> None:
        self._data: dict[K, V] | None = {} if data is None else data
        self._newer: Versions[K, V] | None = None
        self._undo: dict[K, object] = {}

    def plus(self, changes: Mapping[K, V]) -> Versions[K, V]:
        """This mapping with `changes` on top."""
        if not changes:
            return self
        data = self._own()
        undo: dict[K, object] = {key: data.get(key, _ABSENT) for key in changes}
        data.update(changes)
        newer = Versions(data)
        self._data, self._newer, self._undo = None, newer, undo
        return newer

    def _own(self) -> dict[K, V]:
        if self._data is not None:
            return self._data
        steps: list[dict[K, object]] = []
        version: Versions[K, V] = self
        while version._data is None:
            steps.append(version._undo)
            assert version._newer is not None, "a version without data has a newer one"
            version = version._newer
        data: dict[K, object] = dict(version._data)
        for undo in reversed(steps):
            for key, before in undo.items():
                if before is _ABSENT:
                    del data[key]
                else:
                    data[key] = before
        self._data, self._newer, self._undo = data, None, {}  # type: ignore[assignment]
        return self._data  # type: ignore[return-value]

    def __getitem__(self, key: K) -> V:
        return self._own()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())


Deadlines = tuple[int, int, int, "Deadlines", "Deadlines"] | None
"""A leftist heap: (rank, deadline in us, transfer id, left, right). Immutable, log n."""


def _merge(a: Deadlines, b: Deadlines) -> Deadlines:
    if a is None:
        return b
    if b is None:
        return a
    if (b[1], b[2]) < (a[1], a[2]):
        a, b = b, a
    left, right = a[3], _merge(a[4], b)
    if (left[0] if left else 0) < (right[0] if right else 0):
        left, right = right, left
    return ((right[0] if right else 0) + 1, a[1], a[2], left, right)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Accounts, entries and what became of holds. Make one with `Ledger()`, change it with `open_accounts`, `post`."""

    accounts: Versions[str, Account] = field(default_factory=Versions)
    entries: Versions[int, Entry] = field(default_factory=Versions)
    """By transfer id, in the order of `seq`."""
    settled: Versions[int, Settlement] = field(default_factory=Versions)
    failed: Versions[int, Outcome] = field(default_factory=Versions)
    deadlines: Deadlines = None
    seq: int = 0

    def account(self, account_id: str) -> Account | None:
        """The account, or None."""
        return self.accounts.get(account_id)

    def entry(self, transfer_id: int) -> Entry | None:
        """The created transfer of this id, or None."""
        return self.entries.get(transfer_id)

    def settlement(self, transfer_id: int) -> Settlement | None:
        """How a pending transfer ended; None while it is open."""
        return self.settled.get(transfer_id)

    def burnt(self, transfer_id: int) -> bool:
        """True when a transfer of this id failed for a reason of its moment."""
        return transfer_id in self.failed

    def due(self, now_us: int) -> Sequence[Entry]:
        """Open pending transfers whose time is over."""
        found: list[Entry] = []
        heap = self.deadlines
        while heap is not None and heap[1] <= now_us:
            if heap[2] not in self.settled:
                found.append(self.entries[heap[2]])
            heap = _merge(heap[3], heap[4])
        return found

    def history(self, account_id: str, start_us: int = 0, end_us: int | None = None) -> tuple[Entry, ...]:
        """Entries that touch an account with `start_us <= at < end_us`, oldest first. Reads every entry."""
        return tuple(
            entry
            for entry in self.entries.values()
            if account_id in (entry.debit, entry.credit)
            and start_us <= entry.at_us
            and (end_us is None or entry.at_us < end_us)
        )


def open_accounts(ledger: Ledger, accounts: Iterable[Account]) -> Ledger:
    """The ledger with these accounts, each empty; those it has already are left alone.

    Raises `Conflict` when an account exists with another guard.
    """
    new: dict[str, Account] = {}
    for account in accounts:
        known = new.get(account.id) or ledger.account(account.id)
        new_one = fresh(account, known)
        if new_one is not None:
            new[account.id] = new_one
    return Ledger(
        ledger.accounts.plus(new), ledger.entries, ledger.settled, ledger.failed, ledger.deadlines, ledger.seq
    )


def fresh(account: Account, known: Account | None) -> Account | None:
    """The empty account to add, or None when `known` is the same one. Raises `Conflict` when its guard differs."""
    if known is None:
        return Account(account.id, account.guarded)
    if known.guarded != account.guarded:
        raise Conflict(
            f"account {account.id} exists and is {'' if known.guarded else 'not '}guarded; a guard is chosen once",
            field="guarded",
        )
    return None


def post(ledger: Ledger, transfers: Sequence[Transfer], now_us: int) -> tuple[Ledger, tuple[Result, ...]]:
    """Apply transfers in order at `now_us`; holds whose time is over give their amount back first.

    Never raises for what a transfer asks: each has its own outcome. Raises `Invalid` for an over-long batch.
    """
    batch = Batch(ledger, now_us)
    results = batch.run(transfers)
    return _after(ledger, batch), results


def expire(ledger: Ledger, now_us: int) -> Ledger:
    """Only give back the holds whose time is over."""
    return post(ledger, (), now_us)[0]


def _after(ledger: Ledger, batch: Batch) -> Ledger:
    heap = ledger.deadlines
    while heap is not None and heap[1] <= batch.now_us:
        heap = _merge(heap[3], heap[4])
    for entry in batch.entries.values():
        deadline = entry.expires_at_us
        if deadline is not None:
            heap = _merge(heap, (1, deadline, entry.transfer.id, None, None))
    return Ledger(
        ledger.accounts.plus(batch.accounts),
        ledger.entries.plus(batch.entries),
        ledger.settled.plus(batch.settled),
        ledger.failed.plus(batch.failed),
        heap,
        ledger.seq + len(batch.entries),
    )


def check(ledger: Ledger) -> tuple[str, ...]:
    """What is wrong with the books; empty when nothing is.

    Debits equal credits, pending and posted; no guarded account is below zero; every balance is the sum of its
    entries.
    """
    wanted: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for entry in ledger.entries.values():
        if entry.transfer.kind != "pending":
            wanted[entry.debit][1] += entry.amount
            wanted[entry.credit][3] += entry.amount
        elif ledger.settlement(entry.transfer.id) is None:
            wanted[entry.debit][0] += entry.amount
            wanted[entry.credit][2] += entry.amount
    return problems(ledger.accounts.values(), wanted)


def problems(accounts: Iterable[Account], wanted: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """What contradicts the invariants, given the sums of entries per account (in the order of the four balances)."""
    found: list[str] = []
    total = [0, 0, 0, 0]
    for account in accounts:
        seen = [account.debits_pending, account.debits_posted, account.credits_pending, account.credits_posted]
        total = [a + b for a, b in zip(total, seen, strict=True)]
        if seen != list(wanted.get(account.id, (0, 0, 0, 0))):
            found.append(f"{account.id}: balances {seen} are not the sum of its entries")
        if account.guarded and account.available < 0:
            found.append(f"{account.id}: guarded and below zero by {-account.available}")
        if min(seen) < 0:
            found.append(f"{account.id}: a balance is negative")
    if total[0] != total[2]:
        found.append(f"pending debits {total[0]} differ from pending credits {total[2]}")
    if total[1] != total[3]:
        found.append(f"posted debits {total[1]} differ from posted credits {total[3]}")
    return tuple(found)
