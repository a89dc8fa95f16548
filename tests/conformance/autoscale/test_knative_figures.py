"""Our rules against figures that the genuine Knative engine computed: integers exact, averages to 1e-6."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nanopod.gateway.stats import RequestStats as GatewayStats
from nanopod.scheduler.autoscale.capacity import (
    CAPACITY_MAX,
    QUEUE_DEPTH,
    Breaker,
    RequestStats,
    activators,
    assigned,
    breaker_capacity,
    first_free,
    policy,
    random_two,
    round_robin,
    sample_size,
)
from nanopod.scheduler.autoscale.delay import highest, new_delay, record_delay
from nanopod.scheduler.autoscale.engine import decide
from nanopod.scheduler.autoscale.recommend import Value, create, recommend
from nanopod.scheduler.autoscale.settle import activate, front, settle
from nanopod.scheduler.autoscale.target import resolve_target
from nanopod.scheduler.autoscale.values import UNKNOWN, Aggregation, Autoscale, Observed, ScaleState, Second
from nanopod.scheduler.autoscale.windows import is_empty, new_window, panic_window_s, read, record, resize

FIGURES = Path(__file__).parent / "figures"
EXACT = 1e-6
PREFIX = "autoscaling.knative.dev/"
REASONS = {"": "", "Q": "Queued", "N": "NoTraffic", "T": "TimedOut"}
ACTIVE = {"T": "true", "F": "false", "U": "unknown"}


def figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text())
    return found


def numbered(name: str, field: str = "cases") -> list[Any]:
    return [pytest.param(case, id=f"{i} {case.get('name', '')}".strip()) for i, case in enumerate(figures(name)[field])]


@pytest.mark.parametrize("case", numbered("windows"))
def test_windows_average_as_knative_does(case: dict[str, Any]) -> None:
    window = new_window(case["window"])
    aggregation: Aggregation = "weighted-exponential" if case["kind"] == "weighted" else "linear"
    for number, (kind, ms, *rest) in enumerate(case["ops"]):
        at = case["base"] + ms / 1000
        where = f"operation {number}: {kind} at {ms} ms"
        if kind == "r":
            record(window, at, rest[0])
        elif kind == "z":
            resize(window, int(rest[0]), at)
        else:
            assert is_empty(window, at) is bool(rest[1]), where
            assert read(window, at, aggregation) == pytest.approx(rest[0], abs=EXACT), where


@pytest.mark.parametrize("case", numbered("delay"))
def test_the_delay_holds_what_knative_holds(case: dict[str, Any]) -> None:
    window = new_delay(case["duration"], case["tick"])
    assert window is not None
    for number, (ms, count, expected) in enumerate(case["ops"]):
        record_delay(window, case["base"] + ms / 1000, count)
        assert highest(window) == expected, f"record {number} at {ms} ms"


def settings_of(case: Mapping[str, Any]) -> Autoscale:
    given = case["spec"]
    rps = given["metric"] == "rps"
    util = given["target"] / given["total"]
    return Autoscale(
        metrics=("rps",) if rps else ("concurrency",),
        tick_s=int(given["tick"]),
        stable_s=int(given["stable"]),
        panic_s=int(given["panic"]),
        panic_threshold=given["threshold"],
        **({"rps_total": given["total"], "rps_util": util} if rps else {}),
        **({} if rps else {"concurrency_total": given["total"], "concurrency_util": util}),
        max_scale_up_rate=given["up"],
        max_scale_down_rate=given["down"],
        delay_s=int(given["delay"]),
        burst=given["burst"],
        activation_scale=given["activation"],
        initial_scale=given["initial"],
        aggregation=given["aggregation"] or "linear",
        freeze=True,
        exact=True,
    )


@pytest.mark.parametrize("case", numbered("scale"))
def test_decisions_are_those_of_knatives_autoscaler(case: dict[str, Any]) -> None:
    spec, given = settings_of(case), case["spec"]
    rps = given["metric"] == "rps"
    state, base = ScaleState(), case["base"]
    stable, panic = new_window(spec.stable_s), new_window(spec.panic_s)
    create(spec, state, case["ready0"], base, given["total"])
    assert state.ebc == case["ebc0"]
    for number, (ms, ready, reachable, stats, *expected) in enumerate(case["steps"]):
        now, where = base + ms / 1000, f"step {number} at {ms} ms"
        valid, desired, ebc, stable_mean, panic_mean, panics, most = expected
        for back, mean, *more in stats:
            proxied, count, proxied_count = more or (0.0, 0.0, 0.0)
            value = count - proxied_count if rps else mean - proxied
            for window in (stable, panic):
                record(window, base + (ms - back) / 1000, value)
        values = []
        if given["burst"] == -1 or not is_empty(stable, now):
            means = read(stable, now, spec.aggregation), read(panic, now, spec.aggregation)
            assert means == pytest.approx((stable_mean, panic_mean), abs=EXACT), where
            values = [Value("rps" if rps else "concurrency", *means, given["target"], given["total"])]
        else:
            assert stable_mean == -1, where
        known = {-1: UNKNOWN, -2: 0}.get(ready, ready)
        wish = recommend(spec, state, values, known, now, reachable=bool(reachable))
        assert wish.valid is bool(valid), where
        if valid:
            assert (wish.desired, wish.ebc) == (desired, ebc), where
        assert (state.panic_since is not None, state.max_panic) == (bool(panics), most), where


@pytest.mark.parametrize("case", numbered("scale"))
def test_whole_evaluations_decide_what_knatives_autoscaler_does(case: dict[str, Any]) -> None:
    spec, given, base = settings_of(case), case["spec"], case["base"]
    rps = given["metric"] == "rps"
    state = ScaleState(created_at=base, request_at=base, active_since=base)
    create(spec, state, case["ready0"], base, given["total"])
    for number, (ms, ready, reachable, stats, *expected) in enumerate(case["steps"]):
        valid, desired, ebc, _, _, panics, most = expected
        told = []
        for back, mean, *more in stats:
            proxied, count, proxied_count = more or (0.0, 0.0, 0.0)
            at = (base * 1000 + ms - int(back)) // 1000
            told.append(Second(at, concurrency=mean - proxied, requests=count - proxied_count if rps else 0.0))
        seen = Observed(
            seconds=tuple(told),
            ready={-1: UNKNOWN, -2: 0}.get(ready, ready),
            reachable=bool(reachable),
            in_service=1,  # never at rest: every step is an evaluation
        )
        state, decision = decide(spec, state, seen, base + ms / 1000)
        where = f"step {number} at {ms} ms"
        assert decision.valid is bool(valid), where
        if valid:
            assert (decision.desired, decision.ebc) == (desired, ebc), where
        assert (state.panic_since is not None, state.max_panic) == (bool(panics), most), where


def annotation(given: Mapping[str, str], kebab: str) -> str | None:
    """By its kebab-case name, else by its camelCase one."""
    camel = re.sub("-(.)", lambda found: found[1].upper(), kebab)
    return given.get(PREFIX + kebab, given.get(PREFIX + camel))


def seconds(text: str) -> float:
    """A duration in Go's form."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", text))


def settled_by(given: Mapping[str, Any]) -> Autoscale:
    noted = given["annotations"] or {}

    def number(name: str, default: float) -> float:
        text = annotation(noted, name)
        return default if text is None else float(text)

    def duration(name: str, default: float) -> float:
        text = annotation(noted, name)
        return default if text is None else seconds(text)

    initial = int(number("initial-scale", given["initial_scale"]))
    if initial == 0 and not given["allow_zero_initial_scale"]:
        initial = given["initial_scale"]
    deadline = noted.get("serving.knative.dev/progress-deadline")
    return Autoscale(
        metrics=("concurrency",),
        exact=True,
        freeze=True,
        min_scale=int(number("min-scale", given["min_scale"])),
        max_scale=int(number("max-scale", given["max_scale"])),
        initial_scale=initial,
        enable_scale_to_zero=given["enable_scale_to_zero"],
        stable_s=int(duration("window", given["stable_window"])),
        grace_s=given["grace"],
        retention_s=duration("scale-to-zero-pod-retention-period", given["retention"]),
        progress_deadline_s=seconds(deadline) if deadline else given["progress_deadline"],
        burst=number("target-burst-capacity", given["burst"]),
        activator_capacity=given["activator_capacity"],
        concurrency_total=float(given["cc"] or 100),
    )


@pytest.mark.parametrize("case", numbered("settle"))
def test_replicas_and_the_active_condition_are_those_of_knatives_reconciler(case: dict[str, Any]) -> None:
    spec, base, replicas = settled_by(case["spec"]), case["base"], case["replicas"]
    reachable = case["spec"]["reachability"] != "Unreachable"
    state = ScaleState(active_since=float(base), proxied_since=float(base))
    known = UNKNOWN
    for number, (at, desired, ebc, ready, probed, *expected) in enumerate(case["steps"]):
        now, where = base + at, f"step {number} at {at} s"
        want, patch, after_s, probes, proxied, buffers, active, reason, attained, known_before = expected
        state.ebc = ebc
        found = settle(spec, state, desired, replicas, now, reachable=reachable, probed=bool(probed))
        assert (found.want, replicas_of(found, replicas)) == (want, replicas if patch < 0 else patch), where
        replicas = replicas_of(found, replicas)
        assert found.start_probe is bool(probes), where
        if found.bounded == "starting":
            # Knative looks again a whole deadline later, by which time it may be long over; we look when it is over.
            limit_s = spec.progress_deadline_s + 30
            assert after_s == limit_s, where
            assert found.recheck_at is not None, where
            assert state.active_since + limit_s < found.recheck_at <= now + limit_s + 1, where
            assert found.recheck_at > now, where
        elif after_s < 0:
            assert found.recheck_at is None, where
        else:
            assert found.recheck_at == pytest.approx(now + after_s, abs=EXACT), where
        assert front(state, found.want, now) is bool(proxied), where
        assert activators(ready, spec.concurrency_total, spec.burst, spec.activator_capacity) == buffers, where
        activate(spec, state, found.want, ready, now, reachable)
        assert (state.active, state.active_reason) == (ACTIVE[active], REASONS[reason]), where
        assert state.attained is bool(attained), where
        known = known if found.want == UNKNOWN and known != UNKNOWN else found.want
        assert known == known_before, where


def replicas_of(found: Any, before: int) -> int:
    count: int = found.want if found.patch else before
    return count


@pytest.mark.parametrize("case", numbered("targets"))
def test_targets_and_panic_windows_are_those_of_knatives_resources(case: dict[str, Any]) -> None:
    noted, configured = case["annotations"], case["config"] or {}
    target, total, stable_s, panic_s, *_, metric, _ = case["out"]
    share = configured.get("container-concurrency-target-percentage", 70)
    stated, utilization = annotation(noted, "target"), annotation(noted, "target-utilization-percentage")
    ours = resolve_target(
        metric,
        case["cc"],
        concurrency_default=configured.get("container-concurrency-target-default", 100),
        concurrency_util=share / 100 if share > 1 else share,
        rps_default=configured.get("requests-per-second-target-default", 200),
        rps_util=0.7,
        target=None if stated is None else float(stated),
        utilization=None if utilization is None else float(utilization) / 100,
    )
    assert ours == pytest.approx((target, total), abs=1e-12)
    window = annotation(noted, "window")
    assert stable_s == (60 if window is None else seconds(window))
    percentage = annotation(noted, "panic-window-percentage")
    assert panic_window_s(stable_s, float(percentage or configured.get("panic-window-percentage", 10))) == panic_s


def test_buffers_in_front_are_as_many_as_knative_has() -> None:
    for burst, total, capacity, ready, expected in figures("targets")["activators"]:
        assert activators(int(ready), total, burst, capacity) == expected, (burst, total, capacity, ready)


def test_a_buffer_lets_through_what_knatives_does() -> None:
    found = figures("buffer")
    assert found["depth"] == QUEUE_DEPTH
    for concurrency, backends, own, buffers, expected in found["capacity"]:
        assert breaker_capacity(concurrency, own, backends, buffers) == expected, (concurrency, backends, own, buffers)
    for count, index, buffers, expected in found["slices"]:
        assert list(assigned(range(count), index, buffers)) == expected, (count, index, buffers)
    for concurrency, count, index, buffers, own, capacity in found["updates"]:
        mine = assigned(range(count), index, buffers, concurrency)
        assert len(mine) == own
        through = breaker_capacity(concurrency, own, count, buffers)
        if concurrency == 0:  # its breaker knows only none and any number
            assert through == (CAPACITY_MAX if capacity else 0)
        else:
            assert through == capacity


@pytest.mark.parametrize("case", numbered("buffer", "choices"))
def test_replicas_are_chosen_as_knative_chooses_them(case: dict[str, Any]) -> None:
    limit, busy, held, start, targets = case["cc"], [0] * case["n"], [], 0, case["n"]
    for number, (kind, value) in enumerate(case["ops"]):
        if kind == 0:
            free = [count < limit for count in busy[:targets]]
            if policy(limit) == "first":
                chosen = first_free(free)
            else:
                chosen, start = round_robin(free, start)
            assert (-1 if chosen is None else chosen) == value, f"operation {number}"
            if chosen is not None:
                busy[chosen] += 1
                held.append(chosen)
        elif kind == 1:
            busy[held[value]] -= 1
        else:
            targets = value


def test_without_a_limit_the_less_busy_of_two_is_chosen() -> None:
    assert policy(0) == "random2"
    for first, second, expected in figures("buffer")["fewer"]:
        for coin in (False, True):
            assert random_two([first, second], 0, 0, coin) == expected


@pytest.mark.parametrize("case", numbered("buffer", "breakers"))
def test_a_breaker_admits_and_refuses_as_knatives_does(case: dict[str, Any]) -> None:
    breaker = Breaker(case["depth"], case["max"], case["initial"])
    refused = gone = 0
    for number, (kind, value, running, inside, rejected, cancelled) in enumerate(case["ops"]):
        if kind == 0:
            refused += breaker.enter() == "full"
        elif kind == 1:
            breaker.leave()
        elif kind == 2:
            breaker.give_up()
            gone += 1
        else:
            breaker.resize(value)
        assert (breaker.running, breaker.inside, refused, gone) == (running, inside, rejected, cancelled), number


@pytest.mark.parametrize("case", numbered("request_stats"))
def test_reports_are_those_of_knatives_request_stats(case: dict[str, Any]) -> None:
    stats = RequestStats(case["base"])
    for number, (kind, ms, *expected) in enumerate(case["ops"]):
        at = case["base"] + ms / 1000
        if kind == 4:
            assert tuple(stats.report(at)) == pytest.approx(tuple(expected), abs=EXACT), f"operation {number}"
        elif kind in (0, 2):
            stats.enter(at, proxied=kind == 2)
        else:
            stats.leave(at, proxied=kind == 3)


@pytest.mark.parametrize("case", numbered("reporter"))
def test_the_gateway_reports_what_knatives_activator_does(case: dict[str, Any]) -> None:
    stats = GatewayStats()
    for number, (kind, ms, *expected) in enumerate(case["ops"]):
        at, where = case["base"] + ms / 1000, f"operation {number} at {ms} ms"
        if kind == 0:
            first = stats.enter(at, 100.0)
            assert first is bool(expected[0]), where
            if first:  # the gateway says so at once, and the next report leaves it out
                stats.told, stats.told_load = 1, 100.0
        elif kind == 1:
            stats.leave(at)
        elif expected[0]:
            assert stats.report(at)[:2] == pytest.approx(expected[1:], abs=EXACT), where
        else:
            assert not stats.live, where


def test_samples_are_as_large_as_knatives() -> None:
    for population, expected in figures("sample")["pairs"]:
        assert sample_size(int(population)) == expected, population
