"""Plans, rated usage and pages of the ledger through either store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nanopod.ledger import chart, recipes
from nanopod.ledger.funding import Part, prepaid
from nanopod.ledger.plans import Prices, on_demand
from nanopod.model.chain import Instance, Workspace
from nanopod.model.wire import MeterRecord
from nanopod.server.billing import rating
from nanopod.server.billing.charging import must_post
from nanopod.store.charges import NUMBERS_MAX, RatedLine
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

Run = Callable[[Callable[[GroupStore], Any]], Any]
NOW = 1_800_000_000.0
NOW_US = int(NOW * 1e6)
W = "wksp_1"


def record(number: int, **more: Any) -> MeterRecord:
    made = MeterRecord(f"r{number}", "q", W, "key", "endp", "", "", "chat", 200, 10, 5, 7, NOW, NOW, NOW)
    return msgspec.structs.replace(made, **more)


def test_plans_and_lines(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        line = RatedLine(W, "2027-01", "requests", '{"sku":"isku"}', "on-demand-1", 3, 2, 10**15)

        def write(write: Transaction) -> None:
            assert write.workspace_plan(W) is None
            write.put_plan(W, "{}", NOW)
            write.put_plan(W, '{"a":1}', NOW + 1)
            write.put_rated_line(line)
            write.put_rated_line(msgspec.structs.replace(line, units=4))
            write.put_rated_line(msgspec.structs.replace(line, month="2027-02"))

        await store.write(write)

        def read(read: Transaction) -> None:
            assert read.workspace_plan(W) == ('{"a":1}', NOW + 1)
            assert read.plans() == {W: '{"a":1}'}
            assert read.rated_lines(W, "2027-01") == [msgspec.structs.replace(line, units=4)]
            assert read.rated_line(W, "2027-02", "requests", '{"sku":"isku"}', "on-demand-1") is not None
            assert read.rated_line(W, "2027-02", "requests", "{}", "on-demand-1") is None

        await store.read(read)
        await store.write(lambda write: write.drop_plan(W))
        assert await store.read(lambda read: read.plans()) == {}

    with_store(test)


def test_usage_in_order(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        assert await store.read(lambda read: read.usage_last()) == 0
        count = NUMBERS_MAX + 3
        await store.write(lambda write: write.put_usage(record(n) for n in range(count)))

        def read(read: Transaction) -> None:
            every = read.usage_after(0, 10_000)
            assert [found.record_id for _, found in every] == [f"r{n}" for n in range(count)]
            numbers = [seq for seq, _ in every]
            assert read.usage_last() == numbers[-1]
            assert read.usage_after(numbers[4], 2) == every[5:7]
            assert read.usage_numbered(numbers) == every
            assert read.usage_numbered([]) == []
            assert read.usage_numbered([numbers[1], numbers[-1] + 5]) == every[1:2]

        await store.read(read)

    with_store(test)


def test_pages_of_the_ledger(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        own = (chart.prepaid(W), chart.receivable(W))
        hold = recipes.Hold("order", chart.ORDERS, (Part(prepaid(W), 300),), "order")
        chains = [
            recipes.top_up("first", W, 1_000), recipes.top_up("other", "wksp_2", 5),
            hold.chain(), recipes.settle("fill", hold, 120, "buy")[0],
            recipes.use("use", (Part(prepaid(W), 7),), chart.revenue("x")),
        ]  # fmt: skip

        def write(write: Transaction) -> None:
            for number, chain in enumerate(chains):
                must_post(write, chain, NOW_US + number)

        await store.write(write)

        def read(read: Transaction) -> None:
            rows = read.entries_page(own, 100)
            seen = [(entry.transfer.code, entry.transfer.kind, entry.amount, settled) for entry, settled in rows]
            assert seen == [
                ("use", "single", 7, None), ("buy", "post", 120, None), ("hold", "pending", 300, "posted"),
                ("top_up", "single", 1_000, None),
            ]  # fmt: skip
            assert [read.balance_through(own, entry) for entry, _ in rows] == [873, 880, 1_000, 1_000]
            seqs = [entry.seq for entry, _ in rows]
            assert [entry.seq for entry, _ in read.entries_page(own, 2, below=seqs[0])] == seqs[1:3]
            assert [entry.seq for entry, _ in read.entries_page(own, 2, above=seqs[3])] == seqs[1:3]
            assert [entry.seq for entry, _ in read.entries_page(own, 9, codes=("buy", "use"))] == seqs[:2]
            assert [entry.seq for entry, _ in read.entries_page(own, 9, kinds=("pending",))] == seqs[2:3]
            span = read.entries_page(own, 9, start_us=NOW_US + 1, end_us=NOW_US + 4)
            assert [entry.seq for entry, _ in span] == seqs[1:3]
            (whole,) = [entry for entry, _ in rows if entry.transfer.code == "use"]
            found = read.ledger_entry(whole.transfer.id)
            assert found is not None and found[0] == whole

        await store.read(read)

    with_store(test)


def test_a_record_is_rated_once(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        plan = msgspec.json.encode(on_demand(Prices(per_request=1_000, per_node_minute=60))).decode()

        def write(write: Transaction) -> None:
            write.add_workspace(Workspace(W, "one", "acct_1", NOW))
            rating.begin(write, NOW)
            write.put_plan(W, plan, NOW)
            must_post(write, recipes.top_up("first", W, 10_000), NOW_US)
            write.put_usage([record(1), record(2)])
            for number, ended_at in enumerate((None, NOW + 90, NOW - 60)):
                write.add_instance(
                    Instance(
                        f"inst_{number}",
                        "depl",
                        "endp",
                        W,
                        "rev",
                        "cap",
                        "node",
                        1,
                        0,
                        "run",
                        "ready",
                        1,
                        None,
                        None,
                        "",
                        None,
                        0,
                        0.0,
                        None,
                        NOW,
                        ended_at,
                        seq=number,
                        sku_id="isku",
                        granted_at=NOW - 600,
                    )
                )

        await store.write(write)
        assert await rating.settle(store, lambda: NOW + 180) == 2_000 + 5 * 60
        assert await rating.settle(store, lambda: NOW + 180) == 0
        found = await store.read(lambda read: read.ledger_account(chart.prepaid(W)))
        assert found is not None and found.balance == 10_000 - 2_300
        assert await store.read(lambda read: read.check_ledger()) == ()

    with_store(test)
