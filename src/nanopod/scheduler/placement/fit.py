"""Which kind of node meets an endpoint's hardware requirements, and which of several to take: pure.

Requirements are `ImageSpec.query`: `{column: {op: value}}`, all of which must hold, with alternatives under `any`.
Columns that no SKU speaks about (network speed, reliability, ...) cannot be judged here; they are named, not refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nanopod.model.capacity import Sku

MEBI: Final = 1 << 20
GIGA: Final = 10**9

_COLUMNS: Final[Mapping[str, Callable[[Sku], str | float]]] = {
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
}
"""What a SKU says about a column, in the column's wire unit (memory in MB, disks in GB)."""
_ALWAYS: Final = frozenset({"verified", "rentable", "rented"})
"""The usual conditions of a search: true of everything here."""


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


@dataclass(frozen=True, slots=True)
class Choice:
    """`sku_id`, or "" when there is none to take yet, with the reasons."""

    sku_id: str
    reasons: tuple[str, ...] = field(default=())


def fit(query: Mapping[str, Any], sku: Sku) -> Fit:
    """How a SKU meets requirements."""
    unmet: list[str] = []
    unknown: list[str] = []
    for column, conditions in query.items():
        if column == "any":
            found = [fit(one, sku) for one in conditions]
            if found and not any(one.good for one in found):
                unmet.append(" or ".join("(" + ", ".join(one.unmet) + ")" for one in found))
            unknown += [name for one in found for name in one.unknown if name not in unknown]
        elif column not in _COLUMNS:
            if column not in _ALWAYS:
                unknown.append(column)
        else:
            seen = _COLUMNS[column](sku)
            unmet += [
                f"{column} {op} {value!r} (it has {seen!r})"
                for op, value in conditions.items()
                if not _holds(seen, op, value)
            ]
    return Fit(tuple(unmet), tuple(dict.fromkeys(unknown)))


def _holds(seen: str | float, op: str, value: Any) -> bool:
    """One condition. Words are compared without case, and with `_` and `-` as blanks."""
    if op in ("in", "notin"):
        among = any(_holds(seen, "eq", one) for one in (value if isinstance(value, list | tuple) else [value]))
        return among is (op == "in")
    left: Any = seen
    right: Any = value
    if isinstance(seen, str):
        left, right = _word(seen), _word(str(value))
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


def choose(query: Mapping[str, Any], options: Sequence[Option], wanted: int = 1) -> Choice:
    """The kind of node to take: the only one there is, else one that fits; with free nodes for all before fewer, then
    cheapest, then by name.

    `options` are those with a node that is up, `wanted` is how many nodes are needed.
    """
    if not options:
        return Choice("", ("no node has joined yet",))
    if len(options) == 1:
        only = options[0]
        unmet = fit(query, only.sku).unmet
        said = f"{only.sku.alias} is the only kind of node here"
        return Choice(only.sku.sku_id, (f"{said}, although it does not meet: {'; '.join(unmet)}" if unmet else said,))
    fits = [(option, fit(query, option.sku)) for option in options]
    good = [option for option, found in fits if found.good]
    if not good:
        words = [f"{option.sku.alias}: {'; '.join(found.unmet)}" for option, found in fits]
        return Choice("", ("no kind of node meets its requirements", *words))

    def order(option: Option) -> tuple[int, float, str, str]:
        rate = float("inf") if option.rate is None else float(option.rate)
        return -min(option.free, wanted), rate, option.sku.alias, option.sku.sku_id

    best = min(good, key=order)
    reasons = [f"{best.sku.alias}: {best.free} of {best.up} places free, cheapest of {len(good)} kinds that fit"]
    unknown = sorted({name for _, found in fits for name in found.unknown})
    if unknown:
        reasons.append(f"not judged, as nothing here is known about it: {', '.join(unknown)}")
    return Choice(best.sku.sku_id, tuple(reasons))
