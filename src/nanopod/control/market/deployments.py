"""Deployments that stand alone: as many live instances as they want, made from their template (R21)."""

from __future__ import annotations

from typing import Final

from nanopod.control.market.names import names
from nanopod.control.market.quota import claim_of
from nanopod.control.market.trading import Trading
from nanopod.market.quota import keep_live
from nanopod.model.chain import Deployment, Instance

MAKE_MAX: Final = 200
"""Instances made for one deployment in one look; the rest follows in the next."""
TRIES_MAX: Final = 20


def keep(trading: Trading, deployment: Deployment) -> bool:
    """Make or remove instances; True when there is more to make than one look allows."""
    own = [one for one in trading.rows.live(deployment.capacity_id) if one.deployment_id == deployment.deployment_id]
    plan = keep_live([claim_of(one) for one in own], deployment.target_instance_count, enabled=deployment.enabled)
    by_id = {one.instance_id: one for one in own}
    for instance_id in plan.remove:
        _remove(trading, by_id[instance_id], deployment)
    if plan.create:
        _create(trading, deployment, min(plan.create, MAKE_MAX))
    return plan.create > MAKE_MAX


def _remove(trading: Trading, instance: Instance, deployment: Deployment) -> None:
    reason = f"deployment {deployment.name} wants {deployment.target_instance_count}"
    trading.rows.set_instance(instance, intent="stop", reason=reason)
    trading.write.signal("instance", instance.instance_id, 0.0)
    trading.write.hint("wanted")


def _create(trading: Trading, deployment: Deployment, count: int) -> None:
    template = trading.rows.template(deployment.template_id)
    image = trading.write.image(template.image_id) if template is not None and template.image_id else None
    if template is None or (image is not None and image.upload_status == "revoked"):
        return  # nothing new is made from a revoked image; whoever reinstates it has this looked at again
    first = trading.write.next_number("instance", count)
    for seq in range(first, first + count):
        instance_id = trading.floor.new_id("instance")
        made = Instance(
            instance_id=instance_id, deployment_id=deployment.deployment_id, endpoint_id="",
            workspace_id=deployment.workspace_id, revision_id="", capacity_id=deployment.capacity_id, node_id=None,
            epoch=1, generation=0, intent="run", phase="queued", slots=1, pid=None, exit_code=None, reason="",
            failure=None, fails=0, not_before=deployment.not_before, ready_at=None, created_at=trading.now,
            ended_at=None, seq=seq, name=_free_name(trading, deployment, instance_id), sku_id=deployment.sku_id,
            template_id=deployment.template_id, image_id=template.image_id, cloud_init=template.cloud_init,
            tags=dict(deployment.tags),
        )  # fmt: skip
        trading.rows.add_instance(made)
        trading.write.signal("instance", instance_id, 0.0)
        trading.notice(
            deployment.workspace_id, "instance.created", instance_id,
            {"name": made.name, "deployment": deployment.deployment_id, "capacity": deployment.capacity_id},
        )  # fmt: skip


def _free_name(trading: Trading, deployment: Deployment, instance_id: str) -> str:
    made = names(deployment.instance_name_template, instance_id)
    for _ in range(TRIES_MAX):
        name = next(made)
        if trading.write.instance_named(deployment.workspace_id, name) is None:
            return name
    # A template that cannot give a free name in so many draws (one that predates its check) must not stop the market.
    return instance_id
