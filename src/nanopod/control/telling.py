"""What is said about instances: to users as notices, in the story of their owner, and why they get no time."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Final

import msgspec

from nanopod.control.ports import Reads, Writes
from nanopod.model.chain import Instance
from nanopod.model.wire import ShutdownNotice

log = logging.getLogger(__name__)

AWAITS: Final = "awaits allocation: "
"""How the reason of an instance begins that is not granted yet."""
_SUPPLIED: Final = ("running", "kept_manual")


class _Warned(msgspec.Struct, frozen=True):
    """`Instance.warned`, of which only this matters here."""

    at: int
    reason: str = "schedule"


_warned: Final = msgspec.json.Decoder(_Warned).decode


def notice_of(instance: Instance) -> ShutdownNotice | None:
    """The end that an instance was told of; None while none is near."""
    return _notice(instance.warned) if instance.warned else None


@lru_cache(1024)
def _notice(text: str) -> ShutdownNotice | None:
    try:
        told = _warned(text)
    except msgspec.MsgspecError as error:
        log.error("warned=unreadable reason=%s", error)
        return None
    return ShutdownNotice(told.at, told.reason)


def is_machine(instance: Instance) -> bool:
    """True for an instance that runs its template's start-up script, with no endpoint and no link to a gateway."""
    return not instance.endpoint_id


def owner_of(instance: Instance) -> str:
    """Under whose id the story of an instance is kept."""
    return instance.endpoint_id or instance.deployment_id or instance.instance_id


def tell_instance(write: Writes, instance: Instance, what: str, at: float, **more: str) -> None:
    """Tell the workspace that something (`what`) happened to an instance."""
    named = {
        "deployment": instance.deployment_id,
        "endpoint": instance.endpoint_id,
        "instance_sku": instance.sku_id,
    }
    data = {"name": instance.name, "capacity": instance.capacity_id, **{k: v for k, v in named.items() if v}, **more}
    write.add_notice(at, instance.workspace_id, f"instance.{what}", instance.instance_id, data)


def shortage(read: Reads, capacity_id: str, sku_id: str) -> str:
    """Why a capacity gets no more time on a SKU at present, as its procurement says; "" while it does."""
    found = read.procurement_of_pair(capacity_id, sku_id) if sku_id else None
    if found is None or found.status is None or found.status.code in _SUPPLIED:
        return ""
    return found.status.message


def awaits(read: Reads, instance: Instance) -> str:
    """Why an instance still awaits allocation."""
    if not instance.sku_id:
        up = any(node.state == "up" for node in read.nodes())
        return f"{AWAITS}its kind of node is not chosen yet" if up else "no node has joined yet"
    if words := shortage(read, instance.capacity_id, instance.sku_id):
        return f"{AWAITS}{words}"
    if read.procurement_of_pair(instance.capacity_id, instance.sku_id) is None:
        capacity = read.capacity(instance.capacity_id)
        name = capacity.name if capacity is not None else instance.capacity_id
        return f"{AWAITS}capacity {name} owns no free time on {instance.sku_id} now"
    return f"{AWAITS}its time begins with one of the next blocks"
