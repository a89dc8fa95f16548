"""Whether a new revision is promoted, waits or is rolled back, and what share of the calls it has now: pure.

A canary bakes from the moment its first worker is ready. Its errors, and its median latency, are judged against those
of the stable revision in the same time: once enough calls have ended, and errors with whatever is known when the time
is over. One that takes over gradually (`duration_s`) is judged in the same way meanwhile. Times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from nanopod.model.endpoint import RolloutSpec
from nanopod.model.wire import LATENCY_BUCKETS_S
from nanopod.scheduler.rollout.traffic import moved

CHECK_S: Final = 1.0
"""How often a canary is looked at."""
QUIET_CHECK_S: Final = 5.0
"""How often one is that waits for somebody to decide, and had no calls since the last look."""
ALL: Final = 100
Phase = Literal["", "canary", "promoted", "rolled_back"]
Action = Literal["wait", "promote", "roll_back"]


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What is remembered of an endpoint's newest rollout; plain values, stored as they are.

    `canary`, `stable`: calls that ended since the canary was ready, and those of them that failed; `canary_latency`,
    `stable_latency`: those calls by bucket of `LATENCY_BUCKETS_S`.
    """

    phase: Phase = ""
    revision_id: str = ""
    canary: tuple[int, int] = (0, 0)
    stable: tuple[int, int] = (0, 0)
    reason: str = ""
    """Why it is as it is, for people."""
    canary_latency: tuple[int, ...] = ()
    stable_latency: tuple[int, ...] = ()
    percent: int = -1
    """Of the calls, that the canary has now; -1: what was asked for."""
    from_percent: int = 0
    """What its share moves from."""
    moved_at: float | None = None
    """When its share began to move; None: when it was ready."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen since the last look."""

    ready_at: float | None = None
    """When the canary had its first ready worker; None: not yet."""
    canary: tuple[int, int] = (0, 0)
    stable: tuple[int, int] = (0, 0)
    cannot_start: str = ""
    """Why the canary's workers cannot start; "" while they may."""
    canary_latency: tuple[int, ...] = ()
    stable_latency: tuple[int, ...] = ()
    goal: int = -1
    """Percent of the calls that it shall have in the end; -1: what its settings say."""
    stable_ready: bool = True
    """A worker of the stable revision takes calls."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, why, and in how many seconds to look again."""

    action: Action
    reason: str
    recheck_s: float | None = CHECK_S


def decide(spec: RolloutSpec, state: RolloutState, seen: Seen, now: float) -> tuple[RolloutState, Verdict]:
    """One look at a canary. With `auto_rollback` off a bad canary is never promoted by itself, only told of."""
    goal = seen.goal if seen.goal >= 0 else spec.canary_percent
    if state.from_percent > goal and state.moved_at is None and seen.stable_ready:
        state = replace(state, moved_at=now)
    percent, next_s = share(spec, state, goal, seen.ready_at, now)
    state = replace(
        state,
        canary=_sum(state.canary, seen.canary),
        stable=_sum(state.stable, seen.stable),
        canary_latency=_added(state.canary_latency, seen.canary_latency),
        stable_latency=_added(state.stable_latency, seen.stable_latency),
        percent=percent,
    )
    verdict = _judge(spec, state, seen, goal, next_s, now)
    if verdict.action == "roll_back" and not spec.auto_rollback:
        advice = f"{verdict.reason}; auto_rollback is off: roll it back or promote it"
        verdict = Verdict("wait", advice)
    return replace(state, reason=verdict.reason), verdict


def share(
    spec: RolloutSpec, state: RolloutState, goal: int, ready_at: float | None, now: float
) -> tuple[int, float | None]:
    """(percent of the calls that the canary has now, seconds until that changes by the passing of time alone).

    What is to be given back stays until the stable revision is ready to take it, and goes at once then.
    """
    if state.from_percent > goal and state.moved_at is None:
        return state.from_percent, None
    since = state.moved_at if state.moved_at is not None else ready_at
    if since is None:
        return moved(state.from_percent, goal, 0.0, spec.duration_s)[0], None
    return moved(state.from_percent, goal, now - since, spec.duration_s)


def _judge(
    spec: RolloutSpec, state: RolloutState, seen: Seen, goal: int, next_s: float | None, now: float
) -> Verdict:  # fmt: skip
    if seen.cannot_start:
        return Verdict("roll_back", f"the canary cannot start: {seen.cannot_start}")
    if seen.ready_at is None:
        return Verdict("wait", "the canary has no ready worker yet", QUIET_CHECK_S)
    takes_over = goal >= ALL
    over = next_s is None if takes_over else spec.bake_s > 0 and next_s is None and now >= seen.ready_at + spec.bake_s
    bad = _bad(spec, state, over)
    if bad:
        return Verdict("roll_back", bad)
    ended, failed = state.canary
    told = f"{failed} of {ended} calls of the canary failed"
    recheck_s = CHECK_S if next_s is None else min(CHECK_S, next_s)
    if spec.pinned and not goal:
        said = "it is pinned to the previous revision: the newest one gets no calls but by its tag"
        return Verdict("wait", said, QUIET_CHECK_S)
    if over and takes_over:
        return Verdict("promote", f"its share grew to all calls in {spec.duration_s:g} s and {told}", None)
    if next_s is not None:
        return Verdict("wait", f"{told}; it has {state.percent} % of the calls on the way to {goal} %", recheck_s)
    if not spec.auto_promote or spec.bake_s <= 0:
        busy = seen.canary[0] > 0
        return Verdict("wait", f"{told}; it waits to be promoted by hand", CHECK_S if busy else QUIET_CHECK_S)
    if over:
        return Verdict("promote", f"it ran for {spec.bake_s:g} s and {told}", None)
    left_s = seen.ready_at + spec.bake_s - now
    return Verdict("wait", f"{told}; it bakes until {spec.bake_s:g} s are over", min(CHECK_S, left_s))


def _bad(spec: RolloutSpec, state: RolloutState, over: bool) -> str:
    """Why the canary is worse than the settings allow; "" while it is not, as far as one can tell."""
    ended, failed = state.canary
    if ended and (over or ended >= spec.min_calls):
        mine, other = _percent(state.canary), _percent(state.stable)
        if mine > other + spec.max_error_percent:
            return (
                f"{failed} of {ended} calls of the canary failed ({mine:.1f} %, the stable revision has {other:.1f} %, "
                f"{spec.max_error_percent:g} % more are allowed)"
            )
    if spec.max_slowdown_percent > 0 and slower(
        state.canary_latency, state.stable_latency, spec.max_slowdown_percent, spec.min_calls
    ):
        mine, other = median_s(state.canary_latency), median_s(state.stable_latency)
        return (
            f"half of the canary's calls took more than about {mine:.3g} s (the stable revision's {other:.3g} s, "
            f"{spec.max_slowdown_percent:g} % more are allowed)"
        )
    return ""


def median_s(buckets: tuple[int, ...]) -> float:
    """The median of latencies that were counted by bucket of `LATENCY_BUCKETS_S`, in seconds: interpolated within its
    bucket, so as exact as that is narrow. 0 when nothing was counted."""
    low, high, share_ = _median_bucket(buckets)
    return low + (high - low) * share_


def slower(canary: tuple[int, ...], stable: tuple[int, ...], percent: float, min_calls: int) -> bool:
    """True when the canary's median is more than `percent` above the stable revision's, with enough calls of both.

    Buckets are wide: medians in the same one, or in neighbours that may be closer than they look, do not count. So the
    whole bucket of the canary's median must lie above what is allowed.
    """
    if min(sum(canary), sum(stable)) < min_calls:
        return False
    low, _, _ = _median_bucket(canary)
    return low > median_s(stable) * (1 + percent / 100)


def _median_bucket(buckets: tuple[int, ...]) -> tuple[float, float, float]:
    """(lower bound, upper bound, share of the bucket below the median); the open last bucket is twice its lower one."""
    half, before = sum(buckets) / 2, 0
    for index, count in enumerate(buckets):
        if count and before + count >= half:
            low = LATENCY_BUCKETS_S[index - 1] if index else 0.0
            high = LATENCY_BUCKETS_S[index] if index < len(LATENCY_BUCKETS_S) else 2 * low
            return low, high, (half - before) / count
        before += count
    return 0.0, 0.0, 0.0


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Buckets added up; an empty one has none."""
    if not one or not other:
        return one or other
    return tuple(map(sum, zip(one, other, strict=False)))


def _percent(calls: tuple[int, int]) -> float:
    ended, failed = calls
    return 100.0 * failed / ended if ended else 0.0
