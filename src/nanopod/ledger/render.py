"""Invoices and statements as JSON, CSV and printable HTML. Amounts are micro-dollars and, beside them, dollars."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

import msgspec

from nanopod.ledger.invoices import CENT, Invoice
from nanopod.ledger.statements import Statement, instant
from nanopod.model.money import Money

_STYLE: Final = (
    "body{font:14px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:60rem;margin:2rem auto}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}"
    "th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ccc;vertical-align:top}"
    ".n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "tr.total td{font-weight:bold;border-top:2px solid #111}"
    "small{color:#555;overflow-wrap:anywhere}"
    "@media print{body{margin:0;max-width:none}thead{display:table-header-group}tr{break-inside:avoid}}"
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def dollars(micro: int) -> str:
    """Micro-dollars as decimal dollars with 6 decimals."""
    return str(Money(micro))


def invoice_document(invoice: Invoice) -> dict[str, Any]:
    """The invoice as plain values, with every sum spelled out."""
    fields: dict[str, Any] = msgspec.to_builtins(invoice)
    sums = {name: getattr(invoice, name) for name in ("fees", "deducted", "tax", "credited", "exact_due", "rounding")}
    return {
        "object": "invoice",
        **fields,
        **sums,
        "total_cents": invoice.total_cents,
        "total": dollars(invoice.total_cents * CENT),
    }


def invoice_json(invoice: Invoice) -> bytes:
    """The invoice as JSON."""
    return msgspec.json.format(msgspec.json.encode(invoice_document(invoice)), indent=2)


def invoice_from_json(document: bytes | str) -> Invoice:
    """What `invoice_json` wrote; sums are computed anew."""
    return msgspec.json.decode(document, type=Invoice)


def invoice_csv(invoice: Invoice) -> str:
    """One row per line, then one per sum."""
    head = ("kind", "description", "sku", "meter", "quantity", "unit", "amount_micro", "amount_dollars", "transfers")
    rows: list[Sequence[object]] = [
        ("line", line.description, line.sku, line.meter, line.quantity, line.unit, *_both(line.amount),
         " ".join(line.transfers))
        for line in invoice.lines
    ]  # fmt: skip
    rows += [(kind, words, "", "", "", "", *_both(amount), "") for kind, words, amount in _sums(invoice)]
    return _csv(head, rows)


def invoice_html(invoice: Invoice) -> str:
    """A page of its own: no script, nothing to load, ready to print."""
    title = f"Invoice {invoice.issuer}-{invoice.number:06d}" if invoice.number is not None else "Draft invoice"
    facts = [("Issuer", invoice.issuer), ("Workspace", invoice.workspace_id), ("Month", invoice.month)]
    facts += [("Status", invoice.status), ("Id", invoice.id)]
    if invoice.finalized_us is not None:
        facts.append(("Issued", instant(invoice.finalized_us)))
    if invoice.voided_us is not None:
        facts.append(("Voided", instant(invoice.voided_us)))
    if invoice.paid_us is not None:
        facts.append(("Paid", instant(invoice.paid_us)))
    lines = [
        (
            line.description,
            f"{line.quantity:,} {line.unit}" if line.unit else "",
            str(len(line.transfers)),
            dollars(line.amount),
        )
        for line in invoice.lines
    ]
    sums = [(words, "", "", dollars(amount)) for _, words, amount in _sums(invoice)]
    table = _table(("Description", "Quantity", "Transfers", f"Amount ({invoice.currency})"), [*lines, *sums], numeric=3)
    return _page(title, facts, table)


def statement_json(statement: Statement) -> bytes:
    """The statement as JSON."""
    return msgspec.json.format(msgspec.json.encode({"object": "statement", **msgspec.to_builtins(statement)}), indent=2)


def statement_csv(statement: Statement) -> str:
    """One row per entry, between a row for the opening and one for the closing balance."""
    head = ("at", "code", "ref", "other_account", "transfer", "amount_micro", "amount_dollars", "balance_micro")
    rows: list[Sequence[object]] = [("", "opening", "", "", "", "", "", statement.opening)]
    rows += [
        (instant(row.at_us), row.code, row.ref, row.other, row.transfer, *_both(row.amount), row.balance)
        for row in statement.rows
    ]
    rows.append(("", "closing", "", "", "", "", "", statement.closing))
    return _csv(head, rows)


def statement_html(statement: Statement) -> str:
    """A page of its own: no script, nothing to load, ready to print."""
    rows = [
        (instant(row.at_us), row.code, row.ref, dollars(row.amount), dollars(row.balance)) for row in statement.rows
    ]
    opening = ("", "opening balance", "", "", dollars(statement.opening))
    closing = ("", "closing balance", "", "", dollars(statement.closing))
    table = _table(("Time", "Kind", "Reference", "Amount (USD)", "Balance (USD)"), [opening, *rows, closing], numeric=2)
    return _page(f"Statement {statement.month}", [("Account", statement.account), ("Month", statement.month)], table)


def _sums(invoice: Invoice) -> list[tuple[str, str, int]]:
    """(kind, words, micro-dollars), down to the total."""
    rows = [("fees", "Fees", invoice.fees)]
    rows += [("deduction", f"Carried by {each.account}", -each.amount) for each in invoice.deductions]
    if invoice.tax_bps:
        rows.append(("tax", f"Tax {invoice.tax_bps / 100:g} %", invoice.tax))
    rows += [("credit_note", f"Credit note {note.id}: {note.reason}", -note.amount) for note in invoice.credit_notes]
    rows.append(("prepaid", "Paid from the prepaid balance", -invoice.prepaid))
    if invoice.rounding:
        rows.append(("rounding", "Rounding to cents", invoice.rounding))
    return [*rows, ("total", "Total due", invoice.total_cents * CENT)]


def _both(micro: int) -> tuple[int, str]:
    return micro, dollars(micro)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets a quote in front; amounts stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_amount(value):
        return f"'{value}"
    return value


def _is_amount(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdecimal()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: int) -> str:
    """Columns from number `numeric` on are right-aligned; the last row is the total."""

    def cells(tag: str, row: Sequence[str]) -> str:
        right = f'<{tag} class="n">'
        return "".join(f"{right if n >= numeric else f'<{tag}>'}{escape(text)}</{tag}>" for n, text in enumerate(row))

    body = [f"<tr>{cells('td', row)}</tr>" for row in rows]
    body[-1] = body[-1].replace("<tr>", '<tr class="total">', 1)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _page(title: str, facts: Iterable[tuple[str, str]], table: str) -> str:
    shown = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><table>{shown}</table>{table}"
        "<p><small>All amounts in dollars; times in UTC.</small></p></body></html>\n"
    )
