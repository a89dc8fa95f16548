"""Months, and the statement of one account: opening balance, every entry, closing balance."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from nanopod.ledger.transfers import Entry, id_text
from nanopod.model.errors import Invalid

_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def month_bounds(month: str) -> tuple[int, int]:
    """`[start, end)` of a month such as `2026-07` in microseconds, UTC. Raises `Invalid`."""
    found = _MONTH.fullmatch(month)
    if found is None or not 1970 <= int(found[1]) <= 9998:
        raise Invalid(f"month: {month!r} is not a month such as 2026-07", field="month")
    year, number = int(found[1]), int(found[2])
    start = datetime(year, number, 1, tzinfo=UTC)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(start.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000


def month_of(at_us: int) -> str:
    """The month (UTC) of an instant."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m")


def instant(at_us: int) -> str:
    """An instant as text, to the second, UTC."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Row(msgspec.Struct, frozen=True):
    """One entry as its account sees it: `amount` is positive for money in; `balance` is the one after it."""

    at_us: int
    transfer: str
    code: str
    ref: str
    other: str
    amount: int
    balance: int


class Statement(msgspec.Struct, frozen=True):
    """What happened on one account in one month, in micro-dollars."""

    account: str
    month: str
    opening: int
    closing: int
    rows: tuple[Row, ...]


def statement(account_id: str, month: str, opening: int, entries: Iterable[Entry]) -> Statement:
    """The statement of an account from its entries, oldest first. Holds are not in it: they move nothing.

    Entries outside the month or of other accounts are left out.
    """
    start, end = month_bounds(month)
    balance = opening
    rows: list[Row] = []
    for entry in entries:
        if entry.transfer.kind == "pending" or not start <= entry.at_us < end or not entry.amount:
            continue
        if entry.credit == account_id:
            amount, other = entry.amount, entry.debit
        elif entry.debit == account_id:
            amount, other = -entry.amount, entry.credit
        else:
            continue
        balance += amount
        asked = entry.transfer
        rows.append(Row(entry.at_us, id_text(asked.id), asked.code, asked.ref, other, amount, balance))
    return Statement(account_id, month, opening, balance, tuple(rows))
