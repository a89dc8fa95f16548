"""A mutable step function over blocks, for sums that change with every order: what a capacity owns, sells, lacks.

Two parallel sorted lists: value `_n[i]` holds on `[_at[i], _at[i + 1])`. A change costs a bisection and the steps
inside its own window, however long the rest of the function is. Values may be negative (a difference of two sums).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from nanopod.market.shape import FOREVER, Run, Shape, normal

_NEVER: Final = -(1 << 40)


class Steps:
    """An integer per block, zero everywhere at first."""

    __slots__ = ("_at", "_n")

    def __init__(self, shape: Shape = ()) -> None:
        self._at: list[int] = [_NEVER]
        self._n: list[int] = [0]
        self.add(shape)

    def add(self, shape: Shape, sign: int = 1) -> None:
        """Add (or with `sign` -1 take away) a shape."""
        for start, end, nodes in shape:
            self.add_run(start, end, nodes * sign)

    def add_run(self, start: int, end: int, delta: int) -> None:
        """Add `delta` on `[start, end)`."""
        if delta == 0 or end <= start:
            return
        first, last = self._edge(start), self._edge(end)
        values = self._n
        values[first:last] = [value + delta for value in values[first:last]]
        # Only the two edges can have become equal to their neighbour: inside, all moved alike.
        for k in (last, first):
            if values[k] == values[k - 1]:
                del values[k]
                del self._at[k]

    def _edge(self, at: int) -> int:
        """The index of the step that starts at `at`, cutting one in two if need be."""
        k = bisect_left(self._at, at)
        if k == len(self._at) or self._at[k] != at:
            self._at.insert(k, at)
            self._n.insert(k, self._n[k - 1])
        return k

    def at(self, block: int) -> int:
        """The value in one block."""
        return self._n[bisect_right(self._at, block) - 1]

    def least(self, start: int, end: int) -> int:
        """The smallest value in `[start, end)`."""
        return min(self._n[bisect_right(self._at, start) - 1 : bisect_left(self._at, end)])

    def covers(self, shape: Shape) -> bool:
        """True when the value is at least the shape in each of its blocks."""
        return all(self.least(start, end) >= nodes for start, end, nodes in shape)

    def runs(self, start: int = _NEVER, end: int = FOREVER) -> list[Run]:
        """The steps inside `[start, end)`, zeros and negative ones included, gap-free."""
        out: list[Run] = []
        for k in range(bisect_right(self._at, start) - 1, bisect_left(self._at, end)):
            stop = self._at[k + 1] if k + 1 < len(self._at) else FOREVER
            out.append((max(self._at[k], start), min(stop, end), self._n[k]))
        return out

    def shape(self, start: int = _NEVER, end: int = FOREVER) -> Shape:
        """The positive part inside `[start, end)`."""
        return normal(self.runs(start, end))

    def forget(self, before: int) -> None:
        """Set every block before `before` to zero."""
        k = bisect_right(self._at, before) - 1
        if k == 0:
            return
        value = self._n[k]
        self._at[: k + 1] = [_NEVER]
        self._n[: k + 1] = [0]
        if value:
            self._at.insert(1, before)
            self._n.insert(1, value)
