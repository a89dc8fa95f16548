"""R19 to R21 and W1 to W6: who runs, who stops first, who is told when, who may start early."""

from __future__ import annotations

from market_stage import Stage

from nanopod.market.quota import (
    Claim,
    Notice,
    Warned,
    advice,
    early_ends,
    early_starts,
    expected_shutdown,
    expected_start,
    keep_live,
    quota,
    warn,
    why_short,
)


def run(name: str, created: float, priority: str = "normal", *, early: bool = False) -> Claim:
    return Claim(name, True, created, priority, early)  # type: ignore[arg-type]


def wait(name: str, created: float, priority: str = "normal") -> Claim:
    return Claim(name, False, created, priority)  # type: ignore[arg-type]


THREE = [run("old", 1), run("new", 3), run("vital", 2, "critical")]


def test_r19_nothing_moves_or_is_exchanged_while_the_quota_holds() -> None:
    claims = [*THREE, wait("eager", 0, "critical")]
    assert quota(claims, 3).stop == () and quota(claims, 3).start == ()


def test_r20_too_many_stop_lowest_priority_then_newest_first() -> None:
    claims = [*THREE, run("cheap", 0, "yield")]
    assert quota(claims, 3).stop == ("cheap",)
    assert quota(claims, 1).stop == ("cheap", "new", "old")
    assert quota(claims, 0).stop[-1] == "vital"
    assert quota([run("b", 1), run("a", 1)], 1).stop == ("b",)  # ties by id


def test_r20_spare_places_go_to_the_highest_priority_then_the_oldest() -> None:
    claims = [run("r", 0), wait("late", 9), wait("early", 2), wait("vital", 10, "critical")]
    assert quota(claims, 3).start == ("vital", "early")
    assert quota(claims, 1).start == ()


def test_r20_the_running_block_is_still_owned_until_it_ends() -> None:
    stage = Stage(minted=1)
    stage.ask("a", "north", 1, 0, 10, 1)
    stage.buy("b", "bob", 1, 0, 10, 1)
    stage.clock(10)  # block 9 runs
    assert stage.x.holdings["bob"].owned(9) == ((9, 10, 1),)
    stage.clock(11)
    assert stage.x.holdings["bob"].owned() == ()


def test_r21_too_few_are_created_and_too_many_removed_awaiting_ones_first() -> None:
    assert keep_live(THREE, 5).create == 2
    claims = [*THREE, wait("queued", 0, "critical"), run("cheap", 0, "yield")]
    assert keep_live(claims, 2).remove == ("queued", "cheap", "new")
    assert keep_live(claims, 2, enabled=False) == keep_live([], 0)


def test_w1_owned_blocks_are_never_taken_back_whatever_others_bid() -> None:
    stage = Stage(minted=1)
    stage.ask("a", "north", 1, 0, 60, 1)
    stage.buy("b", "bob", 1, 0, 60, 1)
    stage.bid("rich", "ann", 10_000_000, 0, 60, 2)
    stage.clock(5)
    assert stage.owned("bob") == ((5, 60, 1),)
    assert why_short(provider_lost=False, balance=False, limit=True, sold=True) == "price"
    assert why_short(provider_lost=False, balance=False, limit=False, sold=False) == "schedule"
    assert why_short(provider_lost=True, balance=True, limit=True, sold=True) == "provider"
    assert why_short(provider_lost=False, balance=True, limit=True, sold=True) == "balance"


def test_w2_the_nth_in_rank_stops_where_the_allocation_falls_below_n() -> None:
    owned = ((5, 20, 3), (20, 30, 2), (30, 40, 3))
    assert expected_shutdown(THREE, owned, 6) == {"vital": 40, "old": 40, "new": 20}
    assert expected_shutdown(THREE, ((5, 1 << 40, 3),), 6) == dict.fromkeys(("vital", "old", "new"))
    assert expected_shutdown(THREE, (), 6) == {"vital": 6, "old": 6, "new": 6}


def test_w2_an_awaiting_instance_starts_in_the_first_block_with_a_place_for_it() -> None:
    claims = [run("r", 0), wait("a", 1), wait("b", 2), wait("c", 3)]
    assert expected_start(claims, ((5, 10, 1), (10, 20, 2), (20, 30, 3)), 6) == {"a": 10, "b": 20, "c": None}


def heard(shutdown_at: int | None, moments: list[float], **more: object) -> list[tuple[float, Notice]]:
    told: Warned | None = None
    out = []
    for now in moments:
        told, notice = warn("i", shutdown_at, now, told, "schedule", **more)  # type: ignore[arg-type]
        if notice:
            out.append((now, notice))
    return out


def test_w3_warnings_come_once_at_ten_and_at_five_minutes() -> None:
    said = heard(10_800, [0, 10_199, 10_200, 10_260, 10_499, 10_500, 10_560, 10_799])
    assert [(now, notice.lead_s) for now, notice in said] == [(10_200, 600), (10_500, 300)]


def test_w3_a_late_discovery_warns_at_once_with_its_true_lead() -> None:
    assert [n.lead_s for _, n in heard(1_000, [580.0, 590.0, 701.0])] == [420, 299]
    assert [n.lead_s for _, n in heard(1_000, [900.0, 950.0])] == [100]


def test_w3_the_providers_own_notice_is_one_more_lead() -> None:
    assert [n.lead_s for _, n in heard(1_000, [400, 700, 880, 970, 980], notice_s=120)] == [600, 300, 120]


def test_w3_time_bought_after_a_warning_clears_it() -> None:
    told, notice = warn("i", 1_000, 400, None, "price")
    assert notice == Notice("i", 1_000, 600, "price")
    told, notice = warn("i", None, 460, told, "price")
    assert told is None and notice is not None and notice.cleared
    told, _ = warn("i", 1_000, 400, None, "price")
    told, notice = warn("i", 9_000, 460, told, "price")
    assert told is None and notice is not None and notice.cleared
    assert warn("i", None, 460, None, "price") == (None, None)


def test_w3_an_earlier_shutdown_is_announced_anew() -> None:
    told, _ = warn("i", 1_000, 450, None, "price")
    told, notice = warn("i", 800, 460, told, "sold")
    assert notice == Notice("i", 800, 340, "sold") and told == Warned(800, (600,))


def test_w3_a_shutdown_moved_within_the_leads_is_announced_anew_not_cleared() -> None:
    told, _ = warn("i", 1_000, 700, None, "price")
    told, notice = warn("i", 1_100, 705, told, "price")
    assert notice == Notice("i", 1_100, 395, "price") and told == Warned(1_100, (600,))


def test_w4_the_rolling_edge_is_silent_and_a_hole_inside_the_window_is_not() -> None:
    assert heard(3_600, [0, 3_000, 3_300], managed_until=3_600) == []
    assert [n.lead_s for _, n in heard(3_000, [2_400], managed_until=3_600)] == [600]
    assert "15 min" in advice(10, hibernates=True)
    assert advice(60, hibernates=True) == advice(10, hibernates=False) == ""


def test_w5_what_was_announced_is_the_block_in_which_the_quota_stops_it() -> None:
    owned = ((0, 20, 2), (20, 30, 1))
    claims = [run("a", 1), run("b", 2)]
    at = expected_shutdown(claims, owned, 1)["b"]
    assert at == 20
    assert quota(claims, 2).stop == () and quota(claims, 1).stop == ("b",)


def test_w6_an_awaiting_instance_starts_now_on_an_idle_node() -> None:
    claims = [run("r", 0), wait("a", 1), wait("b", 2), wait("c", 3)]
    assert early_starts(claims, 3, nodes_up=4, sold_now=1, in_progress=0) == ("a", "b")
    assert early_starts(claims, 3, nodes_up=4, sold_now=2, in_progress=1) == ("a",)
    assert early_starts(claims, 3, nodes_up=4, sold_now=4, in_progress=0) == ()  # owned but unused is not idle
    assert early_starts(claims, 1, nodes_up=4, sold_now=1, in_progress=0) == ()  # not covered from the next block
    assert early_starts(claims, 3, nodes_up=4, sold_now=1, in_progress=0, enabled=False) == ()


def test_w6_early_starts_within_ten_blocks_never_exceed_the_next_allocation() -> None:
    claims = [wait("a", 1), wait("b", 2)]
    assert early_starts(claims, 2, nodes_up=9, sold_now=0, in_progress=0, recent=("x",)) == ("a",)
    assert early_starts(claims, 2, nodes_up=9, sold_now=0, in_progress=0, recent=("x", "y")) == ()


def test_w6_what_is_no_longer_covered_stops_when_its_block_begins() -> None:
    claims = [run("r", 0), run("e", 1, early=True)]
    assert early_ends(claims, 2) == ()
    assert early_ends(claims, 1) == ("e",)
