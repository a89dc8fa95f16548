"""Rows of the chain for tests of pure plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ScaleSpec

NOW = 10_000.0


class FakeMarket:
    """Remembers what a session was told."""

    def __init__(self) -> None:
        self.capacities: list[str] = []
        self.kinds: list[str | None] = []
        self.procured: list[tuple[str, str]] = []

    def changed(self, capacity_id: str) -> None:
        self.capacities.append(capacity_id)

    def supply_changed(self, sku_id: str | None = None) -> None:
        self.kinds.append(sku_id)

    def ensure_procurement(self, capacity_id: str, sku_id: str, *, capped: bool = False) -> None:
        self.procured.append((capacity_id, sku_id))


class FakeDesk:
    """A desk whose sessions do nothing but remember; `times` are the cluster's times of the sessions."""

    def __init__(self) -> None:
        self.market = FakeMarket()
        self.times: list[float] = []

    @contextmanager
    def session(self, write: Any, now: float) -> Iterator[Any]:
        self.times.append(now)
        yield self.market


def clock() -> float:
    """The cluster's time."""
    return NOW


SCALE = ScaleSpec(cold_workers=1, min_load=0, max_workers=10)
SPEC = EndpointSpec("square", functions=(FunctionSpec("square", concurrency=4),), bundle="a" * 64, scale=SCALE)


def endpoint(**more: Any) -> Endpoint:
    values: dict[str, Any] = {
        "endpoint_id": "e1", "workspace_id": "w1", "name": "square", "tag": "default", "kind": "function",
        "generation": 0, "revision_id": "r1", "scale": SCALE, "target": 1, "reasons": (), "scale_state": b"",
        "failure": None, "ttl_s": None, "version_label": "", "scale_fingerprint": "", "heartbeat_at": NOW,
        "created_at": NOW, "updated_at": NOW, "deleted_at": None,
    }  # fmt: skip
    return Endpoint(**{**values, **more})


def revision(revision_id: str = "r1", number: int = 1, **more: Any) -> Revision:
    made = Revision(revision_id, "e1", number, SPEC, 0, None, None, NOW)
    return replace(made, **more)


def deployment(**more: Any) -> Deployment:
    made = Deployment("d1", "e1", "w1", "c1", "r1", 1, 0, (), 0, 0.0, NOW, NOW, "square", "generic", "s1", "t1")
    return replace(made, **more)


def instance(instance_id: str = "i1", **more: Any) -> Instance:
    values: dict[str, Any] = {
        "instance_id": instance_id, "deployment_id": "d1", "endpoint_id": "e1", "workspace_id": "w1",
        "revision_id": "r1", "capacity_id": "c1", "node_id": "n1", "epoch": 1, "generation": 0, "intent": "run",
        "phase": "loading", "slots": 4, "pid": 7, "exit_code": None, "reason": "", "failure": None, "fails": 0,
        "not_before": 0.0, "ready_at": None, "created_at": NOW - 5, "ended_at": None, "name": "square-abc",
        "sku_id": "s1", "granted_at": NOW - 5,
    }  # fmt: skip
    return Instance(**{**values, **more})
