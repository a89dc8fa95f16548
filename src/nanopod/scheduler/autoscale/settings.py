"""From what was stated (Vast's names, Knative's names, a profile) to settings in which every parameter has a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from nanopod.model.endpoint import Metric, Profile, ScaleSpec
from nanopod.scheduler.autoscale.target import resolve_target
from nanopod.scheduler.autoscale.values import Autoscale
from nanopod.scheduler.autoscale.windows import panic_window_s

PANIC_SHARE: Final[Mapping[Profile, float]] = {"knative": 10.0, "coreweave": 24 / 180 * 100, "vast": 20.0, "auto": 20.0}
"""Panic window in percent of the stable one, where that was stated and the panic window was not."""
RESOURCE_DELAY_S: Final = 300
"""Least scale-down delay with the metrics cpu and memory, as of Kubernetes' own autoscaler."""
CONCURRENCY_DEFAULT: Final = 100.0
"""What a replica without a limit of its concurrency is taken to serve."""
RPS_DEFAULT: Final = 200.0
RPS_UTIL: Final = 0.7

PROFILES: Final[Mapping[Profile, Autoscale]] = {
    "auto": Autoscale(),
    "vast": Autoscale(
        profile="vast", load_util=0.9, retention_s=1800.0, max_workers=20, cold_workers=5, cold_mult=2.5,
        target_queue_time_s=10.0,
    ),
    "coreweave": Autoscale(
        profile="coreweave", metrics=("concurrency",), tick_s=15, stable_s=180, panic_s=24, max_scale_down_rate=1.1,
        delay_s=60, grace_s=60.0, retention_s=1800.0, burst=211.0, request_timeout_s=300.0, freeze=True, exact=True,
        cold_workers=0, cold_mult=0.0,
    ),
    "knative": Autoscale(
        profile="knative", metrics=("concurrency",), panic_s=6, concurrency_util=0.7, max_scale_up_rate=1000.0,
        delay_s=0, retention_s=0.0, burst=211.0, request_timeout_s=300.0, freeze=True, exact=True, cold_workers=0,
        cold_mult=0.0,
    ),
}  # fmt: skip
"""Every parameter by profile, with nothing stated."""


def resolve(scale: ScaleSpec, slots: int, llm: bool) -> Autoscale:
    """The settings of an endpoint whose replicas take `slots` requests at once. `llm`: their engine may report KV use.

    What `scale.tuning` states wins over the profile; `knative` and `coreweave` take the bound `max_workers` of the
    other settings and ignore the rest, which belongs to the load metric and the cold tier. `scale` was checked before.
    """
    base, tuning = PROFILES[scale.profile], scale.tuning
    exact = base.exact
    metrics = tuning.metrics or _metrics(scale, base, llm)
    stable_s = int(_first(tuning.stable_window_s, base.stable_s))
    delay_s = int(_first(tuning.scale_down_delay_s, base.delay_s))
    if not {"cpu", "memory"}.isdisjoint(metrics):
        delay_s = max(delay_s, RESOURCE_DELAY_S)
    limit = tuning.container_concurrency if tuning.container_concurrency is not None else max(1, slots)
    initial = tuning.initial_scale if tuning.initial_scale is not None else base.initial_scale
    values = msgspec.structs.replace(
        base,
        metrics=metrics,
        tick_s=int(_first(tuning.tick_s, base.tick_s)),
        stable_s=stable_s,
        panic_s=_panic_s(scale, base, stable_s),
        panic_threshold=_first(tuning.panic_threshold_percentage, base.panic_threshold * 100.0) / 100.0,
        container_concurrency=limit,
        max_scale_up_rate=_first(tuning.max_scale_up_rate, base.max_scale_up_rate),
        max_scale_down_rate=_first(tuning.max_scale_down_rate, base.max_scale_down_rate),
        delay_s=delay_s,
        grace_s=_first(tuning.grace_s, base.grace_s),
        retention_s=tuning.retention_s if tuning.retention_s is not None else base.retention_s,
        burst=_first(tuning.target_burst_capacity, base.burst),
        # Knative's clusters allow no initial scale of 0 by default, and then it counts as not stated.
        initial_scale=initial if initial or not exact else base.initial_scale,
        min_scale=tuning.min_scale or 0,
        max_scale=_least(tuning.max_scale or 0, scale.max_workers) if exact else tuning.max_scale or 0,
        activation_scale=tuning.activation_scale or 0,
        enable_scale_to_zero=tuning.enable_scale_to_zero is not False,
        progress_deadline_s=_first(tuning.progress_deadline_s, base.progress_deadline_s),
        request_timeout_s=_first(tuning.request_timeout_s, base.request_timeout_s),
        aggregation=tuning.aggregation or base.aggregation,
        freeze=tuning.missing_data == "knative-freeze" if tuning.missing_data else base.freeze,
        start=tuning.start or base.start,
    )
    values = _targets(values, scale)
    return values if exact else _with_cold(values, scale)


def _metrics(scale: ScaleSpec, base: Autoscale, llm: bool) -> tuple[Metric, ...]:
    """A stated target without a metric is one of concurrency."""
    if scale.target_concurrency is not None or scale.tuning.target is not None:
        return ("concurrency",)
    return (*base.metrics, "kv") if llm and scale.profile == "auto" else base.metrics


def _panic_s(scale: ScaleSpec, base: Autoscale, stable_s: int) -> int:
    tuning = scale.tuning
    if tuning.panic_window_s is not None:
        return min(int(tuning.panic_window_s), stable_s)
    if tuning.panic_window_percentage is None and stable_s == base.stable_s:
        return base.panic_s
    return panic_window_s(stable_s, _first(tuning.panic_window_percentage, PANIC_SHARE[scale.profile]))


def _targets(values: Autoscale, scale: ScaleSpec) -> Autoscale:
    """With the totals and utilisations of each metric."""
    tuning = scale.tuning
    share = tuning.target_utilization
    # `target_util` says how full a worker should be, by whatever metric it is measured.
    usual = values.concurrency_util if values.exact else scale.target_util
    metric: Metric = values.metrics[0]
    target = tuning.target
    _, total = resolve_target(
        "concurrency",
        values.container_concurrency,
        concurrency_default=CONCURRENCY_DEFAULT,
        target=target if metric == "concurrency" else None,
    )
    util = _first(share, usual)
    if scale.target_concurrency is not None and target is None:
        total, util = scale.target_concurrency, _first(share, 1.0)
    load_util = _first(share, scale.target_util)
    return msgspec.structs.replace(
        values,
        concurrency_total=total,
        concurrency_util=util,
        rps_total=target if metric == "rps" and target is not None else RPS_DEFAULT,
        rps_util=_first(share, RPS_UTIL),
        load_total=target if metric == "load" else None,
        load_util=load_util,
        tokens_total=target if metric == "tokens" else None,
        kv_util=_first(share, values.kv_util),
        resource_util=target / 100.0 if metric in ("cpu", "memory") and target else _first(share, values.resource_util),
    )


def _with_cold(values: Autoscale, scale: ScaleSpec) -> Autoscale:
    """With what belongs to the load metric, the cold tier and zero by idle time."""
    return msgspec.structs.replace(
        values,
        max_workers=scale.max_workers,
        cold_workers=scale.cold_workers,
        cold_mult=scale.cold_mult,
        min_load=scale.min_load,
        min_cold_load=scale.min_cold_load,
        target_queue_time_s=scale.target_queue_time,
        max_queue_time_s=scale.max_queue_time,
        inactivity_timeout_s=scale.inactivity_timeout,
        zero_cuts_windows=scale.inactivity_timeout is not None and scale.inactivity_timeout >= 0,
    )


def _first(value: float | None, default: float) -> float:
    return default if value is None else value


def _least(one: int, other: int) -> int:
    """The smaller of two bounds, of which 0 is none."""
    return min(one, other) if one and other else one or other
