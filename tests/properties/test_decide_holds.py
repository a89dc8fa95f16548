"""What holds for the autoscaling rule whatever happens."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopod.model.endpoint import ScaleSpec
from nanopod.scheduler.autoscale.decide import DELAY_S, ZERO_GRACE_S, Observed, ScaleState, decide, floor_of

specs = st.builds(
    ScaleSpec,
    cold_workers=st.integers(0, 3),
    max_workers=st.integers(3, 12),
    min_load=st.sampled_from([0.0, 1.0]),
    target_util=st.floats(0.1, 1.0),
    inactivity_timeout=st.sampled_from([None, -1.0, 0.0, 5.0, 40.0]),
    target_concurrency=st.sampled_from([None, 0.5, 3.0]),
)
moments = st.lists(
    st.tuples(
        st.floats(0.1, 20.0),  # seconds until then
        st.sampled_from([None, 0.0, 0.0, 0.4, 1.0, 7.0, 200.0]),  # the sample
        st.integers(0, 2),  # waiting
        st.booleans(),  # reachable
        st.integers(0, 6),  # ready
        st.integers(0, 2),  # starting
    ),
    max_size=60,
)
BEGIN = 1_000_000.25


def seen(now: float, moment: tuple[float, float | None, int, bool, int, int]) -> Observed:
    _, sample, waiting, reachable, ready, starting = moment
    samples = () if sample is None else ((int(now), sample),)
    return Observed(samples, waiting, int(bool(sample)), ready, starting, slots=4, reachable=reachable)


@given(specs, moments)
@settings(max_examples=300, deadline=None)
def test_bounds_zero_and_reasons(spec: ScaleSpec, story: list[tuple[float, float | None, int, bool, int, int]]) -> None:
    state, now = ScaleState(), BEGIN
    active_at = now
    low, _ = floor_of(spec, None)
    for moment in story:
        now += moment[0]
        before, observed = state, seen(now, moment)
        state, decision = decide(spec, state, observed, now)
        if observed.waiting or observed.in_flight or (observed.ready and not before.ready):
            active_at = now
        assert min(low, spec.max_workers) <= decision.target <= spec.max_workers
        assert decision.reasons or decision.target in (0, before.target, low)
        assert decision.recheck_s is None or decision.recheck_s >= 1.0
        if observed.waiting:
            assert decision.target >= 1
        if decision.target == 0:
            assert spec.cold_workers == 0
            assert spec.min_load == 0
            assert spec.inactivity_timeout is not None
            assert spec.inactivity_timeout >= 0
        if decision.target == 0 and before.target > 0:
            assert now - active_at >= min(ZERO_GRACE_S, max(spec.inactivity_timeout or 0, 0)) - 1
            assert observed.reachable
        if not observed.reachable:
            assert decision.target >= before.target


@given(specs, moments)
@settings(max_examples=150, deadline=None)
def test_a_restart_forgets_nothing(
    spec: ScaleSpec, story: list[tuple[float, float | None, int, bool, int, int]]
) -> None:
    kept, stored, now = ScaleState(), ScaleState(), BEGIN
    for moment in story:
        now += moment[0]
        kept, decision = decide(spec, kept, seen(now, moment), now)
        stored = msgspec.json.decode(msgspec.json.encode(stored), type=ScaleState)
        stored, again = decide(spec, stored, seen(now, moment), now)
        assert again == decision
        assert stored == kept


@given(st.floats(0.0, 50.0), st.floats(0.0, 50.0), st.integers(1, 20))
def test_more_load_never_asks_for_fewer(one: float, other: float, seconds: int) -> None:
    spec = ScaleSpec(cold_workers=0, min_load=0, max_workers=1000, inactivity_timeout=60)

    def target(load: float) -> int:
        state, found = ScaleState(), 0
        for second in range(seconds):
            now = BEGIN + second
            state, decision = decide(spec, state, Observed(((int(now), load),), slots=2, in_flight=1), now)
            found = decision.target
        return found

    low, high = sorted((one, other))
    assert target(low) <= target(high)


@given(st.lists(st.floats(0.0, 30.0), min_size=40, max_size=80))
@settings(max_examples=100, deadline=None)
def test_a_decrease_never_comes_within_the_delay_of_a_higher_wish(loads: list[float]) -> None:
    spec = ScaleSpec(cold_workers=1, min_load=0, max_workers=1000, target_util=1.0)
    state = ScaleState()
    wishes: list[tuple[float, int]] = []
    for second, load in enumerate(loads):
        now = BEGIN + second
        state, decision = decide(spec, state, Observed(((int(now), load),), slots=1, ready=1), now)
        wishes.append((now, state.wishes[-1][1]))
        recent = max(wish for at, wish in wishes if now - at < DELAY_S)
        assert decision.target == max(1, recent)


@given(specs, moments)
@settings(max_examples=100, deadline=None)
def test_a_settled_endpoint_may_be_left_alone(
    spec: ScaleSpec, story: list[tuple[float, float | None, int, bool, int, int]]
) -> None:
    """When the rule says `not by itself`, looking again later without news decides the same."""
    state, now = ScaleState(), BEGIN
    for moment in story:
        now += moment[0]
        state, decision = decide(spec, state, seen(now, moment), now)
        if decision.recheck_s is None:
            quiet = Observed(ready=moment[4], slots=4)
            if not seen(now, moment).in_flight and not moment[2] and moment[3]:
                _, later = decide(spec, state, quiet, now + 1000)
                assert later.target == decision.target
