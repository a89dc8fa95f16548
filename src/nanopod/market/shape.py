"""Shapes: immutable step functions of time over whole blocks, as tuples of `(start, end, nodes)` runs.

A shape is in normal form: runs in order, disjoint, `nodes > 0`, equal neighbours merged; so equal shapes are equal
tuples. Block `b` is the time `[b * block_s, (b + 1) * block_s)`. Plain tuples are used because the matcher makes many
of them; nearly all have one run, and those take the short way through every function here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, TypeAlias

from nanopod.model.errors import Invalid
from nanopod.model.schedule import BLOCK_S, Entry, Schedule, Window

Run: TypeAlias = tuple[int, int, int]
"""`nodes` during blocks `[start, end)`."""
Shape: TypeAlias = tuple[Run, ...]
EMPTY: Final[Shape] = ()
FOREVER: Final = 1 << 40
"""The end, in blocks, of a schedule that has none."""


def runs_of(values: Iterable[Iterable[int]]) -> Shape:
    """A shape from lists of integers, as JSON gives them."""
    return tuple((start, end, nodes) for start, end, nodes in values)


def rect(start: int, end: int, nodes: int) -> Shape:
    """The rectangle `nodes x [start, end)`; empty when either extent is."""
    return ((start, end, nodes),) if end > start and nodes > 0 else EMPTY


def normal(runs: Iterable[Run]) -> Shape:
    """Normal form of runs that are in order and disjoint."""
    kept: list[Run] = []
    for run in runs:
        if run[2] <= 0 or run[1] <= run[0]:
            continue
        last = kept[-1] if kept else None
        if last is not None and last[1] == run[0] and last[2] == run[2]:
            kept[-1] = (last[0], run[1], run[2])
        else:
            kept.append(run)
    return tuple(kept)


def volume(shape: Shape) -> int:
    """Node-blocks."""
    return sum((end - start) * nodes for start, end, nodes in shape)


def peak(shape: Shape) -> int:
    """The most nodes in any block."""
    return max((run[2] for run in shape), default=0)


def meet(a: Shape, b: Shape) -> Shape:
    """The block-wise minimum."""
    if len(a) == 1 and len(b) == 1:
        (s, e, n), (t, f, m) = a[0], b[0]
        return rect(s if s > t else t, e if e < f else f, n if n < m else m)
    if not a or not b or a[-1][1] <= b[0][0] or b[-1][1] <= a[0][0]:
        return EMPTY
    return normal((s, e, min(n, m)) for s, e, n, m in segments(a, b))


def minus(a: Shape, b: Shape) -> Shape:
    """The block-wise difference; asserts that `b` lies within `a`. Runs of `a` far from `b` are not looked at."""
    if a == b:
        return EMPTY
    if not b:
        return a
    if len(a) == 1 and len(b) == 1:
        (start, end, nodes), (t, f, k) = a[0], b[0]
        assert start <= t and f <= end and k <= nodes, "a shape cannot hold fewer than zero nodes"
        rest = ((start, t, nodes),) if start < t else EMPTY
        if k < nodes:
            rest += ((t, f, nodes - k),)
        return (*rest, (f, end, nodes)) if f < end else rest
    low, high = _around(a, b[0][0], b[-1][1])
    out = []
    for s, e, n, m in segments(a[low:high], b):
        assert n >= m, "a shape cannot hold fewer than zero nodes"
        out.append((s, e, n - m))
    return a[:low] + normal(out) + a[high:]


def carve(a: Shape, b: Shape) -> tuple[Shape, Shape, Shape]:
    """`minus(a, b)`, the runs of `a` that are gone, and the runs that are new."""
    low, high = _around(a, b[0][0], b[-1][1])
    old, new = a[low:high], minus(a[low:high], b)
    gone = tuple(run for run in old if run not in new)
    return a[:low] + new + a[high:], gone, tuple(run for run in new if run not in old)


def _around(a: Shape, start: int, end: int) -> tuple[int, int]:
    """The slice of runs that overlap or touch `[start, end)`, which may merge with their neighbours."""
    if len(a) < 4:
        return 0, len(a)
    low = bisect_left(a, start, key=_end)
    high = bisect_right(a, end, key=_start)
    return max(0, low), high


def _start(run: Run) -> int:
    return run[0]


def _end(run: Run) -> int:
    return run[1]


def excess(a: Shape, b: Shape) -> Shape:
    """The block-wise `max(0, a - b)`."""
    return normal((s, e, n - m) for s, e, n, m in segments(a, b))


def plus(a: Shape, b: Shape) -> Shape:
    """The block-wise sum."""
    if not a or not b:
        return a or b
    return normal((s, e, n + m) for s, e, n, m in segments(a, b))


def total(shapes: Iterable[Shape]) -> Shape:
    """The sum of many shapes."""
    steps: dict[int, int] = {}
    for shape in shapes:
        for start, end, nodes in shape:
            steps[start] = steps.get(start, 0) + nodes
            steps[end] = steps.get(end, 0) - nodes
    out: list[Run] = []
    level = 0
    for lo, hi in pairwise(sorted(steps)):
        level += steps[lo]
        out.append((lo, hi, level))
    return normal(out)


def within(a: Shape, b: Shape) -> bool:
    """True when `a <= b` in every block."""
    if len(a) == 1 and len(b) == 1:
        (s, e, n), (t, f, m) = a[0], b[0]
        return t <= s and e <= f and n <= m
    return all(n <= m for _, _, n, m in segments(a, b))


def cut(shape: Shape, start: int, end: int = FOREVER) -> Shape:
    """The part of the shape inside `[start, end)`."""
    if not shape or (shape[0][0] >= start and shape[-1][1] <= end):
        return shape
    return tuple((max(s, start), min(e, end), n) for s, e, n in shape if e > start and s < end)


def segments(a: Shape, b: Shape) -> list[tuple[int, int, int, int]]:
    """Both shapes on their common cuts: `(start, end, nodes of a, nodes of b)`."""
    cuts = sorted({x for run in a for x in run[:2]} | {x for run in b for x in run[:2]})
    out = []
    i = j = 0
    for lo, hi in pairwise(cuts):
        while i < len(a) and a[i][1] <= lo:
            i += 1
        while j < len(b) and b[j][1] <= lo:
            j += 1
        n = a[i][2] if i < len(a) and a[i][0] <= lo else 0
        m = b[j][2] if j < len(b) and b[j][0] <= lo else 0
        out.append((lo, hi, n, m))
    return out


def from_schedule(schedule: Schedule, block_s: int = BLOCK_S, field: str = "allocation_schedule_delta") -> Shape:
    """A schedule in seconds as a shape in blocks. Raises `Invalid` naming `field` when an edge is off the grid."""
    runs: list[Run] = []
    for entry in schedule.entries:
        window = entry.window
        if not window.aligned(block_s):
            raise Invalid(
                f"{field}: {window.start_at}..{window.end_at} is not aligned; use multiples of {block_s} seconds",
                field=field,
            )
        end = FOREVER if window.end_at is None else window.end_at // block_s
        runs.append((window.start_at // block_s, end, entry.node_count))
    return normal(runs)


def to_schedule(shape: Shape, block_s: int = BLOCK_S) -> Schedule:
    """A shape as the schedule that users see."""
    return Schedule(tuple(Entry(Window(s * block_s, None if e >= FOREVER else e * block_s), n) for s, e, n in shape))
