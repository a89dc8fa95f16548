"""The settings that `configure_autoscaling` takes: checked here, with the nearest name when one is unknown."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Final

from nanopod.model.endpoint import ScaleSpec
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
}
"""name: (smallest, largest, whole numbers only)"""
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
}
"""What other systems call a setting."""


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, None left out. Raises `Invalid` naming the setting and the fix."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in LIMITS:
            near = ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, LIMITS, 1)), None)
            advice = f"did you mean {near}?" if near else f"there are {', '.join(LIMITS)}"
            raise Invalid(f"configure_autoscaling has no setting {name!r}; {advice}", field=name)
        if value is None:
            continue
        low, high, whole = LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise Invalid(f"{name} is a number, not {value!r}", field=name)
        if whole and value != int(value):
            raise Invalid(f"{name} is a whole number, not {value!r}", field=name)
        if not low <= value <= high:
            raise Invalid(f"{name} is from {low:g} to {high:g}, not {value!r}", field=name)
        found[name] = int(value) if whole else float(value)
    return found


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
