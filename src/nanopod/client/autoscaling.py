"""The settings that `configure_autoscaling` and `configure_rollout` take: checked here, with the nearest name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from nanopod.model.endpoint import RolloutSpec, ScaleSpec
from nanopod.model.errors import Invalid

LIMITS: Final[Mapping[str, tuple[float, float, bool]]] = {
    "cold_workers": (0, 10_000, True),
    "max_workers": (1, 10_000, True),
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
SWITCHES: Final = ("spot",)
"""Settings that are on or off."""
ROLLOUT: Final[Mapping[str, tuple[str, float, float, bool]]] = {
    "canary": ("canary_percent", 0, 99, True),
    "bake": ("bake_s", 0, 30 * 86_400, False),
    "max_error_percent": ("max_error_percent", 0, 100, False),
    "min_calls": ("min_calls", 1, 1_000_000, True),
}
"""name: (field, smallest, largest, whole numbers only)"""
ELSEWHERE: Final[Mapping[str, str]] = {
    "min_containers": "cold_workers",
    "min_workers": "cold_workers",
    "min_replicas": "cold_workers",
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
        if name not in LIMITS and name not in SWITCHES:
            raise Invalid(f"configure_autoscaling has no setting {name!r}; {_advice(name)}", field=name)
        if value is None:
            continue
        if name in SWITCHES:
            found[name] = _switch(name, value)
            continue
        low, high, whole = LIMITS[name]
        found[name] = _number(name, value, low, high, whole)
    return found


def _advice(name: str) -> str:
    known = [*LIMITS, *SWITCHES]
    near = ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
    return f"did you mean {near}?" if near else f"there are {', '.join(known)}"


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
        if name == "auto_rollback":
            found[name] = _switch(name, value)
            continue
        if name not in ROLLOUT:
            known = [*ROLLOUT, "auto_rollback"]
            near = next(iter(difflib.get_close_matches(name, known, 1)), None)
            advice = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            raise Invalid(f"configure_rollout has no setting {name!r}; {advice}", field=name)
        if value is not None:
            field, low, high, whole = ROLLOUT[name]
            found[field] = _number(name, value, low, high, whole)
    return replace(before, **found)


def scale_spec(settings: Mapping[str, Any]) -> ScaleSpec:
    """The settings with defaults for the rest. Raises `Invalid` where two contradict each other."""
    spec = ScaleSpec(**settings)
    if spec.cold_workers > spec.max_workers:
        if "max_workers" in settings and "cold_workers" in settings:
            raise Invalid(
                f"cold_workers={spec.cold_workers} is above max_workers={spec.max_workers}; raise max_workers",
                field="cold_workers",
            )
        spec = ScaleSpec(**{**settings, "max_workers": max(spec.max_workers, spec.cold_workers)})
    return spec
