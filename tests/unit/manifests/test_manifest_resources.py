"""Quantities, selectors and affinities as requirements that kinds of nodes meet or do not."""

from __future__ import annotations

from decimal import Decimal

import pytest
from manifest_stage import said, service, spec_of

from nanopod.model.capacity import Sku
from nanopod.scheduler.placement.fit import fit
from nanopod.server.manifests.resources import CLASSES, both, either, quantity


def node(gpu: str = "none", count: int = 1, mib: int = 0, *, cpus: int = 32, region: str = "ORD1") -> Sku:
    return Sku(
        "isku_x", "x", accelerator=gpu, num_accelerators=count if mib else 0, accelerator_memory=mib << 20,
        num_vcpus=cpus, memory=256 << 30, local_storage=10**12, region=region,
    )  # fmt: skip


NODES = {
    "A40": node("A40", 8, 46_068),
    "A100-80": node("A100 SXM4", 8, 81_920),
    "A100-40": node("A100 SXM4", 8, 40_960, region="LGA1"),
    "H100": node("H100 SXM", 8, 81_559),
    "A5000": node("RTX A5000", 4, 24_564),
    "5000": node("Q RTX 5000", 1, 16_384),
    "4000": node("Q RTX 4000", 1, 8_192),
    "cpu": node(),
}


def fitting(pod: str) -> set[str]:
    """Names of the nodes that meet the placement of a predictor."""
    head = "model: {modelFormat: {name: sklearn}, storageUri: 's3://b/m'}"
    query = spec_of(service(f"{{{head}, {pod}}}")).image.query
    return {name for name, sku in NODES.items() if fit(query, sku).good}


def affinity(*terms: str) -> str:
    joined = ", ".join(f"{{matchExpressions: [{term}]}}" for term in terms)
    required = f"requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{joined}]}}"
    return f"affinity: {{nodeAffinity: {{{required}}}}}"


def expression(key: str, operator: str, *values: str) -> str:
    words = "" if not values else ", values: [" + ", ".join(f"'{value}'" for value in values) + "]"
    return f"{{key: {key}, operator: {operator}{words}}}"


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2", "2"), ("16Gi", str(16 * 2**30)), ("16G", "16000000000"), ("1e3", "1000"), ("1.5k", "1500"),
     ("0", "0"), ("100u", "0.0001"), ("1Ki", "1024"), ("2E", "2000000000000000000")],
)  # fmt: skip
def test_quantities(text: str, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "abc", "5 Gi", "1Gib", "--1", "0x10", "1e", "NaN", "inf"])
def test_what_is_no_quantity_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


GPU = "gpu.nvidia.com/"


@pytest.mark.parametrize(
    ("pod", "good"),
    [
        (affinity(expression(GPU + "class", "In", "A40")), {"A40"}),
        (affinity(expression(GPU + "class", "In", "A40", "RTX_A5000")), {"A40", "A5000"}),
        (affinity(expression(GPU + "class", "In", "A100_NVLINK_80GB")), {"A100-80"}),
        (affinity(expression(GPU + "class", "In", "A100_NVLINK")), {"A100-40"}),
        (affinity(expression(GPU + "class", "In", "H100_NVLINK_80GB")), {"H100"}),
        (affinity(expression(GPU + "class", "In", "Quadro_RTX_5000")), {"5000"}),
        (affinity(expression(GPU + "vram", "Gt", "40")), {"A40", "A100-80", "H100"}),
        (affinity(expression(GPU + "vram", "Lt", "24")), {"5000", "4000", "cpu"}),
        (affinity(expression(GPU + "vram", "In", "48", "8")), {"A40", "4000"}),
        (affinity(expression(GPU + "vram", "Gt", "10"), expression(GPU + "class", "In", "Quadro_RTX_4000")),
         set(NODES) - {"cpu"}),
        # Expressions of one term hold together, terms are alternatives.
        (affinity(f"{expression(GPU + 'vram', 'Gt', '20')}, {expression('topology.kubernetes.io/region', 'In', 'LGA1')}"),
         {"A100-40"}),
        (affinity(expression("topology.kubernetes.io/region", "NotIn", "ORD1")), {"A100-40"}),
        (affinity(expression(GPU + "class", "NotIn", "A40", "H100_NVLINK_80GB")), set(NODES) - {"A40", "H100"}),
        (affinity(expression(GPU + "class", "NotIn", "A100_NVLINK_80GB")), set(NODES) - {"A100-80"}),
        (affinity(expression(GPU + "class", "NotIn", *CLASSES)), {"cpu"}),
        (affinity(expression(GPU + "class", "Exists")), set(NODES) - {"cpu"}),
        (affinity(expression(GPU + "class", "DoesNotExist")), {"cpu"}),
        (affinity(expression("node.coreweave.cloud/class", "In", "cpu")), {"cpu"}),
        (affinity(expression(GPU + "count", "Gt", "4")), {"A40", "A100-80", "A100-40", "H100"}),
        ("nodeSelector: {gpu.nvidia.com/class: A40}", {"A40"}),
        ("nodeSelector: {gpu.nvidia.com/vram: 80, topology.kubernetes.io/region: ORD1}", {"A100-80", "H100"}),
        ("nodeSelector: {nvidia.com/gpu.product: NVIDIA-A40}", {"A40"}),
        ("nodeSelector: {kubernetes.io/os: linux}", set(NODES)),
    ],
)  # fmt: skip
def test_which_nodes_a_placement_means(pod: str, good: set[str]) -> None:
    assert fitting(pod) == good


def test_every_class_has_its_memory() -> None:
    assert {name: memory for name, (_, memory) in CLASSES.items()} == {
        "H100_NVLINK_80GB": 80, "H100_PCIE": 80, "A100_NVLINK_80GB": 80, "A100_PCIE_80GB": 80, "A40": 48,
        "RTX_A6000": 48, "A100_NVLINK": 40, "A100_PCIE_40GB": 40, "RTX_A5000": 24, "RTX_A4000": 16,
        "Tesla_V100_NVLINK": 16, "Quadro_RTX_5000": 16, "Quadro_RTX_4000": 8,
    }  # fmt: skip


MODEL = "modelFormat: {name: sklearn}, storageUri: 's3://b/m'"


def test_requests_count_and_default_to_limits() -> None:
    text = service(f"{{model: {{{MODEL}, resources: {{requests: {{cpu: 500m}}, limits: {{cpu: 3, memory: 16Gi, "
                   "nvidia.com/gpu: 2}}}}")  # fmt: skip
    image = spec_of(text).image
    assert image.query == {"cpu_cores": {"gte": 0.5}, "cpu_ram": {"gte": 16 * 1024}, "num_gpus": {"gte": 2}}
    assert image.strict, "without a GPU it waits, as it does elsewhere"
    loose = text.replace("annotations: {}", "annotations: {nanopod/strict-hardware: 'false'}")
    assert not spec_of(loose).image.strict


@pytest.mark.parametrize(("vendor", "names"), [("amd.com/gpu", "Instinct"), ("intel.com/gpu", "Data Center GPU Max")])
def test_another_vendor_is_asked_for_by_its_gpus(vendor: str, names: str) -> None:
    text = service(f"{{model: {{{MODEL}, resources: {{limits: {{{vendor}: 1}}}}}}}}")
    image = spec_of(text).image
    assert image.strict
    assert not any(fit(image.query, sku).good for sku in NODES.values())
    assert names in image.query["gpu_name"]["in"][0 if "intel" in vendor else 4]


@pytest.mark.parametrize(
    ("predictor", "path", "words"),
    [
        (f"{{model: {{{MODEL}, resources: {{limits: {{cpu: lots}}}}}}}}", "model.resources.limits.cpu", "no quantity"),
        (f"{{model: {{{MODEL}, resources: {{limits: {{memory: -1Gi}}}}}}}}", "model.resources.limits.memory", "negative"),
        (f"{{model: {{{MODEL}, resources: {{limits: {{nvidia.com/gpu: 0.5}}}}}}}}",
         'model.resources.limits["nvidia.com/gpu"]', "whole numbers"),
        (f"{{model: {{{MODEL}, resources: {{limits: {{cpu: 1}}, requests: {{cpu: 2}}}}}}}}",
         "model.resources.requests.cpu", "above its limit 1"),
        (f"{{model: {{{MODEL}, resources: {{limits: {{nvidia.com/gpu: 1, amd.com/gpu: 1}}}}}}}}",
         'model.resources.limits["amd.com/gpu"]', "one vendor"),
        (f"{{model: {{{MODEL}}}, {affinity(expression(GPU + 'class', 'Near', 'A40'))}}}",
         "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
         ".matchExpressions[0].operator", "'Near' is not possible"),
        (f"{{model: {{{MODEL}}}, {affinity(expression(GPU + 'class', 'In', 'B9000'))}}}",
         "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]",
         "'B9000' is not known"),
        (f"{{model: {{{MODEL}}}, {affinity(expression(GPU + 'vram', 'Gt', 'big'))}}}",
         "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
         ".matchExpressions[0].values", "one whole number"),
        (f"{{model: {{{MODEL}}}, {affinity(expression(GPU + 'class', 'Exists', 'A40'))}}}",
         "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
         ".matchExpressions[0].values", "takes none"),
        (f"{{model: {{{MODEL}}}, nodeSelector: {{kubernetes.io/os: windows}}}}", 'nodeSelector["kubernetes.io/os"]',
         "run linux"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused_with_its_line(predictor: str, path: str, words: str) -> None:
    found = said(service(predictor))
    assert [(line, where) for line, where, _ in found] == [(4, f"spec.predictor.{path}")]
    assert words in found[0][2]


def test_what_no_node_has_is_warned_of() -> None:
    text = service(
        f"{{model: {{{MODEL}, resources: {{limits: {{example.com/fpga: 1}}}}}}, nodeSelector: {{disktype: ssd}}, "
        "affinity: {podAntiAffinity: {}, nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}}"
    )
    warned = {path.removeprefix("spec.predictor.") for _, path, _ in said(text, level="warning")}
    assert warned == {
        'model.resources.limits["example.com/fpga"]', "nodeSelector.disktype", "affinity.podAntiAffinity",
        "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution",
    }  # fmt: skip


def test_requirements_join() -> None:
    assert both({"a": {"gte": 1}}, {"a": {"gte": 2, "lt": 9}, "b": {"eq": "x"}}) == {
        "a": {"gte": 2, "lt": 9}, "b": {"eq": "x"},
    }  # fmt: skip
    assert both({"a": {"eq": "x"}}, {"a": {"eq": "y"}}) == {"a": {"in": []}}, "nothing is both"
    assert both({"a": {"neq": "x"}}, {"a": {"neq": "y"}}) == {"a": {"neq": "x", "notin": ["y"]}}
    left, right = either([{"a": {"eq": 1}}, {"a": {"eq": 2}}]), either([{"b": {"eq": 3}}, {"b": {"eq": 4}}])
    assert len(both(left, right)["any"]) == 4
    assert either([{"a": {"eq": 1}}, {}]) == {}, "one alternative asks for nothing"
