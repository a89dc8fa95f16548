"""Accounts, transfers between them, and what became of each transfer.

A transfer moves an amount from its debit account to its credit account ("debit X, credit Y" reads X -> Y) and is never
changed. Two-phase transfers hold first (`pending`) and then `post` a part of the hold or `void` it. The rules are those
of TigerBeetle, whose names the outcomes keep. Amounts are integer micro-dollars, times integer microseconds since 1970.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final, Literal

import msgspec

from nanopod.model.errors import Invalid

AMOUNT_MAX: Final = 10**15
"""Largest amount of one transfer: a thousand million dollars."""
BALANCE_MAX: Final = 2**63 - 1
"""Largest sum one side of an account can hold: what a database integer holds."""
TIMEOUT_S_MAX: Final = 10 * 366 * 86_400
ID_MAX: Final = 2**128 - 1
BATCH_MAX: Final = 1_000
"""Most transfers that are posted together."""

Kind = Literal["single", "pending", "post", "void"]
KINDS: Final = ("single", "pending", "post", "void")
Settlement = Literal["posted", "voided", "expired"]
"""How a pending transfer ended."""


class Outcome(StrEnum):
    """What became of one transfer. Only `created` moved money; `exists` says that the same transfer did earlier."""

    CREATED = "created"
    EXISTS = "exists"
    EXISTS_WITH_DIFFERENT_FLAGS = "exists_with_different_flags"
    EXISTS_WITH_DIFFERENT_PENDING_ID = "exists_with_different_pending_id"
    EXISTS_WITH_DIFFERENT_TIMEOUT = "exists_with_different_timeout"
    EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT_ID = "exists_with_different_debit_account_id"
    EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT_ID = "exists_with_different_credit_account_id"
    EXISTS_WITH_DIFFERENT_AMOUNT = "exists_with_different_amount"
    ID_ALREADY_FAILED = "id_already_failed"
    PENDING_TRANSFER_NOT_FOUND = "pending_transfer_not_found"
    PENDING_TRANSFER_NOT_PENDING = "pending_transfer_not_pending"
    EXCEEDS_PENDING_TRANSFER_AMOUNT = "exceeds_pending_transfer_amount"
    PENDING_TRANSFER_ALREADY_POSTED = "pending_transfer_already_posted"
    PENDING_TRANSFER_ALREADY_VOIDED = "pending_transfer_already_voided"
    PENDING_TRANSFER_EXPIRED = "pending_transfer_expired"
    ACCOUNTS_MUST_BE_DIFFERENT = "accounts_must_be_different"
    DEBIT_ACCOUNT_NOT_FOUND = "debit_account_not_found"
    CREDIT_ACCOUNT_NOT_FOUND = "credit_account_not_found"
    EXCEEDS_CREDITS = "exceeds_credits"
    OVERFLOWS_DEBITS = "overflows_debits"
    OVERFLOWS_CREDITS = "overflows_credits"
    LINKED_EVENT_FAILED = "linked_event_failed"
    LINKED_EVENT_CHAIN_OPEN = "linked_event_chain_open"


BURNING: Final = frozenset(
    {
        Outcome.PENDING_TRANSFER_NOT_FOUND,
        Outcome.DEBIT_ACCOUNT_NOT_FOUND,
        Outcome.CREDIT_ACCOUNT_NOT_FOUND,
        Outcome.EXCEEDS_CREDITS,
    }
)
"""Outcomes that depend on the moment. The id is burnt: a late duplicate cannot spend money that came meanwhile."""


class Account(msgspec.Struct, frozen=True):
    """Four balances that only grow, but for the pending ones. A guarded account never owes more than it was given."""

    id: str
    guarded: bool = False
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0

    @property
    def available(self) -> int:
        """What may still be debited if the account is guarded: credits less debits, held ones included."""
        return self.credits_posted - self.debits_posted - self.debits_pending

    @property
    def balance(self) -> int:
        """Posted credits less posted debits: holds are not looked at. An asset or expense shows as negative."""
        return self.credits_posted - self.debits_posted


class Transfer(msgspec.Struct, frozen=True):
    """What a client asks for. A `post` or `void` names its `pending_id` only; accounts come from there.

    `linked` ties it to the next one of the batch: all of such a chain, or none. `balancing` moves at most what the
    debit account has left. `timeout_s` (pending only; 0: never) returns a forgotten hold. `code` says what kind of
    business this is, `ref` which one: parts of one charge share it. Raises `Invalid` naming the field.
    """

    id: int
    kind: Kind
    debit: str = ""
    credit: str = ""
    amount: int = 0
    pending_id: int = 0
    timeout_s: int = 0
    linked: bool = False
    balancing: bool = False
    code: str = ""
    ref: str = ""

    def __post_init__(self) -> None:
        _whole("id", self.id, 1, ID_MAX)
        _whole("amount", self.amount, 0, AMOUNT_MAX)
        if self.kind == "post" or self.kind == "void":
            _whole("pending_id", self.pending_id, 1, ID_MAX)
            if self.pending_id == self.id:
                raise Invalid("pending_id: a transfer cannot settle itself; name the pending one", field="pending_id")
            if self.debit or self.credit:
                raise Invalid(f"debit: a {self.kind} takes its accounts from its pending transfer", field="debit")
            if self.kind == "void" and self.amount:
                raise Invalid("amount: a void returns the whole hold; leave the amount out", field="amount")
            if self.balancing:
                raise Invalid(f"balancing: a {self.kind} moves what its pending transfer holds", field="balancing")
        elif self.kind in KINDS:
            if self.pending_id:
                raise Invalid(f"pending_id: only post and void have one, not {self.kind}", field="pending_id")
            for field, value in (("debit", self.debit), ("credit", self.credit)):
                if not value:
                    raise Invalid(f"{field}: a {self.kind} transfer needs an account", field=field)
        else:
            raise Invalid(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}", field="kind")
        if self.timeout_s:
            _whole("timeout_s", self.timeout_s, 0, TIMEOUT_S_MAX)
            if self.kind != "pending":
                raise Invalid(f"timeout_s: only a pending transfer expires, not a {self.kind}", field="timeout_s")


class Entry(msgspec.Struct, frozen=True):
    """A transfer that was created: what was asked, and what it moved (or holds) between which accounts."""

    seq: int
    """Position in the books, 1 upwards without gaps."""
    transfer: Transfer
    debit: str
    credit: str
    amount: int
    at_us: int

    @property
    def expires_at_us(self) -> int | None:
        """When a pending transfer gives its amount back by itself; None: never."""
        return self.at_us + self.transfer.timeout_s * 1_000_000 if self.transfer.timeout_s else None


class Result(msgspec.Struct, frozen=True):
    """The answer to one transfer; `amount` and `at_us` are those of the entry where there is one, else 0."""

    id: int
    outcome: Outcome
    amount: int = 0
    at_us: int = 0

    @property
    def done(self) -> bool:
        """True when the books hold this very transfer, from now or from before."""
        return self.outcome is Outcome.CREATED or self.outcome is Outcome.EXISTS


def transfer_id(key: str, part: str = "") -> int:
    """The id of `part` of the business that a client calls `key`: the same words always give the same 128 bits."""
    words = f"{key}\x00{part}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=16).digest()) or 1


def id_text(id: int) -> str:
    """An id as 32 hex digits, as documents show it."""
    return f"{id:032x}"


def verdict(results: tuple[Result, ...]) -> Outcome:
    """The one answer to a chain: `created`, `exists` when it was done before, else the culprit's code."""
    for result in results:
        if result.outcome not in (Outcome.CREATED, Outcome.LINKED_EVENT_FAILED):
            return result.outcome
    return Outcome.LINKED_EVENT_FAILED if any(not result.done for result in results) else Outcome.CREATED


def _whole(field: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise Invalid(f"{field}: {value!r} must be a whole number from {low} to {high}", field=field)
