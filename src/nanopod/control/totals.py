"""What endpoints did since this process started, summed over all gateways, for whoever watches the cloud.

Counters only rise; they begin at zero again with the process, as counters of Prometheus may.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nanopod.model.wire import LATENCY_BUCKETS_S, EndpointSample


@dataclass(slots=True)
class Counted:
    """Of one revision: requests that ended, those of them that failed, and how long they took, by bucket."""

    ended: int = 0
    failed: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))


@dataclass(slots=True)
class Total:
    """Of one endpoint."""

    requests: int = 0
    """That arrived."""
    units: float = 0.0
    """Of load that arrived."""
    served_s: float = 0.0
    """Request-seconds of what was completed."""
    tokens: int = 0
    revisions: dict[str, Counted] = field(default_factory=dict)


class Totals:
    """Adds up samples. Each sample is to be given once."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Total] = {}

    def add(self, sample: EndpointSample) -> None:
        """Take in one second of one endpoint at one gateway."""
        total = self.endpoints.get(sample.endpoint_id)
        if total is None:
            total = self.endpoints[sample.endpoint_id] = Total()
        total.requests += sample.requests
        total.units += sample.workload
        total.served_s += sample.served[1]
        total.tokens += sample.tokens
        for revision_id, (ended, failed) in sample.revisions.items():
            counted = total.revisions.setdefault(revision_id, Counted())
            counted.ended += ended
            counted.failed += failed
        for revision_id, latency in sample.latency.items():
            buckets = total.revisions.setdefault(revision_id, Counted()).buckets
            for index, count in enumerate(latency[: len(buckets)]):
                buckets[index] += count

    def forget(self, endpoint_id: str) -> None:
        """The endpoint is gone."""
        self.endpoints.pop(endpoint_id, None)
