"""The life of a kind of node: stable, then deprecated, then deleted. What new objects may be made on."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from nanopod.control.market.market import Market
from nanopod.model.capacity import Sku, SkuLife
from nanopod.model.errors import Conflict, Invalid
from nanopod.server.api.references import check_name, find_sku
from nanopod.store.transaction import Transaction

STABLE: Final = SkuLife()
STEPS: Final = ("stable", "deprecated", "deleted")
HINT_CHARACTERS_MAX: Final = 64


class SkuChange(msgspec.Struct, frozen=True):
    """What to change; fields left out stay. A life only goes on: stable, deprecated, deleted."""

    alias: str | UnsetType = UNSET
    lifecycle: Literal["stable", "deprecated", "deleted"] | UnsetType = UNSET
    audience_hint: str | UnsetType = UNSET


def usable_sku(read: Transaction, reference: str, field: str = "instance_sku") -> Sku:
    """A kind of node that something new may be made on. Raises `NotFound`, or `Invalid` for a deleted one."""
    found = find_sku(read, reference, field)
    if read.sku_lives().get(found.sku_id, STABLE).lifecycle == "deleted":
        raise Invalid(f"{field}: {found.alias!r} is deleted; choose another one", field=field)
    return found


def tell_deprecated(write: Transaction, now: float, workspace_id: str, sku_id: str, object_id: str) -> None:
    """Say so when something new was made on a kind of node that is on its way out."""
    if sku_id and write.sku_lives().get(sku_id, STABLE).lifecycle == "deprecated":
        sku = write.sku(sku_id)
        data = {"instance_sku": sku_id, "alias": sku.alias if sku else sku_id, "used_by": object_id}
        write.add_notice(now, workspace_id, "instance_sku.deprecated", object_id, data)


def change_life(write: Transaction, market: Market, sku: Sku, change: SkuChange, now: float) -> None:
    """Carry a change out. Raises `Invalid` for a step back or with something in the way, `Conflict` for an alias."""
    life = write.sku_lives().get(sku.sku_id, STABLE)
    if life.lifecycle == "deleted":
        raise Invalid(f"id: {sku.alias!r} is deleted and does not change any more", field="id")
    if change.alias is not UNSET and change.alias != sku.alias:
        check_name(change.alias, "alias")
        if any(change.alias in (one.alias, one.sku_id) for one in write.skus()):
            raise Conflict(f"alias: {change.alias!r} is taken; choose another one", field="alias")
        life = replace(life, alias=change.alias)
    if change.audience_hint is not UNSET:
        if len(change.audience_hint) > HINT_CHARACTERS_MAX:
            text = f"audience_hint: {len(change.audience_hint)} characters; at most {HINT_CHARACTERS_MAX}"
            raise Invalid(text, field="audience_hint")
        life = replace(life, audience_hint=change.audience_hint)
    if change.lifecycle is not UNSET and change.lifecycle != life.lifecycle:
        life = _step(market, sku, life, change.lifecycle, now)
    write.set_sku_life(sku.sku_id, life)


def _step(
    market: Market, sku: Sku, life: SkuLife, wanted: Literal["stable", "deprecated", "deleted"], now: float
) -> SkuLife:
    if STEPS.index(wanted) != STEPS.index(life.lifecycle) + 1:
        raise Invalid(
            f"lifecycle: {sku.alias!r} is {life.lifecycle} and cannot become {wanted}; the steps are "
            f"{' -> '.join(STEPS)}",
            field="lifecycle",
        )
    if wanted == "deprecated":
        return replace(life, lifecycle=wanted, deprecated_at=now)
    market.sku_check(sku.sku_id)
    return replace(life, lifecycle=wanted, deleted_at=now)
