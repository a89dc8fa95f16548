"""The clock of a cluster: wall time, or a frozen one that stands still until it is advanced."""

from __future__ import annotations

import time
from typing import Final

from nanopod.control.market.drafts import CLOCK_SETTING
from nanopod.model.errors import Invalid
from nanopod.store.transaction import Transaction

__all__ = ["CLOCK_SETTING", "ClusterClock", "frozen_since"]

ALIGN_S: Final = 60
"""A test clock begins at a whole minute, so that examples read well."""


class ClusterClock:
    """`clock()` is the cluster's time in Unix seconds. What belongs to machines and links goes by wall time."""

    def __init__(self, frozen_at: float | None = None) -> None:
        self._frozen_at = frozen_at

    @property
    def frozen(self) -> bool:
        """True for a test clock."""
        return self._frozen_at is not None

    def __call__(self) -> float:
        return time.time() if self._frozen_at is None else self._frozen_at

    def set(self, now_at: float) -> None:
        """Move a test clock on. Raises `Invalid` for wall time, and for going back."""
        if self._frozen_at is None:
            raise Invalid("now_at: wall time cannot be set", field="now_at")
        if now_at < self._frozen_at:
            raise Invalid(f"now_at: {now_at} is before {self._frozen_at}; a clock does not go back", field="now_at")
        self._frozen_at = now_at


def frozen_since(write: Transaction, wanted: bool, *, fresh: bool, now: float) -> float | None:
    """Where the cluster's test clock stands, or None for wall time. `fresh`: this start makes the cluster.

    Raises `Invalid` when a test clock is wanted of a cluster that was made without one.
    """
    kept = write.setting(CLOCK_SETTING)
    if kept is not None:
        return float(kept)
    if not wanted:
        return None
    if not fresh:
        raise Invalid(
            "--test-clock: this cluster was made without a test clock and stays on wall time; "
            "choose a new directory with --data-dir"
        )
    start = float(int(now) // ALIGN_S * ALIGN_S)
    write.put_setting(CLOCK_SETTING, repr(start))
    return start
