"""Statements and invoices of a month, as JSON, CSV or a printable page."""

from __future__ import annotations

import hashlib
from typing import Any, Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.ledger import chart, recipes
from nanopod.ledger.invoices import CENT, Invoice, line_restored
from nanopod.ledger.render import (
    invoice_csv,
    invoice_document,
    invoice_html,
    statement_csv,
    statement_html,
    statement_json,
)
from nanopod.ledger.statements import Statement, month_bounds, month_of, statement
from nanopod.ledger.transfers import Entry
from nanopod.model.chain import Key, Workspace
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.model.ids import PREFIXES, base62
from nanopod.model.money import Money
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.balances import amount_of
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.once import REPLAYED, key_of, remember, replayed
from nanopod.server.api.tenants import operator_only, reachable, workspace_of
from nanopod.server.billing.charging import must_post
from nanopod.server.billing.invoicing import make_draft
from nanopod.server.billing.rating import settle
from nanopod.store.transaction import Transaction

FORMATS: Final = {"json": "application/json", "csv": "text/csv", "html": "text/html"}
ACCOUNTS: Final = {
    "prepaid": chart.prepaid,
    "receivable": chart.receivable,
    "supplier_payable": chart.supplier_payable,
}
_ROWS_MAX: Final = 100_000


class InvoiceWish(msgspec.Struct, frozen=True):
    """A month, such as `2026-07`, to be invoiced. `tax_bps` is the tax in hundredths of a percent."""

    month: str
    workspace: str = ""
    tax_bps: int = 0


class Payment(msgspec.Struct, frozen=True):
    """Dollars as decimal text, such as "25.00"; without an amount all that is left. `reference` is for the books."""

    amount: str | None = None
    reference: str = ""


class StatementAnswer(TypedDict):
    """The statement of an account for a month, in micro-dollars."""

    object: str
    account: str
    month: str
    opening: int
    closing: int
    rows: list[dict[str, Any]]


class InvoiceSummary(TypedDict):
    """An invoice without its lines: amounts in micro-dollars, `total` in dollars, due in whole cents."""

    object: str
    id: str
    issuer: str
    workspace_id: str
    month: str
    status: str
    number: int | None
    currency: str
    finalized_us: int | None
    voided_us: int | None
    fees: int
    deducted: int
    tax_bps: int
    tax: int
    credited: int
    prepaid: int
    exact_due: int
    rounding: int
    total_cents: int
    total: str
    paid: int
    paid_us: int | None
    paid_at: int | None


class InvoiceAnswer(InvoiceSummary):
    """An invoice with the lines that it sums up; each names its transfers."""

    lines: list[dict[str, Any]]
    deductions: list[dict[str, Any]]
    credit_notes: list[dict[str, Any]]


def format_of(request: Request) -> str:
    """`?format=`, else what `Accept` prefers of json, csv and html. Raises `Invalid`."""
    wanted = request.query_params.get("format")
    if wanted:
        if wanted not in FORMATS:
            raise Invalid(f"format: {wanted!r} is not one of {', '.join(FORMATS)}", field="format")
        return wanted
    found: list[tuple[float, str]] = []
    for item in request.headers.get("accept", "").split(","):
        kind, *more = (part.strip().lower() for part in item.split(";"))
        weights = [part[2:] for part in more if part.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = 0.0
        found += [(weight, name) for name, mime in FORMATS.items() if kind == mime]
    return max(found, key=lambda pair: pair[0])[1] if found else "json"


def document(body: str | bytes, form: str, name: str) -> Response:
    """A document of one of the formats; CSV is offered as a file."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'} if form == "csv" else {}
    headers["Cache-Control"] = "no-store"
    return Response(body, media_type=FORMATS[form], headers=headers)


def month_arg(request: Request, now: float) -> str:
    """`?month=`, else the present one. Raises `Invalid`."""
    month = request.query_params.get("month") or month_of(int(now * 1_000_000))
    month_bounds(month)
    return month


# --- statements ---


def _statement(read: Transaction, account_id: str, month: str) -> Statement:
    start_us, end_us = month_bounds(month)
    entries: list[Entry] = []
    last: Entry | None = None
    while True:
        some = read.ledger_history(account_id, start_us, end_us, last)
        entries += [entry for entry, _ in some]
        if not some or len(entries) >= _ROWS_MAX:
            break
        last = some[-1][0]
    return statement(account_id, month, read.balance_at(account_id, start_us), entries)


async def get_statement(context: Context, request: Request, key: Key) -> Response:
    """One account of a workspace in a month: opening balance, every entry, closing balance."""
    form = format_of(request)
    month = month_arg(request, context.clock())
    kind = request.query_params.get("account") or "prepaid"
    if kind not in ACCOUNTS:
        raise Invalid(f"account: {kind!r} is not one of {', '.join(ACCOUNTS)}", field="account")
    await settle(context.store, context.clock)

    def read(read: Transaction) -> Statement:
        found = workspace_of(read, key, request.query_params.get("workspace"))
        return _statement(read, ACCOUNTS[kind](found.workspace_id), month)

    made = await context.store.read(read)
    body = statement_csv(made) if form == "csv" else statement_html(made) if form == "html" else statement_json(made)
    return document(body, form, f"statement-{kind}-{month}")


# --- invoices ---


def invoice_id_of(workspace_id: str, month: str, round_: int) -> str:
    """The id of the n-th invoice of a month: a new one only after the last was voided."""
    digest = hashlib.blake2b(f"{workspace_id}/{month}/{round_}".encode(), digest_size=21).digest()
    return PREFIXES["invoice"] + base62(digest, 21)


def shown(invoice: Invoice) -> dict[str, Any]:
    """An invoice as the API shows it: a finalized one without a rest is `paid`."""
    found = invoice_document(invoice)
    if invoice.paid_us is not None:
        found["status"] = "paid"
    found["paid_at"] = None if invoice.paid_us is None else invoice.paid_us // 1_000_000
    return found


def _json(invoice: Invoice) -> bytes:
    return msgspec.json.format(msgspec.json.encode(shown(invoice)), indent=2)


def _skus(read: Transaction) -> dict[str, str]:
    return {sku.sku_id: sku.alias for sku in read.skus()}


def _draft(read: Transaction, found: Workspace, month: str, tax_bps: int) -> Invoice:
    """The draft of a month as the books are now. Raises `Conflict` when it is final already."""
    known = [invoice for invoice in read.invoices(found.workspace_id) if invoice.month == month]
    final = [invoice for invoice in known if invoice.status == "finalized"]
    if final:
        id = final[0].id
        raise Conflict(
            f"month: invoice {id} of {month} is finalized; void it first: POST /v1/invoices/{id}/void", field="month"
        )
    drafts = [invoice for invoice in known if invoice.status == "draft"]
    voided = sum(1 for invoice in known if invoice.status == "voided")
    invoice_id = drafts[0].id if drafts else invoice_id_of(found.workspace_id, month, voided)
    entries = read.month_entries(found.workspace_id, month, (found.workspace_id,))
    lines = read.rated_lines(found.workspace_id, month)
    return make_draft(invoice_id, found.workspace_id, month, entries, lines, _skus(read), tax_bps=tax_bps)


async def create_invoice(context: Context, request: Request, key: Key) -> Response:
    """Draft the invoice of a month from the books; drafting again brings the draft up to date."""
    wish = await body_as(request, InvoiceWish)
    month_bounds(wish.month)
    await settle(context.store, context.clock)
    now_us = int(context.clock() * 1_000_000)

    def write(write: Transaction) -> Invoice:
        operator_only(write, key, "make an invoice")
        found = workspace_of(write, key, wish.workspace or request.query_params.get("workspace"))
        made = _draft(write, found, wish.month, wish.tax_bps)
        write.put_invoice(made, now_us)
        return made

    return answer(shown(await context.store.write(write)), 201)


def _find(read: Transaction, key: Key, invoice_id: str) -> Invoice:
    found = read.invoice(invoice_id)
    if found is not None:
        try:
            workspace_of(read, key, found.workspace_id)
            return found
        except NotFound:
            pass
    raise NotFound(f"there is no invoice {invoice_id!r} here; GET /v1/invoices shows those there are")


async def list_invoices(context: Context, request: Request, key: Key) -> Response:
    """Invoices, newest month first, without their lines."""

    def read(read: Transaction) -> list[Invoice]:
        return [invoice for found in reachable(read, key, request) for invoice in read.invoices(found.workspace_id)]

    found = sorted(await context.store.read(read), key=lambda invoice: (invoice.month, invoice.id), reverse=True)

    def show(invoice: Invoice) -> dict[str, Any]:
        whole = shown(invoice)
        return {name: value for name, value in whole.items() if name not in ("lines", "deductions", "credit_notes")}

    return whole_list(request, found, show)


async def get_invoice(context: Context, request: Request, key: Key) -> Response:
    """One invoice as JSON, CSV or a page to print (`?format=`, or `Accept`)."""
    form = format_of(request)
    found = await context.store.read(lambda read: _find(read, key, request.path_params["id"]))
    body = invoice_csv(found) if form == "csv" else invoice_html(found) if form == "html" else _json(found)
    return document(body, form, f"invoice-{found.month}")


async def finalize_invoice(context: Context, request: Request, key: Key) -> Response:
    """Give a draft its number; from then on it never changes. Only a month that is over is finalized."""
    now = context.clock()
    await settle(context.store, context.clock)

    def write(write: Transaction) -> Invoice:
        operator_only(write, key, "finalize an invoice")
        known = _find(write, key, request.path_params["id"])
        if month_bounds(known.month)[1] > int(now * 1_000_000):
            raise Conflict(
                f"month: {known.month} is not over, so more may come; finalize it in the next month", field="month"
            )
        if known.status == "draft":
            found = workspace_of(write, key, known.workspace_id)
            write.put_invoice(_draft(write, found, known.month, known.tax_bps), int(now * 1_000_000))
        return write.finalize_invoice(known.id, int(now * 1_000_000))

    return answer(shown(await context.store.write(write)))


async def void_invoice(context: Context, request: Request, key: Key) -> Response:
    """Declare a finalized invoice void; its month can be drafted anew."""
    now = context.clock()

    def write(write: Transaction) -> Invoice:
        operator_only(write, key, "void an invoice")
        known = _find(write, key, request.path_params["id"])
        return write.void_invoice(known.id, int(now * 1_000_000))

    return answer(shown(await context.store.write(write)))


async def pay_invoice(context: Context, request: Request, key: Key) -> Response:
    """Record a payment of a finalized invoice. With an Idempotency-Key, a repeat records nothing."""
    wish = await body_as(request, Payment)
    asked = None if wish.amount is None else amount_of(wish.amount, least=1)
    idempotency, now, business = key_of(request), context.clock(), context.new_id("event")

    def write(write: Transaction) -> tuple[Invoice, bool]:
        operator_only(write, key, "record a payment")
        known = _find(write, key, request.path_params["id"])
        if replayed(write, known.workspace_id, f"pay/{known.id}", idempotency) is not None:
            return known, False
        amount = _payable(write, known, asked)
        paid = write.pay_invoice(known.id, amount, int(now * 1_000_000))
        line = line_restored(paid) - line_restored(known)
        chain = recipes.payment(business, known.workspace_id, amount, wish.reference or known.id, line=line)
        with context.desk.session(write, now) as market:
            must_post(write, chain, int(now * 1_000_000))
            market.balance_changed(known.workspace_id)
        remember(write, known.workspace_id, f"pay/{known.id}", idempotency, business, now)
        write.add_notice(now, known.workspace_id, "invoice.payment", known.id, {"amount": str(Money(amount))})
        return paid, True

    found, fresh = await context.store.write(write)
    return answer(shown(found), 201 if fresh else 200, {} if fresh else REPLAYED)


def _payable(read: Transaction, invoice: Invoice, asked: int | None) -> int:
    """Micro-dollars of a payment: what is asked, else all that is left. Raises `Invalid` beyond what is owed."""
    account = read.ledger_account(chart.receivable(invoice.workspace_id))
    owed = max(0, -account.balance) if account is not None else 0
    rest = invoice.total_cents * CENT - invoice.paid
    most = min(owed, rest)
    if invoice.status == "finalized" and rest > 0 and not 0 < (most if asked is None else asked) <= most:
        text = f"{Money(rest)} dollars of the invoice are left, and the workspace owes {Money(owed)}"
        raise Invalid(f"amount: at most {Money(most)} dollars can be paid: {text}", field="amount")
    return most if asked is None else asked


_TEXT: Final = "Also as text/csv and as text/html, a page to print."
_FORMAT: Final = Query("format", "The form of the document; else what `Accept` prefers.", values=tuple(FORMATS))
OPERATIONS: Final = (
    Operation(
        "GET", "/v1/statements", get_statement, "The statement of an account of a workspace for a month", scope="read",
        query=(
            Query("month", "Such as 2026-07; the present one unless given.", pattern=r"^\d{4}-\d{2}$"), "workspace",
            Query("account", "Which account.", values=tuple(ACCOUNTS), default="prepaid"), _FORMAT,
        ),
        answer=StatementAnswer, text=_TEXT,
    ),
    Operation(
        "POST", "/v1/invoices", create_invoice, "Draft the invoice of a month", body=InvoiceWish,
        query=("workspace",), answer=InvoiceAnswer, status=201, errors=(403, 404, 409),
    ),
    Operation(
        "GET", "/v1/invoices", list_invoices, "List invoices", scope="read",
        query=("workspace", "limit", "starting_after"), answer=InvoiceSummary, listed=True,
    ),
    Operation(
        "GET", "/v1/invoices/{id}", get_invoice, "One invoice", scope="read", query=(_FORMAT,), answer=InvoiceAnswer,
        errors=(404,), text=_TEXT,
    ),
    Operation(
        "POST", "/v1/invoices/{id}/finalize", finalize_invoice, "Finalize an invoice", answer=InvoiceAnswer,
        errors=(403, 404, 409),
    ),
    Operation(
        "POST", "/v1/invoices/{id}/pay", pay_invoice, "Record a payment of an invoice", body=Payment,
        answer=InvoiceAnswer, status=201, once=True, errors=(403, 404, 409),
    ),
    Operation(
        "POST", "/v1/invoices/{id}/void", void_invoice, "Void an invoice", answer=InvoiceAnswer, errors=(403, 404, 409)
    ),
)  # fmt: skip
