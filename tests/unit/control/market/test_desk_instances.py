"""Who runs when (R20, R21, W1-W6) on the desk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from desk_stage import SKU, T0, Stage

from nanopod.control.market.desk import MarketSettings
from nanopod.control.market.names import ADJECTIVES, DEFAULT, NOUNS, check_name_template, names
from nanopod.control.market.quota import NO_TIME
from nanopod.model.capacity import Sku
from nanopod.model.errors import Invalid
from nanopod.model.ids import NAME_PATTERN
from nanopod.store.transaction import Transaction

FIRST = int(T0 // 60) + 1


@pytest.fixture
def late(tmp_path: Path) -> Stage:
    """A market in which nobody starts early."""
    return Stage(tmp_path, settings=MarketSettings(early_start=False))


def test_r21_instances_are_made_from_the_template_and_removed_awaiting_ones_first(late: Stage) -> None:
    late.nodes(4)
    late.order("ann", "buy", 1, 0, 60, 2)
    fleet = late.deploy("ann", 3, tags={"team": "x"})
    made = late.instances("ann")
    assert [one.seq for one in made] == [1, 2, 3]
    assert all(one.image_id == "image_1" and one.cloud_init and one.tags == {"team": "x"} for one in made)
    assert len({one.name for one in made}) == 3 and all(NAME_PATTERN.fullmatch(one.name) for one in made)
    late.blocks(1)
    assert [one.granted_at is not None for one in late.instances("ann")] == [True, True, False]
    late.scale(fleet, target_instance_count=2)
    assert [one.seq for one in late.instances("ann")] == [1, 2]
    late.scale(fleet, target_instance_count=1)
    assert [one.seq for one in late.instances("ann")] == [1]
    late.scale(fleet, target_instance_count=5, enabled=False)
    assert len(late.instances("ann")) == 1
    assert len(late.notices("ann", "instance.created")) == 3
    late.check()
    late.close()


def test_r21_a_failed_instance_is_replaced(late: Stage) -> None:
    late.deploy("ann", 1)

    def fail(write: Transaction) -> None:
        with late.desk.session(write, late.now) as market:
            (one,) = write.instances_live()
            write.set_instance(one, phase="failed", ended_at=late.now)
            market.changed("cap_ann")

    late.write(fail)
    assert [one.seq for one in late.instances("ann")] == [2]
    late.close()


def test_r20_what_runs_out_stops_and_spare_places_go_by_rank(late: Stage) -> None:
    late.nodes(4)
    late.order("ann", "buy", 1, 0, 5, 2)
    late.deploy("ann", 3)

    def urgent(write: Transaction) -> None:
        with late.desk.session(write, late.now) as market:
            write.set_instance(late_third(write), priority="critical")
            market.changed("cap_ann")

    def late_third(write: Transaction):  # type: ignore[no-untyped-def]
        return write.instances_on_capacity("cap_ann")[2]

    late.write(urgent)
    late.blocks(1)
    assert [one.granted_at is not None for one in late.instances("ann")] == [True, False, True]
    late.order("ann", "buy", 1, 4, 10, 1)
    late.blocks(5)
    live = late.instances("ann")
    assert [one.seq for one in live if one.granted_at is not None] == [3]
    stopped = late.read(lambda read: read.instances_on_capacity("cap_ann", ended=True))[0]
    assert (stopped.intent, stopped.reason) == ("stop", NO_TIME)
    assert len(live) == 3, "the deployment has made another one, which awaits"
    assert [one.data["reason"] for one in late.notices("ann", "instance.terminated")] == [NO_TIME]
    late.check()
    late.close()


def test_r20_an_unpinned_instance_is_pinned_by_its_first_grant(late: Stage) -> None:
    late.write(lambda write: write.put_sku(Sku("isku_b", "b")))
    late.nodes(1)
    late.nodes(1, name="other", sku_id="isku_b")
    late.deploy("ann", 1, sku_id="")
    made = late.procure("ann", max_buy=20)
    assert late.instances("ann")[0].sku_id == ""
    assert late.owned("ann", FIRST) == 1, "the oldest procurement counts it"
    late.blocks(1)
    (one,) = late.instances("ann")
    assert (one.sku_id, one.granted_at) == (made.sku_id, late.now)
    late.close()


def test_w6_an_instance_starts_now_on_an_idle_node(stage: Stage) -> None:
    stage.now = T0 + 20.0
    stage.nodes(2)
    stage.procure("ann", max_buy=20, window=30)
    stage.deploy("ann", 2)
    first = stage.instances("ann")
    assert [(one.granted_at, one.early_until, one.early_block) for one in first] == [(stage.now, FIRST, FIRST - 1)] * 2
    assert [one.data["early_start"] for one in stage.notices("ann", "instance.granted")] == [True, True]
    assert stage.owned("ann") == 0
    stage.blocks(1)
    assert [one.early_until for one in stage.instances("ann")] == [None, None]
    assert stage.owned("ann") == 2


def test_w6_not_on_nodes_that_somebody_owns_now(stage: Stage) -> None:
    stage.nodes(2)
    stage.order("bob", "buy", 1, 0, 2, 1)
    stage.blocks(1)
    stage.procure("ann", max_buy=20, window=30)
    stage.deploy("ann", 1)
    assert stage.instances("ann")[0].early_until is not None
    stage.order("ann", "buy", 1, 1, 5, 1)  # both nodes are owned from the block after the next on
    stage.deploy("cat", 1)
    stage.procure("cat", max_buy=20, window=1, name="c")
    assert [one.granted_at for one in stage.instances("cat")] == [None], "one node is bob's, one starts ann's instance"


def test_w6_recent_early_starts_count_where_time_has_a_price(stage: Stage) -> None:
    stage.nodes(4, floor=10)
    for turn in range(3):
        fleet = stage.deploy("ann", 1, name=f"f{turn}")
        stage.order("ann", "buy", 10, 0, 1, 1)
        early = [
            one.early_until is not None for one in stage.instances("ann") if one.deployment_id == fleet.deployment_id
        ]
        assert early == [turn == 0]
        stage.scale(fleet, target_instance_count=0)
        stage.end_stopped()
        stage.blocks(2)


def test_w6_is_switched_off(late: Stage) -> None:
    late.nodes(1)
    late.procure("ann", max_buy=20)
    late.deploy("ann", 1)
    assert late.instances("ann")[0].granted_at is None
    late.blocks(1)
    assert late.instances("ann")[0].granted_at == late.now
    late.close()


def warned(stage: Stage, who: str = "ann") -> list[tuple[str, int, str]]:
    return [
        (one.type.removeprefix("instance.shutdown_"), one.data.get("lead_s", 0), one.data.get("reason", ""))
        for one in stage.notices(who, "instance.shutdown_expected", "instance.shutdown_cleared")
    ]


def test_w2_w3_a_reservation_that_ends_warns_at_its_leads(stage: Stage) -> None:
    stage.nodes(1, floor=10)
    stage.order("ann", "buy", 10, 0, 180, 1)
    stage.deploy("ann", 1)
    stage.blocks(1)
    (one,) = stage.instances("ann")
    assert stage.books.expected(one) == (None, T0 + 181 * 60)
    stage.to(T0 + 171 * 60 - 60)
    assert warned(stage) == []
    stage.to(T0 + 171 * 60)
    assert warned(stage) == [("expected", 600, "schedule")]
    stage.to(T0 + 180 * 60)
    assert warned(stage) == [("expected", 600, "schedule"), ("expected", 300, "schedule")]
    (one,) = stage.instances("ann")
    assert '"reason": "schedule"' in one.warned
    stage.to(T0 + 181 * 60)
    assert stage.instances("ann")[0].seq == 2


def test_w3_time_bought_after_a_warning_clears_it(stage: Stage) -> None:
    stage.nodes(1, floor=10)
    stage.order("ann", "buy", 10, 0, 8, 1)
    stage.deploy("ann", 1)
    assert warned(stage) == [("expected", 540, "schedule")], "known later than its lead: the true one"
    stage.order("ann", "buy", 10, 8, 60, 1)
    assert warned(stage)[1:] == [("cleared", 0, "")]
    assert stage.instances("ann")[0].warned == ""


def test_an_end_that_somebody_else_announced_is_not_taken_back_by_bought_time(stage: Stage) -> None:
    stage.nodes(1, floor=10)
    stage.order("ann", "buy", 10, 0, 60, 1)
    stage.deploy("ann", 1)
    stage.blocks(1)
    (one,) = stage.instances("ann")
    text = json.dumps({"at": stage.now + 5, "leads_s": [], "reason": "preempted (injected)", "by": "fault"})
    stage.do(lambda market: market.write.set_instance(one, warned=text))
    stage.order("ann", "buy", 10, 60, 120, 1)
    assert stage.instances("ann")[0].warned == text
    assert warned(stage) == []


def test_w4_a_rolling_procurement_never_warns_and_one_that_stops_filling_does(stage: Stage) -> None:
    stage.nodes(1, floor=10)
    stage.procure("ann", max_buy=20, window=20)
    stage.deploy("ann", 1)
    stage.blocks(30)
    assert warned(stage) == []
    assert stage.books.expected(stage.instances("ann")[0])[1] is not None

    def dearer(write: Transaction) -> None:
        with stage.desk.session(write, stage.now) as market:
            seen = write.offer_of_pair("prov_north", SKU)
            assert seen is not None
            write.set_offer(seen, floor=replace(seen.floor, micro_per_block=50))
            market.supply_changed(SKU)

    stage.write(dearer)
    stage.blocks(12)
    assert warned(stage) == [("expected", 600, "price")]


def test_w3_a_provider_notice_is_one_more_lead(stage: Stage) -> None:
    stage.write(lambda write: write.set_provider("prov_north", notice_s=120))
    stage.nodes(1, floor=10)
    stage.order("ann", "buy", 10, 0, 20, 1)
    stage.deploy("ann", 1)
    stage.blocks(20)
    assert [lead for _, lead, _ in warned(stage)] == [600, 300, 120]


def test_w2_an_awaiting_instance_shows_when_it_is_expected(stage: Stage) -> None:
    stage.nodes(1)
    stage.order("ann", "buy", 1, 30, 10, 1)
    stage.deploy("ann", 2)
    first, second = stage.instances("ann")
    assert stage.books.expected(first) == ((FIRST + 30) * 60, None)
    assert stage.books.expected(second) == (None, None)
    stage.restart()
    assert stage.books.expected(first) == ((FIRST + 30) * 60, None)


def test_name_templates() -> None:
    made = names(DEFAULT, "seed")
    found = [next(made) for _ in range(50)]
    assert len(set(found)) == 50 and all(NAME_PATTERN.fullmatch(name) for name in found)
    assert found[0] == next(names("", "seed"))
    assert check_name_template("worker-{{nanoid(10)}}") == "worker-{{nanoid(10)}}"
    assert len(next(names("worker-{{nanoid(10)}}", "x"))) == len("worker-") + 10
    assert len(set(ADJECTIVES)) == len(set(NOUNS)) == 64
    for bad in ("worker", "w-{{nanoid(7)}}", "{{adjective}}-{{noun}}", "{{nanoid(22)}}", "{{nanoid(0)}}", "{{verb}}-{{nanoid(21)}}", "-{{nanoid(20)}}", "a b{{nanoid(20)}}"):  # fmt: skip
        with pytest.raises(Invalid) as caught:
            check_name_template(bad)
        assert caught.value.field == "instance_name_template"
