"""Hardware requirements against kinds of nodes, and which of several is taken."""

from __future__ import annotations

from typing import Any

import pytest

from nanopod.model.capacity import Sku
from nanopod.scheduler.placement.fit import Option, choose, fit, fitting, price_cap

GIB = 1 << 30
CPU = Sku("s-cpu", "cpu-8x", num_vcpus=8, memory=32 * GIB, local_storage=500 * 10**9)
GPU = Sku(
    "s-gpu", "2x-rtx-4090", "RTX 4090", 2, 24_564 << 20, num_vcpus=32, memory=128 * GIB, local_storage=2 * 10**12
)  # fmt: skip
BIG = Sku("s-big", "8x-h100-sxm", "H100 SXM", 8, 80 * GIB, num_vcpus=192, memory=2048 * GIB, local_storage=10**13)


@pytest.mark.parametrize(
    ("query", "good"),
    [
        ({}, (True, True, True)),
        ({"gpu_name": {"eq": "RTX 4090"}}, (False, True, False)),
        ({"gpu_name": {"eq": "rtx_4090"}}, (False, True, False)),
        ({"gpu_name": {"in": ["RTX 4090", "H100 SXM"]}}, (False, True, True)),
        ({"gpu_name": {"notin": ["RTX 4090"]}}, (True, False, True)),
        ({"num_gpus": {"gte": 2}}, (False, True, True)),
        ({"num_gpus": {"eq": 8}}, (False, False, True)),
        ({"gpu_ram": {"gte": 24_000}}, (False, True, True)),
        ({"gpu_ram": {"gt": 48_000, "lt": 100_000}}, (False, False, True)),
        ({"gpu_total_ram": {"gte": 49_000}}, (False, True, True)),
        ({"cpu_cores": {"lte": 32}}, (True, True, False)),
        ({"cpu_ram": {"gte": 32_000}}, (True, True, True)),
        ({"cpu_ram": {"gte": "64000"}}, (False, True, True)),
        ({"disk_space": {"gte": 1000}}, (False, True, True)),
        ({"gpu_name": {"neq": "H100 SXM"}, "num_gpus": {"gte": 1}}, (False, True, False)),
        ({"any": [{"num_gpus": {"eq": 8}}, {"cpu_cores": {"lt": 16}}]}, (True, False, True)),
        ({"verified": {"eq": True}, "reliability": {"gt": 0.99}}, (True, True, True)),
    ],
)
def test_conditions(query: dict[str, Any], good: tuple[bool, bool, bool]) -> None:
    assert tuple(fit(query, sku).good for sku in (CPU, GPU, BIG)) == good


def test_what_is_unmet_and_what_is_unknown_is_named() -> None:
    found = fit({"num_gpus": {"gte": 2}, "inet_down": {"gt": 100}, "verified": {"eq": True}}, CPU)
    assert found.unmet == ("num_gpus gte 2 (it has 0)",)
    assert found.unknown == ("inet_down",)


def test_the_only_kind_is_taken_and_says_what_it_lacks() -> None:
    found = choose({"gpu_name": {"eq": "RTX 4090"}}, [Option(CPU, 4)])
    assert found.sku_id == "s-cpu"
    assert "although it does not meet: gpu_name" in found.reasons[0]


def test_no_node_yet() -> None:
    assert choose({}, []).sku_id == ""


def test_nothing_fits() -> None:
    found = choose({"num_gpus": {"gte": 4}}, [Option(CPU, 4), Option(GPU, 4)])
    assert found.sku_id == ""
    assert found.reasons[0] == "no kind of node meets its requirements"
    assert len(found.reasons) == 3


def test_free_before_cheap_before_name() -> None:
    cheap_but_full = Option(CPU, 4, 0, 10)
    free = Option(GPU, 4, 2, 50)
    freer = Option(BIG, 8, 8, 90)
    assert choose({}, [cheap_but_full, free, freer]).sku_id == "s-gpu", "both have room for one: the cheaper"
    assert choose({}, [cheap_but_full, free, freer], wanted=3).sku_id == "s-big"
    assert choose({}, [Option(GPU, 4), Option(CPU, 4)]).sku_id == "s-gpu", "by name, when nothing else tells"


def test_what_nodes_say_is_judged_too() -> None:
    facts = {"driver_version": "535.104.05", "reliability": 0.98, "inet_down": 800, "cuda_max_good": 12.2}
    assert fit({"driver_version": {"gte": "535.86.01"}, "reliability": {"gt": 0.95}}, GPU, facts).good
    assert not fit({"driver_version": {"gte": "535.110"}}, GPU, facts).good
    found = fit({"inet_down": {"gte": 1000}, "cuda_max_good": {"gte": 12.0}, "dlperf": {"gt": 1}}, GPU, facts)
    assert found.unmet == ("inet_down gte 1000 (it has 800)",)
    assert found.unknown == ("dlperf",)


def test_prices_limit_and_filter_nothing() -> None:
    query = {"dph_total": {"lte": 0.5}, "num_gpus": {"gte": 1}}
    assert fit(query, GPU).good
    assert not fit(query, GPU).unknown
    assert price_cap(query, None) == 0.5
    assert price_cap(query, 0.2) == 0.2
    assert price_cap({"dph_total": {"gte": 1}}, None) is None
    assert price_cap({}, 3.0) == 3.0


def test_accelerators_are_overlooked_only_where_there_are_none_at_all() -> None:
    query = {"gpu_name": {"eq": "RTX 4090"}, "cpu_cores": {"gte": 4}}
    plain = fitting(query, [(CPU, {})])
    assert plain.good == ("s-cpu",)
    assert "although it does not meet: gpu_name" in plain.note
    assert fitting(query, [(CPU, {})], strict=True).good == ()
    assert fitting({**query, "cpu_cores": {"gte": 64}}, [(CPU, {})]).good == (), "what a plain machine can lack counts"
    assert fitting({"gpu_name": {"eq": "L4"}}, [(CPU, {}), (GPU, {})]).good == ()
    either = {"any": [{"num_gpus": {"gte": 1}}, {"cpu_cores": {"gte": 99}}]}
    assert fitting(either, [(CPU, {})]).good == ("s-cpu",)
    said = fitting(query, [(CPU, {})], strict=True).said
    assert said.startswith("no kind of node meets its requirements (cpu-8x: gpu_name eq 'RTX 4090'")


def test_the_most_preferred_kind_that_can_be_had() -> None:
    prefer = [{"gpu_name": {"eq": "H100 SXM"}}, {"gpu_name": {"eq": "RTX 4090"}}]
    query = {"gpu_name": {"in": ["H100 SXM", "RTX 4090"]}}
    both = [Option(GPU, 4, 4, 50), Option(BIG, 8, 8, 900), Option(CPU, 4, 4, 1)]
    assert choose(query, both, prefer=prefer).sku_id == "s-big"
    assert "number 1 of 2 preferred" in choose(query, both, prefer=prefer).reasons
    taken = [Option(GPU, 4, 4, 50), Option(BIG, 8, 0, 900)]
    assert choose(query, taken, prefer=prefer).sku_id == "s-gpu"
    dear = choose(query, both, prefer=prefer, cap=100)
    assert (dear.sku_id, dear.at_hand) == ("s-gpu", True)
    none = choose(query, [Option(GPU, 4, 0, 50), Option(BIG, 8, 0, 900)], prefer=prefer)
    assert (none.sku_id, none.at_hand) == ("s-big", False)
