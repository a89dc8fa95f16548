"""Statements and invoices: lines are sums of transfers, totals add up, and what is final stays as it is."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

import pytest
from ledger_books import PureBooks, done

from nanopod.ledger import chart, funding, orders, recipes
from nanopod.ledger.funding import Part, split
from nanopod.ledger.invoices import (
    Invoice,
    Label,
    check_lines,
    concerning,
    credit,
    credit_postings,
    draft,
    final_postings,
    finalize,
    void,
    void_postings,
)
from nanopod.ledger.render import (
    invoice_csv,
    invoice_from_json,
    invoice_html,
    invoice_json,
    statement_csv,
    statement_html,
    statement_json,
)
from nanopod.ledger.statements import month_bounds, month_of, statement
from nanopod.ledger.transfers import Entry, id_text
from nanopod.model.errors import Conflict, Invalid

W = "wksp_1"
START, END = month_bounds("2026-07")
REVENUE = chart.revenue("isku_h100")


def left(books: PureBooks, account_id: str) -> int:
    account = books.account(account_id)
    return 0 if account is None else account.available


def of(books: PureBooks, account_id: str) -> int:
    account = books.account(account_id)
    return 0 if account is None else account.balance


def july() -> PureBooks:
    """A month with every way of paying, a refund, holds, market orders, a sale and a neighbour."""
    books = PureBooks()
    done(books, recipes.top_up("p0", W, 1_000_000), START - 1)
    done(books, recipes.use("early", [Part(funding.prepaid(W), 5)], REVENUE), START - 1)
    done(books, recipes.set_line("l", W, 100_000_000), START)
    done(books, recipes.issue_grant("g", "grnt_1", 3_000_000), START)
    done(books, recipes.top_up("n", "wksp_2", 50_000_000), START)
    sources = [funding.subsidy("grnt_1", "city", 5_000), funding.prepaid(W), funding.credit_line(W)]
    for n in range(3):
        parts = split(2_190_001, sources, lambda id: left(books, id), charged_before=2_190_001 * n)
        hold = recipes.Hold(f"h{n}", REVENUE, parts, f"req_{n}", 600, 2_190_001 * n)
        done(books, hold.chain(), START + n)
        done(books, recipes.settle(f"s{n}", hold, 2_190_001 - 7 * n)[0], START + n)
    done(books, recipes.refund("back", [Part(funding.credit_line(W), 1_234)], REVENUE, "req_2"), START + 9)
    bought = orders.order_hold("ordr_1", (Part(funding.credit_line(W), 500),))
    done(books, bought.chain(), START + 10)
    done(
        books,
        orders.fill("cont_1", bought, 400, 0, 0, orders.Seller("prov", provider=True), "isku_h100")[0],
        START + 11,
    )
    other = orders.order_hold("ordr_2", (Part(funding.prepaid("wksp_2"), 900),))
    done(books, other.chain(), START + 12)
    done(books, orders.fill("cont_2", other, 900, 9, 0, orders.Seller(W), "isku_h100")[0], START + 13)
    done(books, recipes.use("neighbour", [Part(funding.prepaid("wksp_2"), 77)], REVENUE), START + 14)
    done(books, recipes.use("late", [Part(funding.credit_line(W), 11)], REVENUE), END)
    return books


def invoice_of(books: PureBooks, tax_bps: int = 0, **more: object) -> Invoice:
    entries = concerning(books.ledger.entries.values(), W, ["grnt_1"])
    return draft("inv_1", "np", W, "2026-07", entries, tax_bps=tax_bps, **more)  # type: ignore[arg-type]


def find(books: PureBooks, id: str) -> Entry | None:
    return books.ledger.entry(int(id, 16))


def test_an_invoice_is_the_sum_of_its_transfers() -> None:
    books = july()
    made = invoice_of(books)
    assert check_lines(made, lambda id: find(books, id)) == ()
    used = 3 * 2_190_001 - 21
    assert made.fees == used - 1_234 + 400 + 9, "use, refund, order, seller's fee; not the sale, holds or neighbours"
    assert {line.description: line.amount for line in made.lines} == {
        "Use isku_h100": used - 1_234,
        "Market orders": 400,
        "Fees isku_h100": 9,
    }
    subsidised = -of(books, "subsidy_expense:city")
    assert [(each.account, each.amount) for each in made.deductions] == [("subsidy_expense:city", subsidised)]
    assert made.prepaid == 999_995 + 9
    owed = -of(books, chart.receivable(W)) - 11
    assert made.exact_due == owed, "what is left to pay is what the books say is owed"


@pytest.mark.parametrize("tax_bps", [0, 100, 777, 1_900, 2_000])
def test_finalizing_brings_the_debt_to_whole_cents(tax_bps: int) -> None:
    books = july()
    made = finalize(invoice_of(books, tax_bps), 7, END + 5)
    assert made.tax == round((made.fees - made.deducted) * tax_bps / 10_000)
    assert abs(made.rounding) <= 5_000
    assert made.rounding != 0, "the example needs rounding"
    before = of(books, chart.receivable(W))
    done(books, final_postings(made), END + 5)
    after = of(books, chart.receivable(W))
    assert after - before == -(made.tax + made.rounding)
    assert -(after + 11) == made.total_cents * 10_000
    assert of(books, chart.TAX) == made.tax
    done(books, void_postings(void(made, END + 6)), END + 6)
    assert of(books, chart.receivable(W)) == before
    assert (of(books, chart.TAX), of(books, chart.ROUNDING)) == (0, 0)


def test_the_life_of_an_invoice() -> None:
    first = invoice_of(july())
    with pytest.raises(Conflict, match="draft"):
        void(first, 1)
    with pytest.raises(Conflict, match="draft"):
        credit(first, "cn_1", 1, "x", 1)
    final = finalize(first, 1, 5)
    assert (final.status, final.number, final.finalized_us) == ("finalized", 1, 5)
    with pytest.raises(Conflict, match="finalized"):
        finalize(final, 2, 6)
    gone = void(final, 9)
    assert (gone.status, gone.number, gone.voided_us) == ("voided", 1, 9)
    with pytest.raises(Conflict, match="voided"):
        void(gone, 10)
    assert gone.lines == first.lines


def test_credit_notes_lower_the_next_invoice() -> None:
    books = july()
    final = finalize(invoice_of(books), 1, END)
    most = final.fees - final.deducted
    note = credit(final, "cn_1", 1_000, "node was slow", END + 1)
    with pytest.raises(Invalid, match="left of the invoice"):
        credit(final, "cn_2", most, "all", END + 2, [note])
    assert credit(final, "cn_2", most - 1_000, "rest", END + 2, [note]).amount == most - 1_000
    before = of(books, chart.receivable(W))
    done(books, credit_postings(note, W, REVENUE), END + 1)
    assert of(books, chart.receivable(W)) == before + 1_000
    entries = concerning(books.ledger.entries.values(), W)
    august = draft("inv_2", "np", W, "2026-08", entries, credit_notes=[note])
    assert (august.fees, august.credited, august.exact_due) == (11, 1_000, -989), "the note is not a line as well"


def test_labels_group_and_count() -> None:
    books = july()

    def label(entry: Entry) -> Label:
        return Label("GPU time", "isku_h100", "gpu_active_time", "ms", 3_600)

    made = invoice_of(books, label=label)
    assert len(made.lines) == 1
    assert made.lines[0].quantity == 3_600 * len(made.lines[0].transfers)
    with pytest.raises(Invalid, match="tax_bps"):
        invoice_of(books, 10_001)


def test_an_invoice_that_lies_is_found_out() -> None:
    books = july()
    made = invoice_of(books)
    text = invoice_json(made).decode()
    wrong = invoice_from_json(
        text.replace(f'"amount": {made.lines[0].amount}', f'"amount": {made.lines[0].amount + 1}')
    )
    assert any("differs" in problem for problem in check_lines(wrong, lambda id: find(books, id)))
    assert any("not a charge" in problem for problem in check_lines(made, lambda id: None))
    twice = text.replace(made.lines[0].transfers[0], made.lines[0].transfers[1])
    assert any("twice" in problem for problem in check_lines(invoice_from_json(twice), lambda id: find(books, id)))


# --- statements ---


def test_a_statement_runs_from_opening_to_closing() -> None:
    books = july()
    account = chart.prepaid(W)
    made = statement(account, "2026-07", 999_995, books.ledger.history(account))
    assert made.opening + sum(row.amount for row in made.rows) == made.closing == of(books, account)
    assert [row.balance for row in made.rows][-1] == made.closing
    assert all(START <= row.at_us < END for row in made.rows)
    assert {row.code for row in made.rows} == {"use", "sell", "fee"}
    assert statement(account, "2026-09", 5, books.ledger.history(account)).closing == 5


@pytest.mark.parametrize(
    ("month", "start", "end"),
    [("2026-07", 1_782_864_000, 1_785_542_400), ("2026-12", 1_796_083_200, 1_798_761_600), ("2024-02", 1_706_745_600, 1_709_251_200)],
)  # fmt: skip
def test_months(month: str, start: int, end: int) -> None:
    assert month_bounds(month) == (start * 1_000_000, end * 1_000_000)
    assert month_of(start * 1_000_000) == month_of(end * 1_000_000 - 1) == month
    assert month_of(end * 1_000_000) != month


@pytest.mark.parametrize("month", ["2026-13", "2026-7", "26-07", "", "9999-12", "2026-07-01"])
def test_what_is_no_month(month: str) -> None:
    with pytest.raises(Invalid, match="month"):
        month_bounds(month)


# --- documents ---


class Page(HTMLParser):
    """Collects tags, and text outside of style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_json_goes_there_and_back() -> None:
    final = finalize(invoice_of(july(), 1_900), 42, END)
    document = json.loads(invoice_json(final))
    assert (document["object"], document["number"], document["fees"]) == ("invoice", 42, final.fees)
    assert document["total"] == f"{final.total_cents // 100}.{final.total_cents % 100:02d}0000"
    assert invoice_from_json(invoice_json(final)) == final


def test_csv_adds_up_and_runs_no_formulas() -> None:
    books = july()
    evil = invoice_of(books, label=lambda entry: Label('=HYPERLINK("http://x","y")'))
    rows = list(csv.DictReader(io.StringIO(invoice_csv(evil))))
    assert sum(int(row["amount_micro"]) for row in rows if row["kind"] == "line") == evil.fees
    due = sum(int(row["amount_micro"]) for row in rows if row["kind"] not in ("line", "total"))
    assert due == int(rows[-1]["amount_micro"]) == evil.total_cents * 10_000
    assert rows[0]["description"].startswith("'=")
    lines = list(csv.reader(io.StringIO(statement_csv(statement("cash", "2026-07", -5, books.ledger.history("cash"))))))
    assert lines[1][-1] == "-5", "negative amounts stay numbers"


def test_html_is_self_contained_and_escaped() -> None:
    books = july()
    evil = finalize(invoice_of(books, label=lambda entry: Label("<script>alert('x')</script> & \"co\"")), 3, END)
    page = Page()
    page.feed(invoice_html(evil))
    assert "script" not in page.tags
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    text = "".join(page.words)
    assert "<script>alert('x')</script> & \"co\"" in text
    assert "Invoice np-000003" in text
    assert f"{evil.total_cents / 100:.2f}0000" in text
    assert "Draft invoice" in invoice_html(invoice_of(books))


def test_statements_as_documents() -> None:
    books = july()
    account = chart.prepaid(W)
    made = statement(account, "2026-07", 999_995, books.ledger.history(account))
    document = json.loads(statement_json(made))
    assert document["closing"] == made.closing
    assert document["rows"][0]["transfer"] == made.rows[0].transfer
    assert id_text(int(made.rows[0].transfer, 16)) == made.rows[0].transfer
    page = Page()
    page.feed(statement_html(made))
    assert page.tags.count("tr") == len(made.rows) + 5
    assert len(list(csv.reader(io.StringIO(statement_csv(made))))) == len(made.rows) + 3
