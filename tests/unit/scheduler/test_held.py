"""Held time: which share of the workers, and which order is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.endpoint import ScaleSpec
from nanopod.scheduler.placement.held import HeldOrder, order, share


@pytest.mark.parametrize(
    ("scale", "target", "scarce", "nodes"),
    [
        (ScaleSpec(), 10, True, 0),
        (ScaleSpec(spot=False), 10, False, 10),
        (ScaleSpec(spot=False), 0, False, 0),
        (ScaleSpec(on_demand_fallback=0.2), 10, False, 0),
        (ScaleSpec(on_demand_fallback=0.2), 10, True, 2),
        (ScaleSpec(on_demand_fallback=0.2), 1, True, 1),
        (ScaleSpec(on_demand_fallback=1.0), 7, True, 7),
    ],
)
def test_the_share_that_is_held(scale: ScaleSpec, target: int, scarce: bool, nodes: int) -> None:
    assert share(scale, target, scarce=scarce) == nodes


def test_what_is_due() -> None:
    assert order(0, [], 100, 60) is None
    assert order(2, [], 100, 60) == HeldOrder(2, 100, 160)
    assert order(2, [(100, 160, 2)], 100, 60) is None
    assert order(3, [(100, 160, 2)], 100, 60) == HeldOrder(1, 100, 160), "what is missing beside what is held"
    assert order(2, [(100, 160, 2)], 120, 60) is None, "more than half a window is left"
    assert order(2, [(100, 160, 2)], 131, 60) == HeldOrder(2, 160, 191), "the next window, in time"
    assert order(2, [(110, 170, 2)], 100, 60) == HeldOrder(2, 100, 110), "a gap is filled"


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(80, 200), st.integers(1, 80), st.integers(1, 4)), max_size=5),
    st.integers(100, 140),
)
def test_ordering_what_is_due_ends_with_everything_held(
    wanted: int, runs: list[tuple[int, int, int]], block: int
) -> None:
    held = [(start, start + length, nodes) for start, length, nodes in runs]
    for _ in range(40):
        due = order(wanted, held, block, 60)
        if due is None:
            break
        assert due.nodes > 0
        assert block <= due.start < due.end <= block + 60
        held.append((due.start, due.end, due.nodes))
    else:
        raise AssertionError("it orders for ever")
    for at in range(block, block + 30):
        assert sum(nodes for start, end, nodes in held if start <= at < end) >= wanted
