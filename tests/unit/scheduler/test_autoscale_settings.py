"""Profiles, and settings of three kinds of names that become one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nanopod.model.endpoint import ScaleSpec, Tuning
from nanopod.scheduler.autoscale.settings import PROFILES, resolve
from nanopod.scheduler.autoscale.values import Autoscale

TABLE: dict[str, dict[str, Any]] = {
    "knative": {
        "metrics": ("concurrency",), "tick_s": 2, "stable_s": 60, "panic_s": 6, "panic_threshold": 2.0,
        "concurrency_util": 0.7, "max_scale_up_rate": 1000.0, "max_scale_down_rate": 2.0, "delay_s": 0, "grace_s": 30.0,
        "retention_s": 0.0, "burst": 211.0, "max_workers": 0, "request_timeout_s": 300.0, "freeze": True, "exact": True,
    },
    "coreweave": {
        "metrics": ("concurrency",), "tick_s": 15, "stable_s": 180, "panic_s": 24, "panic_threshold": 2.0,
        "concurrency_util": 0.85, "max_scale_up_rate": 20.0, "max_scale_down_rate": 1.1, "delay_s": 60, "grace_s": 60.0,
        "retention_s": 1800.0, "burst": 211.0, "max_workers": 0, "request_timeout_s": 300.0, "freeze": True,
        "exact": True,
    },
    "vast": {
        "metrics": ("load",), "tick_s": 2, "stable_s": 60, "panic_s": 12, "load_util": 0.9, "max_scale_up_rate": 20.0,
        "max_scale_down_rate": 2.0, "delay_s": 120, "grace_s": 30.0, "retention_s": 1800.0, "burst": -1.0,
        "max_workers": 20, "cold_workers": 5, "cold_mult": 2.5, "min_load": 0.0, "min_cold_load": 0.0,
        "max_queue_time_s": 30.0, "target_queue_time_s": 10.0, "request_timeout_s": 600.0, "freeze": False,
        "exact": False,
    },
    "auto": {
        "metrics": ("load",), "tick_s": 2, "stable_s": 60, "panic_s": 12, "load_util": 0.85, "concurrency_util": 0.85,
        "max_scale_up_rate": 20.0, "max_scale_down_rate": 2.0, "delay_s": 120, "grace_s": 30.0, "retention_s": None,
        "burst": -1.0, "max_workers": 0, "cold_workers": 1, "cold_mult": 1.0, "target_queue_time_s": 5.0,
        "request_timeout_s": 600.0, "freeze": False, "exact": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("profile", TABLE)
def test_profiles(profile: Any) -> None:
    found = PROFILES[profile]
    assert {name: getattr(found, name) for name in TABLE[profile]} == TABLE[profile]
    assert (found.concurrency_total, found.rps_total, found.rps_util) == (100.0, 200.0, 0.7)
    assert (found.activator_capacity, found.initial_scale, found.progress_deadline_s) == (100.0, 1, 600.0)
    assert found.enable_scale_to_zero and found.start == "stored" and found.aggregation == "linear"


def resolved(scale: ScaleSpec | None = None, slots: int = 1, llm: bool = False, **tuning: Any) -> Autoscale:
    return resolve(replace(scale or ScaleSpec(), tuning=Tuning(**tuning)), slots, llm)


def test_what_the_sdk_states() -> None:
    found = resolved(ScaleSpec(cold_workers=2, max_workers=5, min_load=3.0, cold_mult=2.0, target_util=0.6), slots=4)
    assert (found.cold_workers, found.max_workers, found.min_load, found.cold_mult) == (2, 5, 3.0, 2.0)
    assert (found.load_util, found.concurrency_util) == (0.6, 0.6)
    assert (found.container_concurrency, found.concurrency_total) == (4, 4.0)
    assert (found.hot_max, found.metrics, found.inactivity_timeout_s) == (5, ("load",), None)
    assert not found.zero_cuts_windows
    assert resolved(llm=True).metrics == ("load", "kv")
    assert resolved(ScaleSpec(profile="vast"), llm=True).metrics == ("load",)


@pytest.mark.parametrize(("timeout", "cuts"), [(None, False), (-1.0, False), (0.0, True), (5.0, True)])
def test_a_stated_timeout_cuts_the_windows_unless_it_says_never(timeout: float | None, cuts: bool) -> None:
    found = resolved(ScaleSpec(inactivity_timeout=timeout))
    assert (found.zero_cuts_windows, found.inactivity_timeout_s) == (cuts, timeout)
    assert not resolved(ScaleSpec(profile="knative", inactivity_timeout=5.0)).zero_cuts_windows


def test_a_stated_target_is_one_of_concurrency() -> None:
    found = resolved(ScaleSpec(target_concurrency=3.0), slots=8, llm=True)
    assert (found.metrics, found.concurrency_total, found.concurrency_util) == (("concurrency",), 3.0, 1.0)
    tuned = resolved(target=3.0, slots=8)
    assert (tuned.metrics, tuned.concurrency_total, tuned.concurrency_util) == (("concurrency",), 3.0, 0.9)
    assert resolved(target=30.0, slots=8).concurrency_total == 8.0
    assert resolved(target=30.0, container_concurrency=0).concurrency_total == 30.0
    assert resolved(container_concurrency=0).concurrency_total == 100.0


def test_targets_of_other_metrics() -> None:
    assert resolved(metrics=("rps",), target=50.0).rps_total == 50.0
    assert resolved(metrics=("rps",)).rps_util == 0.7
    assert resolved(metrics=("rps",), target_utilization=0.5).rps_util == 0.5
    assert resolved(metrics=("load",), target=50.0).load_total == 50.0
    assert resolved(metrics=("tokens",), target=900.0).tokens_total == 900.0
    cpu = resolved(metrics=("cpu",), target=65.0)
    assert (cpu.resource_util, cpu.delay_s) == (0.65, 300)
    assert resolved(metrics=("memory",), scale_down_delay_s=900.0).delay_s == 900
    assert resolved(metrics=("cpu",)).resource_util == 0.8


@pytest.mark.parametrize(
    ("profile", "tuning", "panic_s"),
    [
        ("knative", {}, 6),
        ("knative", {"stable_window_s": 45.0}, 5),
        ("coreweave", {}, 24),
        ("coreweave", {"stable_window_s": 60.0}, 8),
        ("coreweave", {"panic_window_percentage": 13.0}, 23),
        ("auto", {"stable_window_s": 30.0}, 6),
        ("auto", {"panic_window_s": 20.0}, 20),
        ("auto", {"stable_window_s": 10.0, "panic_window_s": 20.0}, 10),
    ],
)
def test_panic_windows(profile: Any, tuning: dict[str, Any], panic_s: int) -> None:
    assert resolved(ScaleSpec(profile=profile), **tuning).panic_s == panic_s


def test_what_is_stated_wins_over_the_profile() -> None:
    found = resolved(
        ScaleSpec(profile="coreweave", max_workers=0), panic_threshold_percentage=150.0, max_scale_up_rate=3.0,
        max_scale_down_rate=1.5, scale_down_delay_s=0.0, grace_s=5.0, retention_s=0.0, target_burst_capacity=-1.0,
        initial_scale=2, min_scale=1, max_scale=4, activation_scale=3, enable_scale_to_zero=False,
        progress_deadline_s=60.0, request_timeout_s=30.0, aggregation="weighted-exponential", missing_data="zero",
        start="knative", tick_s=5.0,
    )  # fmt: skip
    assert (found.panic_threshold, found.max_scale_up_rate, found.max_scale_down_rate) == (1.5, 3.0, 1.5)
    assert (found.delay_s, found.grace_s, found.retention_s, found.burst) == (0, 5.0, 0.0, -1.0)
    assert (found.initial_scale, found.min_scale, found.max_scale, found.activation_scale) == (2, 1, 4, 3)
    assert (found.enable_scale_to_zero, found.progress_deadline_s, found.request_timeout_s) == (False, 60.0, 30.0)
    assert (found.aggregation, found.freeze, found.start, found.tick_s) == ("weighted-exponential", False, "knative", 5)


def test_exact_profiles_take_the_bound_and_leave_the_rest() -> None:
    found = resolved(ScaleSpec(profile="knative", max_workers=5, cold_workers=3, min_load=9.0), max_scale=8)
    assert (found.hot_max, found.cold_workers, found.min_load) == (5, 0, 0.0)
    assert resolved(ScaleSpec(profile="knative", max_workers=0)).hot_max == 0
    assert resolved(ScaleSpec(profile="knative"), initial_scale=0).initial_scale == 1, "0 is not allowed there"
    assert resolved(initial_scale=0).initial_scale == 0
    assert resolved(ScaleSpec(max_workers=9), max_scale=4).hot_max == 4
    assert resolved(ScaleSpec(max_workers=3), max_scale=4).hot_max == 3
