"""Which kind of node meets an endpoint's hardware requirements, and which of several to take: pure.

Requirements are `ImageSpec.query`: `{column: {op: value}}`, all of which must hold, with alternatives under `any`.
Columns that neither a SKU nor its nodes speak about cannot be judged here; they are named, not refused. Prices filter
nothing: they limit what is paid (`price_cap`), and the market says who sells for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nanopod.model.capacity import Sku

MEBI: Final = 1 << 20
GIGA: Final = 10**9

Facts = Mapping[str, str | float | bool]
"""What is known of the nodes of a SKU beyond its properties, by column, in wire units."""

_COLUMNS: Final[Mapping[str, Callable[[Sku], str | float | bool]]] = {
    "gpu_name": lambda sku: sku.accelerator,
    "num_gpus": lambda sku: sku.num_accelerators,
    "gpu_ram": lambda sku: sku.accelerator_memory // MEBI,
    "gpu_total_ram": lambda sku: sku.num_accelerators * (sku.accelerator_memory // MEBI),
    "gpu_max_power": lambda sku: sku.max_watts or float("inf"),
    "cpu_cores": lambda sku: sku.num_vcpus,
    "cpu_cores_effective": lambda sku: sku.num_vcpus,
    "cpu_ram": lambda sku: sku.memory // MEBI,
    "disk_space": lambda sku: sku.local_storage // GIGA,
    "geolocation": lambda sku: sku.region,
    "static_ip": lambda sku: sku.supports_public_ipv4,
}
"""What a SKU says about a column, in the column's wire unit (memory in MB, disks in GB)."""
_ALWAYS: Final = frozenset({"verified", "rentable", "rented"})
"""The usual conditions of a search: true of everything here."""
PRICES: Final = frozenset({"dph_total", "dphtotal", "dph_base", "min_bid"})
"""Dollars per node-hour: what is paid is limited to them."""
_ACCELERATED: Final = ("gpu_", "num_gpus", "cuda_", "driver_ver", "compute_cap", "total_flops", "bw_nvlink", "dlperf")
"""How the columns begin that speak of accelerators."""
NO_KIND: Final = "no kind of node meets its requirements"
_VERSION: Final = re.compile(r"\d+(\.\d+)+")


@dataclass(frozen=True, slots=True)
class Fit:
    """`unmet`: conditions that the SKU does not meet, in words; `unknown`: columns that nothing here speaks about."""

    unmet: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """True when nothing that can be judged is unmet."""
        return not self.unmet


@dataclass(frozen=True, slots=True)
class Option:
    """A kind of node that could be taken: how many of its nodes are up, how many are free to be had now, at what rate.

    `rate` is micro-dollars per node-block, None while nothing is on sale.
    """

    sku: Sku
    up: int
    free: int = 0
    rate: int | None = None
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """`sku_id`, or "" when there is none to take yet, with the reasons."""

    sku_id: str
    reasons: tuple[str, ...] = field(default=())
    at_hand: bool = False
    """One of its nodes is free now, at a price within the limit."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """`good` kinds of nodes; `note` says what was overlooked, `words` what each of the others lacks."""

    good: tuple[str, ...]
    words: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    note: str = ""

    @property
    def said(self) -> str:
        """Why there is none."""
        return f"{NO_KIND} ({', '.join(self.words)})"


def fit(query: Mapping[str, Any], sku: Sku, facts: Facts | None = None) -> Fit:
    """How a SKU meets requirements."""
    unmet: list[str] = []
    unknown: list[str] = []
    for column, conditions in query.items():
        if column == "any":
            found = [fit(one, sku, facts) for one in conditions]
            if found and not any(one.good for one in found):
                unmet.append(" or ".join("(" + ", ".join(one.unmet) + ")" for one in found))
            unknown += [name for one in found for name in one.unknown if name not in unknown]
        elif facts is not None and column in facts:
            unmet += _unmet(column, facts[column], conditions)
        elif column in _COLUMNS:
            unmet += _unmet(column, _COLUMNS[column](sku), conditions)
        elif column not in _ALWAYS and column not in PRICES:
            unknown.append(column)
    return Fit(tuple(unmet), tuple(dict.fromkeys(unknown)))


def _unmet(column: str, seen: str | float | bool, conditions: Mapping[str, Any]) -> list[str]:
    return [
        f"{column} {op} {value!r} (it has {seen!r})" for op, value in conditions.items() if not _holds(seen, op, value)
    ]


def fitting(
    query: Mapping[str, Any], kinds: Sequence[tuple[Sku, Facts]], *, strict: bool = False
) -> Fitting:  # fmt: skip
    """The kinds of nodes that meet requirements.

    Where no kind has an accelerator, what is asked of accelerators is overlooked unless `strict`: code that is tried
    out on a plain machine runs, and asks for its accelerator in its own words.
    """
    found = [(sku, fit(query, sku, facts)) for sku, facts in kinds]
    unknown = tuple(sorted({name for _, one in found for name in one.unknown}))
    good = tuple(sku.sku_id for sku, one in found if one.good)
    words = tuple(f"{sku.alias}: {'; '.join(one.unmet)}" for sku, one in found if not one.good)
    if good or not found or strict or any(sku.num_accelerators for sku, _ in kinds):
        return Fitting(good, words, unknown)
    plain = _without_accelerators(query)
    good = tuple(sku.sku_id for sku, facts in kinds if fit(plain, sku, facts).good)
    if not good:
        return Fitting((), words, unknown)
    lacking = "; ".join(dict.fromkeys(text for sku, one in found if sku.sku_id in good for text in one.unmet))
    return Fitting(good, words, unknown, f"although it does not meet: {lacking} (no machine here has an accelerator)")


def _without_accelerators(query: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for column, conditions in query.items():
        if column == "any":
            parts = [_without_accelerators(one) for one in conditions]
            if all(parts):
                kept["any"] = parts
        elif not column.startswith(_ACCELERATED):
            kept[column] = conditions
    return kept


def price_cap(query: Mapping[str, Any], max_price: float | None) -> float | None:
    """The most that an hour of a node may cost, in dollars: the setting's and the query's limits; None without any."""
    limits = [] if max_price is None else [max_price]
    for column in PRICES & set(query):
        for op, value in query[column].items():
            if op in ("lt", "lte", "eq") and isinstance(value, int | float) and not isinstance(value, bool):
                limits.append(float(value))
    return min(limits, default=None)


def _holds(seen: str | float | bool, op: str, value: Any) -> bool:
    """One condition. Words are compared without case, and with `_` and `-` as blanks; `535.104` as a version."""
    if op in ("in", "notin"):
        among = any(_holds(seen, "eq", one) for one in (value if isinstance(value, list | tuple) else [value]))
        return among is (op == "in")
    left: Any = seen
    right: Any = value
    if isinstance(seen, str):
        left, right = _word(seen), _word(str(value))
        if _VERSION.fullmatch(left) and _VERSION.fullmatch(right):
            left, right = [[int(part) for part in text.split(".")] for text in (left, right)]
    elif isinstance(value, str):
        try:
            right = float(value)
        except ValueError:
            return op == "neq"
    if right is None:
        return op == "neq"
    match op:
        case "eq":
            return bool(left == right)
        case "neq":
            return bool(left != right)
        case "lt":
            return bool(left < right)
        case "lte":
            return bool(left <= right)
        case "gt":
            return bool(left > right)
        case "gte":
            return bool(left >= right)
    return True


def _word(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def choose(
    query: Mapping[str, Any],
    options: Sequence[Option],
    wanted: int = 1,
    *,
    prefer: Sequence[Mapping[str, Any]] = (),
    cap: int | None = None,
    strict: bool = False,
) -> Choice:
    """The kind of node to take: of those that fit one with a free node within `cap` before one without, then the most
    preferred, then with free nodes for all before fewer, then cheapest, then by name.

    `options` are those with a node that is up, `wanted` is how many nodes are needed, `prefer` further requirements,
    best first; `cap` micro-dollars per node-block.
    """
    if not options:
        return Choice("", ("no node has joined yet",))
    found = fitting(query, [(option.sku, option.facts) for option in options], strict=strict)
    if not found.good:
        return Choice("", (NO_KIND, *found.words))
    good = [option for option in options if option.sku.sku_id in found.good]

    def rank(option: Option) -> int:
        return next((n for n, one in enumerate(prefer) if fit(one, option.sku, option.facts).good), len(prefer))

    def at_hand(option: Option) -> bool:
        return option.free > 0 and (cap is None or option.rate is None or option.rate <= cap)

    def order(option: Option) -> tuple[bool, int, int, float, str, str]:
        rate = float("inf") if option.rate is None else float(option.rate)
        free = -min(option.free, wanted)
        return not at_hand(option), rank(option), free, rate, option.sku.alias, option.sku.sku_id

    best = min(good, key=order)
    if len(options) == 1:
        reasons = [f"{best.sku.alias} is the only kind of node here" + (f", {found.note}" if found.note else "")]
    else:
        reasons = [f"{best.sku.alias}: {best.free} of {best.up} places free, first of {len(good)} kinds that fit"]
        reasons += [found.note] if found.note else []
    if prefer:
        place = rank(best)
        reasons.append(f"number {place + 1} of {len(prefer)} preferred" if place < len(prefer) else "none preferred")
    if found.unknown:
        reasons.append(f"not judged, as nothing here is known about it: {', '.join(found.unknown)}")
    return Choice(best.sku.sku_id, tuple(reasons), at_hand(best))
