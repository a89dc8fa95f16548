"""What a rollout does to rows: a canary begins, moves on, is promoted, or gives its place back; shares by revision."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, Failure, RolloutSpec, Traffic
from nanopod.model.errors import Invalid
from nanopod.scheduler.rollout.decide import ALL, RolloutState, Seen, Verdict, decide, share
from nanopod.scheduler.rollout.traffic import TAG_LATEST, Known, Share, needed, of_rollout, of_traffic

log = logging.getLogger(__name__)

FAILURES_MAX: Final = 2
"""Starts in a row that may fail by the user's fault before a revision counts as failed."""
ROLLED_BACK: Final = "rolled_back"
ROLLED_OUT: Final = "rolled_out"
"""State of a revision that had all calls while it was ready: what a later one may be pinned to."""
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


def goal_of(rollout: RolloutSpec) -> int | None:
    """Percent of the calls that a new revision shall have at first; None: all, as its workers become ready."""
    if rollout.pinned and not rollout.canary_percent:
        return 0
    if 0 < rollout.canary_percent < ALL:
        return rollout.canary_percent
    return ALL if rollout.duration_s > 0 else None


def begun(
    stable_revision_id: str, revision_id: str, rollout: RolloutSpec, *, from_percent: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Columns of an endpoint whose newest revision begins as a canary.

    `from_percent` 100: it has all calls already, and keeps them until the stable one is ready to take them back.
    """
    goal = goal_of(rollout)
    state = RolloutState("canary", revision_id, reason="the canary has no ready worker yet", from_percent=from_percent)
    # From the first moment on: one that takes over gradually must not have its goal until somebody looks at it.
    state = replace(state, percent=share(rollout, state, ALL if goal is None else goal, None, 0.0)[0])
    return {
        "stable_revision_id": stable_revision_id,
        "canary_percent": ALL if goal is None else goal,
        "canary_at": None,
        "canary_state": text_of(state),
    }


def resized(endpoint: Endpoint, goal: int, now: float) -> dict[str, Any]:
    """Columns of an endpoint whose canary shall have another share: over the rollout's time where it grows."""
    state = state_of(endpoint)
    at = now if endpoint.canary_at is not None else None
    before = percent_of(endpoint) if at is not None else 0
    return {"canary_percent": goal, "canary_state": text_of(replace(state, from_percent=before, moved_at=at))}


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


def seen_of(
    endpoint: Endpoint, revision: Revision, ready_at: float | None, counts: Mapping[str, tuple[int, ...]],
    *, stable_ready: bool = True,
) -> Seen:  # fmt: skip
    """What `scheduler.rollout` sees of a canary; `counts` are calls by revision since the last look: (ended, failed,
    and those that ended by bucket of `LATENCY_BUCKETS_S`)."""
    failed = revision.failures >= FAILURES_MAX and ready_at is None and revision.failure is not None
    words = f"{revision.failure.stage}: {revision.failure.message}" if failed and revision.failure else ""
    # What ended before the canary could take calls says nothing about it.
    mine = counts.get(endpoint.revision_id, ()) if ready_at is not None else ()
    other = counts.get(endpoint.stable_revision_id, ()) if ready_at is not None else ()
    return Seen(
        ready_at=ready_at,
        canary=(mine[0], mine[1]) if mine else (0, 0),
        stable=(other[0], other[1]) if other else (0, 0),
        cannot_start=words,
        canary_latency=tuple(mine[2:]),
        stable_latency=tuple(other[2:]),
        goal=endpoint.canary_percent,
        stable_ready=stable_ready,
    )


def look(
    endpoint: Endpoint, revision: Revision, instances: Sequence[Instance], ready: Collection[str],
    counts: Mapping[str, tuple[int, ...]], now: float,
) -> tuple[dict[str, Any], RolloutState, Verdict]:  # fmt: skip
    """(columns that changed, what is remembered, what to do) of an endpoint with a canary, which is `revision`."""
    takes = [one.revision_id for one in instances if one.instance_id in ready]
    ready_at = endpoint.canary_at
    if ready_at is None and revision.revision_id in takes:
        ready_at = now
    before = state_of(endpoint)
    enough = max(1, needed(endpoint.target, ALL - endpoint.canary_percent))
    stable_ready = takes.count(endpoint.stable_revision_id) >= enough
    seen = seen_of(endpoint, revision, ready_at, counts, stable_ready=stable_ready)
    state, verdict = decide(endpoint.rollout, before, seen, now)
    columns: dict[str, Any] = {}
    if state != before:
        columns["canary_state"] = text_of(state)
    if ready_at != endpoint.canary_at:
        columns["canary_at"] = ready_at
    return columns, state, verdict


def moves(endpoint: Endpoint, columns: Mapping[str, Any]) -> bool:
    """True when changed columns of a rollout mean other shares: its workers and its gateways are to know."""
    if not columns:
        return False
    return "canary_at" in columns or percent_of(replace(endpoint, **columns)) != percent_of(endpoint)


def newest_serves(endpoint: Endpoint) -> bool:
    """False while no call is meant for its newest revision: it is pinned to an earlier one, or its traffic says so."""
    if endpoint.traffic:
        return any(row.percent and row.revision in ("", endpoint.revision_id) for row in endpoint.traffic)
    return not has_canary(endpoint) or max(endpoint.canary_percent, percent_of(endpoint)) > 0


def percent_of(endpoint: Endpoint) -> int:
    """Percent of the calls that its canary shall have now."""
    state = state_of(endpoint)
    return state.percent if state.percent >= 0 else endpoint.canary_percent


def shares_of(
    endpoint: Endpoint, known: Sequence[Revision], ready: Mapping[str, int], target: int | None = None
) -> tuple[Share, ...]:
    """What each revision has of the endpoint's calls and workers; (): the one its deployment runs has all.

    `known` are its revisions, as far as they matter; `ready`: workers that take calls, by revision.
    """
    facts = {
        one.revision_id: Known(
            one.revision_id,
            one.number,
            healthy=one.healthy_at is not None or ready.get(one.revision_id, 0) > 0,
            ready=ready.get(one.revision_id, 0),
            given_up=one.state == ROLLED_BACK or one.failures >= FAILURES_MAX,
        )
        for one in known
    }
    if endpoint.traffic:
        return of_traffic(endpoint.traffic, list(facts.values()), endpoint.revision_id)
    newest, stable = facts.get(endpoint.revision_id), facts.get(endpoint.stable_revision_id)
    if not has_canary(endpoint) or newest is None or stable is None:
        return ()
    percent = percent_of(endpoint)
    wanted = endpoint.target if target is None else target
    return of_rollout(
        *(newest, stable, percent, endpoint.canary_percent), target=wanted, tag_routing=endpoint.rollout.tag_routing
    )


def involved(endpoint: Endpoint) -> list[str]:
    """Ids of the revisions that its shares are made of; [] where it has none. Stated traffic needs all there are."""
    return [endpoint.revision_id, endpoint.stable_revision_id] if has_canary(endpoint) else []


def traffic_of(endpoint: Endpoint, serving: str, shares: Sequence[Share]) -> tuple[Traffic, ...]:
    """Shares as gateways draw by them. One row per tag; a row without percent keeps other calls away from a revision.

    `serving` is the revision that the deployment runs.
    """
    rows: list[Traffic] = []
    for one in shares:
        tags = one.tags or ("",)
        rows.append(Traffic(one.revision_id, one.percent, tags[0]))
        rows += [Traffic(one.revision_id, 0, tag) for tag in tags[1:]]
    if not shares and endpoint.rollout.tag_routing:
        rows.append(Traffic(serving, ALL, TAG_LATEST))
    return tuple(rows)


def name_of(endpoint: Endpoint | EndpointSpec, number: int) -> str:
    """A revision's name: `NAME-00007`, or `NAME-TAG-00007` where the endpoint's tag is not the default one."""
    tag = "" if endpoint.tag == "default" else f"-{endpoint.tag}"
    return f"{endpoint.name}{tag}-{number:05d}"


def named(endpoint: Endpoint | EndpointSpec, known: Sequence[Revision], reference: str) -> Revision | None:
    """A revision by id, number or name, or the newest one with this version label."""
    for one in known:
        if reference in (one.revision_id, str(one.number), name_of(endpoint, one.number)):
            return one
    return next((one for one in reversed(known) if one.version_label and one.version_label == reference), None)


def with_ids(
    endpoint: Endpoint | EndpointSpec, known: Sequence[Revision], rows: Sequence[Traffic],
    coming: tuple[int, str] | None = None,
) -> tuple[Traffic, ...]:  # fmt: skip
    """Traffic with revision ids in place of names and numbers. `coming`: (number, id) of a revision that is being made.

    Raises `Invalid` for one that is not there.
    """
    made: list[Traffic] = []
    for index, row in enumerate(rows):
        revision_id = ""
        if row.revision and row.revision != TAG_LATEST:
            found = named(endpoint, known, row.revision)
            if found is not None:
                revision_id = found.revision_id
            elif coming is not None and row.revision in (str(coming[0]), name_of(endpoint, coming[0])):
                revision_id = coming[1]
            else:
                there = ", ".join(name_of(endpoint, one.number) for one in known) or "none"
                raise Invalid(
                    f"traffic[{index}].revision: {endpoint.name}:{endpoint.tag} has no revision {row.revision!r} "
                    f"(there are: {there})",
                    field=f"traffic[{index}].revision",
                )
        made.append(replace(row, revision=revision_id))
    return tuple(made)


def settled(found: Endpoint | None, known: Sequence[Revision], spec: EndpointSpec) -> EndpointSpec:
    """A specification whose traffic names the revisions that an endpoint has by their ids.

    One that it does not have yet stays as it is named: `with_ids` finds it once it is made, or says that it is not
    there.
    """
    if found is None or not spec.traffic:
        return spec
    rows: list[Traffic] = []
    for row in spec.traffic:
        one = named(found, known, row.revision) if row.revision else None
        rows.append(replace(row, revision=one.revision_id) if one is not None else row)
    return replace(spec, traffic=tuple(rows))


def previous_healthy(endpoint: Endpoint, deployment: Deployment, known: Sequence[Revision]) -> Revision | None:
    """The revision that a rollback goes to: the stable one while a canary runs, else the last healthy one before."""
    if has_canary(endpoint):
        return next((one for one in known if one.revision_id == endpoint.stable_revision_id), None)
    number = next((one.number for one in known if one.revision_id == deployment.revision_id), 0)
    good = [one for one in known if one.healthy_at is not None and one.state != ROLLED_BACK and one.number < number]
    return good[-1] if good else None


def previous_rolled_out(known: Sequence[Revision], newest: Revision) -> Revision | None:
    """The last revision before `newest` that had all calls while it was ready; None: there was none."""
    earlier = [one for one in known if one.number < newest.number and one.healthy_at is not None]
    out = [one for one in earlier if one.state == ROLLED_OUT]
    good = out or [one for one in earlier if one.state != ROLLED_BACK]
    return good[-1] if good else None


def revision_state(endpoint: Endpoint, deployment: Deployment, revision: Revision) -> RevisionState:
    """What a revision is to its endpoint at present."""
    if revision.state != ROLLED_BACK and any(
        row.percent and revision.revision_id == (row.revision or endpoint.revision_id) for row in endpoint.traffic
    ):
        return "current"
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
