"""What may run in a block, who is stopped first, who is told, and who may start early (R19-R21, W1-W6).

Everything is a ranking: running instances of one (capacity, SKU) by priority, oldest first. The n-th needs n nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nanopod.market.shape import FOREVER, Shape
from nanopod.market.steps import Steps

PRIORITIES: Final = ("yield", "normal", "preferred", "critical")
LEADS_S: Final = (600, 300)
GAMING_BLOCKS: Final = 10
Reason = Literal["schedule", "price", "balance", "sold", "provider", "user"]


@dataclass(frozen=True, slots=True)
class Claim:
    """An instance that wants a place: awaiting or running. `created` orders it by age; ids break ties."""

    instance_id: str
    running: bool
    created: float = 0.0
    priority: Literal["yield", "normal", "preferred", "critical"] = "normal"
    early: bool = False

    @property
    def rank(self) -> tuple[int, float, str]:
        """Highest priority first, then oldest."""
        return -PRIORITIES.index(self.priority), self.created, self.instance_id


@dataclass(frozen=True, slots=True)
class QuotaPlan:
    """Instances to stop and to start in this block, in order."""

    stop: tuple[str, ...]
    start: tuple[str, ...]


def quota(claims: Sequence[Claim], allocation: int) -> QuotaPlan:
    """R20: at most `allocation` run. Too many: the last in rank stop. Spare: awaiting ones start by rank.

    An awaiting instance never displaces a running one, whatever its priority, so while the allocation holds nobody
    moves (R19).
    """
    running = sorted((claim for claim in claims if claim.running), key=_rank)
    awaiting = sorted((claim for claim in claims if not claim.running), key=_rank)
    over = running[allocation:]
    spare = max(0, allocation - len(running))
    stop = tuple(claim.instance_id for claim in reversed(over))
    return QuotaPlan(stop, tuple(claim.instance_id for claim in awaiting[:spare]))


@dataclass(frozen=True, slots=True)
class LivePlan:
    """R21: how many instances a deployment has to create, and which it removes, in order."""

    create: int
    remove: tuple[str, ...]


def keep_live(claims: Sequence[Claim], target: int, *, enabled: bool = True) -> LivePlan:
    """R21: keep `target` awaiting or running ones. Too many: awaiting first, then lowest priority, then newest."""
    if not enabled:
        return LivePlan(0, ())
    worst = sorted(claims, key=lambda claim: (claim.running, *_worst(claim)))
    surplus = max(0, len(claims) - target)
    return LivePlan(max(0, target - len(claims)), tuple(claim.instance_id for claim in worst[:surplus]))


def _rank(claim: Claim) -> tuple[int, float, str]:
    return claim.rank


def _worst(claim: Claim) -> tuple[int, float, tuple[int, ...]]:
    # Ids are compared downwards by comparing the negated characters.
    return PRIORITIES.index(claim.priority), -claim.created, tuple(-ord(letter) for letter in claim.instance_id)


def expected_shutdown(claims: Sequence[Claim], owned: Shape, block: int) -> dict[str, int | None]:
    """W2: for each running instance the first block from `block` (the next one) in which its rank has no node, or None.

    Running instances are ranked by priority, then age; the n-th stops where the allocation falls below n.
    """
    running = sorted((claim for claim in claims if claim.running), key=_rank)
    steps = Steps(owned).runs(block, FOREVER)
    lowest = FOREVER
    found: dict[int, int] = {}
    for start, _, nodes in steps:
        for rank in range(nodes + 1, min(lowest, len(running)) + 1):
            found.setdefault(rank, start)
        lowest = min(lowest, nodes)
    return {claim.instance_id: found.get(rank) for rank, claim in enumerate(running, 1)}


def expected_start(claims: Sequence[Claim], owned: Shape, block: int) -> dict[str, int | None]:
    """W2: for each awaiting instance the first future block with a spare place for it, or None.

    Places go to running instances first, then to awaiting ones by rank.
    """
    running = sum(claim.running for claim in claims)
    awaiting = sorted((claim for claim in claims if not claim.running), key=_rank)
    out: dict[str, int | None] = {claim.instance_id: None for claim in awaiting}
    for position, claim in enumerate(awaiting, 1):
        for start, _, nodes in Steps(owned).runs(block, FOREVER):
            if nodes >= running + position:
                out[claim.instance_id] = start
                break
    return out


@dataclass(frozen=True, slots=True)
class Warned:
    """What an instance was told: the shutdown (Unix seconds) and the leads already announced for it."""

    at: int
    leads_s: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Notice:
    """`instance.shutdown_expected`, or `instance.shutdown_cleared` when `cleared`."""

    instance_id: str
    at: int
    lead_s: int
    reason: Reason
    cleared: bool = False


def warn(
    instance_id: str,
    shutdown_at: int | None,
    now: float,
    told: Warned | None,
    reason: Reason,
    *,
    leads_s: Sequence[int] = LEADS_S,
    managed_until: int | None = None,
    notice_s: int = 0,
) -> tuple[Warned | None, Notice | None]:
    """W3, W4: the next warning for one instance, if any, and what it then has been told.

    A warning is due when `shutdown_at - now` first falls to a lead; one that became known later carries its true lead.
    `managed_until` (`next + window`, Unix seconds) silences shutdowns at or beyond it: a procurement is going to buy
    that time. `notice_s` is the provider's own notice, a further lead. Time bought after a warning clears it.
    """
    silent = shutdown_at is None or (managed_until is not None and shutdown_at >= managed_until)
    if silent or shutdown_at is None:
        return (None, Notice(instance_id, told.at, 0, reason, cleared=True)) if told else (None, None)
    left = max(0, int(shutdown_at - now))
    if told is not None and shutdown_at > told.at and left > max((*leads_s, notice_s)):
        # Later than announced and beyond every lead: the old warning no longer holds, a new one comes in time.
        return None, Notice(instance_id, told.at, 0, reason, cleared=True)
    leads = sorted({lead for lead in (*leads_s, notice_s) if lead > 0}, reverse=True)
    passed = tuple(lead for lead in leads if left <= lead)
    before = told.leads_s if told is not None and told.at == shutdown_at else ()
    if not passed or set(passed) <= set(before):
        return told, None
    return Warned(shutdown_at, passed), Notice(instance_id, shutdown_at, left, reason)


def early_starts(
    claims: Sequence[Claim],
    owned_next: int,
    *,
    nodes_up: int,
    sold_now: int,
    in_progress: int,
    recent: Collection[str] = (),
    enabled: bool = True,
) -> tuple[str, ...]:
    """W6: awaiting instances that may boot now, before their first block, on nodes that are idle now.

    Idle is what is physically up and unsold in the current block, less early starts under way on the SKU. `owned_next`
    is the capacity's allocation in the next block. `recent` are its early starts within the last 10 blocks, those under
    way included: together they never exceed `owned_next`.
    """
    idle = nodes_up - sold_now - in_progress
    covered = quota(claims, owned_next).start
    spare = owned_next - len(recent)
    return covered[: max(0, min(idle, spare))] if enabled else ()


def early_ends(claims: Sequence[Claim], owned_next: int) -> tuple[str, ...]:
    """W6: early starts that the capacity no longer covers when their block begins; they stop then."""
    stopped = set(quota(claims, owned_next).stop)
    return tuple(claim.instance_id for claim in claims if claim.early and claim.instance_id in stopped)


def advice(window_minutes: int, hibernates: bool) -> str:
    """W4: what to tell about a window too short for orderly hibernation, or ""."""
    if hibernates and window_minutes < 15:
        return f"a window of {window_minutes} min leaves too little notice to hibernate; use 15 min or more"
    return ""


def why_short(*, provider_lost: bool, balance: bool, limit: bool, sold: bool) -> Reason:
    """W1: why the next blocks are not owned. Owned blocks are never preempted, only lost with a machine (S8)."""
    if provider_lost:
        return "provider"
    if balance:
        return "balance"
    if limit:
        return "price"
    return "sold" if sold else "schedule"
