"""What an installation sets limits to: the scale of what is applied, and the memory that models reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from nanopod.model.endpoint import LoadedModel, ScaleSpec
from nanopod.server.manifests.fields import Problems
from nanopod.server.manifests.reading import paths_of
from nanopod.server.manifests.resources import MEBI

LIMIT_MAX: Final = 10_000
_NAMES: Final = (
    "autoscaling.knative.dev/max-scale",
    "autoscaling.knative.dev/maxScale",
    "autoscaling.nanopod/max-workers",
)
_MOST: Final = (
    "spec.predictor.maxReplicas", "spec.scaling.maxReplicas", "spec.replicas",
    *(f'{at}annotations["{name}"]' for at in ("metadata.", "spec.template.metadata.") for name in _NAMES),
)  # fmt: skip
"""Where an object says how far it may be scaled."""


def within(scale: ScaleSpec, document: Mapping[str, Any], problems: Problems, limit: int) -> ScaleSpec:
    """A scale below the installation's `max_scale_limit` (0: there is none), which one that states no maximum gets.

    One that is stated as 0 (no limit), or above it, is noted in `problems`.
    """
    if limit <= 0:
        return scale
    stated = {path: value for path, value in paths_of(document) if path in _MOST}
    path = next((one for one in _MOST if one in stated), "spec")
    most = scale.tuning.max_scale
    if any(str(value) == "0" for one, value in stated.items() if one != "spec.replicas"):
        problems.error(path, f"0 (no limit) is not possible: this installation allows 1 to {limit} (max_scale_limit)")
    elif most is not None and most > limit:
        problems.error(path, f"{most} is above the {limit} that this installation allows (max_scale_limit); lower it")
    elif (scale.tuning.min_scale or 0) > limit:
        least = scale.tuning.min_scale
        problems.error(path, f"min-scale {least} is above the {limit} that this installation allows (max_scale_limit)")
    most = min(most or limit, limit)
    workers = min(scale.max_workers or most, most)
    tuning = replace(scale.tuning, max_scale=most)
    return replace(scale, tuning=tuning, max_workers=workers, cold_workers=min(scale.cold_workers, workers))


def too_large(name: str, models: Sequence[LoadedModel], asked: int, largest: int) -> str:
    """Why what the models of a service reserve does not fit into one of its workers; "" when it does.

    `asked`: bytes of memory that its resources ask for, `largest`: of the largest node; 0: not known.
    """
    total = sum(one.memory_bytes for one in models)
    most = min(asked or largest, largest or asked)
    if not total or not most or total <= most:
        return ""
    where = "its resources ask for" if most == asked else "the largest node has"
    listed = ", ".join(f"{one.name} {_mebi(one.memory_bytes)}" for one in models)
    return (
        f"the models of {name} reserve {_mebi(total)} in all ({listed}), and {where} {_mebi(most)}: lower memory, or "
        "raise resources.limits.memory of the InferenceService"
    )


def _mebi(size: int) -> str:
    return f"{size / MEBI:g} MiB"
