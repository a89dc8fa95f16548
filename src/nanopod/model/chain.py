"""The chain as it is stored: endpoint, revision, deployment, instance, and the keys that may touch them.

Frozen snapshots of rows: `store` reads and writes them, `control` plans on them, `server` shows them. Times are Unix
seconds. `generation` guards writes: a change commits only if the generation it was planned on still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nanopod.model.endpoint import LIVE_PHASES, EndpointSpec, Failure, Kind, Phase, RolloutSpec, ScaleSpec, Traffic

Intent = Literal["run", "hibernate", "stop"]
"""What we want of an instance: `hibernate` drains it and keeps it to be woken; `stop` drains it and is never taken
back."""
OUT_OF_TIME: Final = "quota:"
"""How the reason of an instance begins that is stopped because its capacity no longer owns its time."""
Priority = Literal["yield", "normal", "preferred", "critical"]
AccountKind = Literal["user", "provider", "platform"]
DeploymentKind = Literal["generic", "spot"]
UploadStatus = Literal["started", "uploading", "completed", "failed", "revoked"]


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
    stable_revision_id: str = ""
    """While a canary runs: the revision that gets the other calls. "": there is no canary."""
    canary_percent: int = 0
    canary_at: float | None = None
    """When the canary had its first ready worker."""
    canary_state: str = ""
    """What is known of the newest rollout, as JSON (`scheduler.rollout.decide.RolloutState`); "": nothing yet."""
    rollout: RolloutSpec = RolloutSpec()
    """How the next revision takes over."""
    cold: int = 0
    """Hibernated workers wanted besides `target`."""
    traffic: tuple[Traffic, ...] = ()
    """As its specification states it."""
    stopped: bool = False
    """Asked to run nothing."""

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
    version_label: str = ""
    state: str = ""
    """`rolled_back` or "": what became of it by a decision."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who trades: orders of one account never meet each other. Workspaces belong to one."""

    account_id: str
    name: str
    kind: AccountKind
    created_at: float


@dataclass(frozen=True, slots=True)
class Workspace:
    """A project of an account, with a balance of its own."""

    workspace_id: str
    name: str
    account_id: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Template:
    """What a new instance is: an image and a start-up script, or the code of an endpoint's revision.

    `cloud_init` is base64 text, at most 64 KiB decoded: a script that begins with `#!`, or a `#cloud-config`.
    """

    template_id: str
    workspace_id: str
    name: str
    image_id: str
    cloud_init: str
    endpoint_id: str
    """The endpoint it was made for, or "": then instances run `cloud_init`."""
    tags: Mapping[str, str]
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system as a tar archive, uploaded in parts; `host` is the machine's own system."""

    image_id: str
    workspace_id: str
    name: str
    upload_status: UploadStatus
    sha256: str
    size: int
    is_public: bool
    parts: tuple[str, ...]
    """Digests (SHA-256, hex) of the uploaded parts in order; "" for a part that is missing."""
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """Keeps `target_instance_count` instances of a revision or of a template on a capacity."""

    deployment_id: str
    endpoint_id: str
    """The endpoint it serves, or "": then its instances are made from `template_id` alone."""
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
    name: str = ""
    kind: DeploymentKind = "generic"
    sku_id: str = ""
    """The only kind of node its instances run on; "": whichever has a place first."""
    template_id: str = ""
    instance_name_template: str = ""
    enabled: bool = True
    procurement_id: str = ""
    """The procurement inside a spot deployment, or ""."""
    tags: Mapping[str, str] = field(default_factory=dict)


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
    seq: int = 0
    """Counts all instances of the cluster upwards: who came first."""
    name: str = ""
    sku_id: str = ""
    """Set for life by its first grant, or by its creator; "": not pinned yet."""
    template_id: str = ""
    image_id: str = ""
    cloud_init: str = ""
    priority: Priority = "normal"
    granted_at: float | None = None
    """Since when the quota of its capacity lets it run; None: it awaits allocation."""
    early_until: int | None = None
    """It runs before its first block: the block (number) from which it is owned. None otherwise."""
    early_block: int | None = None
    """The block in which it was started early, if it ever was."""
    warned: str = ""
    """What it was told of its end, as JSON of `market.quota.Warned`; "" for nothing."""
    tags: Mapping[str, str] = field(default_factory=dict)
    start_kind: Literal["provision", "wake", "fill"] = "provision"
    """How this epoch was started; `fill`: to be hibernated as soon as it is ready."""
    start_at: float | None = None
    """When this epoch was asked for; with `ready_at` it says how long such a start takes."""
    hibernated_at: float | None = None
    """When it was hibernated, as long as it is; the time of its last grant ended then."""
    home: str = ""
    """The node that it ran on last, where it is woken if there is room; "" while it was never hibernated."""

    @property
    def live(self) -> bool:
        """True until it is known to be gone."""
        return self.ended_at is None and self.phase in LIVE_PHASES

    @property
    def out_of_time(self) -> bool:
        """True once its capacity's quota has stopped it: it is over, though its processes may take a moment to go."""
        return self.intent == "stop" and self.reason.startswith(OUT_OF_TIME)


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


@dataclass(frozen=True, slots=True)
class Applied:
    """A Kubernetes object as it was applied: what `nanopod get -f` and `diff` compare with.

    Values of Secrets are not in `document`; they are sealed with the workspace's secrets.
    """

    manifest_id: str
    workspace_id: str
    namespace: str
    api_version: str
    kind: str
    name: str
    generation: int
    """Counts changes of the document."""
    document: str
    """The object as JSON."""
    digest: str
    """SHA-256 (hex) of what was applied, secrets included."""
    native: tuple[str, ...]
    """Ids of the objects that were made for it."""
    status: Mapping[str, Any]
    """What is known of it besides: conditions of a Job, the models of a server."""
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object of a workspace; the stream and the warnings are made of these."""

    seq: int
    at: float
    workspace_id: str
    type: str
    """`<object>.<what>`, such as `order.filled` or `instance.shutdown_expected`."""
    object_id: str
    data: Mapping[str, Any]
