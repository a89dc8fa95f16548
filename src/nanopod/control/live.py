"""What gateways and agents said since this process started: links, load, demand. Kept in memory only.

All of it is said again after every (re)connection, so losing it costs seconds and never correctness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nanopod.model.wire import EndpointSample, WorkerState
from nanopod.scheduler.autoscale.decide import STABLE_S, Observed, ScaleState

DEMAND_S: Final = 2.5
"""A demand counts as waiting for this long unless it is repeated (once a second) or a sample says otherwise."""


@dataclass(slots=True)
class Load:
    """What was seen at one endpoint."""

    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    """{second: {gateway: requests at once}}, not older than the stable window."""
    parked: dict[str, int] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    demand: int = 0
    demand_until: float = 0.0
    state: ScaleState | None = None
    """The autoscaler's memory, newer than the stored one; None until it was read."""
    stored_at: float = 0.0
    stored_active_at: float = 0.0
    """`state.active_at` as it was stored last."""
    outcomes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """{revision: (calls that ended, those that failed)}, not yet taken by its rollout."""
    workload: dict[int, dict[str, tuple[float, int]]] = field(default_factory=dict)
    """{second: {gateway: (units of load that arrived, requests)}}, not older than the stable window."""
    counted_at: dict[str, float] = field(default_factory=dict)
    """{gateway: time of the newest sample whose outcomes were counted}: one that is sent again counts once."""

    def workload_mean(self) -> float:
        """Units of load of one request, over the stable window; 0 when there was none."""
        units = sum(one for seen in self.workload.values() for one, _ in seen.values())
        requests = sum(count for seen in self.workload.values() for _, count in seen.values())
        return units / requests if requests else 0.0

    def waiting(self, now: float) -> int:
        """Requests known to wait."""
        return max(sum(self.parked.values()), self.demand if now < self.demand_until else 0)


@dataclass(frozen=True, slots=True)
class Link:
    """A worker's link as its gateway reported it last."""

    epoch: int
    ready: bool
    in_flight: int
    perf: float | None
    detail: str


class Live:
    """The observations. Written by the event loop alone; reconcilers read them in the store's threads.

    Therefore whatever those reads walk over is copied first: copying a dict's values is one step for other threads.
    """

    def __init__(self) -> None:
        self.loads: dict[str, Load] = {}
        self.links: dict[str, dict[str, Link]] = {}
        """{instance: {gateway: link}}"""
        self.gateways: dict[str, tuple[str, ...]] = {}
        """{gateway: addresses that workers dial}"""
        self.machines: dict[str, float] = {}
        """{machine whose agent is linked: when it spoke last}"""

    # --- told by gateways ---

    def gateway_up(self, gateway_id: str, addresses: tuple[str, ...]) -> None:
        """A gateway (re)connected: what it said before no longer counts."""
        self.gateway_down(gateway_id)
        self.gateways[gateway_id] = addresses

    def gateway_down(self, gateway_id: str) -> list[str]:
        """A gateway is gone; the instances whose link it held."""
        self.gateways.pop(gateway_id, None)
        for load in self.loads.values():
            load.parked.pop(gateway_id, None)
            load.in_flight.pop(gateway_id, None)
        held = [instance_id for instance_id, links in self.links.items() if gateway_id in links]
        for instance_id in held:
            self._unlink(instance_id, gateway_id)
        return held

    def _unlink(self, instance_id: str, gateway_id: str) -> None:
        links = self.links.get(instance_id)
        if links is not None:
            links.pop(gateway_id, None)
            if not links:
                del self.links[instance_id]

    def demand(self, endpoint_id: str, waiting: int, now: float) -> None:
        """Somebody waits at an endpoint without a ready worker."""
        load = self.loads.setdefault(endpoint_id, Load())
        load.demand = max(1, waiting)
        load.demand_until = now + DEMAND_S

    def sample(self, gateway_id: str, at: float, sample: EndpointSample) -> None:
        """One second at one endpoint, seen by one gateway. Two of the same second: the higher counts."""
        load = self.loads.setdefault(sample.endpoint_id, Load())
        second = int(at)
        by_gateway = load.seconds.setdefault(second, {})
        by_gateway[gateway_id] = max(by_gateway.get(gateway_id, 0.0), sample.concurrency)
        if sample.revisions and at > load.counted_at.get(gateway_id, 0.0):
            load.counted_at[gateway_id] = at
            for revision_id, (ended, failed) in sample.revisions.items():
                before = load.outcomes.get(revision_id, (0, 0))
                load.outcomes[revision_id] = (before[0] + ended, before[1] + failed)
        if sample.requests:
            load.workload.setdefault(second, {})[gateway_id] = (sample.workload, sample.requests)
        load.parked[gateway_id] = sample.parked
        load.in_flight[gateway_id] = sample.in_flight
        if not sample.parked:
            load.demand = 0
        for old in [known for known in load.seconds if known <= second - STABLE_S]:
            del load.seconds[old]
        for old in [known for known in load.workload if known <= second - STABLE_S]:
            del load.workload[old]

    def worker(self, gateway_id: str, state: WorkerState) -> bool:
        """A worker's link came, changed or went; true when its readiness changed."""
        before = self.ready(state.instance_id, state.epoch)
        if state.linked:
            link = Link(state.epoch, state.ready, state.in_flight, state.perf, state.detail)
            self.links.setdefault(state.instance_id, {})[gateway_id] = link
        else:
            links = self.links.get(state.instance_id, {})
            held = links.get(gateway_id)
            if held is None or held.epoch <= state.epoch:
                self._unlink(state.instance_id, gateway_id)
        return before is not self.ready(state.instance_id, state.epoch)

    # --- asked by reconcilers ---

    @property
    def reachable(self) -> bool:
        """True while a gateway is linked."""
        return bool(self.gateways)

    def link(self, instance_id: str, epoch: int) -> Link | None:
        """The link of this start of an instance, the ready one if there are several."""
        found = [link for link in list(self.links.get(instance_id, {}).values()) if link.epoch == epoch]
        return max(found, key=lambda link: link.ready) if found else None

    def ready(self, instance_id: str, epoch: int) -> bool:
        """True when this start of an instance is linked and takes work."""
        link = self.link(instance_id, epoch)
        return link is not None and link.ready

    def in_flight(self, instance_id: str, epoch: int) -> int:
        """Requests this worker has in hand."""
        return sum(link.in_flight for link in list(self.links.get(instance_id, {}).values()) if link.epoch == epoch)

    def observed(
        self, endpoint_id: str, now: float, *, ready: int, starting: int, slots: int, perf: float | None
    ) -> Observed:
        """What the autoscaler sees of an endpoint now."""
        load = self.loads.get(endpoint_id)
        if load is None:
            return Observed(ready=ready, starting=starting, slots=slots, perf=perf, reachable=self.reachable)
        return Observed(
            samples=tuple((second, sum(seen.values())) for second, seen in sorted(load.seconds.items())),
            waiting=load.waiting(now),
            in_flight=sum(load.in_flight.values()),
            ready=ready,
            starting=starting,
            slots=slots,
            perf=perf,
            load=tuple(
                (second, sum(units for units, _ in seen.values())) for second, seen in sorted(load.workload.items())
            ),
            workload=load.workload_mean(),
            reachable=self.reachable,
        )

    def parked(self, endpoint_id: str) -> int:
        """Requests that wait at gateways."""
        load = self.loads.get(endpoint_id)
        return sum(load.parked.copy().values()) if load is not None else 0

    def outcomes(self, endpoint_id: str) -> dict[str, tuple[int, int]]:
        """Calls that ended and failed by revision, since they were taken last."""
        load = self.loads.get(endpoint_id)
        return dict(load.outcomes) if load is not None else {}

    def taken(self, endpoint_id: str, counts: Mapping[str, tuple[int, int]]) -> None:
        """These outcomes are written down; those of revisions that are not in a rollout are forgotten."""
        load = self.loads.get(endpoint_id)
        if load is None:
            return
        for revision_id, (ended, failed) in counts.items():
            before = load.outcomes.pop(revision_id, (0, 0))
            left = (before[0] - ended, before[1] - failed)
            if left[0] > 0:
                load.outcomes[revision_id] = left

    def forget(self, endpoint_id: str) -> None:
        """The endpoint is gone."""
        self.loads.pop(endpoint_id, None)
