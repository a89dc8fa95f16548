"""Autoscaling of KServe and Knative: fields and annotations as the settings of an endpoint.

A file keeps every value that it states; what it leaves out comes from the profile, which is `auto` unless the
annotation `autoscaling.nanopod/profile` or the server's setting says otherwise. Names of annotations are Knative's;
every parameter that has none there is `autoscaling.nanopod/<parameter>`, in kebab-case.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, get_args

from nanopod.model.endpoint import Metric, Profile, ScaleSpec, Tuning
from nanopod.model.tuning import LIMITS
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.reading import step

KNATIVE: Final = "autoscaling.knative.dev/"
OURS: Final = "autoscaling.nanopod/"
PROFILE: Final = OURS + "profile"
DEADLINE: Final = "serving.knative.dev/progress-deadline"
PROFILES: Final[tuple[str, ...]] = get_args(Profile)
METRICS: Final[tuple[str, ...]] = get_args(Metric)
TIMEOUT_S_MAX: Final = 600.0
"""Longest request timeout that Knative's own settings allow."""
BASES: Final[Mapping[str, ScaleSpec]] = {
    "auto": ScaleSpec(
        cold_workers=1, cold_mult=1.0, max_workers=0, min_load=0.0, target_util=0.85, target_queue_time=5.0
    ),
    "vast": ScaleSpec(
        cold_workers=5, cold_mult=2.5, max_workers=20, min_load=0.0, target_util=0.9, target_queue_time=10.0
    ),
    "knative": ScaleSpec(cold_workers=0, cold_mult=1.0, max_workers=0, min_load=0.0),
    "coreweave": ScaleSpec(cold_workers=0, cold_mult=1.0, max_workers=0, min_load=0.0),
}
"""What a profile has beside the autoscaler's own parameters."""
_UNITS: Final[Mapping[str, float]] = {
    "ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|ms|s|m|h)")


def duration(text: str) -> float:
    """A Go duration (`1m30s`) in seconds. Raises `ValueError` saying what would do."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    if not rest or not re.fullmatch(f"(?:{_PART.pattern})+", rest):
        raise ValueError(f"{text!r} is no duration; write it with units, such as 90s, 1m30s or 2h")
    return sign * float(sum(Decimal(number) * Decimal(str(_UNITS[unit])) for number, unit in _PART.findall(rest)))


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(found):
        raise ValueError(f"{text!r} is not a number")
    return found


def _whole(text: str) -> int:
    found = _number(text)
    if found != int(found):
        raise ValueError(f"{text!r} is not a whole number")
    return int(found)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _share(text: str) -> float:
    return _number(text) / 100.0


def _aggregation(text: str) -> str:
    known = {"linear": "linear", "weighted-exponential": "weighted-exponential"}
    known["weightedExponential"] = "weighted-exponential"
    if text not in known:
        raise ValueError(f"{text!r} must be linear or weighted-exponential")
    return known[text]


_Parse = Callable[[str], Any]
ANNOTATIONS: Final[Mapping[str, tuple[str, _Parse, str]]] = {
    "target": ("target", _number, ""),
    "target-utilization-percentage": ("target_utilization", _share, "targetUtilizationPercentage"),
    "min-scale": ("min_scale", _whole, "minScale"),
    "max-scale": ("max_scale", _whole, "maxScale"),
    "initial-scale": ("initial_scale", _whole, "initialScale"),
    "activation-scale": ("activation_scale", _whole, "activationScale"),
    "window": ("stable_window_s", duration, ""),
    "panic-window-percentage": ("panic_window_percentage", _number, "panicWindowPercentage"),
    "panic-threshold-percentage": ("panic_threshold_percentage", _number, "panicThresholdPercentage"),
    "scale-down-delay": ("scale_down_delay_s", duration, "scaleDownDelay"),
    "scale-to-zero-pod-retention-period": ("retention_s", duration, "scaleToZeroPodRetentionPeriod"),
    "target-burst-capacity": ("target_burst_capacity", _number, "targetBurstCapacity"),
    "metric-aggregation-algorithm": ("aggregation", _aggregation, "metricAggregationAlgorithm"),
}
"""{Knative's annotation: (field of `Tuning`, how it is read, its camelCase form)}."""
_LEAST: Final[Mapping[str, float]] = {"activation_scale": 2, "target_utilization": 0.01}
PARAMETERS: Final[Mapping[str, tuple[str, _Parse]]] = {
    **{name: (field, parse) for name, (field, parse, _) in ANNOTATIONS.items()},
    "container-concurrency": ("container_concurrency", _whole),
    "container-concurrency-target-percentage": ("target_utilization", _share),
    "tick": ("tick_s", duration),
    "stable-window": ("stable_window_s", duration),
    "panic-window": ("panic_window_s", duration),
    "max-scale-up-rate": ("max_scale_up_rate", _number),
    "max-scale-down-rate": ("max_scale_down_rate", _number),
    "scale-to-zero-grace-period": ("grace_s", duration),
    "enable-scale-to-zero": ("enable_scale_to_zero", _flag),
    "progress-deadline": ("progress_deadline_s", duration),
    "request-timeout": ("request_timeout_s", duration),
}
"""Parameters by `autoscaling.nanopod/`: {name: (field of `Tuning`, how it is read)}."""
SETTINGS: Final[Mapping[str, tuple[str, _Parse]]] = {
    "cold-workers": ("cold_workers", _whole),
    "cold-mult": ("cold_mult", _number),
    "max-workers": ("max_workers", _whole),
    "min-load": ("min_load", _number),
    "min-cold-load": ("min_cold_load", _number),
    "target-util": ("target_util", _number),
    "target-queue-time": ("target_queue_time", duration),
    "max-queue-time": ("max_queue_time", duration),
    "inactivity-timeout": ("inactivity_timeout", duration),
    "max-price": ("max_price", _number),
}
"""The same for fields of `ScaleSpec`."""


def read_scale(annotations: Mapping[str, str], path: str, problems: Problems, default: Profile) -> ScaleSpec:
    """The annotations at `path` as settings. Wrong ones are problems; others of these prefixes are warned of."""
    profile = annotations.get(PROFILE, default)
    if profile not in PROFILES:
        problems.error(step(path, PROFILE), f"{profile!r} is not possible; choose one of {', '.join(PROFILES)}")
        profile = default
    scale = replace(BASES[profile], profile=profile)  # type: ignore[arg-type]
    tuned: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for key, text in annotations.items():
        if key == PROFILE:
            continue
        if key.startswith(OURS):
            _own(key, text, path, problems, tuned, plain)
        elif key.startswith(KNATIVE):
            _knative(key, text, annotations, path, problems, tuned)
        elif key == DEADLINE:
            _set(tuned, "progress_deadline_s", duration, step(path, key), text, problems)
    return replace(scale, **plain, tuning=Tuning(**tuned))


def _own(
    key: str, text: str, path: str, problems: Problems, tuned: dict[str, Any], plain: dict[str, Any]
) -> None:  # fmt: skip
    name, at = key.removeprefix(OURS), step(path, key)
    if name in PARAMETERS:
        _set(tuned, *PARAMETERS[name], at, text, problems)
    elif name in SETTINGS:
        _set(plain, *SETTINGS[name], at, text, problems)
    elif name == "metrics":
        several = tuple(word.strip() for word in text.split(",") if word.strip())
        if not several or not set(several) <= set(METRICS):
            problems.error(at, f"{text!r} is not possible; name some of {', '.join(METRICS)} with commas between")
        else:
            tuned["metrics"] = several
    elif name in ("missing-data", "start"):
        known = {"missing-data": ("zero", "knative-freeze"), "start": ("stored", "knative")}[name]
        if text not in known:
            problems.error(at, f"{text!r} is not possible; choose {' or '.join(known)}")
        else:
            tuned[name.replace("-", "_")] = text
    else:
        problems.warn(at, f"is unknown and ignored; there are {', '.join((*PARAMETERS, *SETTINGS, 'metrics'))}")


def _knative(
    key: str, text: str, annotations: Mapping[str, str], path: str, problems: Problems, tuned: dict[str, Any]
) -> None:
    name, at = key.removeprefix(KNATIVE), step(path, key)
    camel = {other: kebab for kebab, (_, _, other) in ANNOTATIONS.items() if other}
    if name in camel and KNATIVE + camel[name] in annotations:
        problems.warn(at, f"is ignored: {KNATIVE}{camel[name]} says it as well, and counts")
        return
    name = camel.get(name, name)
    if name in ANNOTATIONS:
        _set(tuned, *ANNOTATIONS[name][:2], at, text, problems)
    elif name == "metric":
        if text in METRICS:
            tuned["metrics"] = (text,)
        else:
            problems.error(at, f"{text!r} is not possible; choose one of {', '.join(METRICS)}")
    elif name == "class":
        _class(at, text, tuned, problems)
    else:
        problems.warn(at, f"is unknown and ignored; there are {', '.join(('class', 'metric', *ANNOTATIONS))}")


def _class(at: str, text: str, tuned: dict[str, Any], problems: Problems) -> None:
    if text in ("hpa.autoscaling.knative.dev", "hpa"):
        tuned.setdefault("metrics", ("cpu",))
    elif text not in ("kpa.autoscaling.knative.dev", "kpa"):
        problems.warn(at, f"{text!r} is ignored: there is one autoscaler here, with the rules of both kpa and hpa")


def _set(found: dict[str, Any], field: str, parse: _Parse, at: str, text: str, problems: Problems) -> None:
    """One parameter, within its limits."""
    try:
        value = parse(text)
    except ValueError as error:
        problems.error(at, str(error))
        return
    low, high, whole = LIMITS.get(field, (-math.inf, math.inf, False))
    low = max(low, _LEAST.get(field, low))
    if isinstance(value, int | float) and not isinstance(value, bool):
        percent = 100.0 if field == "target_utilization" else 1.0
        if not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number " if whole else ""
            limits = f"{kind}from {low * percent:g} to {high * percent:g}"
            problems.error(at, f"{text!r} is not possible; it must be {limits}")
            return
        if field == "target_burst_capacity" and -1 < value < 0:
            problems.error(at, f"{text!r} is not possible; it must be -1, or 0 or more")
            return
        if whole and not field.endswith("_s"):
            value = int(value)
    found[field] = value


def with_fields(scale: ScaleSpec, component: Reader) -> ScaleSpec:
    """The scaling fields of a KServe component over its annotations: minReplicas, maxReplicas, scaleTarget,
    scaleMetric, containerConcurrency, timeout."""
    tuned: dict[str, Any] = {}
    least, most = component.whole("minReplicas", most=10_000), component.whole("maxReplicas", most=10_000)
    metric = component.text("scaleMetric", one_of=("concurrency", "rps", "cpu", "memory"))
    target = component.number("scaleTarget", least=0)
    concurrency = component.whole("containerConcurrency", most=100_000)
    timeout = component.whole("timeout", least=0, most=86_400)
    component.ignored("the type of scaleTarget follows from scaleMetric", "scaleMetricType")
    if least is not None:
        tuned["min_scale"] = least
    elif scale.tuning.min_scale is None:
        tuned["min_scale"] = 1
    if most:
        tuned["max_scale"] = most
    if least is not None and most and least > most:
        component.error("minReplicas", f"{least} is above maxReplicas {most}; lower it, or raise maxReplicas")
        tuned.pop("min_scale"), tuned.pop("max_scale")
    if metric:
        tuned["metrics"] = (metric,)
    if target:
        metrics = (metric,) if metric else scale.tuning.metrics
        if metrics in (("cpu",), ("memory",)):
            tuned["target_utilization"] = _percent(component, target)
        else:
            tuned |= {"target": max(0.01, target), "metrics": metrics or ("concurrency",)}
    if concurrency is not None:
        tuned["container_concurrency"] = concurrency
    if timeout:
        tuned["request_timeout_s"] = float(timeout)
    return _checked(replace(scale, tuning=replace(scale.tuning, **tuned)), component)


def _percent(component: Reader, target: float) -> float | None:
    if target > 100:
        component.error("scaleTarget", f"{target:g} is not possible; for cpu and memory it is a percentage up to 100")
        return None
    return target / 100.0


def with_pod(scale: ScaleSpec, spec: Reader) -> ScaleSpec:
    """The scaling fields of a Knative revision over its annotations: containerConcurrency, timeoutSeconds."""
    tuned: dict[str, Any] = {}
    concurrency = spec.whole("containerConcurrency", most=100_000)
    timeout = spec.whole("timeoutSeconds", least=0, most=86_400)
    first_byte = spec.whole("responseStartTimeoutSeconds", least=0, most=86_400)
    if concurrency is not None:
        tuned["container_concurrency"] = concurrency
    if timeout:
        tuned["request_timeout_s"] = float(timeout)
    if first_byte and timeout and first_byte > timeout:
        spec.error("responseStartTimeoutSeconds", f"{first_byte} is above timeoutSeconds {timeout}; lower it")
    spec.ignored("the request timeout is the limit", "idleTimeoutSeconds")
    return _checked(replace(scale, tuning=replace(scale.tuning, **tuned)), spec)


def _checked(scale: ScaleSpec, reader: Reader) -> ScaleSpec:
    """What two values of different places can be wrong about together, with Knative's defaults filled in."""
    tuning = scale.tuning
    if tuning.container_concurrency is None:
        tuning = replace(tuning, container_concurrency=0)
    least, most = tuning.min_scale or 0, tuning.max_scale or 0
    if most and least > most:
        reader.problems.error(reader.path, f"min-scale {least} is above max-scale {most}; raise max-scale")
        tuning = replace(tuning, min_scale=None, max_scale=None)
    active = tuning.activation_scale
    if active is not None and (active < least or (most and active > most)):
        bounds = f"from min-scale {least}" + (f" to max-scale {most}" if most else " on")
        reader.problems.error(reader.path, f"activation-scale {active} is not possible; it must be {bounds}")
        tuning = replace(tuning, activation_scale=None)
    timeout = tuning.request_timeout_s or 0
    if timeout > TIMEOUT_S_MAX and scale.profile in ("knative", "coreweave"):
        name = "timeout" if reader.has("timeout") else "timeoutSeconds"
        most_s = f"{TIMEOUT_S_MAX:g} s"
        reader.error(name, f"{timeout:g} s is above the {most_s} that profile {scale.profile} allows; lower it")
        tuning = replace(tuning, request_timeout_s=None)
    if tuning.target is not None and not tuning.metrics:
        tuning = replace(tuning, metrics=("concurrency",))
    if scale.profile == "vast" and tuning.max_scale is not None:
        cold = min(scale.cold_workers, tuning.max_scale) if tuning.max_scale else scale.cold_workers
        scale = replace(scale, max_workers=tuning.max_scale, cold_workers=cold)
    return replace(scale, tuning=tuning)
