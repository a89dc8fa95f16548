"""What an inference graph may look like, and what it is told when it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nanopod.model.endpoint import GraphNode, GraphSpec, GraphStep
from nanopod.model.errors import Invalid
from nanopod.model.graphs import check_graph

A = GraphStep(service="a")


def graph(**nodes: GraphNode) -> GraphSpec:
    return GraphSpec(nodes)


GOOD = graph(
    root=GraphNode("Sequence", (A, GraphStep(node="choose", data="$response"))),
    choose=GraphNode("Switch", (GraphStep(service="b", condition='x.#(y=="z")'), GraphStep(node="mix", condition="x"))),
    mix=GraphNode("Splitter", (replace(A, weight=40), GraphStep(url="http://h/p", weight=60))),
    all=GraphNode("Ensemble", (A, replace(A, name="second"))),
)


def test_a_graph_with_every_router_is_good() -> None:
    check_graph(GOOD)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (graph(other=GraphNode("Sequence", (A,))), "no node 'root'"),
        (graph(root=GraphNode("Sequence", ())), "nodes.root.steps: 0 steps"),
        (graph(root=GraphNode("Sequence", (GraphStep(),))), "exactly one of serviceName, serviceUrl and nodeName"),
        (graph(root=GraphNode("Sequence", (GraphStep(service="a", url="http://b"),))), "not service and url"),
        (graph(root=GraphNode("Sequence", (GraphStep(node="x"),))), "there is no node 'x'; there is root"),
        (graph(root=GraphNode("Sequence", (GraphStep(url="ftp://b"),))), "not an http://"),
        (graph(root=GraphNode("Splitter", (replace(A, weight=50),))), "sum to 100, not to 50"),
        (graph(root=GraphNode("Splitter", (replace(A, weight=-1), replace(A, weight=101)))), "-1 must be from 0"),
        (graph(root=GraphNode("Switch", (A,))), "has a condition"),
        (graph(root=GraphNode("Switch", (replace(A, condition="a.#("),))), "root.steps[0].condition"),
        (graph(root=GraphNode("Ensemble", (replace(A, name="1"), A))), "would be called '1'"),
        (
            graph(
                root=GraphNode("Sequence", (GraphStep(node="b"),)), b=GraphNode("Sequence", (GraphStep(node="root"),))
            ),
            "in a circle: root -> b -> root",
        ),
        (replace(GOOD, timeout_s=0), "timeout_s: 0 must be above 0"),
    ],
)
def test_a_bad_graph_is_told_where_and_why(bad: GraphSpec, told: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_graph(bad)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://h:99999/", "http://h/a b", "http://h/\r\nx: y", "http://h/\u00e9", "http://[::1/"]
)
def test_an_address_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(Invalid, match=r"nodes.root.steps\[0\].url"):
        check_graph(GraphSpec({"root": GraphNode("Sequence", (GraphStep(url=url),))}))
