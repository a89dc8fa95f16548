"""Whether a canary is promoted, waits or is rolled back, and how many workers each side has: pure.

A canary bakes from the moment its first worker is ready. Its errors are judged against those of the stable revision in
the same time: once enough calls have ended, and with whatever is known when the time is over. Times are Unix seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from nanopod.model.endpoint import RolloutSpec

CHECK_S: Final = 1.0
"""How often a canary is looked at."""
Phase = Literal["", "canary", "promoted", "rolled_back"]
Action = Literal["wait", "promote", "roll_back"]


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What is remembered of an endpoint's newest rollout; plain values, stored as they are.

    `canary`, `stable`: calls that ended since the canary was ready, and those of them that failed.
    """

    phase: Phase = ""
    revision_id: str = ""
    canary: tuple[int, int] = (0, 0)
    stable: tuple[int, int] = (0, 0)
    reason: str = ""
    """Why it is as it is, for people."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen since the last look."""

    ready_at: float | None = None
    """When the canary had its first ready worker; None: not yet."""
    canary: tuple[int, int] = (0, 0)
    stable: tuple[int, int] = (0, 0)
    cannot_start: str = ""
    """Why the canary's workers cannot start; "" while they may."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, why, and in how many seconds to look again."""

    action: Action
    reason: str
    recheck_s: float | None = CHECK_S


def decide(spec: RolloutSpec, state: RolloutState, seen: Seen, now: float) -> tuple[RolloutState, Verdict]:
    """One look at a canary. With `auto_rollback` off a bad canary is never promoted by itself, only told of."""
    state = replace(state, canary=_sum(state.canary, seen.canary), stable=_sum(state.stable, seen.stable))
    verdict = _judge(spec, state, seen, now)
    if verdict.action == "roll_back" and not spec.auto_rollback:
        advice = f"{verdict.reason}; auto_rollback is off: roll it back or promote it"
        verdict = Verdict("wait", advice)
    return replace(state, reason=verdict.reason), verdict


def _judge(spec: RolloutSpec, state: RolloutState, seen: Seen, now: float) -> Verdict:
    if seen.cannot_start:
        return Verdict("roll_back", f"the canary cannot start: {seen.cannot_start}")
    if seen.ready_at is None:
        return Verdict("wait", "the canary has no ready worker yet")
    over = spec.bake_s > 0 and now >= seen.ready_at + spec.bake_s
    ended, failed = state.canary
    if ended and (over or ended >= spec.min_calls):
        mine, other = _percent(state.canary), _percent(state.stable)
        if mine > other + spec.max_error_percent:
            return Verdict(
                "roll_back",
                f"{failed} of {ended} calls of the canary failed ({mine:.1f} %, the stable revision has {other:.1f} %, "
                f"{spec.max_error_percent:g} % more are allowed)",
            )
    told = f"{failed} of {ended} calls of the canary failed"
    if over:
        return Verdict("promote", f"it ran for {spec.bake_s:g} s and {told}", None)
    if spec.bake_s <= 0:
        return Verdict("wait", f"{told}; it waits to be promoted by hand")
    left_s = seen.ready_at + spec.bake_s - now
    return Verdict("wait", f"{told}; it bakes until {spec.bake_s:g} s are over", min(CHECK_S, left_s))


def shares(target: int, percent: int, canary_ready: int) -> tuple[int, int]:
    """(workers of the stable revision, workers of the canary): each its share rounded up, at least one.

    The stable revision gives none of its own away before the canary has all of its workers ready.
    """
    if target <= 0:
        return 0, 0
    canary = max(1, math.ceil(target * percent / 100))
    stable = max(1, math.ceil(target * (100 - percent) / 100))
    return (stable if canary_ready >= canary else target), canary


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _percent(calls: tuple[int, int]) -> float:
    ended, failed = calls
    return 100.0 * failed / ended if ended else 0.0
