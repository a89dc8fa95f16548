"""Which worker a call gets that would rather run on some GPUs, or in some region."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from nanopod.gateway.jobs import Job
from nanopod.gateway.links import WorkerLink
from nanopod.gateway.pool import Pool
from nanopod.gateway.preferring import Preference, plain
from nanopod.model.wire import RouteRow

H100, A100, L4 = "H100 SXM", "A100 SXM4", "L4"


class Host:
    now = 100.0
    waiting_bytes = 0

    def __init__(self) -> None:
        self.links: dict[str, WorkerLink] = {}

    def demand(self, endpoint_id: str, waiting: int) -> None:
        """Nobody listens."""

    def became_active(self, pool: Pool, workload: float) -> bool:
        """Nobody listens."""
        return False


@dataclass(eq=False)
class Link:
    """The part of a worker link that is chosen by."""

    name: str
    gpu: str = ""
    region: str = ""
    room: bool = True
    usable: bool = True
    revision_id: str = "r"
    doomed_at: float | None = None
    in_flight: int = 0
    slots: int = 8
    limit: int = 8
    kv_use: float = -1.0
    queued: int = 0
    perf: float | None = None
    load: float = 0.0
    keys: dict[str, None] = field(default_factory=dict)

    def has_room(self, job: Job, now: float) -> bool:
        return self.room


def pool_of(*links: Link) -> Pool:
    pool = Pool(Host(), RouteRow("e", "w", "n", "default", "function", "r"))
    pool.links = cast(list[WorkerLink], list(links))
    for link in links:
        link.gpu = plain(link.gpu)
    return pool


def chosen(pool: Pool, gpus: list[str] | None = None, region: str = "", **wishes: Any) -> set[str]:
    """Names of the workers that a call may be sent to."""
    found = set()
    for _ in range(40):
        job = Job(pool)
        if gpus or region:
            job.preference = Preference(gpus or [], region)
        for name, value in wishes.items():
            setattr(job, name, value)
        link = pool.choose(job)
        assert link is not None
        found.add(cast(Link, link).name)
    return found


def test_the_order_of_the_list_counts_and_a_full_worker_does_not() -> None:
    h, a, a2, plain_one = Link("h", H100), Link("a", "A100-SXM4"), Link("a2", A100), Link("plain")
    pool = pool_of(a, h, plain_one, a2)
    assert chosen(pool) == {"h", "a", "a2", "plain"}
    assert chosen(pool, [H100, A100]) == {"h"}
    assert chosen(pool, ["a100 sxm4", H100, A100]) == {"a", "a2"}
    h.room = False
    assert chosen(pool, [H100, A100]) == {"a", "a2"}
    a.room = a2.room = False
    assert chosen(pool, [H100, A100]) == {"plain"}, "it is no condition"


def test_what_no_worker_has_changes_nothing() -> None:
    pool = pool_of(Link("a", A100, "eu"), Link("l", L4, "us"))
    for gpus, region in ((["B200"], ""), ([], "asia"), (["B200"], "asia")):
        assert chosen(pool, gpus, region) == {"a", "l"}


@pytest.mark.parametrize(("wanted", "names"), [
    ("eu", {"eu", "eu-north"}), ("EU-north", {"eu-north"}), ("europe", {"europe"}), ("e", {"eu", "eu-north", "europe"}),
])  # fmt: skip
def test_a_region_may_be_named_by_its_first_part(wanted: str, names: set[str]) -> None:
    pool = pool_of(*(Link(region, region=region) for region in ("eu", "eu-north", "europe")))
    assert chosen(pool, region=wanted) == names


def test_gpu_before_region_before_key_and_a_worker_that_stays_before_all() -> None:
    near, far, other = Link("near", H100, "eu"), Link("far", H100, "us"), Link("other", L4, "eu")
    pool = pool_of(near, far, other)
    assert chosen(pool, [H100], "eu") == {"near"}
    near.room = False
    assert chosen(pool, [H100], "eu") == {"far"}
    near.room = True
    far.keys = other.keys = {"lora": None}
    assert chosen(pool, [H100], route_key="lora") == {"far"}
    assert chosen(pool, [H100], "eu", route_key="lora") == {"near"}
    near.doomed_at = far.doomed_at = 200.0
    assert chosen(pool, [H100], "eu") == {"other"}
