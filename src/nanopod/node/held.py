"""One epoch of an instance, and what its agent has of it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanopod.model.endpoint import InstanceSpec, ObservedInstance
from nanopod.node import guests, records
from nanopod.node.machine import Life
from nanopod.node.remodelled import Remodelled


class NotRunning(OSError):
    """The instance does not run here."""


@dataclass(slots=True)
class Held:
    """One epoch of an instance, and what the agent has of it."""

    spec: InstanceSpec
    directory: Path
    life: Life
    running: records.Running | None = None
    since: float = 0.0
    """Unix seconds of its last change of state."""
    next: InstanceSpec | None = None
    """A newer epoch that waits for this one to end."""
    wanted: bool = True
    begun: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it no longer takes a place among those that start."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to give its preparation up."""
    forget_at: float | None = None
    doomed: bool = False
    """Its time is over: it gets no grace."""
    coming: InstanceSpec | None = None
    """Newer code, or other models, for this very epoch: taken once it runs."""
    swapping: bool = False
    python: str = ""
    """The interpreter of its worker."""
    libraries: tuple[str, ...] = ()
    """Libraries that its file imports; see `zygotes`."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables for its next start that no file may hold; forgotten then."""
    lacking: dict[str, str] = field(default_factory=dict)
    """{further model: why its files cannot be had}."""
    models: Remodelled | None = None
    """Its models, once they were changed while it ran."""
    note: str = ""
    """What it is waiting for while it is prepared."""
    boot: guests.Watch = field(default_factory=guests.Watch)
    """How far a machine's start-up got."""

    def observed(self) -> ObservedInstance:
        """What the server is told."""
        life = self.life
        phase, reason = life.phase, life.reason
        if life.state == "running" and self.boot.ready:
            # No gateway knows of a machine: its agent alone says that it is ready.
            phase, reason = "ready", self.boot.note
        elif life.state == "preparing":
            reason = self.note or reason
        return ObservedInstance(
            self.spec.instance_id, self.spec.epoch, phase, life.pid, life.exit_code, life.signal, reason, life.failure,
            self.since,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What an instance may know of itself."""
        spec = self.spec
        return {
            "id": spec.instance_id, "name": spec.name, "kind": spec.app.kind, "epoch": spec.epoch,
            "workspace_id": spec.workspace_id, "endpoint_id": spec.endpoint_id or None, "node_id": spec.node_id,
            "image_sha256": spec.image_sha256 or None, "phase": self.observed().phase, "since": self.since,
        }  # fmt: skip
