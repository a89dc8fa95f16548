"""Capacities follow the nodes there are; machines are judged by their silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW

from nanopod.control.capacity import (
    HISTORY_S,
    LOST_S,
    CapacityReconciler,
    CapacitySnapshot,
    MachineReconciler,
    MachineSnapshot,
    from_now_on,
)
from nanopod.control.live import Live
from nanopod.model.capacity import Capacity, Node
from nanopod.model.schedule import Entry, Schedule, Window

EMPTY = Capacity("c1", "w1", "default")
BLOCK = int(NOW // 60 * 60)


def node(name: str, state: Any = "up", sku: str = "s1") -> Node:
    return Node(name, f"m-{name}", sku, 4, state)


def grant(capacity: Capacity, *nodes: Node) -> Any:
    return CapacityReconciler().plan(CapacitySnapshot(capacity, nodes), NOW)


def test_the_nodes_that_are_here_are_granted_open_ended() -> None:
    found = grant(EMPTY, node("a"), node("b"), node("c", sku="s2"), node("d", "lost"))
    assert found.by_sku == {
        "s1": Schedule((Entry(Window(BLOCK, None), 2),)),
        "s2": Schedule((Entry(Window(BLOCK, None), 1),)),
    }
    assert found.changes


def test_granted_already_changes_nothing() -> None:
    held = replace(EMPTY, by_sku=grant(EMPTY, node("a")).by_sku)
    assert not grant(held, node("a")).changes
    assert not grant(held, node("a", "unreachable")).changes, "it may come back"


def test_a_lost_node_is_taken_back_and_history_stays() -> None:
    held = replace(EMPTY, by_sku={"s1": Schedule((Entry(Window(BLOCK - 600, None), 2),))})
    found = grant(held, node("a"), node("b", "lost"))
    assert found.by_sku["s1"] == Schedule((Entry(Window(BLOCK - 600, BLOCK), 2), Entry(Window(BLOCK, None), 1)))


def test_history_ends_after_a_day() -> None:
    end = int(NOW) - HISTORY_S - 60
    old = Schedule((Entry(Window(end - 60, end), 5), Entry(Window(BLOCK - 60, None), 1)))
    assert from_now_on(old, 2, NOW).entries[0].node_count == 1


def test_two_changes_in_one_block() -> None:
    first = from_now_on(Schedule(), 1, NOW)
    assert from_now_on(first, 3, NOW) == Schedule((Entry(Window(BLOCK, None), 3),))


def machine(silent_s: float, state: Any = "up", linked: bool = False) -> Any:
    snapshot = MachineSnapshot("m1", [node("a", state)], linked, NOW - silent_s, ("i1",), ("c1",))
    return MachineReconciler(Live(), 0.0).plan(snapshot, NOW)


@pytest.mark.parametrize(
    ("silent_s", "linked", "state"),
    [
        (0, True, "up"),
        (9, False, "up"),
        (11, False, "unreachable"),
        (LOST_S, False, "lost"),
        (30, True, "up"),
        (500, True, "unreachable"),
    ],
)
def test_silence(silent_s: float, linked: bool, state: str) -> None:
    assert machine(silent_s, linked=linked).state == state


def test_it_comes_back_and_is_looked_at_in_time() -> None:
    assert machine(0, "lost").changes
    assert machine(4).recheck_s == pytest.approx(6)
    assert machine(20, "unreachable").recheck_s == pytest.approx(40)
    assert machine(0, "draining").state == "draining"
