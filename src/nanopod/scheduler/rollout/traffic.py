"""Which revision gets which share of an endpoint's calls now: pure.

An endpoint states its traffic by revision (as Knative's `spec.traffic` does), or a rollout moves calls from a stable
revision to the newest one (KServe's `canaryTrafficPercent`, or all of them over a time). Both end as shares by revision
id. Calls go to a revision only once it was ready; "the newest" is the newest one that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from nanopod.model.endpoint import Traffic

STEP_S_MIN: Final = 1.0
"""A share that moves over a time stays for at least so long at each step."""
TAG_LATEST: Final = "latest"
TAG_PREVIOUS: Final = "prev"


@dataclass(frozen=True, slots=True)
class Known:
    """A revision of the endpoint. `healthy`: a worker of it was ready once; `ready`: its workers that take calls now.

    `given_up`: it was rolled back, or cannot start.
    """

    revision_id: str
    number: int
    healthy: bool = False
    ready: int = 0
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What a revision has of the endpoint. One that is not named has nothing, and no worker is kept for it."""

    revision_id: str
    percent: int = 0
    """Of the calls, now."""
    workers: int = 0
    """Percent of the endpoint's workers: what its calls need once they are all there."""
    tags: tuple[str, ...] = ()
    tried: bool = True
    """A worker of it was ready once."""
    ready: int = 0

    @property
    def reachable(self) -> bool:
        """False when no call can reach it."""
        return self.percent > 0 or self.workers > 0 or bool(self.tags)


def of_traffic(stated: Sequence[Traffic], known: Sequence[Known], newest_id: str = "") -> tuple[Share, ...]:
    """Shares of stated traffic, in its order; a revision that is named twice has one share.

    Calls of "the newest" (`newest_id`, else the one with the highest number) stay with the newest revision that was
    ready before, while it still starts; both have workers then. A revision that is not known any more is left out.
    """
    by_id = {one.revision_id: one for one in known}
    alive = [one for one in sorted(known, key=lambda one: one.number) if not one.given_up]
    found: dict[str, Share] = {}

    def add(one: Known, percent: int, workers: int, tag: str) -> None:
        before = found.get(one.revision_id) or Share(one.revision_id, tried=one.healthy, ready=one.ready)
        tags = (*before.tags, tag) if tag and tag not in before.tags else before.tags
        found[one.revision_id] = replace(
            before, percent=before.percent + percent, workers=before.workers + workers, tags=tags
        )

    for row in stated:
        if row.revision:
            if row.revision in by_id:
                add(by_id[row.revision], row.percent, row.percent, row.tag)
            continue
        if not alive:
            continue
        newest = by_id.get(newest_id, alive[-1])
        newest = newest if newest in alive else alive[-1]
        healthy = [one for one in alive if one.healthy and one.number < newest.number]
        serving = newest if newest.healthy or not healthy else healthy[-1]
        add(serving, row.percent, row.percent, row.tag)
        if serving is not newest:
            # It is tried while the other one answers, with as many workers as it will need.
            add(newest, 0, max(1, row.percent), "")
    return tuple(found.values())


def of_rollout(
    newest: Known, stable: Known, percent: int, goal: int, *, target: int, tag_routing: bool = False
) -> tuple[Share, ...]:
    """Shares of a newest revision whose share is `percent` now, on its way to `goal`, and of the stable one.

    `target` is the number of the endpoint's workers. The newest one gets no call before it is ready, and no more than
    its ready workers stand for while some of those it needs are still starting. `goal` 0 pins the stable revision.
    """
    need, given = needed(target, percent), percent
    if not newest.ready:
        given = 0
    elif newest.ready < need and stable.ready:
        given = max(1, min(percent, 100 * newest.ready // max(1, target)))
    new = Share(
        *(newest.revision_id, given, percent, (TAG_LATEST,) if tag_routing else ()), *(newest.healthy, newest.ready)
    )
    # One that gets calls back needs its workers before they come.
    old = Share(
        *(stable.revision_id, 100 - given, 100 - min(percent, goal), (TAG_PREVIOUS,)), *(stable.healthy, stable.ready)
    )
    return (new, old)


def needed(target: int, percent: int) -> int:
    """Workers that `percent` of the calls of an endpoint with `target` workers need: rounded up, at least one."""
    return max(1, -(-target * percent // 100)) if target > 0 and percent > 0 else 0


def moved(before: int, goal: int, since_s: float, duration_s: float) -> tuple[int, float | None]:
    """(percent now, seconds until the next step) of a share that began to move `since_s` ago and takes `duration_s`.

    The first percent moves at once; the others in equal steps of at least `STEP_S_MIN` seconds, the last one larger if
    they do not come out even (as Knative's rollout duration does it).
    """
    way = goal - before
    if way <= 1 or duration_s <= 0 or since_s >= duration_s:
        return goal, None
    steps = max(1, min(way - 1, int(duration_s // STEP_S_MIN)))
    size, step_s = (way - 1) // steps, duration_s / steps
    done = max(0, int(since_s / step_s))
    return before + min(way, 1 + done * size), (done + 1) * step_s - since_s
