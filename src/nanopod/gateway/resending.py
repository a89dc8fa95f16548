"""Samples that the server has not acknowledged: kept for ten minutes, and sent again when its link comes back."""

from __future__ import annotations

from collections import deque
from typing import Final

from nanopod.model.wire import Samples

KEPT_S: Final = 600.0
"""Older ones are dropped."""
KEPT_MAX: Final = 6_000
"""And no more than this many: besides that of its second, each endpoint that wakes has one of its own."""


class Unacked:
    """The newest samples, oldest first. They are told apart by their times, so one that comes twice counts once."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: deque[Samples] = deque(maxlen=KEPT_MAX)

    def keep(self, samples: Samples) -> None:
        """Samples that were just taken, sent or not."""
        kept = self._kept
        kept.append(samples)
        while kept[0].at <= samples.at - KEPT_S:
            kept.popleft()

    def acked(self, at: float) -> None:
        """The server took in everything up to `at` (Unix seconds)."""
        kept = self._kept
        while kept and kept[0].at <= at:
            kept.popleft()

    def all(self) -> list[Samples]:
        """What is to be sent again."""
        return list(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
