"""Statements and invoices for people: a card, then their lines. Amounts in them are whole micro-dollars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.session import Session
from nanopod.client.prices import money_text
from nanopod.model.money import Money

_SUMS: Final = ("prepaid", "fees", "deducted", "tax", "credited", "exact_due", "rounding")


def micro(row: Mapping[str, Any], name: str) -> str | None:
    """A field of micro-dollars as dollars."""
    return None if row.get(name) is None else money_text(Money(int(row[name])))


def _money(name: str) -> Any:
    return lambda row: micro(row, name)


def statement(session: Session, found: Mapping[str, Any]) -> None:
    """One account in one month: what it began with, every entry, what it ended with."""
    show.print_card([
        ("ACCOUNT", found.get("account")), ("MONTH", found.get("month")), ("OPENING", micro(found, "opening")),
        ("CLOSING", micro(found, "closing")),
    ])  # fmt: skip
    columns: list[show.Column] = [
        ("AT", lambda row: session.when(int(row.get("at_us") or 0) / 1_000_000)), ("KIND", show.field("code")),
        ("AMOUNT", _money("amount")), ("BALANCE", _money("balance")), ("OTHER", show.field("other")),
        ("REFERENCE", show.field("ref")),
    ]  # fmt: skip
    print()
    show.print_rows(found.get("rows") or (), columns, empty="nothing moved this account in this month")


def invoice(session: Session, found: Mapping[str, Any]) -> None:
    """One month of one workspace: its lines, what carries part of them, the total."""
    when = {name: found.get(f"{name}_us") for name in ("finalized", "paid", "voided")}
    show.print_card([
        ("INVOICE ID", found.get("id")), ("NUMBER", found.get("number")), ("WORKSPACE", found.get("workspace_id")),
        ("MONTH", found.get("month")), ("STATUS", found.get("status")),
        *((name.upper(), session.when(at / 1_000_000)) for name, at in when.items() if at),
        *((name.upper().replace("_", " "), micro(found, name)) for name in _SUMS if found.get(name)),
        ("TOTAL", f"{money_text(found.get('total'))} {found.get('currency') or ''}".rstrip()),
    ])  # fmt: skip
    columns: list[show.Column] = [
        ("DESCRIPTION", show.field("description")), ("INSTANCE SKU", show.field("sku")),
        ("QUANTITY", lambda row: row.get("quantity") or None), ("UNIT", show.field("unit")),
        ("AMOUNT", _money("amount")),
    ]  # fmt: skip
    print()
    show.print_rows(found.get("lines") or (), columns, empty="no lines: nothing was used or traded")
    if found.get("deductions"):
        print()
        titles: list[show.Column] = [("DEDUCTION", show.field("description")), ("AMOUNT", _money("amount"))]
        show.print_rows(found["deductions"], titles, empty="")
