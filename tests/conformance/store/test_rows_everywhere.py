"""Every row comes back as it was written, on both databases; guards, filters and pages hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nanopod.model.capacity import Capacity, Node, Sku
from nanopod.model.chain import Account, Deployment, Image, Instance, Template, Workspace
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.money import Money, Rate
from nanopod.model.order import Contract, Order, Transfer
from nanopod.model.procurement import OfferPolicy, Procurement, Provider, Status
from nanopod.model.schedule import Entry, Schedule, Window
from nanopod.store import notices
from nanopod.store.transaction import Transaction

InWrite = Callable[[Callable[[Transaction], Any]], Any]


def schedule(*runs: tuple[int, int | None, int]) -> Schedule:
    return Schedule(tuple(Entry(Window(s * 60, None if e is None else e * 60), n) for s, e, n in runs))


def order(number: int, **more: Any) -> Order:
    values: dict[str, Any] = {
        "order_id": f"ordr_{number}", "workspace_id": "w1", "account_id": "a1", "capacity_id": "c1", "sku_id": "s1",
        "side": "buy", "shape": schedule((10, 20, 4)), "limit": Rate(7), "created_at": float(number),
    }  # fmt: skip
    return Order(**{**values, **more})


def contract(number: int, **more: Any) -> Contract:
    values: dict[str, Any] = {
        "contract_id": f"cont_{number}", "sku_id": "s1", "number": number, "buyer_order_id": "ordr_1",
        "seller_order_id": "ordr_2", "buyer_capacity_id": "c1", "seller_capacity_id": "c2",
        "schedule": schedule((10, 20, 2)), "rate": Rate(5), "amount": Money(100), "fee": Money(3),
        "filled_at": float(number), "buyer_workspace_id": "w1", "seller_workspace_id": "w2", "provider_id": "p1",
    }  # fmt: skip
    return Contract(**{**values, **more})


def test_orders_come_back_as_they_were_written(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first = order(1, allow_standing=True, requested_limit_price="0.42", created_by="key_1")
        odd = order(2, shape=schedule((1, 2, 1), (5, None, 3)), side="sell", open=schedule((1, 2, 1)))
        write.add_order(first, write.next_number("order"), hold="{}")
        write.add_order(odd, write.next_number("order"))
        assert write.order("ordr_1") == first
        assert write.order("ordr_2") == odd
        assert write.order("ordr_3") is None
        assert (write.order_hold("ordr_1"), write.order_hold("ordr_2"), write.order_hold("ordr_3")) == ("{}", "", "")
        assert write.orders_open_of("c1") == 2
        write.set_order(
            "ordr_1", status="filled", open=Schedule(), filled=first.shape, filled_at=9.5, hold="", limit=Rate(8)
        )
        assert write.order("ordr_1") == replace(
            first, status="filled", filled=first.shape, filled_at=9.5, limit=Rate(8)
        )
        assert write.order_hold("ordr_1") == ""
        assert write.orders_open_of("c1") == 1
        assert write.orders_numbered(["ordr_2", "ordr_9"]) == {"ordr_2": odd}
        with pytest.raises(AssertionError, match="colour"):
            write.set_order("ordr_1", colour="red")

    in_write(test)


def test_orders_are_filtered_sorted_and_paged(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = [
            order(1), order(2, procurement_id="proc_1"), order(3, side="sell", status="filled"),
            order(4, capacity_id="c2", shape=schedule((2, 3, 1))), order(5, workspace_id="w2", sku_id="s2"),
            order(6, created_at=4.0, status="cancelled"),
        ]  # fmt: skip
        for number, one in enumerate(made, 1):
            write.add_order(one, number)

        def page(workspace_id: str | None = "w1", **filters: Any) -> str:
            return "".join(o.order_id.removeprefix("ordr_") for o in write.orders_page(workspace_id, **filters))

        assert page() == "64321", "newest first; the same time by id"
        assert page(sort="created_at") == "12346"
        assert page(sort="start_at") == "41236"
        assert page(sort="-start_at") == "63214"
        assert page(None) == "564321"
        assert page(procurement_id="none") == "6431"
        assert page(procurement_id="proc_1") == "2"
        assert page(side="sell") == "3"
        assert page(statuses=("filled", "cancelled")) == "63"
        assert page(capacity_id="c2") == "4"
        assert page(None, sku_id="s2") == "5"
        assert page(ids=["ordr_1", "ordr_4", "ordr_5"]) == "41"
        assert page(created_after=2.0, created_before=4.0) == "3"
        assert page(limit=2) == "64"
        assert page(limit=2, after="ordr_4") == "32"
        assert page(limit=2, before="ordr_1") == "32"
        assert page(limit=2, sort="created_at", after="ordr_2") == "34"
        assert page(limit=2, sort="start_at", before="ordr_6") == "23"
        assert page(after="ordr_1") == ""
        with pytest.raises(Invalid, match="starting_after"):
            page(after="ordr_0")
        with pytest.raises(Invalid, match="ending_before"):
            page(before="ordr_0")

    in_write(test)


def test_contracts(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        bought, resold = (
            contract(1),
            contract(2, provider_id="", buyer_order_id="ordr_5", schedule=schedule((30, 40, 1))),
        )
        other = contract(3, sku_id="s2", buyer_workspace_id="w3", provider_id="p2")
        for one in (bought, resold, other):
            write.add_contract(one)
        late = contract(4, schedule=schedule((15, 25, 1), (50, None, 1)))
        write.add_contract(late)
        assert write.contract("cont_1") == bought
        assert write.contract("cont_4") == late
        assert write.contract("cont_9") is None
        assert write.contracts_of(["ordr_1"]) == [bought, other, late]
        assert write.contracts_of(["ordr_5", "ordr_2"]) == [bought, resold, other, late]
        assert write.contracts_of([]) == []
        assert write.contracts_undelivered("p1") == [bought, late], "a resale is paid at once"
        write.set_contract("cont_1", delivered=20, settled=True)
        assert write.contract("cont_1") == replace(bought, delivered=20)
        assert write.contracts_undelivered("p1") == [late]
        assert write.contracts_covering("s1", "p1", 16 * 60, 17 * 60) == [late, replace(bought, delivered=20)]
        assert write.contracts_covering("s1", "p1", 30 * 60, 31 * 60) == [], "a gap is not covered"
        assert write.contracts_covering("s1", "p1", 20 * 60, 21 * 60) == [late]
        assert write.fills_since(["s1"], 2.0, 10) == [late, resold]
        assert write.fills_since(["s1", "s2"], 0.0, 2) == [late, other]
        assert [c.number for c in write.contracts_page("w1")] == [4, 2, 1]
        assert [c.number for c in write.contracts_page("w2", limit=2, after="cont_3")] == [2, 1]
        assert [c.number for c in write.contracts_page(None, sku_id="s2")] == [3]
        assert [c.number for c in write.contracts_page("w1", order_id="ordr_5")] == [2]
        assert [c.number for c in write.contracts_page(None, capacity_id="c2", ends_after=26 * 60)] == [4, 2]

    in_write(test)


def test_transfers(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first = Transfer("cxfr_1", "w1", "c1", "c2", "s1", schedule((1, 2, 3)), "executed", "", 1.0, "key_1")
        second = replace(first, transfer_id="cxfr_2", status="rejected", rejected_reason="no", created_at=2.0)
        write.add_transfer(first)
        write.add_transfer(second)
        assert write.transfer("cxfr_1") == first
        assert write.transfers_page("w1") == [second, first]
        assert write.transfers_page("w1", statuses=("executed",), capacity_id="c2") == [first]
        assert write.transfers_page("w1", limit=1, after="cxfr_2") == [first]
        assert write.transfers_page("w2") == []

    in_write(test)


def test_procurements(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first = Procurement(
            "proc_1", "c1", "s1", "node_count", Rate(9), Rate(1), 120, created_at=1.0, workspace_id="w1", name="main"
        )
        second = replace(first, procurement_id="proc_2", sku_id="s2", target=4, name="b", created_at=2.0)
        write.add_procurement(first)
        write.add_procurement(second)
        assert write.procurements("w1") == write.procurements() == write.procurements_of("c1") == [first, second]
        assert write.procurement_of_pair("c1", "s2") == second
        assert write.procurement_named("w1", "main") == first
        status = Status("warning", "no_supply", "no_supply: nothing is for sale")
        write.set_procurement_status("proc_1", status)
        write.set_procurement(first, target=2, max_buy=Rate(11), enabled=False, updated_at=5.0)
        changed = replace(first, target=2, max_buy=Rate(11), enabled=False, updated_at=5.0, status=status, generation=1)
        assert write.procurement("proc_1") == changed
        with pytest.raises(Conflict):
            write.set_procurement(first, target=3)
        write.set_procurement(changed, target="node_count")
        found = write.procurement("proc_1")
        assert found is not None
        assert found.target == "node_count"
        write.delete_procurement("proc_1")
        assert write.procurement("proc_1") is None

    in_write(test)


def test_providers_and_offers(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        seller = Provider("prov_1", "local-node", "a2", "w2", "c2", 30, 1.0)
        write.add_provider(seller)
        assert (
            write.provider("prov_1") == write.provider_of_capacity("c2") == write.provider_named("local-node") == seller
        )
        assert write.providers() == [seller]
        first = OfferPolicy(
            "prov_1", "c2", "s1", Rate(3), {0: Rate(1), 23: Rate(2)}, quiet_hours=((22, 6),), offer_id="offr_1",
            minted=schedule((1, 9, 2)), maintenance=Schedule((Entry(Window(60, None), 1),)), created_at=1.0,
        )  # fmt: skip
        plain = OfferPolicy("prov_1", "c2", "s2", Rate(0), offer_id="offr_2", created_at=2.0)
        write.add_offer(first)
        write.add_offer(plain)
        assert write.offers("prov_1") == write.offers() == [first, plain]
        assert write.offer_of_pair("prov_1", "s1") == first
        write.set_minted("offr_1", "[[1,9,5]]")
        assert write.offer("offr_1") == replace(first, minted=schedule((1, 9, 5)))
        write.set_offer(first, floor=Rate(8), floor_by_hour=None, enabled=False, updated_at=4.0)
        assert write.offer("offr_1") == replace(
            first, minted=schedule((1, 9, 5)), floor=Rate(8), floor_by_hour=None, enabled=False, updated_at=4.0,
            generation=1,
        ), "what was minted meanwhile stays"  # fmt: skip
        with pytest.raises(Conflict):
            write.set_offer(first, enabled=True)
        write.set_provider("prov_1", notice_s=120)
        write.delete_provider("prov_1")
        assert write.offers() == []

    in_write(test)


def test_owners(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        account = Account("acct_1", "local", "user", 1.0)
        write.add_account(account)
        assert write.account("acct_1") == write.account_named("local") == account
        assert write.accounts() == [account]
        first, second = Workspace("w1", "Default", "acct_1", 1.0), Workspace("w2", "default", "acct_1", 2.0)
        write.add_workspace(first)
        write.add_workspace(second)
        assert write.workspaces_all() == [first, second]
        assert [name for _, name, _ in write.workspaces()] == ["Default", "default"], "capitals come first"
        assert write.workspace("w1") == write.workspace_named("Default") == first
        write.rename_workspace("w2", "other")
        write.set_workspace_account("w2", "acct_9")
        assert write.workspace_named("other") == Workspace("w2", "other", "acct_9", 2.0)
        write.delete_workspace("w2")
        assert write.workspace("w2") is None

    in_write(test)


def test_templates_and_images(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first = Template("itmpl_1", "w1", "web", "image_1", "aGk=", "", {"a": "1"}, 1.0, 1.0)
        second = replace(first, template_id="itmpl_2", name="ep", endpoint_id="e1", created_at=2.0)
        write.add_template(first)
        write.add_template(second)
        assert write.templates("w1") == [second, first]
        assert write.template("itmpl_1") == write.template_named("w1", "web") == first
        assert write.template_of_endpoint("e1") == second
        write.set_template("itmpl_1", name="new", tags={}, updated_at=3.0)
        assert write.template("itmpl_1") == replace(first, name="new", tags={}, updated_at=3.0)
        write.delete_template("itmpl_2")
        assert write.templates("w1") == [replace(first, name="new", tags={}, updated_at=3.0)]

        image = Image("image_1", "w1", "base", "started", "", 0, False, (), 1.0, 1.0)
        public = replace(image, image_id="image_2", workspace_id="w2", is_public=True, created_at=2.0)
        write.add_image(image)
        write.add_image(public)
        write.add_image(replace(image, image_id="image_3", workspace_id="w3"))
        assert write.images("w1") == [public, image]
        assert write.image_named("w2", "base") == public
        write.set_image("image_1", parts=("aa", ""), upload_status="completed", size=1 << 37, sha256="ff")
        assert write.image("image_1") == replace(
            image, parts=("aa", ""), upload_status="completed", size=1 << 37, sha256="ff"
        )
        write.delete_image("image_1")
        assert write.image("image_1") is None

    in_write(test)


def base(write: Transaction) -> None:
    write.add_workspace(Workspace("w1", "default", "a1", 1.0))
    write.add_capacity(Capacity("c1", "w1", "default", account_id="a1", tags={"x": "y"}), 1.0)


def instance(number: int, **more: Any) -> Instance:
    values: dict[str, Any] = {
        "instance_id": f"inst_{number}", "deployment_id": "d1", "endpoint_id": "", "workspace_id": "w1",
        "revision_id": "", "capacity_id": "c1", "node_id": None, "epoch": 1, "generation": 0, "intent": "run",
        "phase": "queued", "slots": 1, "pid": None, "exit_code": None, "reason": "", "failure": None, "fails": 0,
        "not_before": 0.0, "ready_at": None, "created_at": float(number), "ended_at": None, "seq": number,
        "name": f"n{number}",
    }  # fmt: skip
    return Instance(**{**values, **more})


def test_deployments(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        base(write)
        first = Deployment(
            "d1", "", "w1", "c1", "", 3, 0, ("because",), 0, 0.0, 1.0, 1.0, "web", "spot", "s1", "itmpl_1", "web-%",
            True, "proc_1", {"k": "v"},
        )  # fmt: skip
        second = replace(first, deployment_id="d2", name="other", created_at=2.0)
        write.add_deployment(first)
        write.add_deployment(second)
        assert write.deployment("d1") == write.deployment_named("w1", "web") == first
        assert write.deployments_on("c1") == write.deployments("w1") == [first, second], "two stand alone"
        write.set_deployment(first, target_instance_count=8, tags={}, reasons=("more",), enabled=False)
        assert write.deployment("d1") == replace(
            first, target_instance_count=8, tags={}, reasons=("more",), enabled=False, generation=1
        )
        with pytest.raises(Conflict):
            write.set_deployment(first, target_instance_count=9)
        write.delete_deployment("d2")
        assert write.deployment("d2") is None

    in_write(test)


def test_instances(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        base(write)
        awaiting = instance(1, tags={"team": "a", "x": 'q"u'}, priority="critical", cloud_init="aGk=")
        running = instance(
            2, granted_at=5.0, sku_id="s1", early_until=77, early_block=76, warned="[]", tags={"x": "team"}
        )
        failed = instance(3, ended_at=9.0, phase="failed", capacity_id="c2", deployment_id="d2")
        ended = instance(4, ended_at=9.0, phase="ended", template_id="itmpl_1", image_id="image_1")
        for one in (awaiting, running, failed, ended):
            write.add_instance(one)
        assert [write.instance(f"inst_{n}") for n in (1, 2, 3, 4)] == [awaiting, running, failed, ended]
        assert write.instances_live() == write.instances_on_capacity("c1") == [awaiting, running]
        assert write.instances_on_capacity("c2", ended=True) == [failed]
        assert write.instances_of_deployment("d2") == []
        assert write.instances_of_deployment("d2", ended=True) == [failed]
        assert write.instances_of_template("itmpl_1", ended=True) == [ended]
        assert write.instance_named("w1", "n2") == running
        assert write.instance_named("w1", "n3") is None, "it is gone"

        def page(**filters: Any) -> str:
            return "".join(i.instance_id.removeprefix("inst_") for i in write.instances_page("w1", **filters))

        assert page() == "4321"
        assert page(statuses=("awaiting_allocation",)) == "1"
        assert page(statuses=("running", "failed")) == "32"
        assert page(statuses=("terminated",)) == "4"
        assert page(statuses=("unheard_of",)) == ""
        assert page(tags={"team": "a"}) == "1"
        assert page(tags={"x": 'q"u'}) == "1"
        assert page(tags={"team": "A"}) == "", "case counts"
        assert page(tag_keys=("team",)) == "1", "a value is no key"
        assert page(tag_keys=("x",)) == "21"
        assert page(capacity_id="c1", created_after=1.0, sku_id="") == "4"
        assert page(limit=2, after="inst_3") == "21"
        assert page(limit=2, before="inst_1") == "32"
        assert page(sort="created_at", limit=1, after="inst_1") == "2"
        assert page(names=("n1", "n9"), ids=("inst_1",)) == "1"
        write.set_instance(awaiting, granted_at=6.0, tags={"team": "b"})
        assert write.instance("inst_1") == replace(awaiting, granted_at=6.0, tags={"team": "b"}, generation=1)
        with pytest.raises(Conflict):
            write.set_instance(awaiting, granted_at=7.0)
        write.delete_instance("inst_4")
        assert write.instance("inst_4") is None

    in_write(test)


def test_nodes_keep_their_provider(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        sku = Sku("s1", "cpu", num_vcpus=2)
        write.put_sku(sku)
        assert write.sku("s1") == sku
        assert write.sku("s2") is None
        write.put_node(Node("n1", "m1", "s1", 4), "b", "1", {}, 1.0, "prov_1")
        write.put_node(Node("n1", "m1", "s1", 8), "b", "1", {}, 2.0)
        assert write.nodes() == [Node("n1", "m1", "s1", 8, "up", 2.0, "prov_1")]
        write.set_node_provider("n1", "prov_2")
        found = write.node("n1")
        assert found is not None
        assert found.provider_id == "prov_2"

    in_write(test)


def test_text_from_outside_never_keeps_a_write_from_happening(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        base(write)
        write.tell("instance", "i1", "e1", "it printed \0 and \u2028 100% 'quoted' ?", 1.0)
        said = write.story("e1")[0][3]
        assert said.replace("\0", "\ufffd") == "it printed \ufffd and \u2028 100% 'quoted' ?"
        write.add_notice(1.0, "w1", "x", "o", {"text": "\0 %s ?"})
        assert write.notices_page("w1")[0].data == {"text": "\0 %s ?"}
        assert write.workspace_named("\0") is None

    in_write(test)


def test_the_log_of_a_book_has_no_gap_and_no_fork(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        assert write.market_heads() == {}
        assert write.market_book("s1") is None
        write.append_events("s1", [(1, 10, "a"), (2, 11, "b")], 100, 99)
        write.append_events("s2", [], 100, 100)
        write.append_events("s1", [(3, 12, "c")], 101, 99)
        assert write.market_heads() == {"s1": 3, "s2": 0}
        book = write.market_book("s1")
        assert book is not None
        assert (book.seq, book.block, book.first_block, book.snapshot_seq, book.snapshot) == (3, 101, 99, 0, "")
        assert write.market_events("s1", 1) == [(2, "b"), (3, "c")]
        assert write.market_events("s1", 0, 1) == [(1, "a")]
        with pytest.raises(Conflict, match="does not end with event 1"):
            write.append_events("s1", [(2, 13, "fork")], 101, 99)
        with pytest.raises(Conflict, match="does not end with event 4"):
            write.append_events("s1", [(5, 13, "gap")], 101, 99)
        with pytest.raises(Conflict, match="in a row"):
            write.append_events("s1", [(4, 13, "x"), (6, 13, "y")], 101, 99)
        write.append_events("s1", [], 105, 99)
        write.put_snapshot("s1", 3, "text")
        book = write.market_book("s1")
        assert book is not None
        assert (book.block, book.snapshot_seq, book.snapshot) == (105, 3, "text")

    in_write(test)


def test_numbers_notices_and_memory(in_write: InWrite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "NOTICES_KEPT_MAX", 5)
    monkeypatch.setattr(notices, "PRUNE_EACH", 4)

    def test(write: Transaction) -> None:
        assert [write.next_number("order"), write.next_number("order", 3), write.next_number("order")] == [1, 2, 5]
        assert write.notice_last() == 0
        made = [
            write.add_notice(float(n), "w2" if n == 3 else "w1", "order.filled" if n % 2 else "x", f"o{n}", {"n": n})
            for n in range(1, 5)
        ]
        assert [e.seq for e in made] == [1, 2, 3, 4]
        assert write.news == made
        assert write.notices_after("w1", 1) == [made[1], made[3]]
        assert write.notices_after(None, 0, 2) == made[:2]
        assert write.notices_after("w1", 0, types=("order.filled",)) == [made[0]]
        assert write.notices_page("w1", limit=2) == [made[3], made[1]]
        assert write.notices_page("w1", limit=1, after=4) == [made[1]]
        assert write.notices_page("w1", limit=1, before="evnt_1") == [made[1]]
        assert write.notices_page("w1", object_id="o2", types=("x",), at_after=1.0, at_before=3.0) == [made[1]]
        with pytest.raises(Invalid, match="starting_after"):
            write.notices_page("w1", after="x")
        for n in range(5, 13):
            write.add_notice(float(n), "w1", "x", "o", {})
        assert [e.seq for e in write.notices_after(None, 0)] == [8, 9, 10, 11, 12]
        assert write.notice_last() == 12

        assert write.seen_before("w1", "orders", "key") is None
        write.remember("w1", "orders", "key", "ordr_1", 1.0)
        assert write.seen_before("w1", "orders", "key") == "ordr_1"
        assert write.seen_before("w2", "orders", "key") is None

    in_write(test)


def test_past_allocations(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        for block, count in ((10, 0), (11, 2), (12, 2), (15, 5), (20, 0)):
            write.put_allocation("c1", "s1", block, count)
        write.put_allocation("c1", "s2", 13, 1)
        assert write.allocations("c1", 0) == [("s1", 11, 2), ("s1", 15, 5), ("s1", 20, 0), ("s2", 13, 1)]
        assert write.allocations("c1", 16) == [("s1", 15, 5), ("s1", 20, 0), ("s2", 13, 1)], "what held at 16"
        write.prune_allocations(16)
        assert write.allocations("c1", 0) == [("s1", 15, 5), ("s1", 20, 0), ("s2", 13, 1)]
        write.put_allocation("c1", "s1", 20, 3)
        assert write.allocations("c1", 20) == [("s1", 20, 3), ("s2", 13, 1)]

    in_write(test)
