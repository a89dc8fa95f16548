"""Rows of the chain for tests of pure plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nanopod.model.chain import Deployment, Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ScaleSpec

NOW = 10_000.0
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
    made = Deployment("d1", "e1", "w1", "c1", "r1", 1, 0, (), 0, 0.0, NOW, NOW)
    return replace(made, **more)


def instance(instance_id: str = "i1", **more: Any) -> Instance:
    values: dict[str, Any] = {
        "instance_id": instance_id, "deployment_id": "d1", "endpoint_id": "e1", "workspace_id": "w1",
        "revision_id": "r1", "capacity_id": "c1", "node_id": "n1", "epoch": 1, "generation": 0, "intent": "run",
        "phase": "loading", "slots": 4, "pid": 7, "exit_code": None, "reason": "", "failure": None, "fails": 0,
        "not_before": 0.0, "ready_at": None, "created_at": NOW - 5, "ended_at": None,
    }  # fmt: skip
    return Instance(**{**values, **more})
