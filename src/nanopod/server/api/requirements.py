"""Which kinds of nodes a filter means: `key[:op]:v1,v2;key2:v`, such as `accelerator:H100,H200;memory:gte:68719476736`.

Values are percent-decoded after the split, so a value may hold any character. Keys are the properties of an instance
SKU; `instance_sku`, `id` and `alias` name the kind itself. Operators: `in` (the default), `not_in`, and for numbers
`gt`, `gte`, `lt`, `lte`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from nanopod.model.capacity import Sku
from nanopod.model.errors import Invalid
from nanopod.server.api.references import canonical

CHARACTERS_MAX: Final = 4096
PROPERTIES: Final[tuple[str, ...]] = (
    "region", "availability_zone", "accelerator", "form_factor", "rdma_type", "num_accelerators", "num_vcpus",
    "memory", "local_storage", "supports_public_ipv4", "accelerator_memory", "provider", "federated", "max_watts",
)  # fmt: skip
"""The properties of a kind of node, in the order in which they are shown."""
NUMBERS: Final = frozenset(
    {"num_accelerators", "num_vcpus", "memory", "local_storage", "accelerator_memory", "max_watts"}
)
NAMES: Final = ("instance_sku", "id", "alias")
OTHERS: Final = ("latency_class",)
_ORDERS: Final[dict[str, Callable[[float, float], bool]]] = {
    "gt": lambda have, need: have > need,
    "gte": lambda have, need: have >= need,
    "lt": lambda have, need: have < need,
    "lte": lambda have, need: have <= need,
}
OPERATORS: Final = ("in", "not_in", *_ORDERS)


@dataclass(frozen=True, slots=True)
class Rule:
    """One part of a filter."""

    key: str
    operator: str
    values: tuple[str, ...]

    def fits(self, sku: Sku) -> bool:
        """Does a kind of node meet it?"""
        if self.key in NAMES:
            hit = any(canonical(value) in (sku.sku_id, sku.alias) for value in self.values)
            return hit != (self.operator == "not_in")
        have = getattr(sku, self.key)
        if self.operator in _ORDERS:
            return _ORDERS[self.operator](float(have), float(self.values[0]))
        hit = any(same(have, value) for value in self.values)
        return hit != (self.operator == "not_in")


def same(have: Any, text: str) -> bool:
    """Is a property what was written? Words without regard to case, numbers as numbers, true and false as words."""
    if isinstance(have, bool):
        return text.lower() == str(have).lower()
    if isinstance(have, int):
        return text.isdigit() and int(text) == have
    return str(have).lower() == text.lower()


def parse(text: str, field: str = "requirements") -> tuple[Rule, ...]:
    """The rules of a filter; all must hold. Raises `Invalid` naming the part that is wrong."""
    if len(text) > CHARACTERS_MAX:
        raise Invalid(f"{field}: {len(text)} characters; at most {CHARACTERS_MAX}", field=field)
    return tuple(_rule(part, field) for part in text.split(";") if part.strip())


def _rule(part: str, field: str) -> Rule:
    pieces = [piece.strip() for piece in part.split(":")]
    if len(pieces) == 2:
        key, operator, values = pieces[0], "in", pieces[1]
    elif len(pieces) == 3:
        key, operator, values = pieces
    else:
        raise Invalid(f"{field}: {part!r} must be key:value,value or key:operator:value", field=field)
    known = (*PROPERTIES, *NAMES, *OTHERS)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise Invalid(f"{field}: there is no property {key!r}; {hint}", field=field)
    if operator not in OPERATORS:
        raise Invalid(f"{field}: {operator!r} in {part!r} must be one of {', '.join(OPERATORS)}", field=field)
    found = tuple(unquote(value.strip()) for value in values.split(",") if value.strip())
    if not found:
        raise Invalid(f"{field}: {part!r} names no value", field=field)
    if operator in _ORDERS and (key not in NUMBERS or len(found) != 1 or not found[0].isdigit()):
        raise Invalid(f"{field}: {part!r}: {operator} compares a property that is a number with one", field=field)
    return Rule(key, operator, found)


def matching(rules: Sequence[Rule], skus: Iterable[Sku]) -> list[Sku]:
    """The kinds of nodes that meet every rule, by id."""
    return sorted((sku for sku in skus if all(rule.fits(sku) for rule in rules)), key=lambda sku: sku.sku_id)
