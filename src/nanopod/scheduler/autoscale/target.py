"""What one replica should have of a metric: Knative's rule for concurrency and requests per second."""

from __future__ import annotations

from typing import Final, Literal

TARGET_MIN: Final = 0.01
"""No target is below this."""


def resolve_target(
    metric: Literal["concurrency", "rps"],
    container_concurrency: int,
    *,
    concurrency_default: float = 100.0,
    concurrency_util: float = 0.7,
    rps_default: float = 200.0,
    rps_util: float = 0.7,
    target: float | None = None,
    utilization: float | None = None,
) -> tuple[float, float]:
    """(target, total) of one replica. `target` and `utilization` (a share) are what was stated; None: nothing.

    `total` is the most that a replica may have: its container concurrency (0 stands for `concurrency_default`), or
    `rps_default` requests per second. A stated target takes its place, for concurrency never above the container's.
    """
    if metric == "rps":
        total, util = rps_default, rps_util
    else:
        total, util = float(container_concurrency) or concurrency_default, concurrency_util
    if target is not None:
        total = target
        if metric == "concurrency" and container_concurrency != 0:
            total = min(target, float(container_concurrency))
    if utilization is not None:
        util = utilization
    return target_of(total, util), total


def target_of(total: float, util: float) -> float:
    """What a replica should have of the `total` that it can, at a utilisation (a share)."""
    return max(TARGET_MIN, total * util)
