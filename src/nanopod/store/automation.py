"""Procurements, providers and their offers in a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, select

from nanopod.model.money import Rate
from nanopod.model.procurement import OfferPolicy, Procurement, Provider, Status
from nanopod.model.schedule import Schedule
from nanopod.store.base import Base, to_json
from nanopod.store.market_schema import offer, procurement, provider

NODE_COUNT: Final = "node_count"


@dataclass(frozen=True, slots=True)
class _Policy:
    """The column `policy`: the settings of an `OfferPolicy` that no other column holds."""

    capacity_id: str
    floor: int
    floor_by_hour: Mapping[int, int] | None
    horizon_minutes: int
    quantum_minutes: int
    max_nodes: int
    lead_s: int
    quiet_hours: tuple[tuple[int, int], ...]
    enabled: bool
    elastic: bool
    ahead_minutes_max: int
    maintenance: Schedule


_SETTINGS: Final = tuple(field.name for field in fields(_Policy))
_policy: Final = msgspec.json.Decoder(_Policy).decode
_status: Final = msgspec.json.Decoder(Status).decode


class AutomationRows(Base):
    """Reads and writes of standing wishes."""

    # --- procurements ---

    def add_procurement(self, made: Procurement) -> None:
        """A new procurement. There is one per capacity and SKU."""
        values = asdict(made) | {"status": made.status}
        values["id"] = values.pop("procurement_id")
        values |= {"max_buy": made.max_buy, "min_sell": made.min_sell}
        self._insert(procurement, **_columns(values))

    def procurement(self, procurement_id: str) -> Procurement | None:
        """One procurement."""
        row = self._row(procurement, id=procurement_id)
        return _procurement(row) if row else None

    def procurement_named(self, workspace_id: str, name: str) -> Procurement | None:
        """A procurement of a workspace by its name."""
        row = self._row(procurement, workspace_id=workspace_id, name=name)
        return _procurement(row) if row else None

    def procurements(self, workspace_id: str | None = None) -> list[Procurement]:
        """Procurements, oldest first."""
        statement: Select[Any] = select(procurement)
        if workspace_id is not None:
            statement = statement.where(procurement.c.workspace_id == workspace_id)
        return self._procurements(statement)

    def procurements_of(self, capacity_id: str) -> list[Procurement]:
        """The procurements of a capacity, oldest first."""
        return self._procurements(select(procurement).where(procurement.c.capacity_id == capacity_id))

    def procurement_of_pair(self, capacity_id: str, sku_id: str) -> Procurement | None:
        """The procurement of a SKU in a capacity."""
        row = self._row(procurement, capacity_id=capacity_id, sku_id=sku_id)
        return _procurement(row) if row else None

    def set_procurement(self, seen: Procurement, **columns: Any) -> None:
        """Change fields of a procurement that still is as it was `seen`; raises `Conflict` if not."""
        self._guarded(procurement, seen.procurement_id, seen.generation, **_columns(columns))

    def set_procurement_status(self, procurement_id: str, status: Status | None) -> None:
        """Keep what a procurement says of itself. It changes no generation: nobody plans on it."""
        self._update(procurement, procurement_id, **_columns({"status": status}))

    def delete_procurement(self, procurement_id: str) -> None:
        """Forget a procurement."""
        self.connection.execute(delete(procurement).where(procurement.c.id == procurement_id))

    def _procurements(self, statement: Select[Any]) -> list[Procurement]:
        rows = self._rows(statement.order_by(procurement.c.created_at, procurement.c.id))
        return [_procurement(row) for row in rows]

    # --- providers ---

    def add_provider(self, made: Provider) -> None:
        """A new seller of time on nodes."""
        values = asdict(made)
        self._insert(provider, id=values.pop("provider_id"), **values)

    def provider(self, provider_id: str) -> Provider | None:
        """One provider."""
        row = self._row(provider, id=provider_id)
        return _provider(row) if row else None

    def providers(self) -> list[Provider]:
        """All providers, oldest first."""
        rows = self._rows(select(provider).order_by(provider.c.created_at, provider.c.id))
        return [_provider(row) for row in rows]

    def provider_named(self, name: str) -> Provider | None:
        """A provider by its name."""
        row = self._row(provider, name=name)
        return _provider(row) if row else None

    def provider_of_capacity(self, capacity_id: str) -> Provider | None:
        """The provider whose originating capacity this is."""
        row = self._row(provider, capacity_id=capacity_id)
        return _provider(row) if row else None

    def set_provider(self, provider_id: str, **columns: Any) -> None:
        """Change a provider: `name`, `notice_s`."""
        self._update(provider, provider_id, **columns)

    def delete_provider(self, provider_id: str) -> None:
        """Forget a provider and its offers."""
        self.connection.execute(delete(offer).where(offer.c.provider_id == provider_id))
        self.connection.execute(delete(provider).where(provider.c.id == provider_id))

    # --- offers ---

    def add_offer(self, made: OfferPolicy) -> None:
        """A new offer; it has its id (`offer_id`). There is one per provider and SKU."""
        self._insert(
            offer,
            id=made.offer_id, provider_id=made.provider_id, sku_id=made.sku_id, policy=_settings(made),
            minted=self._shape(made.minted), generation=made.generation, created_at=made.created_at,
            updated_at=made.updated_at,
        )  # fmt: skip

    def offer(self, offer_id: str) -> OfferPolicy | None:
        """One offer."""
        row = self._row(offer, id=offer_id)
        return self._offer(row) if row else None

    def offers(self, provider_id: str | None = None) -> list[OfferPolicy]:
        """Offers, oldest first."""
        statement: Select[Any] = select(offer)
        if provider_id is not None:
            statement = statement.where(offer.c.provider_id == provider_id)
        return [self._offer(row) for row in self._rows(statement.order_by(offer.c.created_at, offer.c.id))]

    def offer_of_pair(self, provider_id: str, sku_id: str) -> OfferPolicy | None:
        """A provider's offer of a SKU."""
        row = self._row(offer, provider_id=provider_id, sku_id=sku_id)
        return self._offer(row) if row else None

    def set_offer(self, seen: OfferPolicy, **columns: Any) -> None:
        """Change fields of an offer that still is as it was `seen`; raises `Conflict` if not."""
        values: dict[str, Any] = {}
        if "minted" in columns:
            values["minted"] = self._shape(columns["minted"])
        if "updated_at" in columns:
            values["updated_at"] = columns["updated_at"]
        values["policy"] = _settings(replace(seen, **columns))
        self._guarded(offer, seen.offer_id, seen.generation, **values)

    def set_minted(self, offer_id: str, shape_json: str) -> None:
        """Keep what an offer has put into the world, as JSON of blocks. It changes no generation."""
        self._update(offer, offer_id, minted=shape_json)

    def delete_offer(self, offer_id: str) -> None:
        """Forget an offer."""
        self.connection.execute(delete(offer).where(offer.c.id == offer_id))

    def _offer(self, row: Row[Any]) -> OfferPolicy:
        kept = _policy(row.policy)
        hours = kept.floor_by_hour
        return OfferPolicy(
            row.provider_id, kept.capacity_id, row.sku_id, Rate(kept.floor),
            None if hours is None else {hour: Rate(rate) for hour, rate in hours.items()},
            kept.horizon_minutes, kept.quantum_minutes, kept.max_nodes, kept.lead_s, kept.quiet_hours, kept.enabled,
            kept.elastic, kept.ahead_minutes_max, row.id, self._schedule(row.minted), kept.maintenance,
            row.generation, row.created_at, row.updated_at,
        )  # fmt: skip


def _settings(policy: OfferPolicy) -> str:
    values: dict[str, Any] = {name: getattr(policy, name) for name in _SETTINGS}
    values["floor"] = policy.floor.micro_per_block
    if policy.floor_by_hour is not None:
        values["floor_by_hour"] = {hour: rate.micro_per_block for hour, rate in sorted(policy.floor_by_hour.items())}
    return to_json(values)


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a procurement as its columns keep them."""
    plain = {name: value.micro_per_block if isinstance(value, Rate) else value for name, value in values.items()}
    if "target" in plain:
        plain["target"] = None if plain["target"] == NODE_COUNT else plain["target"]
    if plain.get("status") is not None:
        plain["status"] = to_json(plain["status"])
    return plain


def _procurement(row: Row[Any]) -> Procurement:
    return Procurement(
        row.id, row.capacity_id, row.sku_id, NODE_COUNT if row.target is None else row.target, Rate(row.max_buy),
        Rate(row.min_sell), row.managed_window_minutes, row.enabled, row.protect_manual, row.extend_quantum_minutes,
        row.created_at, row.workspace_id, row.name, row.deployment_id, _status(row.status) if row.status else None,
        row.generation, row.updated_at,
    )  # fmt: skip


def _provider(row: Row[Any]) -> Provider:
    return Provider(
        row.id, row.name, row.account_id, row.workspace_id, row.capacity_id, row.notice_s, row.created_at
    )  # fmt: skip
