"""How much of an endpoint's time is held, bought ahead by orders of its own, and what to order next: pure.

The rest follows the workers by its procurement, which gives up what dearer buyers want. Times are blocks, and runs of
them `[start, end)`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanopod.model.endpoint import ScaleSpec


@dataclass(frozen=True, slots=True)
class HeldOrder:
    """`nodes` to be bought for `[start, end)`, as many of them as there are."""

    nodes: int
    start: int
    end: int


def share(scale: ScaleSpec, target: int, *, scarce: bool) -> int:
    """Of `target` workers, how many run on held time: all without `spot`; the fallback's share while time is scarce."""
    if not scale.spot:
        return max(0, target)
    if not scarce or scale.on_demand_fallback <= 0:
        return 0
    return min(target, math.ceil(target * scale.on_demand_fallback - 1e-9))


def order(wanted: int, held: Sequence[tuple[int, int, int]], block: int, window: int) -> HeldOrder | None:
    """What to buy so that `wanted` nodes are held from `block` on; None when nothing is to be bought yet.

    `held` are (start, end, nodes) owned already. A window is bought at a time, the next one when half of it is left.
    """
    if wanted <= 0:
        return None
    end = block + window
    edges = sorted({block, end, *(edge for start, stop, _ in held for edge in (start, stop) if block < edge < end)})
    for start, stop in itertools.pairwise(edges):
        lacking = wanted - sum(nodes for begin, over, nodes in held if begin <= start and stop <= over)
        if lacking <= 0:
            continue
        if start > block + window // 2:
            return None
        return HeldOrder(lacking, start, end if _lacks_to_end(wanted, held, start, end, lacking) else stop)
    return None


def _lacks_to_end(wanted: int, held: Sequence[tuple[int, int, int]], start: int, end: int, lacking: int) -> bool:
    """True when at least `lacking` are missing all the way: then one order does for all of it."""
    edges = sorted({start, *(edge for begin, stop, _ in held for edge in (begin, stop) if start < edge < end)})
    return all(wanted - sum(n for begin, stop, n in held if begin <= at < stop) >= lacking for at in edges)
