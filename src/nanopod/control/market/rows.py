"""Rows that several steps of one session look at, read once; whoever changes one tells it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from nanopod.control.ports import Writes
from nanopod.model.capacity import Capacity, Node
from nanopod.model.chain import Deployment, Instance, Template
from nanopod.model.procurement import OfferPolicy, Procurement, Provider


class Rows:
    """A cache over one transaction. `live` are instances that are wanted: awaiting or running."""

    def __init__(self, write: Writes) -> None:
        self.write = write
        self._capacities: dict[str, Capacity | None] = {}
        self._providers: dict[str, Provider | None] = {}
        self.forget()

    def forget(self) -> None:
        """Everything may have changed."""
        self._live: dict[str, list[Instance]] = {}
        self._procurements: dict[str, list[Procurement]] = {}
        self._deployments: dict[str, list[Deployment]] = {}
        self._all = False
        self._templates: dict[str, Template | None] = {}
        self.forget_supply()

    def forget_supply(self) -> None:
        """Nodes, providers or offers may have changed."""
        self._nodes: list[Node] | None = None
        self._offers: list[OfferPolicy] | None = None
        self._over: set[str] | None = None
        self._providers.clear()

    def forget_capacity(self, capacity_id: str) -> None:
        """Instances, deployments or procurements of a capacity may have changed."""
        for known in (self._live, self._procurements, self._deployments):
            known.pop(capacity_id, None)
        self._all = False
        self._capacities.pop(capacity_id, None)

    def load_all(self) -> None:
        """Read instances, procurements and deployments of all capacities at once: somebody looks at every one."""
        self._live, self._procurements, self._deployments = defaultdict(list), defaultdict(list), defaultdict(list)
        for instance in self.write.instances_live():
            if wanted(instance):
                self._live[instance.capacity_id].append(instance)
        for own in self._live.values():
            own.sort(key=lambda one: one.seq)
        for procurement in self.write.procurements():
            self._procurements[procurement.capacity_id].append(procurement)
        for deployment in self.write.deployments_alone():
            self._deployments[deployment.capacity_id].append(deployment)
        self._all = True

    # --- capacities and what runs on them ---

    def capacity(self, capacity_id: str) -> Capacity | None:
        """One capacity."""
        if capacity_id not in self._capacities:
            self._capacities[capacity_id] = self.write.capacity(capacity_id)
        return self._capacities[capacity_id]

    def live(self, capacity_id: str) -> list[Instance]:
        """The capacity's awaiting and running instances, by their number."""
        found = self._live.get(capacity_id)
        if found is None and self._all:
            found = self._live[capacity_id] = []
        if found is None:
            found = [one for one in self.write.instances_on_capacity(capacity_id) if wanted(one)]
            found.sort(key=lambda one: one.seq)
            self._live[capacity_id] = found
        return found

    def set_instance(self, seen: Instance, **values: Any) -> Instance:
        """Change an instance; returns it as it is now."""
        self.write.set_instance(seen, **values)
        now = replace(seen, generation=seen.generation + 1, **values)
        known = self._live.get(seen.capacity_id)
        if known is not None:
            self._live[seen.capacity_id] = [
                now if one.instance_id == seen.instance_id else one
                for one in known
                if one.instance_id != seen.instance_id or wanted(now)
            ]
        return now

    def add_instance(self, made: Instance) -> None:
        """A new instance."""
        own = self.live(made.capacity_id)
        self.write.add_instance(made)
        own.append(made)

    def procurements(self, capacity_id: str) -> list[Procurement]:
        """The procurements of a capacity, oldest first."""
        found = self._procurements.get(capacity_id)
        if found is None:
            found = self._procurements[capacity_id] = [] if self._all else self.write.procurements_of(capacity_id)
        return found

    def set_procurement(self, seen: Procurement, now: Procurement) -> None:
        """A procurement's status was written."""
        own = self.procurements(seen.capacity_id)
        own[:] = [now if one.procurement_id == seen.procurement_id else one for one in own]

    def deployments(self, capacity_id: str) -> list[Deployment]:
        """The capacity's deployments that stand alone (without an endpoint), oldest first."""
        found = self._deployments.get(capacity_id)
        if found is None:
            found = self._deployments[capacity_id] = [] if self._all else self.write.deployments_alone(capacity_id)
        return found

    def template(self, template_id: str) -> Template | None:
        """One template."""
        if template_id not in self._templates:
            self._templates[template_id] = self.write.template(template_id)
        return self._templates[template_id]

    # --- supply ---

    def nodes(self, sku_id: str) -> list[Node]:
        """The nodes of a SKU."""
        if self._nodes is None:
            self._nodes = self.write.nodes()
        return [one for one in self._nodes if one.sku_id == sku_id]

    def is_deleted(self, sku_id: str) -> bool:
        """True for a kind of node that the operator deleted: its time is neither made nor traded."""
        if self._over is None:
            self._over = {name for name, life in self.write.sku_lives().items() if life.lifecycle == "deleted"}
        return sku_id in self._over

    def offers(self) -> list[OfferPolicy]:
        """Every offer, oldest first."""
        if self._offers is None:
            self._offers = self.write.offers()
        return self._offers

    def set_offer(self, seen: OfferPolicy, now: OfferPolicy) -> None:
        """What an offer has minted was written."""
        self._offers = [now if one.offer_id == seen.offer_id else one for one in self.offers()]

    def provider(self, provider_id: str) -> Provider | None:
        """One provider."""
        if provider_id not in self._providers:
            self._providers[provider_id] = self.write.provider(provider_id)
        return self._providers[provider_id]

    def provider_of(self, capacity_id: str) -> Provider | None:
        """The provider that sells from this originating capacity."""
        key = f"of {capacity_id}"
        if key not in self._providers:
            self._providers[key] = self.write.provider_of_capacity(capacity_id)
        return self._providers[key]


def wanted(instance: Instance) -> bool:
    """True for one that awaits allocation or runs: neither ended nor told to stop nor given up."""
    return instance.ended_at is None and instance.intent == "run"
