"""How long starts take: medians of what was measured, by kind, and what is left of those under way."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Final, Literal

import msgspec

from nanopod.model.chain import Instance

Kind = Literal["wake", "provision"]
KEPT_MAX: Final = 15
"""Starts of a kind that the median is taken of: the newest ones."""
UNKNOWN_S: Final[dict[Kind, float]] = {"wake": 5.0, "provision": 10.0}
"""What a start is taken to need before one was measured."""


class Starts(msgspec.Struct):
    """Seconds that the newest starts of an endpoint's workers took, from being asked for to being ready."""

    wake: list[float] = []
    provision: list[float] = []
    seen: dict[str, int] = {}
    """{instance: newest epoch that was counted}, of instances that are still there."""

    def learn(self, instances: Sequence[Instance]) -> None:
        """Count the starts that have become ready since the last look."""
        for one in instances:
            if one.ready_at is None or one.start_at is None or self.seen.get(one.instance_id, 0) >= one.epoch:
                continue
            self.seen[one.instance_id] = one.epoch
            known = self.wake if one.start_kind == "wake" else self.provision
            known.append(max(0.0, one.ready_at - one.start_at))
            del known[:-KEPT_MAX]
        if len(self.seen) > len(instances):
            there = {one.instance_id for one in instances}
            self.seen = {key: epoch for key, epoch in self.seen.items() if key in there}

    def median_s(self, kind: Kind) -> float:
        """The median of a kind, seconds; before one was measured what is usual, a wake never above a provision."""
        known = self.wake if kind == "wake" else self.provision
        if known:
            return statistics.median(known)
        if kind == "wake":
            return min(UNKNOWN_S["wake"], self.median_s("provision"))
        return UNKNOWN_S["provision"]

    def measured(self) -> dict[str, float | None]:
        """The medians by kind; None where nothing was measured."""
        return {
            "wake": round(statistics.median(self.wake), 3) if self.wake else None,
            "provision": round(statistics.median(self.provision), 3) if self.provision else None,
        }

    def remaining_s(self, instance: Instance, now: float) -> float:
        """Seconds until a start is expected to be ready; 0 when it should have been already."""
        took_s = now - instance.start_at if instance.start_at is not None else now - instance.not_before
        kind: Kind = "wake" if instance.start_kind == "wake" else "provision"
        return max(0.0, self.median_s(kind) - max(0.0, took_s))


def starting(instances: Sequence[Instance], ready: Collection[str]) -> list[Instance]:
    """Those that shall run and do not take work yet."""
    return [one for one in instances if one.intent == "run" and one.instance_id not in ready]


def eta_s(
    instances: Sequence[Instance], starts: Starts | None, now: float, ready: Collection[str] = ()
) -> float:  # fmt: skip
    """Smallest remaining start time among an endpoint's workers, whole seconds and at least 1; 0 when none starts."""
    known = starts if starts is not None else Starts()
    left = [known.remaining_s(one, now) for one in starting(instances, ready)]
    return float(max(1, round(min(left)))) if left else 0.0
