"""Specifications of models, graphs and traffic that cannot work, by the field that they name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nanopod.control.update import check, compare, fingerprinted
from nanopod.model.endpoint import (
    EndpointSpec,
    GraphNode,
    GraphSpec,
    GraphStep,
    LoadedModel,
    ModelSpec,
    StorageSpec,
    Traffic,
)
from nanopod.model.errors import Invalid

IRIS = ModelSpec("iris", "server", format="sklearn", protocols=("v1",), storage=(StorageSpec("s3://b/iris"),))
FIRST = GraphStep("first", service="a")


def graph(**nodes: GraphNode) -> EndpointSpec:
    return EndpointSpec("g", kind="graph", graph=GraphSpec(nodes))


def sequence(*steps: GraphStep) -> GraphNode:
    return GraphNode("Sequence", steps)


def refused(spec: EndpointSpec) -> str:
    with pytest.raises(Invalid) as caught:
        check(spec)
    assert caught.value.field is not None
    return caught.value.field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"format": ""}, "model.format"),
        ({"format": "paddle"}, "model.format"),
        ({"storage": ()}, "model.storage"),
        ({"storage": (StorageSpec(" "),)}, "model.storage[0].uri"),
        ({"storage": (StorageSpec("s3://b", "models"),)}, "model.storage[0].path"),
        ({"storage": (StorageSpec("s3://b", "/mnt/../etc"),)}, "model.storage[0].path"),
        ({"protocols": ()}, "model.protocols"),
        ({"port": 70_000}, "model.port"),
        ({"models": (LoadedModel("iris", "onnx", StorageSpec("s3://b")),)}, "model.models[0].name"),
        ({"models": (LoadedModel("two", "elf", StorageSpec("s3://b")),)}, "model.models[0].format"),
        ({"models": (LoadedModel("two", "onnx", StorageSpec("")),)}, "model.models[0].storage.uri"),
    ],
)
def test_models_of_our_own_server(more: dict[str, Any], field: str) -> None:
    check(EndpointSpec("iris", kind="model", model=IRIS))
    assert refused(EndpointSpec("iris", kind="model", model=replace(IRIS, **more))) == field


@pytest.mark.parametrize(
    ("traffic", "field"),
    [
        ((Traffic("r1", 60), Traffic("r2", 30)), "traffic"),
        ((Traffic("r1", 101), Traffic("r2", -1)), "traffic[0].percent"),
        ((Traffic("r1", 100, "No_Host"),), "traffic[0].tag"),
        ((Traffic("r1", 50, "a"), Traffic("r2", 50, "a")), "traffic[1].tag"),
        (tuple(Traffic(f"r{n}", 0) for n in range(101)), "traffic"),
    ],
)
def test_traffic(traffic: tuple[Traffic, ...], field: str) -> None:
    served = EndpointSpec("iris", kind="model", model=IRIS)
    check(replace(served, traffic=(Traffic("r1", 90), Traffic("", 10, "latest"), Traffic("r0", 0, "old"))))
    assert refused(replace(served, traffic=traffic)) == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (EndpointSpec("g", kind="graph"), "graph"),
        (graph(other=sequence(FIRST)), "graph.nodes"),
        (graph(root=sequence(GraphStep("x", node="none"))), "graph.nodes.root.steps[0]"),
        (graph(root=GraphNode("Splitter", (replace(FIRST, weight=60), replace(FIRST, weight=30)))), "graph.nodes.root"),
        (replace(graph(root=sequence(FIRST)), model=IRIS), "graph"),
        (EndpointSpec("m", kind="model", model=IRIS, graph=GraphSpec({"root": sequence(FIRST)})), "graph"),
    ],
)
def test_graphs(spec: EndpointSpec, field: str) -> None:
    check(graph(root=sequence(FIRST, GraphStep(node="a")), a=GraphNode("Ensemble", (FIRST,))))
    assert refused(spec).startswith(field)


def test_another_graph_is_another_revision_and_a_stop_is_a_setting() -> None:
    from chain_rows import endpoint, revision

    old = fingerprinted(graph(root=sequence(FIRST)))
    here = endpoint(kind="graph", scale=old.scale, scale_fingerprint=old.fingerprints.scale)
    there = replace(revision("r1", 1), spec=old)
    assert compare(here, there, old).tier == 0
    found = compare(here, there, fingerprinted(graph(root=sequence(replace(FIRST, service="b")))))
    assert (found.tier, found.changed) == (2, ("code",))
    stopped = compare(here, there, replace(old, stopped=True))
    assert (stopped.tier, stopped.changed) == (1, ("stopped",))
    split = replace(old, traffic=(Traffic("r1", 100, "blue"),))
    assert compare(here, there, split).changed == ("traffic",)
    assert compare(replace(here, traffic=split.traffic), there, split).tier == 0
    assert compare(replace(here, traffic=split.traffic), there, old).tier == 0, "what was stated by hand stays"
    assert compare(replace(here, traffic=split.traffic), there, replace(old, manifest="Service")).changed == (
        "traffic",
    )
