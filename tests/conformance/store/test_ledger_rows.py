"""The ledger through either store: racing writers, invoices with numbers, what a refusal undoes, and random traffic."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from nanopod.ledger import chart, funding, recipes
from nanopod.ledger.funding import Part
from nanopod.ledger.invoices import check_lines, draft
from nanopod.ledger.statements import month_bounds, statement
from nanopod.ledger.transfers import Account, Outcome, Result, verdict
from nanopod.model.errors import Conflict, NotFound
from nanopod.store.ledger import HISTORY_MAX, LedgerRows
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

Run = Callable[[Callable[[GroupStore], Any]], Any]
START, END = month_bounds("2026-07")
W = "wksp_1"
SKU = "isku_1"


def rows(transaction: Transaction) -> LedgerRows:
    return LedgerRows(transaction.connection)


async def post(store: GroupStore, chain: recipes.Chain, now_us: int = START) -> tuple[Result, ...]:
    def write(transaction: Transaction) -> tuple[Result, ...]:
        rows(transaction).open_accounts(chart.accounts_of(chain))
        return rows(transaction).post_transfers(chain, now_us)

    return await store.write(write)


async def done(store: GroupStore, chain: recipes.Chain, now_us: int = START) -> None:
    assert verdict(await post(store, chain, now_us)) is Outcome.CREATED


async def account(store: GroupStore, account_id: str) -> Account:
    found = await store.read(lambda read: rows(read).ledger_account(account_id))
    assert found is not None
    return found


async def sound(store: GroupStore) -> None:
    assert await store.read(lambda read: rows(read).check_ledger()) == ()


def test_racing_callers_never_overspend(with_store: Run) -> None:
    """40 callers hold, post and void at once; a serial loop afterwards uses the rest to the last micro-dollar."""

    async def test(store: GroupStore) -> None:
        await done(store, recipes.top_up("p", W, 10_000))
        spent = 0
        draw = random.Random(7)

        async def caller(who: int) -> None:
            nonlocal spent
            for n in range(25):
                key = f"{who}/{n}"
                hold = recipes.Hold(key, chart.revenue(SKU), (Part(funding.prepaid(W), draw.randint(1, 60)),))
                if verdict(await post(store, hold.chain())) is not Outcome.CREATED:
                    continue
                used = draw.choice([0, hold.amount, draw.randint(0, hold.amount)])
                await done(store, recipes.settle(f"{key}/s", hold, used)[0])
                spent += used

        await asyncio.gather(*(caller(n) for n in range(40)))
        seen = await account(store, chart.prepaid(W))
        assert seen.debits_pending == 0
        assert seen.debits_posted == spent <= 10_000
        n = 0
        while (
            verdict(await post(store, recipes.use(f"r{n}", [Part(funding.prepaid(W), 7)], chart.revenue(SKU))))
            is Outcome.CREATED
        ):
            n += 1
        assert (await account(store, chart.prepaid(W))).available == (10_000 - spent) % 7
        await sound(store)

    with_store(test)


def test_a_function_that_fails_takes_its_postings_back(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        await done(store, recipes.top_up("p", W, 100))

        def bad(write: Transaction) -> None:
            rows(write).post_transfers(recipes.use("u", [Part(funding.prepaid(W), 5)], chart.CASH), START)
            raise Conflict("somebody was faster")

        with pytest.raises(Conflict):
            await store.write(bad)
        assert (await account(store, chart.prepaid(W))).available == 100
        await done(store, recipes.use("u", [Part(funding.prepaid(W), 5)], chart.CASH))
        await sound(store)

    with_store(test)


def test_histories_come_in_pages_and_balances_at_a_time(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        await done(store, recipes.top_up("p", W, 10**9), START - 1)
        for page in range(3):
            many = recipes.moves(f"m{page}", "use", [(chart.prepaid(W), chart.revenue(SKU), 1 + n) for n in range(500)])
            await done(store, many, START + page)
        name = chart.prepaid(W)
        first = await store.read(lambda read: rows(read).ledger_history(name))
        assert len(first) == HISTORY_MAX
        rest = await store.read(lambda read: rows(read).ledger_history(name, after=first[-1][0]))
        assert [entry.seq for entry, _ in first + rest] == list(range(1, 1_502))
        last = await store.read(lambda read: rows(read).ledger_history(name, START + 2, after=first[5][0]))
        assert {entry.at_us for entry, _ in last} == {START + 2}, "a page begins where both limits allow"
        month = await store.read(lambda read: rows(read).ledger_history(name, START + 1, START + 2))
        assert {entry.at_us for entry, _ in month} == {START + 1}
        assert await store.read(lambda read: rows(read).balance_at(name, START)) == 10**9
        made = statement(name, "2026-07", 10**9, [entry for entry, _ in first + rest])
        assert made.closing == (await account(store, name)).balance
        assert await store.read(lambda read: rows(read).balance_at(name, END)) == made.closing
        assert [each.id for each in await store.read(lambda read: rows(read).ledger_accounts("prepaid:"))] == [name]

    with_store(test)


async def used(store: GroupStore, workspace: str, amount: int) -> None:
    await done(store, recipes.set_line(f"l/{workspace}", workspace, 10**9))
    await done(store, recipes.issue_grant(f"g/{workspace}", f"grnt_{workspace}", 10**6))
    parts = (
        Part(funding.subsidy(f"grnt_{workspace}", "city", 5_000), amount // 2),
        Part(funding.credit_line(workspace), amount - amount // 2),
    )
    await done(store, recipes.use(f"u/{workspace}", parts, chart.revenue(SKU), f"req/{workspace}"), START + 5)
    all_subsidised = parts[:1]
    await done(store, recipes.use(f"v/{workspace}", all_subsidised, chart.revenue(SKU), f"req2/{workspace}"), START + 6)


async def drafted(store: GroupStore, workspace: str) -> str:
    def write(transaction: Transaction) -> str:
        entries = rows(transaction).month_entries(workspace, "2026-07", [f"grnt_{workspace}"])
        made = draft(f"inv_{workspace}", "np", workspace, "2026-07", entries, tax_bps=1_900)
        rows(transaction).put_invoice(made, START)
        return made.id

    return await store.write(write)


def test_invoices_are_numbered_without_gaps(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        ids = []
        for n in range(5):
            await used(store, f"w{n}", 12_345 + n)
            ids.append(await drafted(store, f"w{n}"))

        def fails(write: Transaction) -> None:
            rows(write).finalize_invoice(ids[0], END)
            raise Conflict("no")

        with pytest.raises(Conflict):
            await store.write(fails)
        finals = await asyncio.gather(
            *(store.write(lambda write, id=id: rows(write).finalize_invoice(id, END)) for id in reversed(ids))
        )
        assert sorted(final.number or 0 for final in finals) == [1, 2, 3, 4, 5]
        again = await store.write(lambda write: rows(write).finalize_invoice(ids[2], END + 9))
        assert again == finals[2], "a repeat gives no second number"
        await sound(store)

    with_store(test)


def test_an_invoice_from_the_database(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        await used(store, "w1", 12_345)
        await used(store, "w2", 999)
        await drafted(store, "w1")
        id = await drafted(store, "w1")
        final = await store.write(lambda write: rows(write).finalize_invoice(id, END))
        assert final.fees == 12_345 + 6_172
        assert final.deducted == 2 * 6_172
        entries = await store.read(lambda read: rows(read).month_entries("w1", "2026-07", ["grnt_w1"]))
        known = {f"{entry.transfer.id:032x}": entry for entry in entries}
        assert check_lines(final, known.get) == ()
        owed = await account(store, chart.receivable("w1"))
        assert -owed.balance == final.total_cents * 10_000
        with pytest.raises(Conflict, match="finalized"):
            await drafted(store, "w1")
        gone = await store.write(lambda write: rows(write).void_invoice(id, END + 1))
        assert gone.status == "voided"
        assert (await account(store, chart.TAX)).balance == 0
        assert await store.read(lambda read: rows(read).invoices("w1")) == [gone]
        for act in (LedgerRows.finalize_invoice, LedgerRows.void_invoice):
            with pytest.raises(Conflict, match="voided"):
                await store.write(lambda write, act=act: act(rows(write), id, END + 2))
            with pytest.raises(NotFound):
                await store.write(lambda write, act=act: act(rows(write), "inv_x", END + 2))
        await sound(store)

    with_store(test)
