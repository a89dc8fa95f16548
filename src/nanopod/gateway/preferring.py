"""What a call would rather run on. Never a condition: where no such worker has a free slot, any other does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanopod.gateway.links import WorkerLink


def plain(name: str) -> str:
    """A GPU's name as it is compared: `A100-SXM4` and `a100 sxm4` are one."""
    return "".join(filter(str.isalnum, name.lower()))


class Preference:
    """GPU models, the best first, and among equals a region. A part of a region's name means all that begin so."""

    __slots__ = ("_order", "_region")

    def __init__(self, gpus: Sequence[str], region: str) -> None:
        self._order = {plain(name): place for place, name in reversed(list(enumerate(gpus)))}
        self._region = region.lower()

    def best(self, links: list[WorkerLink]) -> list[WorkerLink]:
        """Those of `links` that no other one is preferred to."""
        ranked = [(self._rank(link), link) for link in links]
        best = min(rank for rank, _ in ranked)
        return [link for rank, link in ranked if rank == best]

    def _rank(self, link: WorkerLink) -> tuple[int, bool]:
        order, wanted = self._order, self._region
        place = order.get(link.gpu, len(order)) if order else 0
        return place, bool(wanted) and link.region != wanted and not _is_within(link.region, wanted)


def _is_within(region: str, wanted: str) -> bool:
    return region.startswith(wanted) and not region[len(wanted)].isalnum()
