"""Usage into money: each final record once, rounding once a line, nothing that ever blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.ledger import chart, recipes
from nanopod.ledger.balance import balance
from nanopod.ledger.invoices import check_lines
from nanopod.ledger.plans import Plan, Prices, on_demand, subsidised
from nanopod.model.chain import Instance, Workspace
from nanopod.model.wire import MeterRecord
from nanopod.server.billing import rating
from nanopod.server.billing.charging import must_post
from nanopod.server.billing.invoicing import make_draft
from nanopod.server.billing.pricing import PlanWish, PriceList, plan_of, show_plan
from nanopod.store.charges import RatedLine
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

NOW = 1_800_000_000.0
"""2027-01-15 08:00 UTC."""
WORKSPACE = "wksp_a"


class Till:
    """A store with one workspace, and a clock that is set by hand."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path)
        self.now = NOW

    async def open(self, plan: Plan | None, cents: int = 1000) -> None:
        """The workspace with its plan and some money."""

        def write(write: Transaction) -> None:
            write.add_workspace(Workspace(WORKSPACE, "a", "acct_a", NOW))
            if cents:
                must_post(write, recipes.top_up("first", WORKSPACE, cents * 10_000), int(NOW * 1e6))
            if plan is not None:
                rating.begin(write, NOW)
                write.put_plan(WORKSPACE, msgspec.json.encode(plan).decode(), NOW)

        await self.store.write(write)

    async def put(self, *records: MeterRecord) -> None:
        await self.store.write(lambda write: write.put_usage(records))

    async def settle(self) -> int:
        return await rating.settle(self.store, lambda: self.now)

    async def spent(self, cents: int = 1000) -> int:
        """Micro-dollars that left the balance."""
        held = await self.store.read(lambda read: balance(WORKSPACE, read.ledger_account))
        return cents * 10_000 - held.current

    async def account(self, account_id: str) -> int:
        found = await self.store.read(lambda read: read.ledger_account(account_id))
        return found.balance if found else 0

    async def sound(self) -> None:
        assert await self.store.read(lambda read: read.check_ledger()) == ()


def with_till(tmp_path: Path, test: Callable[[Till], Any]) -> None:
    async def run() -> None:
        till = Till(tmp_path / "nanopod.db")
        try:
            await test(till)
            await till.sound()
        finally:
            await till.store.close()

    asyncio.run(run())


def record(number: int, tokens: int = 1000, **more: Any) -> MeterRecord:
    made = MeterRecord(
        f"r{number}", f"q{number}", WORKSPACE, "key", "endp", "rev", "inst", "chat", 200, tokens, 0, 0, NOW, NOW, NOW
    )
    return msgspec.structs.replace(made, **more)


def test_without_a_plan_nothing_is_charged_later_either(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(None)
        await till.put(*(record(n) for n in range(10)))
        assert await till.settle() == 0
        text = msgspec.json.encode(on_demand(Prices(input_per_mtok=1_000_000))).decode()

        def subscribe(write: Transaction) -> None:
            rating.begin(write, NOW)
            write.put_plan(WORKSPACE, text, NOW)

        await till.store.write(subscribe)
        assert await till.settle() == 0
        await till.put(record(11))
        assert await till.settle() == 1000
        assert await till.spent() == 1000

    with_till(tmp_path, run)


def test_a_line_is_rounded_once(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=333_333)))
        for n in range(10):  # each alone is 0.333333 micro-dollars
            await till.put(record(n, 1))
            await till.settle()
        assert await till.spent() == 3
        lines = await till.store.read(lambda read: read.rated_lines(WORKSPACE, "2027-01"))
        (line,) = [line for line in lines if line.meter == "input_tokens"]
        assert (line.meter, line.units, line.events, line.posted) == ("input_tokens", 10, 10, 3)

    with_till(tmp_path, run)


def test_a_record_is_charged_once_however_often_it_comes(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=1_000_000, per_request=7)))
        for _ in range(3):
            await till.put(record(1), record(2))
            await till.settle()
        assert await till.spent() == 2 * (1000 + 7)

    with_till(tmp_path, run)


def test_a_running_stream_is_charged_when_it_is_over(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=1_000_000)))
        import time

        at = time.time()
        await till.put(record(1, 400, status=0, t_end=at))
        assert await till.settle() == 0
        await till.put(record(2, 10))
        assert await till.settle() == 10
        await till.put(record(1, 700, status=0, t_end=at + 1))
        assert await till.settle() == 0
        await till.put(record(1, 900, t_end=at + 2))
        assert await till.settle() == 900
        assert await till.settle() == 0
        await till.put(record(3, 50, status=0, t_end=at - rating.OPEN_S_MAX - 1))
        assert await till.settle() == 50, "its gateway is gone: what was delivered is charged"
        cursor = rating.load_cursor(await till.store.read(lambda read: read.setting(rating.CURSOR)))
        assert cursor.open == ()

    with_till(tmp_path, run)


def test_failed_requests_are_free(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=1_000_000, per_request=1_000)))
        await till.put(record(1, status=500), record(2, status=400), record(3))
        assert await till.settle() == 2_000

    with_till(tmp_path, run)


def test_what_cannot_be_paid_is_bad_debt_and_blocks_nothing(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=1_000_000)), cents=1)
        await till.put(record(1, 25_000), record(2, 5_000))
        assert await till.settle() == 30_000
        assert await till.spent(1) == 10_000
        assert await till.account(chart.BAD_DEBT) == -20_000
        assert await till.account(chart.revenue("inference")) == 30_000

    with_till(tmp_path, run)


def test_the_credit_line_pays_after_the_prepaid_money(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=1_000_000)), cents=1)
        line = recipes.set_line("line", WORKSPACE, 50_000)
        await till.store.write(lambda write: must_post(write, line, int(NOW * 1e6)))
        await till.put(record(1, 30_000))
        await till.settle()
        assert await till.account(chart.receivable(WORKSPACE)) == -20_000
        assert await till.account(chart.credit_line(WORKSPACE)) == 30_000
        assert await till.account(chart.BAD_DEBT) == 0

    with_till(tmp_path, run)


def test_a_subsidy_carries_its_share_and_never_drifts(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(subsidised(Prices(input_per_mtok=1_000_000), 2_500))
        grant = recipes.issue_grant("grant", WORKSPACE, 10_000_000)
        await till.store.write(lambda write: must_post(write, grant, int(NOW * 1e6)))
        for n in range(11):
            await till.put(record(n, 1))
            await till.settle()
        assert await till.spent() == 3  # a quarter of 11, rounded once
        assert await till.account(chart.subsidy_expense("operator")) == -8

    with_till(tmp_path, run)


def test_a_new_price_holds_for_what_comes_after(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=1_000_000)))
        await till.put(record(1))
        await till.settle()
        dearer = msgspec.json.encode(on_demand(Prices(input_per_mtok=5_000_000))).decode()
        await till.store.write(lambda write: write.put_plan(WORKSPACE, dearer, NOW))
        await till.put(record(2))
        assert await till.settle() == 5_000
        assert await till.spent() == 6_000

    with_till(tmp_path, run)


def granted(number: int, granted_at: float, ended_at: float | None = None, **more: Any) -> Instance:
    made = Instance(
        f"inst_{number}", "depl", "endp", WORKSPACE, "rev", "cap", "node", 1, 0, "run", "ready", 1, None, None, "",
        None, 0, 0.0, None, granted_at, ended_at, seq=number, sku_id="isku_gpu", granted_at=granted_at,
    )  # fmt: skip
    return replace(made, **more)


def test_node_minutes_count_who_holds_the_node_when_they_begin(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(per_node_minute=1_000)))
        await till.settle()
        rows = [granted(1, NOW + 1), granted(2, NOW, NOW + 61), granted(3, NOW + 5, NOW + 50),
                granted(4, NOW, endpoint_id=""), granted(5, NOW, workspace_id="wksp_b"),
                granted(6, NOW, phase="hibernated", node_id=None, hibernated_at=NOW + 100)]  # fmt: skip

        def write(write: Transaction) -> None:
            write.add_workspace(Workspace("wksp_b", "b", "acct_b", NOW))
            for row in rows:
                write.add_instance(row)

        await till.store.write(write)
        till.now = NOW + 300
        # 1: minutes 1 to 4; 2: minutes 0 and 1; 3 began and ended inside one; 4 was paid by orders; 5 has no plan;
        # 6: minutes 0 and 1, for it sleeps since
        assert await till.settle() == 8_000
        till.now = NOW + 359
        assert await till.settle() == 0
        till.now = NOW + 360
        assert await till.settle() == 1_000
        assert await till.account(chart.revenue("isku_gpu")) == 9_000

    with_till(tmp_path, run)


def test_hardware_has_its_own_prices_and_revenue(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        cheap, dear = Prices(input_per_mtok=1_000_000), Prices(input_per_mtok=3_000_000)
        await till.open(on_demand(cheap, {"isku_gpu": dear}))
        await till.store.write(lambda write: write.add_instance(granted(1, NOW, endpoint_id="")))
        await till.put(record(1, instance_id="inst_1"), record(2, instance_id="inst_gone"))
        assert await till.settle() == 3_000 + 1_000
        assert await till.account(chart.revenue("isku_gpu")) == 3_000
        assert await till.account(chart.revenue("inference")) == 1_000

        def read(read: Transaction) -> tuple[Any, list[RatedLine]]:
            return read.month_entries(WORKSPACE, "2027-01"), read.rated_lines(WORKSPACE, "2027-01")

        entries, lines = await till.store.read(read)
        made = make_draft("inv_1", WORKSPACE, "2027-01", entries, lines, {"isku_gpu": "gpu-1x"})
        assert {line.description: line.amount for line in made.lines} == {
            "Input tokens": 1_000,
            "Input tokens: gpu-1x": 3_000,
        }

    with_till(tmp_path, run)


def test_an_invoice_is_the_books(tmp_path: Path) -> None:
    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=333_333, output_per_mtok=2_000_000, per_request=10)))
        for n in range(7):
            await till.put(record(n, 3, completion_tokens=n))
            await till.settle()

        def read(read: Transaction) -> tuple[Any, list[RatedLine]]:
            return read.month_entries(WORKSPACE, "2027-01"), read.rated_lines(WORKSPACE, "2027-01")

        entries, lines = await till.store.read(read)
        made = make_draft("inv_1", WORKSPACE, "2027-01", entries, lines, {})
        assert {line.meter: (line.quantity, line.amount) for line in made.lines} == {
            "input_tokens": (21, 7), "output_tokens": (21, 42), "requests": (7, 70),
        }  # fmt: skip
        by_id = {f"{entry.transfer.id:032x}": entry for entry in entries}
        assert check_lines(made, by_id.get) == ()
        assert (made.fees, made.prepaid, made.total_cents) == (119, 119, 0)

    with_till(tmp_path, run)


@given(st.lists(st.lists(st.integers(1, 10_000), max_size=5), max_size=6), st.integers(1, 5_000_000))
def test_batches_do_not_matter(batches: list[list[int]], price: int) -> None:
    """However usage arrives, the sum of all charges is the price of the sum, rounded once."""
    import tempfile

    async def run(till: Till) -> None:
        await till.open(on_demand(Prices(input_per_mtok=price)))
        number = 0
        for tokens in batches:
            await till.put(*(record(number + n, each) for n, each in enumerate(tokens)))
            number += len(tokens)
            await till.settle()
        used = sum(map(sum, batches))
        exact = used * price
        assert abs(await till.spent() * 1_000_000 - exact) * 2 <= 1_000_000

    with tempfile.TemporaryDirectory() as directory:
        with_till(Path(directory), run)


def test_price_lists() -> None:
    wish = PlanWish("on-demand", PriceList(input_per_mtok="0.25", per_request="0.001"), {"gpu": PriceList("1.0")})
    plan = plan_of(wish, {"gpu": "isku_gpu"})
    shown = show_plan("wksp", plan, 5.5)
    assert shown["prices"] is not None
    assert (shown["prices"]["input_per_mtok"], shown["prices"]["per_request"]) == ("0.250000", "0.001000")
    assert shown["by_instance_sku"]["isku_gpu"]["input_per_mtok"] == "1.000000"
    assert plan_of(PlanWish("subsidised", billing_rate_bps=3_000), {}).billing_rate_bps == 3_000
    assert any(charge.meter == "market_cost" for charge in plan_of(PlanWish("spot"), {}).charges)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (PlanWish("on-demand", PriceList(input_per_mtok="x")), "prices.input_per_mtok"),
        (PlanWish("on-demand", PriceList(per_request="-1.0")), "prices.per_request"),
        (PlanWish("on-demand", billing_rate_bps=5), "billing_rate_bps"),
        (PlanWish("subsidised", billing_rate_bps=10_001), "billing_rate_bps"),
        (PlanWish("spot", PriceList(per_node_minute="0.01")), "prices.per_node_minute"),
    ],
)
def test_wrong_price_lists_are_refused(wish: PlanWish, field: str) -> None:
    from nanopod.model.errors import Invalid

    with pytest.raises(Invalid) as caught:
        plan_of(wish, {})
    assert caught.value.field == field
