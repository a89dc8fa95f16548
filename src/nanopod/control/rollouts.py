"""What a rollout does to rows: a canary begins, is promoted, or gives its place back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from nanopod.model.chain import Deployment, Endpoint, Revision
from nanopod.model.endpoint import Failure, RolloutSpec
from nanopod.scheduler.rollout.decide import RolloutState, Seen

log = logging.getLogger(__name__)

FAILURES_MAX: Final = 2
"""Starts in a row that may fail by the user's fault before a revision counts as failed."""
ROLLED_BACK: Final = "rolled_back"
RevisionState = Literal["current", "stable", "canary", "failed", "rolled_back", "old"]

_state: Final = msgspec.json.Decoder(RolloutState).decode
_encode: Final = msgspec.json.Encoder().encode
_NO_CANARY: Final[dict[str, Any]] = {"stable_revision_id": "", "canary_percent": 0, "canary_at": None}


def state_of(endpoint: Endpoint) -> RolloutState:
    """What is remembered of the endpoint's newest rollout."""
    if not endpoint.canary_state:
        return RolloutState()
    try:
        return _state(endpoint.canary_state)
    except msgspec.MsgspecError:
        log.warning("endpoint=%s canary_state=unreadable: its calls are counted anew", endpoint.endpoint_id)
        return RolloutState("canary" if endpoint.stable_revision_id else "", endpoint.revision_id)


def text_of(state: RolloutState) -> str:
    """A state as its column keeps it."""
    return _encode(state).decode()


def has_canary(endpoint: Endpoint) -> bool:
    """True while a canary runs beside the stable revision."""
    return bool(endpoint.stable_revision_id) and endpoint.stable_revision_id != endpoint.revision_id


def begun(stable_revision_id: str, revision_id: str, rollout: RolloutSpec) -> dict[str, Any]:
    """Columns of an endpoint whose newest revision begins as a canary."""
    return {
        "stable_revision_id": stable_revision_id,
        "canary_percent": rollout.canary_percent,
        "canary_at": None,
        "canary_state": text_of(RolloutState("canary", revision_id, reason="the canary has no ready worker yet")),
    }


def over() -> dict[str, Any]:
    """Columns of an endpoint without a rollout."""
    return {**_NO_CANARY, "canary_state": ""}


def promoted(state: RolloutState, reason: str) -> dict[str, Any]:
    """Columns of an endpoint whose canary takes over."""
    made = RolloutState("promoted", state.revision_id, state.canary, state.stable, reason)
    return {**_NO_CANARY, "canary_state": text_of(made)}


def gone_back(state: RolloutState, revision_id: str, reason: str) -> dict[str, Any]:
    """Columns of an endpoint whose revision `revision_id` gives its place back."""
    made = RolloutState(ROLLED_BACK, revision_id, state.canary, state.stable, reason)
    return {**_NO_CANARY, "canary_state": text_of(made)}


def bad_canary(reason: str, revision: Revision) -> Failure:
    """What whoever asked for the canary is told: why its workers cannot start, or that it was judged."""
    return revision.failure or Failure("run", reason, "RolledBack")


def seen_of(endpoint: Endpoint, revision: Revision, ready_at: float | None, counts: dict[str, tuple[int, int]]) -> Seen:
    """What `scheduler.rollout` sees of a canary; `counts` are calls by revision since the last look."""
    failed = revision.failures >= FAILURES_MAX and ready_at is None and revision.failure is not None
    words = f"{revision.failure.stage}: {revision.failure.message}" if failed and revision.failure else ""
    return Seen(
        ready_at=ready_at,
        # What ended before the canary could take calls says nothing about it.
        canary=counts.get(endpoint.revision_id, (0, 0)) if ready_at is not None else (0, 0),
        stable=counts.get(endpoint.stable_revision_id, (0, 0)) if ready_at is not None else (0, 0),
        cannot_start=words,
    )


def previous_healthy(endpoint: Endpoint, deployment: Deployment, known: Sequence[Revision]) -> Revision | None:
    """The revision that a rollback goes to: the stable one while a canary runs, else the last healthy one before."""
    if has_canary(endpoint):
        return next((one for one in known if one.revision_id == endpoint.stable_revision_id), None)
    number = next((one.number for one in known if one.revision_id == deployment.revision_id), 0)
    good = [one for one in known if one.healthy_at is not None and one.state != ROLLED_BACK and one.number < number]
    return good[-1] if good else None


def revision_state(endpoint: Endpoint, deployment: Deployment, revision: Revision) -> RevisionState:
    """What a revision is to its endpoint at present."""
    if has_canary(endpoint):
        if revision.revision_id == endpoint.revision_id:
            return "canary"
        if revision.revision_id == endpoint.stable_revision_id:
            return "stable"
    if revision.state == ROLLED_BACK:
        return "rolled_back"
    failed = revision.failures >= FAILURES_MAX and revision.failure is not None
    if revision.revision_id == endpoint.revision_id and endpoint.failure is not None and failed:
        return "failed"
    if revision.revision_id == deployment.revision_id:
        return "current"
    return "failed" if failed else "old"
