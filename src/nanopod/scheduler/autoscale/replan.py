"""From a number of replicas to what is done with which: taken back, woken, made, drained, hibernated, ended.

A busy replica is never chosen while an idler one exists, and the only start is never cancelled while requests wait and
nothing is ready. Equals are decided by id, so the same replicas always give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from nanopod.scheduler.autoscale.values import STARTING, Action, Replica

PAID_S: Final = 60.0
"""Time is paid by the minute, from a replica's birth on."""
_RANK: Final = {phase: rank for rank, phase in enumerate(STARTING)}


def replan(desired: int, cold: int, replicas: Sequence[Replica], now: float, waiting: bool) -> list[Action]:
    """What to do for `desired` hot and `cold` hibernated replicas. `waiting`: requests wait at the gateway.

    Counted are ready and starting ones without those that are leaving or are to be hibernated as soon as they are
    ready. An action whose `at` is later than `now` is to be given to the replica as `until`, nothing more yet.
    """
    ready = [one for one in replicas if one.phase == "ready" and not one.leaving and not one.filling]
    starts = [one for one in replicas if one.phase in _RANK and not one.leaving and not one.filling]
    short = desired - len(ready) - len(starts)
    dropped = [one.id for one in sorted(ready, key=_by_id) if one.until is not None]
    if short >= 0:
        actions = [Action(kind="keep", id=key, at=now) for key in dropped]
        actions += _up(short, replicas, now)
    else:
        actions = _down(-short, cold, ready, starts, replicas, now, waiting)
        taken = {one.id for one in actions}
        actions += [Action(kind="keep", id=key, at=now) for key in dropped if key not in taken]
    if not actions and not starts and len(ready) >= desired:
        return _slowly(cold, replicas, now)
    return actions


def _up(short: int, replicas: Sequence[Replica], now: float) -> list[Action]:
    """Take back, wake, make what is short."""
    back = [one for one in replicas if one.phase == "draining" and not one.reclaimed]
    back.sort(key=lambda one: (-one.prefix, one.id))
    asleep = [one for one in replicas if one.phase == "cold" and not one.leaving]
    asleep.sort(key=lambda one: (one.eta_s, one.id))
    filling = [one for one in replicas if one.filling and not one.leaving and (one.phase in _RANK or _ready(one))]
    filling.sort(key=lambda one: (one.eta_s, one.id))
    actions = [Action(kind="undrain", id=one.id, at=now) for one in back]
    # One that is on its way to be hibernated and takes no longer than a wake is the quickest of all.
    actions += [Action(kind="keep", id=one.id, at=now) for one in filling if _ready(one)]
    actions += [Action(kind="wake", id=one.id, at=now) for one in asleep]
    actions += [Action(kind="keep", id=one.id, at=now) for one in filling if not _ready(one)]
    del actions[short:]
    actions += [Action(kind="provision", at=now) for _ in range(short - len(actions))]
    return actions


def _down(
    surplus: int,
    cold: int,
    ready: Sequence[Replica],
    starts: Sequence[Replica],
    replicas: Sequence[Replica],
    now: float,
    waiting: bool,
) -> list[Action]:
    """Cancel starts, the one furthest from ready first, then drain whoever is missed least."""
    asleep = sum(1 for one in replicas if one.phase in ("cold", "hibernating"))
    ordered = sorted(starts, key=lambda one: (-one.eta_s, _RANK[one.phase], -one.born_at, one.id))
    if waiting and not ready and ordered:
        ordered.pop()
    actions: list[Action] = []
    for one in ordered[:surplus]:
        # A wake that is taken back leaves what it was made of: the volume.
        back = one.phase == "waking" and asleep < cold
        asleep += back
        actions.append(Action(kind="cancel", id=one.id, at=now, then="hibernate" if back else "destroy"))
    victims = sorted(
        ready,
        key=lambda one: (one.in_flight, one.until is None, one.prefix, -one.price, -one.born_at, one.id),
    )
    for one in victims[: surplus - len(actions)]:
        then = asleep < cold
        asleep += then
        actions.append(Action(kind="drain", id=one.id, at=_taken_at(one, now), then="hibernate" if then else "destroy"))
    return actions


def _taken_at(one: Replica, now: float) -> float:
    """When a victim is taken: an idle one at the end of the minute that is paid for, a busy one now."""
    if one.in_flight > 0 or one.price <= 0:
        return now
    if one.until is not None:
        return max(now, one.until)
    minutes = math.ceil((now - one.born_at) / PAID_S - 1e-9)
    return max(now, one.born_at + max(1, minutes) * PAID_S)


def _slowly(cold: int, replicas: Sequence[Replica], now: float) -> list[Action]:
    """With enough hot ones: fill or trim the cold tier, one replica at a time."""
    asleep = [one for one in replicas if one.phase == "cold" and not one.leaving]
    coming = sum(1 for one in replicas if one.phase == "hibernating" or one.filling)
    if coming:
        return []
    if len(asleep) < cold:
        return [Action(kind="fill", at=now, then="hibernate")]
    if len(asleep) > cold:
        slowest = min(asleep, key=lambda one: (-one.eta_s, one.id))
        return [Action(kind="trim", id=slowest.id, at=now, then="destroy")]
    return []


def _ready(one: Replica) -> bool:
    return one.phase == "ready"


def _by_id(one: Replica) -> str:
    return one.id
