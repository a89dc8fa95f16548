"""What names an object: its id (earlier prefixes are read too), its resource path, or its bare name.

A resource path is `np:<type>:<account>:<workspace>:<name>` (`sfc:` is read too). What a key may not see is not found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from nanopod.model.capacity import Capacity, Sku
from nanopod.model.chain import Deployment, Image, Instance, Key, Template, Workspace
from nanopod.model.errors import Invalid, NotFound
from nanopod.model.ids import ALIASES, ID_LENGTH, NAME_PATTERN
from nanopod.model.order import Contract, Order, Transfer
from nanopod.model.procurement import OfferPolicy, Procurement, Provider
from nanopod.server.api.tenants import OPERATOR_WORKSPACE, workspace_of
from nanopod.store.transaction import Transaction

PATH_PREFIXES: Final = ("np:", "sfc:")
EVERY: Final = "*"
"""As a workspace: all that the key may see."""
TYPES: Final[dict[str, str]] = {
    "workspace": "workspace", "capacity": "capacity", "pool": "capacity", "procurement": "procurement",
    "deployment": "deployment", "spot_deployment": "deployment", "instance_template": "template",
    "node_template": "template", "image": "image", "vm_image": "image", "instance": "instance", "vm": "instance",
    "node": "instance", "instance_sku": "sku", "cluster": "sku", "order": "order", "contract": "contract",
    "capacity_transfer": "transfer", "pool_transfer": "transfer", "provider": "provider", "offer": "offer",
}  # fmt: skip
"""Types in resource paths, with the noun each means."""
WORDS: Final[dict[str, str]] = {
    "sku": "instance SKU", "template": "instance template", "transfer": "capacity transfer",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request may touch: everything for the operator, else one workspace; names are looked up in `workspace`."""

    key: Key
    workspace: Workspace
    operator: bool
    named: bool = False
    """True when the request named the workspace."""
    everything: bool = False
    """True when the operator asked for the lists of all workspaces (`*`)."""

    def sees(self, workspace_id: str) -> bool:
        """May this request see objects of that workspace?"""
        return self.operator or workspace_id == self.workspace.workspace_id

    @property
    def listed(self) -> str | None:
        """The workspace whose objects lists show; None for all of them."""
        return None if self.everything else self.workspace.workspace_id


def scope_of(read: Transaction, key: Key, reference: str | None, field: str = "workspace") -> Scope:
    """The scope of a request that may name a workspace, or `*`. Raises `NotFound` for one that its key may not see."""
    own = workspace_of(read, key, None, field)
    operator = "admin" in key.scopes and own.name == OPERATOR_WORKSPACE
    if not reference:
        return Scope(key, own, operator)
    if reference == EVERY:
        return Scope(key, own, operator, everything=operator)
    return Scope(key, workspace_of(read, key, reference, field), operator, named=True)


def workspace_reference(request: Request, body: str | None = None) -> str | None:
    """The workspace that query and body name. Raises `Invalid` when they differ."""
    query = request.query_params.get("workspace")
    if query and body and query != body:
        raise Invalid(f"workspace: the body says {body!r}, the query {query!r}; name one", field="workspace")
    return body or query or None


def canonical(reference: str) -> str:
    """An id with today's prefix; other text as it is."""
    for old, new in ALIASES.items():
        if reference.startswith(old):
            return new + reference[len(old) :]
    return reference


def capacity_reference(capacity: str | None, pool: str | None, *, field: str = "capacity") -> str:
    """`capacity` or `pool` of a body. Raises `Invalid` when both are there and differ, or none is."""
    other = field.replace("capacity", "pool")
    if capacity and pool and canonical(capacity) != canonical(pool):
        raise Invalid(f"{field}: {capacity!r} and {other} {pool!r} differ; send one of them", field=field)
    found = capacity or pool
    if not found:
        raise Invalid(f"{field}: is missing; name the capacity by its id or name", field=field)
    return found


# --- looking up ---


def find_capacity(read: Transaction, scope: Scope, reference: str, field: str | None = "capacity") -> Capacity:
    """A capacity. Raises `NotFound`."""
    found: Capacity = _find(read, scope, "capacity", reference, field)
    return found


def find_sku(read: Transaction, reference: str, field: str | None = "instance_sku") -> Sku:
    """A kind of node by id, alias or resource path; everyone sees all of them. Raises `NotFound`."""
    wanted = canonical(reference)
    if wanted.startswith(PATH_PREFIXES):
        wanted = _split(wanted, "sku", field)[2]
    skus = read.skus()
    found = next((sku for sku in skus if wanted in (sku.sku_id, sku.alias)), None)
    if found is None:
        there = ", ".join(sorted(sku.alias for sku in skus)) or "none; no node has joined"
        raise NotFound(_text(field, f"there is no instance SKU {reference!r}; there are: {there}"), field=field)
    return found


def find_order(read: Transaction, scope: Scope, reference: str, field: str | None = None) -> Order:
    """An order by id. Raises `NotFound`."""
    found: Order = _find(read, scope, "order", reference, field)
    return found


def find_contract(read: Transaction, scope: Scope, reference: str, field: str | None = None) -> Contract:
    """A contract by id, for its buyer and its seller. Raises `NotFound`."""
    found = read.contract(canonical(reference))
    if found is None or not (scope.sees(found.buyer_workspace_id) or scope.sees(found.seller_workspace_id)):
        raise missing("contract", reference, field)
    return found


def find_transfer(read: Transaction, scope: Scope, reference: str, field: str | None = None) -> Transfer:
    """A transfer by id. Raises `NotFound`."""
    found: Transfer = _find(read, scope, "transfer", reference, field)
    return found


def find_procurement(read: Transaction, scope: Scope, reference: str, field: str | None = "procurement") -> Procurement:
    """A procurement. Raises `NotFound`."""
    found: Procurement = _find(read, scope, "procurement", reference, field)
    return found


def find_template(read: Transaction, scope: Scope, reference: str, field: str | None = "instance_template") -> Template:
    """An instance template. Raises `NotFound`."""
    found: Template = _find(read, scope, "template", reference, field)
    return found


def find_image(read: Transaction, scope: Scope, reference: str, field: str | None = "image") -> Image:
    """An image, own or public. Raises `NotFound`."""
    found: Image = _find(read, scope, "image", reference, field)
    return found


def find_deployment(read: Transaction, scope: Scope, reference: str, field: str | None = "deployment") -> Deployment:
    """A deployment. Raises `NotFound`."""
    found: Deployment = _find(read, scope, "deployment", reference, field)
    return found


def find_instance(read: Transaction, scope: Scope, reference: str, field: str | None = "instance") -> Instance:
    """An instance; by name a live one. Raises `NotFound`."""
    found: Instance = _find(read, scope, "instance", reference, field)
    return found


def find_provider(read: Transaction, scope: Scope, reference: str, field: str | None = "provider") -> Provider:
    """A provider. Raises `NotFound`."""
    wanted = canonical(reference)
    if wanted.startswith(PATH_PREFIXES):
        wanted = _split(wanted, "provider", field)[2]
    for found in read.providers():
        if wanted in (found.provider_id, found.name) and scope.sees(found.workspace_id):
            return found
    raise missing("provider", reference, field)


def find_offer(read: Transaction, scope: Scope, reference: str, field: str | None = None) -> OfferPolicy:
    """An offer by id. Raises `NotFound`."""
    found = read.offer(canonical(reference))
    owner = read.provider(found.provider_id) if found is not None else None
    if found is None or owner is None or not scope.sees(owner.workspace_id):
        raise missing("offer", reference, field)
    return found


def missing(noun: str, reference: str, field: str | None) -> NotFound:
    """The error for what is not there, or may not be seen."""
    word = WORDS.get(noun, noun)
    return NotFound(_text(field, f"there is no {word} {reference!r} that this key may see"), field=field)


def _text(field: str | None, message: str) -> str:
    return f"{field}: {message}" if field else message


_BY_ID: Final[dict[str, Callable[[Transaction, str], Any]]] = {
    "capacity": lambda read, id: read.capacity(id),
    "order": lambda read, id: read.order(id),
    "transfer": lambda read, id: read.transfer(id),
    "procurement": lambda read, id: read.procurement(id),
    "template": lambda read, id: read.template(id),
    "image": lambda read, id: read.image(id),
    "deployment": lambda read, id: read.deployment(id),
    "instance": lambda read, id: read.instance(id),
}
_BY_NAME: Final[dict[str, Callable[[Transaction, str, str], Any]]] = {
    "capacity": lambda read, ws, name: read.capacity_named(ws, name),
    "procurement": lambda read, ws, name: next((p for p in read.procurements(ws) if p.name == name), None),
    "template": lambda read, ws, name: read.template_named(ws, name),
    "image": lambda read, ws, name: next((i for i in read.images(ws) if i.name == name), None),
    "deployment": lambda read, ws, name: read.deployment_named(ws, name),
    "instance": lambda read, ws, name: read.instance_named(ws, name),
}
_ID_PREFIX: Final[dict[str, tuple[str, ...]]] = {
    "capacity": ("cap_",), "order": ("ordr_",), "transfer": ("cxfr_",), "procurement": ("proc_",),
    "template": ("itmpl_",), "image": ("image_",), "deployment": ("depl_", "spot_"), "instance": ("inst_",),
}  # fmt: skip


def _find(read: Transaction, scope: Scope, noun: str, reference: str, field: str | None) -> Any:
    wanted = canonical(reference)
    workspace_id = scope.workspace.workspace_id
    if wanted.startswith(PATH_PREFIXES):
        account, workspace, wanted = _split(wanted, noun, field)
        place = read.workspace_named(workspace)
        owner = read.account(place.account_id) if place is not None else None
        if place is None or owner is None or owner.name != account or not scope.sees(place.workspace_id):
            raise missing(noun, reference, field)
        workspace_id = place.workspace_id
    elif wanted.startswith(_ID_PREFIX[noun]):
        found = _BY_ID[noun](read, wanted)
        if found is not None and (scope.sees(found.workspace_id) or (noun == "image" and found.is_public)):
            return found
    by_name = _BY_NAME.get(noun)
    found = by_name(read, workspace_id, wanted) if by_name and NAME_PATTERN.fullmatch(wanted) else None
    if found is None:
        raise missing(noun, reference, field)
    return found


def _split(path: str, noun: str, field: str | None) -> tuple[str, str, str]:
    """(account, workspace, name) of a resource path. Raises `Invalid` for another shape or another type."""
    parts = path.split(":")
    if len(parts) != 5:
        form = f"np:{noun}:<account>:<workspace>:<name>"
        raise Invalid(_text(field, f"{path!r} is not a resource path; they look like {form}"), field=field)
    if TYPES.get(parts[1]) != noun:
        raise Invalid(_text(field, f"{path!r} names a {parts[1]}, not a {WORDS.get(noun, noun)}"), field=field)
    return parts[2], parts[3], parts[4]


def check_name(name: str, field: str = "name") -> str:
    """A name that may be given to an object. Raises `Invalid`."""
    if not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"{field}: {name!r} must be 1 to 255 of a-z A-Z 0-9 . _ - and begin with a letter or digit", field=field
        )
    if _looks_like_id(name):
        raise Invalid(f"{field}: {name!r} looks like an id; choose another name", field=field)
    return name


def _looks_like_id(name: str) -> bool:
    prefixes = {prefix for group in _ID_PREFIX.values() for prefix in group} | set(ALIASES)
    return any(name.startswith(prefix) and len(name) == len(prefix) + ID_LENGTH for prefix in prefixes)
