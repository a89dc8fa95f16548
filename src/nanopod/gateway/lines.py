"""A waiting line: priority first, then arrival. Leaving it from the middle is cheap, and leaves no litter behind."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nanopod.gateway.jobs import Job

COMPACT_MIN: Final = 64
"""Below this many entries nobody sweeps."""

Entry = tuple[int, int, "Job"]
"""(-priority, place, job); stale when the job waits no more, or waits at another place."""


class Line:
    """Jobs that wait for the same workers. A job has at most one live entry."""

    __slots__ = ("_heap", "_stale")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._stale = 0

    def push(self, job: Job) -> None:
        """`job` waits from now on, at the place that its `seq` says."""
        heapq.heappush(self._heap, (-job.priority, job.seq, job))

    def head(self) -> Entry | None:
        """Whose turn it is; None when nobody waits."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[2].waiting and entry[2].seq == entry[1]:
                return entry
            heapq.heappop(heap)
            self._stale -= 1
        return None

    def pop(self) -> None:
        """Take the head out; only after `head` returned it."""
        heapq.heappop(self._heap)

    def left(self) -> None:
        """A job in the middle stopped waiting. Thousands of those must not stay for the sake of one."""
        self._stale += 1
        if self._stale > COMPACT_MIN and 2 * self._stale > len(self._heap):
            self._heap = self.entries()
            heapq.heapify(self._heap)
            self._stale = 0

    def entries(self) -> list[Entry]:
        """Everybody who waits, in no order."""
        return [entry for entry in self._heap if entry[2].waiting and entry[2].seq == entry[1]]

    def __len__(self) -> int:
        return len(self._heap) - self._stale
