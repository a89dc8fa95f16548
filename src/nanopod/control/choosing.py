"""What the default chain needs to exist: the kind of node an endpoint runs on, and names that nobody has yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from nanopod.control.ports import Reads, Writes
from nanopod.market.views import availability, quote
from nanopod.model.chain import Deployment, Revision, Template
from nanopod.model.endpoint import EndpointSpec, ScaleSpec
from nanopod.model.money import Rate
from nanopod.scheduler.placement.fit import Choice, Facts, Fitting, Option, choose, fitting, price_cap

if TYPE_CHECKING:
    from nanopod.control.market.desk import Market

NAME_MAX: Final = 240
"""Characters of a name that leave room for what is added to it."""
SUFFIX: Final = 6
SCARCE: Final = ("no_supply", "price_above_limit")
"""What a procurement says while time on its kind of node cannot be had: others are looked at."""


def places_up(read: Reads) -> dict[str, int]:
    """Places of nodes that are up, by kind of node."""
    places: dict[str, int] = {}
    for node in read.nodes():
        if node.state == "up":
            places[node.sku_id] = places.get(node.sku_id, 0) + node.slots
    return places


def retired(read: Reads) -> set[str]:
    """Kinds of nodes that nobody is given any more who does not name them: deprecated and deleted ones."""
    return {sku_id for sku_id, life in read.sku_lives().items() if life.lifecycle != "stable"}


def facts_of(read: Reads) -> dict[str, Facts]:
    """What the agents of the nodes that are up say, by kind of node: of numbers the least, of words what all say."""
    found: dict[str, dict[str, Any]] = {}
    for one in read.node_facts():
        if one.node.state != "up":
            continue
        said = {name: value for name, value in one.inventory.items() if isinstance(value, str | int | float | bool)}
        gpus = one.inventory.get("gpus")
        if isinstance(gpus, list) and gpus and isinstance(gpus[0], dict) and gpus[0].get("driver"):
            said["driver_version"] = str(gpus[0]["driver"])
        said.pop("cpu_cores", None)  # the machine's, where the kind of node says what a worker may use
        known = found.setdefault(one.node.sku_id, said)
        for name in [name for name in known if name not in said]:
            del known[name]
        for name, value in list(known.items()):
            other = said[name]
            if value == other:
                continue
            if isinstance(value, str | bool) or isinstance(other, str | bool):
                del known[name]
            else:
                known[name] = min(value, other)
    return dict(found)


def fitting_kinds(read: Reads, spec: EndpointSpec, places: Collection[str]) -> Fitting:
    """Which of these kinds of nodes meet the requirements of a specification."""
    facts = facts_of(read)
    kinds = [(sku, facts.get(sku.sku_id, {})) for sku in read.skus() if sku.sku_id in places]
    return fitting(spec.image.query, kinds, strict=spec.image.strict)


def kinds_for(
    read: Reads, deployment: Deployment, revision: Revision, short: str
) -> tuple[tuple[str, ...], str]:  # fmt: skip
    """(the kinds of nodes it could move to, why there is none); nothing while its own kind will do.

    Its own kind will do while one of its nodes is up and time on it can be had.
    """
    places = places_up(read)
    own = deployment.sku_id in places
    scarce = own and short.startswith(SCARCE)
    if not places or (own and not scarce):
        return (), ""
    places = {sku_id: count for sku_id, count in places.items() if sku_id not in retired(read)}
    if not places:
        return (), "" if own else "every kind of node that is up is deprecated"
    found = fitting_kinds(read, revision.spec, places)
    if own:
        return tuple(one for one in found.good if one != deployment.sku_id), ""
    return (found.good, "") if found.good else ((), found.said)


def options_of(market: Market, read: Reads) -> list[Option]:
    """Every stable kind of node that has a node up, with what of it is on sale in the next block."""
    places, over, facts = places_up(read), retired(read), facts_of(read)
    found: list[Option] = []
    for sku in read.skus():
        if sku.sku_id not in places or sku.sku_id in over:
            continue
        exchange = market.exchange(sku.sku_id)
        start, end = exchange.block, exchange.block + 1
        ask = quote(exchange, start, end).best_ask
        free = sum(nodes for _, _, nodes in availability(exchange, start, end))
        rate = ask.rate if ask is not None else None
        found.append(Option(sku, places[sku.sku_id], free, rate, facts.get(sku.sku_id, {})))
    return found


def choose_sku(
    market: Market, read: Reads, spec: EndpointSpec, wanted: int = 1, scale: ScaleSpec | None = None
) -> Choice:  # fmt: skip
    """The kind of node for the workers of a specification; "" while there is none to take.

    `scale` are the endpoint's present settings, where they are not those of the specification.
    """
    image = spec.image
    cap = price_cap(image.query, (scale or spec.scale).max_price)
    rate = limit_of(cap, market.block_s).micro_per_block if cap is not None else None
    options = options_of(market, read)
    return choose(image.query, options, max(1, wanted), prefer=image.prefer, cap=rate, strict=image.strict)


def limit_of(dollars_per_hour: float, block_s: int) -> Rate:
    """A limit as a rate: rounded down, so that it is never passed, but at least the smallest there is."""
    return Rate(max(1, math.floor(dollars_per_hour * 1_000_000 * block_s / 3600 + 1e-6)))


def name_of(name: str, tag: str) -> str:
    """The name of an endpoint's deployment and template: the endpoint's, without the default tag."""
    return (name if tag == "default" else f"{name}-{tag}")[:NAME_MAX]


def free_name(base: str, taken: Callable[[str], bool]) -> str:
    """`base`, or the first of `base-2`, `base-3`, ... that is not taken."""
    name, number = base, 1
    while taken(name):
        number += 1
        name = f"{base}-{number}"
    return name


def instance_name(deployment: Deployment, instance_id: str) -> str:
    """The name of an instance of an endpoint: its deployment's, and the end of its own id."""
    return f"{deployment.name[:NAME_MAX]}-{instance_id[-SUFFIX:]}"


def template_of(
    read: Reads, workspace_id: str, name: str, endpoint_id: str, template_id: str, at: float
) -> Template:  # fmt: skip
    """The template of an endpoint's instances: they run the code of its revision."""
    free = free_name(name, lambda one: read.template_named(workspace_id, one) is not None)
    return Template(template_id, workspace_id, free, "", "", endpoint_id, {}, at, at)


def retire_template(write: Writes, deployment: Deployment) -> None:
    """The endpoint is on its way out: the name of its template is free for a new one at once."""
    if deployment.template_id:
        write.set_template(deployment.template_id, name=deployment.template_id)
