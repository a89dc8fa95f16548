"""The chain as it is stored: endpoint, revision, deployment, instance, and the keys that may touch them.

Frozen snapshots of rows: `store` reads and writes them, `control` plans on them, `server` shows them. Times are Unix
seconds. `generation` guards writes: a change commits only if the generation it was planned on still holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanopod.model.endpoint import LIVE_PHASES, EndpointSpec, Failure, Kind, Phase, ScaleSpec

Intent = Literal["run", "stop"]
"""What we want of an instance: `stop` drains it and is never taken back."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint's identity, settings and scale. `revision_id` is the newest revision that was asked for."""

    endpoint_id: str
    workspace_id: str
    name: str
    tag: str
    kind: Kind
    generation: int
    revision_id: str
    scale: ScaleSpec
    target: int
    """Workers wanted, as the autoscaler decided last; -1 before its first decision."""
    reasons: tuple[str, ...]
    scale_state: bytes
    """The autoscaler's memory as JSON; empty before its first decision."""
    failure: Failure | None
    """Why the newest revision cannot start; None while it may."""
    ttl_s: float | None
    version_label: str
    scale_fingerprint: str
    heartbeat_at: float
    created_at: float
    updated_at: float
    deleted_at: float | None

    @property
    def full_name(self) -> str:
        """`name:tag`."""
        return f"{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable version of an endpoint's code and image."""

    revision_id: str
    endpoint_id: str
    number: int
    spec: EndpointSpec
    failures: int
    """Starts in a row that failed by the user's own fault; 0 again once a worker became ready."""
    failure: Failure | None
    healthy_at: float | None
    """When a worker of it became ready first."""
    created_at: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """Keeps `target_instance_count` instances of a revision on a capacity."""

    deployment_id: str
    endpoint_id: str
    workspace_id: str
    capacity_id: str
    revision_id: str
    """The revision whose instances are made: the endpoint's newest, or an older healthy one if that failed."""
    target_instance_count: int
    generation: int
    reasons: tuple[str, ...]
    fails: int
    """Starts in a row that failed, whoever's fault; drives the back-off."""
    not_before: float
    """No new instance is made before this time."""
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Instance:
    """One worker, wanted on a node. It keeps its id over restarts; each start has a new `epoch`."""

    instance_id: str
    deployment_id: str
    endpoint_id: str
    workspace_id: str
    revision_id: str
    capacity_id: str
    node_id: str | None
    epoch: int
    generation: int
    intent: Intent
    phase: Phase
    """As the node's agent reported it for this epoch; `queued` until it did."""
    slots: int
    pid: int | None
    exit_code: int | None
    reason: str
    failure: Failure | None
    fails: int
    """Starts in a row that did not become ready, or crashed soon after."""
    not_before: float
    """This epoch is not started before this time."""
    ready_at: float | None
    """When this epoch became ready first."""
    created_at: float
    ended_at: float | None

    @property
    def live(self) -> bool:
        """True until it is known to be gone."""
        return self.ended_at is None and self.phase in LIVE_PHASES


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its secret, which is known only by `digest` (hex HMAC-SHA-256 under the pepper)."""

    key_id: str
    workspace_id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    endpoints: tuple[str, ...] | None
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    """Accurate to the minute."""
    revoked_at: float | None
