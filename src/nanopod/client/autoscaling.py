"""The settings that `configure_autoscaling` and `configure_rollout` take: checked here, with the nearest name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from nanopod.model import tuning
from nanopod.model.endpoint import RolloutSpec, ScaleSpec, Tuning
from nanopod.model.errors import Invalid

LIMITS: Final[Mapping[str, tuple[float, float, bool]]] = {
    "cold_workers": (0, 10_000, True),
    "max_workers": (0, 10_000, True),
    "min_load": (0, math.inf, False),
    "min_cold_load": (0, math.inf, False),
    "target_util": (0.01, 1, False),
    "cold_mult": (1, 1000, False),
    "max_queue_time": (0, 86_400, False),
    "target_queue_time": (0, 86_400, False),
    "inactivity_timeout": (-math.inf, math.inf, False),
    "target_concurrency": (0.01, 100_000, False),
    "on_demand_fallback": (0, 1, False),
    "max_price": (0.000_06, 1_000_000, False),
}
"""name: (smallest, largest, whole numbers only)"""
RENAMED: Final = {"grace_s": "scale_to_zero_grace", "retention_s": "scale_to_zero_retention"}
TUNING: Final[Mapping[str, str]] = {RENAMED.get(field, field.removesuffix("_s")): field for field in tuning.LIMITS}
"""{setting: field of `Tuning`}; times are seconds."""
SWITCHES: Final = ("spot", "enable_scale_to_zero")
"""Settings that are on or off."""
TUNED: Final = (*TUNING, "enable_scale_to_zero", "aggregation", "missing_data", "start", "metrics")
"""Settings that are kept in `Tuning`."""
KNOWN: Final = (*LIMITS, *SWITCHES, *tuning.CHOICES, "metrics", *TUNING)
"""Every setting of `configure_autoscaling`."""
ROLLOUT: Final[Mapping[str, tuple[str, float, float, bool]]] = {
    "canary": ("canary_percent", 0, 99, True),
    "bake": ("bake_s", 0, 30 * 86_400, False),
    "max_error_percent": ("max_error_percent", 0, 100, False),
    "min_calls": ("min_calls", 1, 1_000_000, True),
    "max_slowdown_percent": ("max_slowdown_percent", 0, 10_000, False),
    "duration": ("duration_s", 0, 7 * 86_400, False),
}
"""name: (field, smallest, largest, whole numbers only)"""
ROLLOUT_SWITCHES: Final = ("auto_rollback", "auto_promote")
"""Settings of `configure_rollout` that are on or off."""
ELSEWHERE: Final[Mapping[str, str]] = {
    "min_containers": "min_scale",
    "min_workers": "min_scale",
    "min_replicas": "min_scale",
    "max_containers": "max_workers",
    "max_replicas": "max_workers",
    "buffer_containers": "cold_mult",
    "scaledown_window": "inactivity_timeout",
    "idle_timeout": "inactivity_timeout",
    "concurrency": "target_concurrency",
    "price": "max_price",
    "dph_total": "max_price",
}
"""What other systems call a setting."""


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, None left out. Raises `Invalid` naming the setting and the fix."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in KNOWN:
            raise Invalid(f"configure_autoscaling has no setting {name!r}; {_advice(name)}", field=name)
        if value is None:
            continue
        if name in SWITCHES:
            found[name] = _switch(name, value)
            continue
        if name in tuning.CHOICES:
            found[name] = _choice(name, value, tuning.CHOICES[name])
            continue
        if name == "metrics":
            several = [value] if isinstance(value, str) else list(value)
            found[name] = tuple(_choice(name, one, tuning.METRICS) for one in several)
            continue
        low, high, whole = tuning.LIMITS[TUNING[name]] if name in TUNING else LIMITS[name]
        found[name] = _number(name, value, low, high, whole)
    return found


def _choice(name: str, value: Any, possible: tuple[str, ...]) -> str:
    if value not in possible:
        raise Invalid(f"{name} is one of {', '.join(possible)}, not {value!r}", field=name)
    return str(value)


def _advice(name: str) -> str:
    near = ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, KNOWN, 1)), None)
    return f"did you mean {near}?" if near else f"there are {', '.join(KNOWN)}"


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{name} is True or False, not {value!r}", field=name)
    return value


def _number(name: str, value: Any, low: float, high: float, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise Invalid(f"{name} is a number, not {value!r}", field=name)
    if whole and (math.isinf(value) or value != int(value)):
        raise Invalid(f"{name} is a whole number, not {value!r}", field=name)
    if not low <= value <= high:
        raise Invalid(f"{name} is from {low:g} to {high:g}, not {value!r}", field=name)
    return int(value) if whole else float(value)


def rollout_spec(before: RolloutSpec, settings: Mapping[str, Any]) -> RolloutSpec:
    """`before` with what was given. Raises `Invalid` naming the setting and the fix."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ROLLOUT_SWITCHES:
            found[name] = _switch(name, value)
            continue
        if name not in ROLLOUT:
            known = [*ROLLOUT, *ROLLOUT_SWITCHES]
            near = next(iter(difflib.get_close_matches(name, known, 1)), None)
            advice = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            raise Invalid(f"configure_rollout has no setting {name!r}; {advice}", field=name)
        if value is not None:
            field, low, high, whole = ROLLOUT[name]
            found[field] = _number(name, value, low, high, whole)
    return replace(before, **found)


def scale_spec(settings: Mapping[str, Any]) -> ScaleSpec:
    """The settings with defaults for the rest. Raises `Invalid` where two contradict each other."""
    tuned = {TUNING.get(name, name): v for name, v in settings.items() if name in TUNED}
    settings = {name: value for name, value in settings.items() if name not in TUNED}
    if tuned:
        settings["tuning"] = Tuning(**tuned)
    spec = ScaleSpec(**settings)
    if spec.max_workers and spec.cold_workers > spec.max_workers:
        if "max_workers" in settings and "cold_workers" in settings:
            raise Invalid(
                f"cold_workers={spec.cold_workers} is above max_workers={spec.max_workers}; raise max_workers",
                field="cold_workers",
            )
        spec = ScaleSpec(**{**settings, "max_workers": max(spec.max_workers, spec.cold_workers)})
    return spec
