"""What agents are told: the whole set of instances their machine shall run, sent at each change."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from nanopod.control.live import Live
from nanopod.control.ports import Agents, Clock, Reads, Secrets, Store
from nanopod.control.telling import is_machine, notice_of
from nanopod.model.chain import Image, Instance, Revision
from nanopod.model.endpoint import CALL_TIMEOUT_S, EndpointSpec, InstanceSpec
from nanopod.model.errors import NanopodError
from nanopod.model.wire import ShutdownNotice, Wanted

log = logging.getLogger(__name__)

GRACE_S: Final = 30.0
LEASE_S: Final = 60.0
DRAIN_S_MAX: Final = 86_400.0
RETRY_S: Final = 1.0


def instance_spec(instance: Instance, revision: Revision, token: str, url: str = "") -> InstanceSpec:
    """Everything a node needs to run this start of an instance."""
    assert instance.node_id is not None
    return InstanceSpec(
        instance_id=instance.instance_id,
        epoch=instance.epoch,
        workspace_id=instance.workspace_id,
        endpoint_id=instance.endpoint_id,
        revision_id=instance.revision_id,
        node_id=instance.node_id,
        app=replace(revision.spec, files={}),
        slots=instance.slots,
        join_token=token,
        grace_s=GRACE_S,
        lease_s=LEASE_S,
        name=instance.name,
        url=url,
        drain_s=drain_s(revision.spec),
    )


def drain_s(spec: EndpointSpec) -> float:
    """How long the requests of a worker that is told to stop may take: as long as a request may, seconds."""
    if spec.model is not None or spec.asgi:
        return min(DRAIN_S_MAX, spec.scale.tuning.request_timeout_s or CALL_TIMEOUT_S)
    return min(DRAIN_S_MAX, max((function.timeout_s for function in spec.functions), default=CALL_TIMEOUT_S))


def url_of(addresses: Sequence[str]) -> str:
    """Where HTTP is spoken among the addresses that workers dial; "" when none of them is a port."""
    for address in addresses:
        kind, _, place = address.partition(":")
        host, _, port = place.rpartition(":")
        if kind == "tcp":
            # A gateway that listens everywhere is reached on this machine.
            plain = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)
            return f"http://{f'[{plain}]' if ':' in plain and not plain.startswith('[') else plain}:{port}"
    return ""


def machine_spec(instance: Instance, image: Image | None, token: str) -> InstanceSpec:
    """Everything a node needs to run an instance of a template: its start-up script and its root file system."""
    assert instance.node_id is not None
    return InstanceSpec(
        instance_id=instance.instance_id,
        epoch=instance.epoch,
        workspace_id=instance.workspace_id,
        endpoint_id="",
        revision_id="",
        node_id=instance.node_id,
        app=EndpointSpec(instance.name or instance.instance_id, kind="machine"),
        slots=instance.slots,
        join_token=token,
        grace_s=GRACE_S,
        lease_s=LEASE_S,
        name=instance.name,
        cloud_init=instance.cloud_init,
        image_sha256=image.sha256 if image is not None else "",
    )


@dataclass(slots=True)
class Orders:
    """What one machine is told: what runs there, whose end is near, who is stopped hard."""

    instances: list[InstanceSpec] = field(default_factory=list)
    notices: dict[str, ShutdownNotice] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    due: float | None = None
    """When this changes by the passing of time alone."""


class WantedPusher:
    """Tells each machine what it shall run, within a loop turn of the commit that decided it.

    `fallback` are the addresses workers dial while no gateway has introduced itself. `era` counts the starts of this
    store's server, so generations rise over restarts, too.
    """

    def __init__(
        self,
        store: Store,
        live: Live,
        agents: Agents,
        secrets: Secrets,
        clock: Clock,
        era: int,
        fallback: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._live = live
        self._agents = agents
        self._secrets = secrets
        self._clock = clock
        self._generation = era << 32
        self._fallback = fallback
        self._changed = asyncio.Event()
        self._sent: dict[str, Wanted] = {}
        """What each machine was told last, with generation 0."""

    def changed(self) -> None:
        """Something that a machine shall run may have changed."""
        self._changed.set()

    def renew(self, machine_id: str) -> None:
        """The machine's agent (re)connected: tell it everything again."""
        self._sent.pop(machine_id, None)
        self._changed.set()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where workers dial."""
        return tuple(dict.fromkeys(a for known in self._live.gateways.values() for a in known)) or self._fallback

    def build(self, read: Reads, machine_id: str, now: float) -> Orders:
        """What the machine shall run now."""
        orders = Orders()
        later: list[float] = []
        for instance in read.instances_on(machine_id):
            if instance.phase in ("ended", "failed"):
                continue
            if instance.intent != "run":
                if instance.out_of_time:
                    orders.killed.append(instance.instance_id)
                continue
            if instance.not_before > now:
                later.append(instance.not_before)
                continue
            spec = self._spec(read, instance)
            if spec is None:
                continue
            orders.instances.append(spec)
            if (notice := notice_of(instance)) is not None:
                orders.notices[instance.instance_id] = notice
        orders.due = min(later, default=None)
        return orders

    def _spec(self, read: Reads, instance: Instance) -> InstanceSpec | None:
        token = self._secrets.join_token(instance.instance_id, instance.epoch)
        if is_machine(instance):
            return machine_spec(instance, read.image(instance.image_id) if instance.image_id else None, token)
        revision = read.revision(instance.revision_id)
        return instance_spec(instance, revision, token, url_of(self.addresses)) if revision is not None else None

    async def run(self) -> None:
        """Push until cancelled."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                now = self._clock()
                machines = list(self._agents.machines())

                def build_all(read: Reads, machines: list[str] = machines, now: float = now) -> list[Orders]:
                    return [self.build(read, machine_id, now) for machine_id in machines]

                built = await self._store.read(build_all)
            except NanopodError as error:
                log.error("wanted=not built reason=%s", error)
                self._changed.set()
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))
                continue
            later = [orders.due for orders in built if orders.due is not None]
            if timer is not None:
                timer.cancel()
            timer = loop.call_later(max(0.0, min(later) - now), self._changed.set) if later else None
            for machine_id, orders in zip(machines, built, strict=True):
                try:
                    self._push(machine_id, orders)
                except (OverflowError, TypeError, ValueError):
                    # One machine that cannot be told what is wanted must not silence all others.
                    log.exception("machine=%s wanted=not sent", machine_id)

    def _push(self, machine_id: str, orders: Orders) -> None:
        content = Wanted(0, orders.instances, self.addresses, orders.notices, tuple(orders.killed))
        if self._sent.get(machine_id) == content:
            return
        self._generation += 1
        self._sent[machine_id] = content
        self._agents.push(machine_id, msgspec.structs.replace(content, generation=self._generation))
        log.info("machine=%s wanted=%d generation=%d", machine_id, len(orders.instances), self._generation)
