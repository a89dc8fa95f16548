"""Placement: free slots, states, what a capacity holds, and a reason for every refusal."""

from __future__ import annotations

from dataclasses import replace

from nanopod.model.capacity import Capacity, Node
from nanopod.model.schedule import Entry, Schedule, Window
from nanopod.scheduler.placement.place import Candidate, place

NOW = 1000.0


def node(name: str, slots: int = 4, state: str = "up", sku: str = "s1") -> Node:
    return Node(name, f"m-{name}", sku, slots, state)  # type: ignore[arg-type]


def capacity(count: int = 10, **more: object) -> Capacity:
    schedule = Schedule((Entry(Window(0, None), count),)) if count else Schedule()
    return replace(Capacity("c1", "w1", "default", by_sku={"s1": schedule}), **more)  # type: ignore[arg-type]


def test_most_free_slots_first_then_the_name() -> None:
    candidates = [Candidate(node("b"), 3), Candidate(node("c"), 1), Candidate(node("a"), 1)]
    assert place(capacity(), candidates, NOW).node_id == "a"


def test_a_node_where_starts_failed_comes_last() -> None:
    candidates = [Candidate(node("a"), 0), Candidate(node("b"), 3)]
    assert place(capacity(), candidates, NOW, {"a": 1}).node_id == "b"
    assert place(capacity(), candidates[:1], NOW, {"a": 5}).node_id == "a", "but it is better than none"


def test_every_refusal_has_its_reason() -> None:
    found = place(
        capacity(1),
        [
            Candidate(node("full"), 4, frozenset({"c1"})),
            Candidate(node("down", state="lost"), 0),
            Candidate(node("dear"), 0),
            Candidate(node("alien", sku="s2"), 0),
        ],
        NOW,
    )
    assert found.node_id is None
    assert found.reasons == (
        "full: all 4 slots are taken",
        "down: is lost",
        "dear: capacity default holds 1 nodes of its kind now, all in use",
        "alien: capacity default holds 0 nodes of its kind now, all in use",
    )


def test_a_node_that_is_held_already_costs_nothing_more() -> None:
    candidates = [Candidate(node("a"), 1, frozenset({"c1"})), Candidate(node("b"), 0)]
    assert place(capacity(1), candidates, NOW).node_id == "a"


def test_others_on_a_node_do_not_count_against_us() -> None:
    assert place(capacity(1), [Candidate(node("a"), 2, frozenset({"other"}))], NOW).node_id == "a"


def test_a_schedule_that_begins_later_holds_nothing_yet() -> None:
    later = capacity(0, by_sku={"s1": Schedule((Entry(Window(1020, None), 1),))})
    assert place(later, [Candidate(node("a"), 0)], NOW).node_id is None
    assert place(later, [Candidate(node("a"), 0)], 1020.0).node_id == "a"


def test_no_node_at_all() -> None:
    assert place(capacity(), [], NOW).reasons == ("no node has joined yet",)
