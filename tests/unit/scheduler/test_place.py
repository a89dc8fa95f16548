"""Placement: free slots, states, kinds of nodes, and a reason for every refusal."""

from __future__ import annotations

from nanopod.model.capacity import Node
from nanopod.scheduler.placement.place import Candidate, place, refusal


def node(name: str, slots: int = 4, state: str = "up", sku: str = "s1") -> Node:
    return Node(name, f"m-{name}", sku, slots, state)  # type: ignore[arg-type]


def test_most_free_slots_first_then_the_name() -> None:
    candidates = [Candidate(node("b"), 3), Candidate(node("c"), 1), Candidate(node("a"), 1)]
    assert place("s1", candidates).node_id == "a"


def test_a_node_where_starts_failed_comes_last() -> None:
    candidates = [Candidate(node("a"), 0), Candidate(node("b"), 3)]
    assert place("s1", candidates, {"a": 1}).node_id == "b"
    assert place("s1", candidates[:1], {"a": 5}).node_id == "a", "but it is better than none"


def test_every_refusal_has_its_reason() -> None:
    found = place("s1", [Candidate(node("full"), 4), Candidate(node("down", state="lost"), 0)])
    assert found.node_id is None
    assert found.reasons == ("full: all 4 slots are taken", "down: is lost")


def test_only_nodes_of_its_kind_count() -> None:
    alien = Candidate(node("alien", sku="s2"), 0)
    assert place("s1", [alien, Candidate(node("own"), 3)]).node_id == "own"
    assert place("s1", [alien]).reasons == ("there is no node of its kind (s1)",)
    assert refusal("s1", alien) == "is of another kind (s2)"
    assert place("", [alien]).node_id == "alien", "one that is not pinned goes anywhere"


def test_no_node_at_all() -> None:
    assert place("s1", []).reasons == ("no node has joined yet",)
