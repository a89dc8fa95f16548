"""`nanopod billing`: balances, what moved them, statements and invoices, and what was used."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import documents, show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Option, Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

GROUPS: Final = ("endpoint", "key", "day", "kind")
FORMATS: Final = {"json": "application/json", "csv": "text/csv", "html": "text/html"}


def _money(name: str) -> Any:
    return lambda _session, row: None if row.get(name) is None else prices.money_text(row[name])


BALANCES: Final = Noun(
    "balance", "billing balance", "/v1/balances",
    columns=[
        ("WORKSPACE", field_of("workspace")), ("CURRENT", _money("current")), ("HOLDS", _money("holds")),
        ("AVAILABLE", _money("available")), ("OVERAGE LIMIT", _money("overage_limit")),
    ],
    wide=[("ID", field_of("id"))],
    empty="no balances",
)  # fmt: skip
TRANSACTIONS: Final = Noun(
    "transaction", "billing transactions", "/v1/transactions",
    columns=[
        ("AT", moment_of("at")), ("KIND", field_of("kind")), ("AMOUNT", _money("amount")),
        ("BALANCE", _money("balance_after")), ("REFERENCE", field_of("reference")),
    ],
    wide=[("ID", field_of("id")), ("WORKSPACE", field_of("workspace"))],
    empty="nothing moved money",
)  # fmt: skip
INVOICES: Final = Noun(
    "invoice", "billing invoices", "/v1/invoices",
    columns=[
        ("INVOICE ID", field_of("id")), ("MONTH", field_of("month")), ("STATUS", field_of("status")),
        ("NUMBER", field_of("number")), ("TOTAL", _money("total")),
    ],
    wide=[("WORKSPACE", field_of("workspace_id"))],
    empty="no invoices; make one with: nanopod billing invoices create --month 2026-01",
)  # fmt: skip


def balance(session: Session) -> int:
    """The balance of the workspace; the operator sees all."""
    page = session.api.get(BALANCES.path, **session.scope)
    if session.json:
        show.print_json(page)
        return 0
    rows = page.get("data", [])
    if len(rows) == 1:
        BALANCES.card(session, rows[0])
    else:
        BALANCES.table(session, rows)
    return 0


def _default_workspace(session: Session) -> str:
    return str(session.args.workspace or session.api.get("/v1/me").get("workspace_id") or "default")


def top_up(session: Session) -> int:
    """Add a payment to a balance."""
    amount = prices.dollars(session.args.amount, "amount")
    path = session.path(BALANCES.path, _default_workspace(session), "top_up")
    BALANCES.card(session, session.api.post(path, {"amount": amount, **_named(session)}, once=True))
    return 0


def pay_back(session: Session) -> int:
    """Give prepaid money back."""
    amount = prices.dollars(session.args.amount, "amount")
    path = session.path(BALANCES.path, _default_workspace(session), "pay_back")
    BALANCES.card(session, session.api.post(path, {"amount": amount, **_named(session)}, once=True))
    return 0


def _named(session: Session) -> dict[str, str]:
    return {"reference": session.args.reference} if session.args.reference else {}


def overage(session: Session) -> int:
    """Say how far a balance may go below zero."""
    path = session.path(BALANCES.path, _default_workspace(session), "overage_limit")
    BALANCES.card(session, session.api.post(path, {"amount": prices.dollars(session.args.amount, "amount")}))
    return 0


def _transactions_query(session: Session) -> Mapping[str, Any]:
    args = session.args
    after = session.time(args.created_after, "created-after", past=True)
    before = session.time(args.created_before, "created-before", past=True)
    return {
        "kind": args.kind, "created_after": None if after is None else int(after),
        "created_before": None if before is None else int(before),
    }  # fmt: skip


# --- documents ---


def month_of(session: Session) -> str:
    """`--month`, or the current one. Raises `Invalid`."""
    typed: str | None = session.args.month
    if typed is None:
        return session.zone.at(session.now).strftime("%Y-%m")
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", typed):
        raise Invalid(f"--month {typed!r} is no month; write 2026-01", field="month")
    return typed


def _document(session: Session, path: str, shown: Callable[[Session, dict[str, Any]], None], **query: Any) -> int:
    """Print a document in the wanted format; as JSON, or for people its lines and totals."""
    form = session.args.format
    if form and form != "json":
        text = session.api.raw("GET", path, accept=FORMATS[form], **session.scope, **query, format=form)
        if session.args.file:
            with open(session.args.file, "wb") as file:
                file.write(text)
        else:
            sys.stdout.write(text.decode("utf-8", "replace"))
        return 0
    found = session.api.get(path, **session.scope, **query)
    if session.json or form == "json":
        show.print_json(found)
        return 0
    shown(session, found)
    return 0


def statement(session: Session) -> int:
    """The statement of a month."""
    query = {"month": month_of(session), "account": session.args.account}
    return _document(session, "/v1/statements", documents.statement, **query)


def get_invoice(session: Session) -> int:
    """One invoice."""
    return _document(session, session.path(INVOICES.path, session.args.id), documents.invoice)


def _invoice(session: Session, found: dict[str, Any]) -> None:
    if session.json:
        show.print_json(found)
    else:
        documents.invoice(session, found)


def create_invoice(session: Session) -> int:
    """Make the draft of a month's invoice."""
    _invoice(session, session.api.post(INVOICES.path, {**session.scope, "month": month_of(session)}))
    return 0


def _step(name: str) -> Any:
    def run(session: Session) -> int:
        path = session.path(INVOICES.path, session.args.id, name)
        _invoice(session, session.api.post(path, **session.scope))
        return 0

    return run


def pay_invoice(session: Session) -> int:
    """Record a payment of a finalized invoice."""
    body = _named(session)
    if session.args.amount:
        body["amount"] = prices.dollars(session.args.amount, "amount")
    path = session.path(INVOICES.path, session.args.id, "pay")
    _invoice(session, session.api.post(path, body, once=True, **session.scope))
    return 0


# --- usage ---


def usage(session: Session) -> int:
    """Requests, tokens and compute time, with totals."""
    args = session.args
    query = {"group_by": args.by, "start": _seconds(session, "start"), "end": _seconds(session, "end")}
    found = session.api.get("/v1/usage", **session.scope, **query)
    if session.json:
        show.print_json(found)
        return 0
    rows = [*found.get("data", []), {**found.get("total", {}), "_total": True}]
    show.print_rows(rows, columns(args.by), empty="nothing was used")
    return 0


def columns(group: str) -> list[show.Column]:
    """The table's columns; the last row is the total."""

    def name(row: Mapping[str, Any]) -> Any:
        if row.get("_total"):
            return "TOTAL"
        return row.get(f"{group}_name") or row.get(group)

    return [
        (group.upper(), name),
        ("REQUESTS", lambda row: row.get("requests", 0)),
        ("PROMPT TOKENS", lambda row: row.get("prompt_tokens", 0)),
        ("COMPLETION TOKENS", lambda row: row.get("completion_tokens", 0)),
        ("COMPUTE", lambda row: f"{row.get('compute_us', 0) / 1e6:.3f} s"),
    ]


def _seconds(session: Session, name: str) -> float | None:
    """Unix seconds of an option, which may be an ISO time as ever or any other form."""
    text: str | None = getattr(session.args, name)
    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return session.time(text, name, past=True)


_MONTH: Final = option("--month", metavar="YYYY-MM", help="default: this month")
_FORMAT: Final[tuple[Option, ...]] = (
    option("--format", choices=tuple(FORMATS), help="print the document itself"),
    option("-f", "--file", metavar="FILE", help="write it to a file"),
)
_AMOUNT: Final = option("amount", metavar="$", help="dollars, such as 25.00")
_REFERENCE: Final = option("--reference", metavar="TEXT", help="the payment's own name, for the books")
_ACCOUNT: Final = option("--account", metavar="KIND", help="of the books: prepaid (default), receivable, ...")
_INVOICE: Final = option("id", metavar="ID", completes=INVOICES.path, help="an invoice's id")
configure, run = commands(
    Verb("balance", "show what there is, what is held, what can be spent", balance, (),
         ("nanopod billing balance", "nanopod billing balance --workspace research")),
    replace(TRANSACTIONS.list_verb(
        option("--kind", action="append", metavar="KIND", help="top_up, hold, buy, sell, ...; may be repeated"),
        option("--created-after", "--since", metavar="TIME"), option("--created-before", "--until", metavar="TIME"),
        query=_transactions_query, examples=('nanopod billing transactions --since "in -24h"',),
    ), name="transactions", aliases=()),
    Verb("statement", "show a month: what came in, what went out", statement, (_MONTH, _ACCOUNT, *_FORMAT),
         ("nanopod billing statement --month 2026-01", "nanopod billing statement --format html -f january.html")),
    Verb("invoices", "make, show and finalize invoices", verbs=(
        INVOICES.list_verb(examples=("nanopod billing invoices list",)),
        Verb("get", "show one invoice", get_invoice, (_INVOICE, *_FORMAT),
             ("nanopod billing invoices get inv_... --format csv",), aliases=("show",)),
        Verb("create", "make the draft of a month's invoice", create_invoice, (_MONTH,),
             ("nanopod billing invoices create --month 2026-01",)),
        Verb("finalize", "close a draft; it never changes again", _step("finalize"), (_INVOICE,),
             ("nanopod billing invoices finalize inv_...",)),
        Verb("pay", "record a payment of a finalized invoice (operator)", pay_invoice,
             (_INVOICE, option("--amount", metavar="$", help="dollars (default: all that is left)"), _REFERENCE),
             ("nanopod billing invoices pay inv_... --amount 25.00",)),
        Verb("void", "withdraw a finalized invoice", _step("void"), (_INVOICE,),
             ("nanopod billing invoices void inv_...",)),
    )),
    Verb("top-up", "add a payment to a balance (operator)", top_up,
         (_AMOUNT, _REFERENCE), ("nanopod billing top-up 25.00 --workspace research",)),
    Verb("pay-back", "give prepaid money back (operator)", pay_back, (_AMOUNT, _REFERENCE),
         ("nanopod billing pay-back 5.00 --workspace research",)),
    Verb("overage-limit", "say how far a balance may go below zero (operator)", overage, (_AMOUNT,),
         ("nanopod billing overage-limit 100.00 --workspace research",)),
    Verb("usage", "show requests, tokens and compute time, with totals", usage,
         (option("--by", choices=GROUPS, default="endpoint", help="rows (default: endpoint)"),
          option("--start", metavar="TIME", help="from this time or date on"),
          option("--end", metavar="TIME", help="before this time or date")),
         ("nanopod billing usage --by key --start 2026-01-31",)),
)  # fmt: skip
