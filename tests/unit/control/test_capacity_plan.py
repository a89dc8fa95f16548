"""Machines are judged by their silence; what they have is told to the market when they come, change and go."""

from __future__ import annotations

from typing import Any

import pytest
from chain_rows import NOW, FakeDesk, clock

from nanopod.control.capacity import LOST_S, MachineReconciler, MachineSnapshot, kinds_of
from nanopod.control.live import Live
from nanopod.model.capacity import Node


def node(name: str, state: Any = "up", sku: str = "s1") -> Node:
    return Node(name, f"m-{name}", sku, 4, state)


def reconciler(desk: FakeDesk | None = None) -> MachineReconciler:
    return MachineReconciler(Live(), 0.0, desk or FakeDesk(), clock)  # type: ignore[arg-type]


def machine(silent_s: float, state: Any = "up", linked: bool = False) -> Any:
    snapshot = MachineSnapshot("m1", [node("a", state)], linked, NOW - silent_s, ("i1",))
    return reconciler().plan(snapshot, NOW)


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


def test_each_kind_of_node_is_named_once() -> None:
    assert kinds_of([node("a"), node("b", sku="s2"), node("c")]) == ["s1", "s2"]
