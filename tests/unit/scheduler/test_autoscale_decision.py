"""Targets and the decision itself: rates, panic, delay, activation, burst capacity, several metrics."""

from __future__ import annotations

import msgspec
import pytest

from nanopod.scheduler.autoscale.recommend import Value, create, excess_burst_capacity, raw, recommend
from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.target import resolve_target
from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, ScaleState

T = 1_800_000_000.0
KNATIVE = PROFILES["knative"]
COREWEAVE = PROFILES["coreweave"]


def changed(spec: Autoscale, **values: object) -> Autoscale:
    return msgspec.structs.replace(spec, **values)


def value(stable: float, panic: float | None = None, target: float = 1.0, total: float = 1.0) -> Value:
    return Value("concurrency", stable, stable if panic is None else panic, target, total)


def fresh(spec: Autoscale, ready: int = 0) -> ScaleState:
    state = ScaleState(created_at=T)
    create(spec, state, ready, T)
    return state


def desired(spec: Autoscale, state: ScaleState, stable: float, ready: int, now: float = T, **how: object) -> int:
    return recommend(spec, state, [value(stable)], ready, now, **how).desired  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "limit", "stated", "utilization", "expected"),
    [
        ("concurrency", 1, None, None, (0.7, 1.0)),
        ("concurrency", 0, None, None, (70.0, 100.0)),
        ("concurrency", 10, 4.0, None, (2.8, 4.0)),
        ("concurrency", 10, 40.0, None, (7.0, 10.0)),
        ("concurrency", 0, 40.0, None, (28.0, 40.0)),
        ("concurrency", 10, None, 0.5, (5.0, 10.0)),
        ("rps", 1, None, None, (140.0, 200.0)),
        ("rps", 10, 400.0, None, (280.0, 400.0)),
        ("rps", 0, 0.01, 0.01, (0.01, 0.01)),
    ],
)
def test_targets(
    metric: str, limit: int, stated: float | None, utilization: float | None, expected: tuple[float, float]
) -> None:
    found = resolve_target(metric, limit, target=stated, utilization=utilization)  # type: ignore[arg-type]
    assert found == pytest.approx(expected)


def test_up_and_down_rates() -> None:
    spec = changed(COREWEAVE, delay_s=0)
    ups = [desired(spec, fresh(spec), 1e6, ready) for ready in (0, 1, 2, 3)]
    assert ups == [20, 20, 40, 60]
    down = {1: 0, 2: 1, 3: 2, 10: 9, 11: 10, 12: 10, 20: 18, 100: 90, 33: 29, 55: 49, 110: 99}
    for ready, expected in down.items():
        assert desired(spec, fresh(spec), 0.0, ready) == expected
    assert desired(spec, fresh(spec), 0.0, 100, reachable=False) == 0
    slow = changed(KNATIVE, max_scale_up_rate=1.1)
    assert desired(slow, fresh(slow), 3.0, 2) == 3, "a rate near 1 still gives one more"


def test_panic_begins_at_the_threshold_by_the_raw_wish_and_never_falls() -> None:
    spec = changed(KNATIVE, max_scale_up_rate=1.5)
    state = fresh(spec)
    assert recommend(spec, state, [value(1.0, 3.9)], 2, T).desired == 3
    assert state.panic_since == T, "4 by the panic window, twice the ready ones, though the rate allows only 3"
    assert recommend(spec, state, [value(1.0, 1.0)], 3, T + 2).desired == 3
    assert state.max_panic == 3
    assert recommend(spec, state, [value(5.0, 1.0)], 3, T + 4).desired == 5, "the stable wish counts as well"
    assert recommend(spec, state, [value(1.0)], 5, T + spec.stable_s).desired == 5, "exactly the window: still in it"
    assert state.panic_since == T
    assert recommend(spec, state, [value(1.0)], 5, T + spec.stable_s + 0.001).desired == 2
    assert (state.panic_since, state.max_panic) == (None, 0)


def test_a_panic_is_extended_by_every_moment_above_the_threshold() -> None:
    spec = changed(KNATIVE, stable_s=60)
    state = fresh(spec)
    for at in (0.0, 40.0, 80.0):
        recommend(spec, state, [value(4.0)], 2, T + at)
    assert state.panic_since == T + 80.0


def test_an_autoscaler_begins_in_panic_with_more_than_one_ready() -> None:
    assert fresh(KNATIVE, 1).panic_since is None
    state = fresh(KNATIVE, 5)
    assert (state.panic_since, state.max_panic, state.desired) == (T, 5, UNKNOWN)
    assert desired(KNATIVE, state, 0.0, 5) == 5
    assert fresh(KNATIVE).ebc == 1 * 100 - 211
    assert fresh(changed(KNATIVE, burst=0.0)).ebc == 0
    assert fresh(changed(KNATIVE, burst=-1.0)).ebc == -1


def test_the_delay_holds_each_step() -> None:
    spec = changed(KNATIVE, delay_s=6, max_scale_down_rate=100.0)
    state = fresh(spec)
    found = [desired(spec, state, load, 10, T + 2 * step) for step, load in enumerate([8, 3, 3, 3, 1, 1, 1])]
    assert found == [8, 8, 8, 3, 3, 3, 1]
    assert desired(spec, state, 0.5, 10, T + 14, reachable=False) == 1, "an unreachable one is not delayed"


def test_activation_scale_may_exceed_the_rate_and_only_counts_when_something_is_wanted() -> None:
    spec = changed(KNATIVE, max_scale_up_rate=2.0, activation_scale=5)
    assert desired(spec, fresh(spec), 0.5, 0) == 5
    assert desired(spec, fresh(spec), 0.0, 0) == 0
    assert desired(spec, fresh(spec), 9.0, 8) == 9
    assert desired(changed(spec, activation_scale=1), fresh(spec), 0.5, 0) == 1


def test_without_data_or_a_count_the_wish_stays() -> None:
    state = fresh(KNATIVE)
    assert desired(KNATIVE, state, 4.0, 4) == 4
    assert recommend(KNATIVE, state, [], 4, T + 2) == (False, 4, UNKNOWN, state.ebc, ())
    assert not recommend(KNATIVE, state, [value(1.0)], UNKNOWN, T + 4).valid
    assert state.desired == 4


def test_excess_burst_capacity() -> None:
    assert excess_burst_capacity(0.0, 9, 10.0, 3.0) == 0
    assert excess_burst_capacity(-1.0, 9, 10.0, 3.0) == -1
    assert excess_burst_capacity(10.0, 3, 10.0, 2.5) == 17
    assert excess_burst_capacity(211.0, 0, 1.0, 0.25) == -212, "ready ones, not at least one"


def test_the_largest_raw_wish_of_several_metrics_wins() -> None:
    spec = changed(PROFILES["auto"], delay_s=0, burst=10.0)
    load = Value("load", 700.0, 1900.0, 90.0, 100.0)
    kv = Value("kv", 9.5, 1.0, 0.9, 1.0)
    found = recommend(spec, fresh(spec), [load, kv], 2, T, capacity=(4.0, 3.0))
    assert [one[1:] for one in found.measured] == [(8, 22), (11, 2)]
    assert (found.desired, found.ebc) == (22, 2 * 4 - 10 - 3)


def test_starts_count_where_a_metric_knows_how_much_a_replica_does() -> None:
    spec = changed(PROFILES["auto"], delay_s=0)
    state = fresh(spec)
    recommend(spec, state, [value(9.0)], 2, T, starting=3)
    assert state.panic_since is None, "9 is less than twice the 5 that are there or on their way"
    recommend(spec, state, [value(9.0)], 2, T, starting=0)
    assert state.panic_since == T


def test_exact_quotients_of_speeds_are_not_rounded_up() -> None:
    assert 57 / (100 * 0.57) > 1
    assert raw(Value("load", 57.0, 114.0, 100 * 0.57, 100.0)) == (1, 2)
    assert raw(Value("concurrency", 57.0, 57.0, 100 * 0.57, 100.0)) == (2, 2), "as Knative does"
    assert raw(Value("concurrency", 5.0, 9.0, 0.85, 1.0, most=6)) == (6, 6)
