"""What a deleted kind of node means for the desk, and what it remembers of early starts after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from desk_stage import SKU, Stage

from nanopod.model.capacity import SkuLife
from nanopod.model.errors import Invalid


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def test_a_sku_is_deleted_only_when_nothing_is_left_of_it(stage: Stage) -> None:
    stage.nodes(2)
    stage.order("ann", "buy", 1, 0, 2, 1)
    with pytest.raises(Invalid, match=r"2 nodes up, 1 open order, future allocation in 2 capacities"):
        stage.do(lambda market: market.sku_check(SKU))


def test_a_deleted_sku_refuses_orders_and_makes_no_time(stage: Stage) -> None:
    stage.do(lambda market: market.sku_check(SKU))
    stage.write(lambda write: write.set_sku_life(SKU, SkuLife(lifecycle="deleted", deleted_at=stage.now)))
    stage.nodes(2)
    assert stage.owned("north") == 0
    with pytest.raises(Invalid, match="instance_sku: is deleted"):
        stage.order("ann", "buy", 1, 0, 2, 1)
    made = stage.procure("ann", max_buy=20, window=30)
    stage.deploy("ann", 1)
    now = stage.read(lambda read: read.procurement(made.procurement_id))
    assert now is not None and now.status is not None
    assert now.status.message == "no_supply: the instance SKU is deleted"


@pytest.mark.parametrize("restarts", [False, True])
def test_w6_early_starts_are_remembered_over_a_restart(stage: Stage, restarts: bool) -> None:
    stage.nodes(4, floor=10)
    early = []
    for turn in range(2):
        fleet = stage.deploy("ann", 1, name=f"f{turn}")
        stage.order("ann", "buy", 10, 0, 1, 1)
        own = [one for one in stage.instances("ann") if one.deployment_id == fleet.deployment_id]
        early.append([one.early_until is not None for one in own])
        stage.scale(fleet, target_instance_count=0)
        stage.end_stopped()
        stage.blocks(2)
        if restarts:
            stage.restart()
    assert early == [[True], [False]], "the second one would start for nothing once more"
