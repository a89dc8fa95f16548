"""Price lists as people write them (decimal dollars), and the plans of the ledger that they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict

import msgspec

from nanopod.ledger.charges import Standard
from nanopod.ledger.funding import BPS
from nanopod.ledger.plans import METERS, Plan, Prices, on_demand, spot, subsidised
from nanopod.model.errors import Invalid
from nanopod.model.money import Money

PlanCode = Literal["on-demand", "spot", "subsidised"]
PRICE_MAX: Final = 10**12
"""A million dollars per unit: beyond is a mistake."""
_METER_OF: Final = {
    "input_per_mtok": "input_tokens",
    "cached_input_per_mtok": "cached_input_tokens",
    "output_per_mtok": "output_tokens",
    "per_request": "requests",
    "per_compute_second": "compute_time",
    "per_node_minute": "node_minutes",
}


class PriceList(msgspec.Struct, frozen=True):
    """Dollars as decimal text for ordinary units: a million tokens, a request, a second, a node for a minute."""

    input_per_mtok: str = "0.0"
    cached_input_per_mtok: str = "0.0"
    output_per_mtok: str = "0.0"
    per_request: str = "0.0"
    per_compute_second: str = "0.0"
    per_node_minute: str = "0.0"


class PlanWish(msgspec.Struct, frozen=True):
    """A plan for a workspace. `by_instance_sku` has price lists for kinds of hardware that cost something else.

    `billing_rate_bps` is the customer's share of a subsidised plan; the operator carries the rest, up to
    `subsidy_limit` dollars.
    """

    plan: PlanCode
    prices: PriceList = PriceList()
    by_instance_sku: dict[str, PriceList] = {}
    billing_rate_bps: int = BPS
    subsidy_limit: str = "1000000.0"


def _micro(text: str, field: str) -> int:
    micro = Money.parse(text, field).micro
    if not 0 <= micro <= PRICE_MAX:
        raise Invalid(f"{field}: {text!r} must be from 0 to {Money(PRICE_MAX)} dollars", field=field)
    return micro


def prices_of(wish: PriceList, field: str) -> Prices:
    """A price list in micro-dollars. Raises `Invalid` naming the price."""
    return Prices(**{name: _micro(getattr(wish, name), f"{field}.{name}") for name in wish.__struct_fields__})


def plan_of(wish: PlanWish, sku_ids: Mapping[str, str]) -> Plan:
    """The ledger's plan; `sku_ids` gives the id of each SKU of the list. Raises `Invalid`."""
    general = prices_of(wish.prices, "prices")
    special = {
        sku_ids[name]: prices_of(prices, f"by_instance_sku.{name}") for name, prices in wish.by_instance_sku.items()
    }
    if wish.plan != "subsidised" and wish.billing_rate_bps != BPS:
        raise Invalid(
            f"billing_rate_bps: only a subsidised plan has a share; leave it out of {wish.plan!r}",
            field="billing_rate_bps",
        )
    if wish.plan == "on-demand":
        return on_demand(general, special)
    extra = tuple(c for sku, own in special.items() for c in own.charges({"sku": (sku,)}))
    if wish.plan == "spot":
        for name, value in (("prices", general), *((f"by_instance_sku.{sku}", own) for sku, own in special.items())):
            if value.per_node_minute:
                raise Invalid(
                    f"{name}.per_node_minute: on a spot plan nodes cost what the market asks; leave it out",
                    field=f"{name}.per_node_minute",
                )
        made = spot(general)
        extra = tuple(c for c in extra if c.meter not in ("node_minutes", "gpu_active_time"))
    else:
        made = subsidised(general, wish.billing_rate_bps)
    return msgspec.structs.replace(made, charges=(*made.charges, *extra))


def subsidy_limit(wish: PlanWish) -> int:
    """Micro-dollars that the operator carries at most. Raises `Invalid`."""
    return _micro(wish.subsidy_limit, "subsidy_limit")


class PlanAnswer(TypedDict):
    """The price list of a workspace; `plan` null: usage costs nothing."""

    object: str
    workspace_id: str
    plan: str | None
    prices: dict[str, str] | None
    by_instance_sku: dict[str, dict[str, str]]
    billing_rate_bps: int
    charges: list[dict[str, Any]]
    updated_at: int | None


def show_plan(workspace_id: str, plan: Plan | None, updated_at: float | None) -> PlanAnswer:
    """A plan as the API shows it; None: nothing is charged for usage."""
    if plan is None:
        return {
            "object": "plan", "workspace_id": workspace_id, "plan": None, "prices": None, "by_instance_sku": {},
            "billing_rate_bps": BPS, "charges": [], "updated_at": None,
        }  # fmt: skip
    general: dict[str, str] = {}
    special: dict[str, dict[str, str]] = {}
    by_meter = {meter: name for name, meter in _METER_OF.items()}
    for charge in plan.charges:
        name = by_meter.get(charge.meter)
        if name is None or not isinstance(charge.model, Standard):
            continue
        price = str(Money(charge.model.price.micro))
        skus = charge.filters.get("sku", ())
        if skus:
            for sku in skus:
                special.setdefault(sku, {})[name] = price
        else:
            general[name] = price
    return {
        "object": "plan",
        "workspace_id": workspace_id,
        "plan": plan.code,
        "prices": general,
        "by_instance_sku": special,
        "billing_rate_bps": plan.billing_rate_bps,
        "charges": [
            {"meter": c.meter, "unit": METERS[c.meter], "filters": {n: list(v) for n, v in c.filters.items()},
             "model": msgspec.to_builtins(c.model)}
            for c in plan.charges
        ],
        "updated_at": int(updated_at) if updated_at is not None else None,
    }  # fmt: skip
