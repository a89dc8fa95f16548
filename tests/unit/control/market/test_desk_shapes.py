"""Adding a little to a long shape gives what adding the whole of both gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanopod.control.market.trading import joined
from nanopod.market.shape import Shape, normal, plus


def shapes(most: int) -> st.SearchStrategy[Shape]:
    """Shapes of at most so many runs, close together."""
    steps = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 2)), max_size=most)

    def made(drawn: list[tuple[int, int, int]]) -> Shape:
        runs, at = [], 0
        for gap, length, nodes in drawn:
            runs.append((at + gap, at + gap + length, nodes))
            at += gap + length
        return normal(runs)

    return steps.map(made)


@given(shapes(12), shapes(3), st.integers(0, 30))
def test_joined_is_plus(long: Shape, short: Shape, by: int) -> None:
    moved = tuple((start + by, end + by, nodes) for start, end, nodes in short)
    assert joined(long, moved) == plus(long, moved)
