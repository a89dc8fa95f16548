"""Plans: which meter costs what. Three are shipped (`on-demand`, `spot`, `subsidised`), each made from a price list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Final, Literal

import msgspec

from nanopod.ledger.charges import ChargeModel, Market, Standard, exact
from nanopod.ledger.rating import Price, rounded
from nanopod.model.errors import Invalid
from nanopod.model.wire import MeterRecord

METERS: Final[Mapping[str, str]] = {
    "gpu_active_time": "ms",
    "compute_time": "us",
    "node_minutes": "min",
    "market_cost": "micro-dollars",
    "input_tokens": "tokens",
    "cached_input_tokens": "tokens",
    "output_tokens": "tokens",
    "requests": "requests",
    "storage_byte_ms": "byte-ms",
    "bandwidth_used": "bytes",
    "sandbox_time": "ms",
    "wake_time": "ms",
}
"""Everything that is measured, and in which unit."""
NOT_BILLED: Final = frozenset({"wake_time"})
"""Measured and shown, never charged."""

Interval = Literal["weekly", "monthly", "quarterly", "semiannual", "yearly"]


class Charge(msgspec.Struct, frozen=True):
    """What one meter costs. `filters` narrow it to usage with one of the values for each attribute (sku, model)."""

    meter: str
    model: ChargeModel
    filters: Mapping[str, tuple[str, ...]] = {}
    min_amount: int = 0
    prorated: bool = False
    """True: `min_amount` is for a whole period, and a part of one owes a part of it."""

    def __post_init__(self) -> None:
        if self.meter not in METERS:
            raise Invalid(f"meter: {self.meter!r} is not one of {', '.join(METERS)}", field="meter")

    def fits(self, meter: str, attributes: Mapping[str, str]) -> bool:
        """True when usage of `meter` with these attributes is priced here."""
        return meter == self.meter and all(attributes.get(name) in values for name, values in self.filters.items())


class Plan(msgspec.Struct, frozen=True):
    """A price list that a workspace subscribes to. `base` and `commitment` are micro-dollars per interval."""

    code: str
    charges: tuple[Charge, ...]
    interval: Interval = "monthly"
    base: int = 0
    commitment: int = 0
    """The least that a whole interval costs, base included."""
    trial_days: int = 0
    """The base is not charged for these first days."""
    billing_rate_bps: int = 10_000
    """The customer's share; a funder carries the rest."""


class Usage(msgspec.Struct, frozen=True):
    """What was used of one meter in a period, by its attributes."""

    meter: str
    units: int
    events: int = 0
    attributes: Mapping[str, str] = {}
    billable: bool = True


class Charged(msgspec.Struct, frozen=True):
    """Usage with its price: `amount` micro-dollars, rounded once for the line."""

    meter: str
    unit: str
    units: int
    amount: int
    attributes: Mapping[str, str] = {}
    excluded: bool = False
    """True: measured and shown, not charged."""


def usage_of(record: MeterRecord, attributes: Mapping[str, str] | None = None) -> tuple[Usage, ...]:
    """What one metered request used. One that failed is measured and not billed; what was delivered of one is."""
    billable = record.status < 400
    known = attributes or {}
    counted = (
        ("requests", 1),
        ("input_tokens", record.prompt_tokens),
        ("output_tokens", record.completion_tokens),
        ("compute_time", record.compute_us),
    )
    return tuple(Usage(meter, units, 1, known, billable) for meter, units in counted if units)


def find(plan: Plan, meter: str, attributes: Mapping[str, str]) -> Charge:
    """The charge with the most filters that fits. Raises `Invalid` when the plan has no price for this."""
    fitting = [charge for charge in plan.charges if charge.fits(meter, attributes)]
    if not fitting:
        raise Invalid(f"meter: plan {plan.code} has no price for {meter} with {dict(attributes)}", field="meter")
    return max(fitting, key=lambda charge: len(charge.filters))


def apply(plan: Plan, usage: Sequence[Usage], share: Fraction = Fraction(1)) -> tuple[Charged, ...]:
    """One line per (meter, attributes), units added up before they are priced, then base and commitment.

    `share` is how much of the interval is billed: 1 for a whole one. Raises `Invalid` for an unknown meter.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...], bool], list[int]] = {}
    for used in usage:
        if used.meter not in METERS:
            raise Invalid(f"meter: {used.meter!r} is not one of {', '.join(METERS)}", field="meter")
        billed = used.billable and used.meter not in NOT_BILLED
        sums = groups.setdefault((used.meter, tuple(sorted(used.attributes.items())), billed), [0, 0])
        sums[0] += used.units
        sums[1] += used.events
    lines: list[Charged] = []
    for (meter, pairs, billed), (units, events) in groups.items():
        attributes = dict(pairs)
        amount = 0
        if billed:
            charge = find(plan, meter, attributes)
            least = charge.min_amount * (share if charge.prorated else 1)
            amount = rounded(max(exact(charge.model, units, events), Fraction(least)))
        lines.append(Charged(meter, METERS[meter], units, amount, attributes, not billed))
    if plan.base:
        lines.append(Charged("base", plan.interval, 1, rounded(plan.base * share)))
    missing = rounded(plan.commitment * share) - sum(line.amount for line in lines)
    if missing > 0:
        lines.append(Charged("commitment", plan.interval, 1, missing))
    return tuple(lines)


class Prices(msgspec.Struct, frozen=True):
    """A price list in micro-dollars for ordinary units; 0 is free."""

    input_per_mtok: int = 0
    cached_input_per_mtok: int = 0
    output_per_mtok: int = 0
    per_request: int = 0
    per_compute_second: int = 0
    per_node_minute: int = 0

    def charges(self, filters: Mapping[str, tuple[str, ...]] | None = None) -> tuple[Charge, ...]:
        """One charge per meter."""
        prices = {
            "input_tokens": Price(self.input_per_mtok, 1_000_000),
            "cached_input_tokens": Price(self.cached_input_per_mtok, 1_000_000),
            "output_tokens": Price(self.output_per_mtok, 1_000_000),
            "requests": Price(self.per_request),
            "compute_time": Price(self.per_compute_second, 1_000_000),
            "gpu_active_time": Price(self.per_compute_second, 1_000),
            "node_minutes": Price(self.per_node_minute),
        }
        return tuple(Charge(meter, Standard(price), filters or {}) for meter, price in prices.items())


def on_demand(prices: Prices, by_sku: Mapping[str, Prices] | None = None) -> Plan:
    """Fixed prices; those of a SKU or model instead of the general ones where it has its own."""
    special = (charge for sku, own in (by_sku or {}).items() for charge in own.charges({"sku": (sku,)}))
    return Plan("on-demand", (*prices.charges(), *special))


def spot(prices: Prices, fee_bps: int = 0) -> Plan:
    """Time at what the market asked, plus a fee; tokens and requests at `prices`."""
    kept: Iterable[Charge] = (c for c in prices.charges() if c.meter not in ("node_minutes", "gpu_active_time"))
    return Plan("spot", (*kept, Charge("market_cost", Market(fee_bps))))


def subsidised(prices: Prices, billing_rate_bps: int) -> Plan:
    """Full prices, of which the customer pays a share and a funder the rest. Raises `Invalid` beyond 0..10,000."""
    if not 0 <= billing_rate_bps <= 10_000:
        raise Invalid(f"billing_rate_bps: {billing_rate_bps} must be from 0 to 10000", field="billing_rate_bps")
    return Plan("subsidised", prices.charges(), billing_rate_bps=billing_rate_bps)
