"""Invoices: a month of a workspace's transfers as lines, what was paid already, tax, and what is due.

`draft` is made anew as often as wanted; `finalize` gives it its number, and from then on it never changes: it is
voided, or corrected by credit notes on a later invoice. Lines sum up transfers and name them, so an invoice can be
checked against the books to the micro-dollar. Only what is due is rounded to cents; the difference is posted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from nanopod.ledger import chart
from nanopod.ledger.funding import BPS
from nanopod.ledger.funding import credit_line as line_of
from nanopod.ledger.rating import half_even
from nanopod.ledger.recipes import Chain, Move, moves
from nanopod.ledger.statements import month_bounds
from nanopod.ledger.transfers import Entry, id_text
from nanopod.model.errors import Conflict, Invalid

CENT: Final = 10_000
"""Micro-dollars."""
CREDIT: Final = "credit"
"""Code of a credit note's transfers: the invoice that takes the note shows it apart from its lines."""

Status = Literal["draft", "finalized", "voided"]


class Label(msgspec.Struct, frozen=True):
    """How an entry is shown; entries with equal labels but for the quantity are one line."""

    description: str
    sku: str = ""
    meter: str = ""
    unit: str = ""
    quantity: int = 0


class Line(msgspec.Struct, frozen=True):
    """`amount` micro-dollars (negative: given back), and the ids (hex) of the transfers that it sums up."""

    description: str
    sku: str
    meter: str
    unit: str
    quantity: int
    amount: int
    transfers: tuple[str, ...]


class Deduction(msgspec.Struct, frozen=True):
    """What somebody else paid of the lines: a subsidy's funder, or coupons."""

    account: str
    amount: int


class CreditNote(msgspec.Struct, frozen=True):
    """Something taken back from a finalized invoice."""

    id: str
    invoice_id: str
    amount: int
    reason: str
    at_us: int


class Invoice(msgspec.Struct, frozen=True):
    """One month of one workspace. Amounts are micro-dollars but for `total_cents`."""

    id: str
    issuer: str
    workspace_id: str
    month: str
    status: Status
    lines: tuple[Line, ...]
    deductions: tuple[Deduction, ...]
    prepaid: int
    """What was paid out of the prepaid balance when it was used."""
    tax_bps: int = 0
    credit_notes: tuple[CreditNote, ...] = ()
    number: int | None = None
    finalized_us: int | None = None
    voided_us: int | None = None
    currency: str = "USD"
    paid: int = 0
    """What was paid of the total since it is final."""
    paid_us: int | None = None
    """When the last of it was paid."""

    @property
    def fees(self) -> int:
        """The sum of the lines."""
        return sum(line.amount for line in self.lines)

    @property
    def deducted(self) -> int:
        """What subsidies and coupons carry."""
        return sum(deduction.amount for deduction in self.deductions)

    @property
    def tax(self) -> int:
        """Tax on fees less deductions, rounded once."""
        return half_even((self.fees - self.deducted) * self.tax_bps, BPS)

    @property
    def credited(self) -> int:
        """Credit notes taken into account here."""
        return sum(note.amount for note in self.credit_notes)

    @property
    def exact_due(self) -> int:
        """What is left to pay, to the micro-dollar."""
        return self.fees - self.deducted + self.tax - self.credited - self.prepaid

    @property
    def total_cents(self) -> int:
        """What is to be paid: whole cents, a half to the even one."""
        return half_even(self.exact_due, CENT)

    @property
    def rounding(self) -> int:
        """What the rounding to cents adds."""
        return self.total_cents * CENT - self.exact_due


def plain_label(entry: Entry) -> Label:
    """The label of an entry of which nothing else is known: its business and its account."""
    target = entry.credit if _earner(entry.credit) else entry.debit
    family, _, sku = target.partition(":")
    words = {"revenue": "Use", chart.ORDERS: "Market orders", "fees": "Fees"}
    return Label(f"{words[family]} {sku}".strip(), sku)


def draft(
    invoice_id: str,
    issuer: str,
    workspace_id: str,
    month: str,
    entries: Iterable[Entry],
    *,
    label: Callable[[Entry], Label] = plain_label,
    tax_bps: int = 0,
    credit_notes: Sequence[CreditNote] = (),
) -> Invoice:
    """The invoice of a month from the entries that concern the workspace (see `concerning`).

    Holds, sales, and entries of other months are left out. Raises `Invalid`.
    """
    if not 0 <= tax_bps <= BPS:
        raise Invalid(f"tax_bps: {tax_bps} must be from 0 to {BPS}", field="tax_bps")
    start, end = month_bounds(month)
    own = {chart.prepaid(workspace_id): "prepaid", chart.receivable(workspace_id): "owed"}
    lines: dict[Label, tuple[list[str], list[int]]] = {}
    deducted: dict[str, int] = {}
    prepaid = 0
    for entry in entries:
        found = _side(entry)
        if found is None or not start <= entry.at_us < end:
            continue
        payer, amount = found
        if payer in own:
            prepaid += amount if own[payer] == "prepaid" else 0
        elif payer.startswith("subsidy_expense:") or payer == chart.DISCOUNT_EXPENSE:
            deducted[payer] = deducted.get(payer, 0) + amount
        else:
            continue
        shown = label(entry)
        ids, sums = lines.setdefault(msgspec.structs.replace(shown, quantity=0), ([], [0, 0]))
        ids.append(id_text(entry.transfer.id))
        sums[0] += shown.quantity
        sums[1] += amount
    return Invoice(
        invoice_id,
        issuer,
        workspace_id,
        month,
        "draft",
        tuple(
            Line(key.description, key.sku, key.meter, key.unit, sums[0], sums[1], tuple(ids))
            for key, (ids, sums) in lines.items()
        ),
        tuple(Deduction(account, amount) for account, amount in sorted(deducted.items())),
        prepaid,
        tax_bps,
        tuple(credit_notes),
    )


def finalize(invoice: Invoice, number: int, now_us: int) -> Invoice:
    """The invoice with its number, unchangeable from now on. Raises `Conflict` unless it is a draft."""
    if invoice.status != "draft":
        raise Conflict(f"invoice {invoice.id} is {invoice.status}; only a draft is finalized", field="status")
    return msgspec.structs.replace(invoice, status="finalized", number=number, finalized_us=now_us)


def void(invoice: Invoice, now_us: int) -> Invoice:
    """The invoice, declared to be none. It keeps its number. Raises `Conflict` unless it is finalized."""
    if invoice.status != "finalized":
        raise Conflict(f"invoice {invoice.id} is {invoice.status}; only a finalized one is voided", field="status")
    if invoice.paid:
        raise Conflict(f"invoice {invoice.id} is paid, in part at least; only an unpaid one is voided", field="status")
    return msgspec.structs.replace(invoice, status="voided", voided_us=now_us)


def pay(invoice: Invoice, amount: int, now_us: int) -> Invoice:
    """The invoice with a payment. Raises `Conflict` unless it is finalized and open, `Invalid` beyond its rest."""
    if invoice.status != "finalized":
        raise Conflict(f"invoice {invoice.id} is {invoice.status}; only a finalized one is paid", field="status")
    rest = invoice.total_cents * CENT - invoice.paid
    if rest <= 0:
        raise Conflict(f"invoice {invoice.id} has nothing left to pay", field="status")
    if not 0 < amount <= rest:
        raise Invalid(f"amount: {amount} micro-dollars must be above 0 and at most the {rest} left", field="amount")
    return msgspec.structs.replace(invoice, paid=invoice.paid + amount, paid_us=now_us if amount == rest else None)


def line_restored(invoice: Invoice) -> int:
    """How much of the credit line the payments so far give back: tax and rounding were owed, but never used it."""
    total = invoice.total_cents * CENT
    used = total - invoice.tax - invoice.rounding
    return used if invoice.paid >= total else min(invoice.paid, used)


def credit(
    invoice: Invoice, note_id: str, amount: int, reason: str, now_us: int, earlier: Sequence[CreditNote] = ()
) -> CreditNote:
    """A credit note on a finalized invoice. Raises `Conflict` on another one, `Invalid` for more than was billed."""
    if invoice.status != "finalized":
        raise Conflict(f"invoice {invoice.id} is {invoice.status}; only a finalized one is credited", field="status")
    most = invoice.fees - invoice.deducted + invoice.tax - sum(note.amount for note in earlier)
    if not 0 < amount <= most:
        raise Invalid(f"amount: {amount} must be from 1 to the {most} that are left of the invoice", field="amount")
    return CreditNote(note_id, invoice.id, amount, reason, now_us)


# --- what goes into the books ---


def final_postings(invoice: Invoice) -> Chain:
    """Tax and rounding of a finalized invoice. With them, what it adds to the debt is its total, in whole cents."""
    return moves(f"{invoice.id}/final", "tax", _final(invoice), invoice.id)


def void_postings(invoice: Invoice) -> Chain:
    """The reverse of `final_postings`; the use itself is corrected by transfers of its own."""
    back = [(credited, debited, amount) for debited, credited, amount in _final(invoice)]
    return moves(f"{invoice.id}/void", "tax", back, invoice.id)


def credit_postings(note: CreditNote, workspace_id: str, target: str) -> Chain:
    """A credit note lowers what the workspace owes (and restores its line), at the cost of `target`'s revenue."""
    back = [(earner, payer, note.amount) for payer, earner in line_of(workspace_id).legs(target)]
    return moves(note.id, CREDIT, back, note.invoice_id)


def _final(invoice: Invoice) -> list[Move]:
    owed = chart.receivable(invoice.workspace_id)
    wanted: list[Move] = [(owed, chart.TAX, invoice.tax)]
    if invoice.tax < 0:
        wanted = [(chart.TAX, owed, -invoice.tax)]
    if invoice.rounding > 0:
        wanted.append((owed, chart.ROUNDING, invoice.rounding))
    elif invoice.rounding < 0:
        wanted.append((chart.ROUNDING, owed, -invoice.rounding))
    return wanted


def check_lines(invoice: Invoice, entry: Callable[[str], Entry | None]) -> tuple[str, ...]:
    """Where lines and transfers differ; `entry` finds one by its hex id. Empty when they agree."""
    found: list[str] = []
    seen: set[str] = set()
    for line in invoice.lines:
        total = 0
        for id in line.transfers:
            booked = entry(id)
            side = None if booked is None else _side(booked)
            if side is None:
                found.append(f"{line.description}: transfer {id} is not a charge in the books")
                continue
            if id in seen:
                found.append(f"{line.description}: transfer {id} is on the invoice twice")
            seen.add(id)
            total += side[1]
        if total != line.amount:
            found.append(f"{line.description}: {line.amount} differs from the sum of its transfers {total}")
    return tuple(found)


def concerning(entries: Iterable[Entry], workspace_id: str, grants: Iterable[str] = ()) -> list[Entry]:
    """The entries that a workspace's invoice is made of: its own accounts', and what others paid in its place.

    A subsidy's or coupon's expense is found by the `ref` that it shares with an entry of the workspace or its grants.
    """
    own = {chart.prepaid(workspace_id), chart.receivable(workspace_id), *map(chart.grant, grants)}
    every = list(entries)
    refs = {entry.transfer.ref for entry in every if entry.debit in own or entry.credit in own}
    return [
        entry
        for entry in every
        if entry.debit in own or entry.credit in own or (entry.transfer.ref in refs and _carried(entry))
    ]


def _carried(entry: Entry) -> bool:
    side = _side(entry)
    return side is not None and (side[0].startswith("subsidy_expense:") or side[0] == chart.DISCOUNT_EXPENSE)


def _earner(account: str) -> bool:
    return account == chart.ORDERS or account.startswith(("revenue:", "fees:"))


def _side(entry: Entry) -> tuple[str, int] | None:
    """(who pays, how much; negative when given back) of a charge or its refund, None for anything else."""
    if entry.transfer.kind == "pending" or entry.transfer.code in (CREDIT, "sell"):
        return None
    if _earner(entry.credit) and not _earner(entry.debit):
        return entry.debit, entry.amount
    if _earner(entry.debit) and not _earner(entry.credit):
        return entry.credit, -entry.amount
    return None
