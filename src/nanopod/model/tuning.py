"""What the stated parameters of the autoscaler may be: one table for the SDK, which refuses early, and the server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, get_args

from nanopod.model.endpoint import Metric, Profile, ScaleSpec, Tuning
from nanopod.model.errors import Invalid

LIMITS: Final[Mapping[str, tuple[float, float, bool]]] = {
    "container_concurrency": (0, 100_000, True),
    "target": (0.01, 1_000_000, False),
    "target_utilization": (0.01, 1, False),
    "tick_s": (1, 3600, False),
    "stable_window_s": (6, 3600, True),
    "panic_window_s": (1, 3600, True),
    "panic_window_percentage": (1, 100, False),
    "panic_threshold_percentage": (110, 1000, False),
    "max_scale_up_rate": (1.000_001, 100_000, False),
    "max_scale_down_rate": (1.000_001, 100_000, False),
    "scale_down_delay_s": (0, 3600, True),
    "grace_s": (0.001, 86_400, False),
    "retention_s": (0, 3600, True),
    "target_burst_capacity": (-1, 1_000_000, False),
    "initial_scale": (0, 10_000, True),
    "activation_scale": (1, 10_000, True),
    "min_scale": (0, 10_000, True),
    "max_scale": (0, 10_000, True),
    "progress_deadline_s": (1, 86_400, False),
    "request_timeout_s": (1, 86_400, False),
}
"""field of `Tuning`: (smallest, largest, whole numbers only)"""
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "profile": get_args(Profile),
    "aggregation": ("linear", "weighted-exponential"),
    "missing_data": ("zero", "knative-freeze"),
    "start": ("stored", "knative"),
}
"""Settings that are one of a few words."""
METRICS: Final[tuple[str, ...]] = get_args(Metric)


def check_tuning(scale: ScaleSpec) -> None:
    """Raises `Invalid` naming the parameter, what was seen and what is possible."""
    tuning: Tuning = scale.tuning
    if scale.profile not in CHOICES["profile"]:
        raise Invalid(
            f"scale.profile: {scale.profile!r} must be one of {', '.join(CHOICES['profile'])}", field="scale.profile"
        )
    for name, (low, high, whole) in LIMITS.items():
        value = getattr(tuning, name)
        if value is None:
            continue
        if not (math.isfinite(value) and low <= value <= high) or (whole and value != int(value)):
            kind = "a whole number " if whole else ""
            raise Invalid(
                f"scale.tuning.{name}: {value} must be {kind}from {low:g} to {high:g}, or null",
                field=f"scale.tuning.{name}",
            )
    if -1 < (tuning.target_burst_capacity or 0) < 0:
        raise Invalid(
            f"scale.tuning.target_burst_capacity: {tuning.target_burst_capacity} must be -1, or 0 or more",
            field="scale.tuning.target_burst_capacity",
        )
    least, most = tuning.min_scale, tuning.max_scale
    if least is not None and most and least > most:
        raise Invalid(
            f"scale.tuning.min_scale: {least} is above max_scale={most}; raise max_scale",
            field="scale.tuning.min_scale",
        )
