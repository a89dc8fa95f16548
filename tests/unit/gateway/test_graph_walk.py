"""How an inference graph is walked: what each router does with what its steps answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nanopod.gateway.graphs import Answer, GraphRun, Graphs
from nanopod.gateway.heads import Head
from nanopod.gateway.steps import path_for
from nanopod.model.endpoint import GraphNode, GraphSpec, GraphStep
from nanopod.model.wire import KeyRow, RouteRow

Service = Callable[[dict[str, Any]], Any]


class Walk(GraphRun):
    """A walk whose services are functions: of the decoded request, to a value, or (status, value)."""

    services: dict[str, Service]
    asked: list[str]

    async def _service(self, step: GraphStep, body: bytes, depth: int) -> Answer:
        self.asked.append(step.service)
        await asyncio.sleep(0)
        found = self.services[step.service](json.loads(body))
        if isinstance(found, Awaitable):
            found = await found
        status, value = found if isinstance(found, tuple) else (200, found)
        return Answer(status, value if isinstance(value, bytes) else json.dumps(value).encode())


class Caller:
    """The connection's side that a walk uses."""

    exchange: Any = None

    def __init__(self) -> None:
        self.status, self.body = 0, b""

    def respond(self, status: int, body: bytes, *, content_type: str = "", extra: str = "") -> None:
        self.status, self.body = status, body


async def _walked(graph: GraphSpec, request: Any, services: dict[str, Service]) -> tuple[int, Any, list[str]]:
    loop = asyncio.get_running_loop()
    gateway: Any = SimpleNamespace(
        now=0.0, loop=loop, graphs=Graphs(), flush=lambda: None, request_id=lambda: "req_1", tables=None
    )
    caller = Caller()
    route = RouteRow("endp_g", "wksp_1", "g", "default", "graph", "rev_1", graph=graph)
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    walk = Walk(gateway, caller, Head(), body, KeyRow("k", "wksp_1"), route)  # type: ignore[arg-type]
    walk.services, walk.asked = services, []
    walk.start()
    assert walk._task is not None
    await walk._task
    assert not gateway.graphs.running
    return caller.status, json.loads(caller.body), walk.asked


def walked(graph: GraphSpec, request: Any, services: dict[str, Service]) -> tuple[int, Any, list[str]]:
    return asyncio.run(_walked(graph, request, services))


def one(router: Any, *steps: GraphStep, **more: Any) -> GraphSpec:
    return GraphSpec({"root": GraphNode(router, steps)}, **more)


SERVICES: dict[str, Service] = {
    "double": lambda request: {"predictions": [2 * x for x in request["instances"]]},
    "echo": lambda request: request,
    "bad": lambda request: (500, {"error": "broken"}),
    "cat": lambda request: {"predictions": ["cat"]},
    "text": lambda request: b"not JSON",
}


def test_a_sequence_hands_on_the_request_or_the_answer() -> None:
    graph = one("Sequence", GraphStep(service="double"), GraphStep(service="echo"))
    assert walked(graph, {"instances": [1]}, SERVICES) == (200, {"instances": [1]}, ["double", "echo"])
    graph = one("Sequence", GraphStep(service="double"), GraphStep(service="echo", data="$response"))
    assert walked(graph, {"instances": [1]}, SERVICES)[:2] == (200, {"predictions": [2]})
    graph = one(
        "Sequence", GraphStep(service="double"), GraphStep(service="double", data="$response", map_predictions=True)
    )
    assert walked(graph, {"instances": [1, 2]}, SERVICES)[:2] == (200, {"predictions": [4, 8]})


def test_a_sequence_ends_at_a_condition_or_a_hard_failure() -> None:
    dog = '[@this].#(predictions.0=="dog")'
    graph = one("Sequence", GraphStep(service="cat"), GraphStep(service="double", condition=dog))
    assert walked(graph, {"instances": [1]}, SERVICES) == (200, {"predictions": ["cat"]}, ["cat"])
    graph = one("Sequence", GraphStep(service="bad", dependency="Hard"), GraphStep(service="double"))
    assert walked(graph, {"instances": [1]}, SERVICES) == (500, {"error": "broken"}, ["bad"])
    graph = one("Sequence", GraphStep(service="bad"), GraphStep(service="double"))
    assert walked(graph, {"instances": [1]}, SERVICES)[0] == 200
    graph = one("Sequence", GraphStep(service="text"), GraphStep(service="double", condition="a"))
    assert walked(graph, {}, SERVICES)[0] == 500


def test_a_switch_takes_the_first_match_and_else_says_404() -> None:
    graph = one(
        "Switch",
        GraphStep(service="double", condition='[@this].#(kind=="double")'),
        GraphStep(service="echo", condition="instances"),
    )
    assert walked(graph, {"kind": "double", "instances": [3]}, SERVICES)[1:] == ({"predictions": [6]}, ["double"])
    assert walked(graph, {"instances": [3]}, SERVICES)[2] == ["echo"]
    status, told, asked = walked(graph, {"kind": "other"}, SERVICES)
    assert (status, asked) == (404, [])
    assert "no step of the switch" in told["error"]
    assert walked(graph, b"not JSON", SERVICES)[0] == 404


def test_a_splitter_draws_by_weight() -> None:
    graph = one("Splitter", GraphStep(service="double", weight=80), GraphStep(service="echo", weight=20))

    async def many() -> Counter[str]:
        found = [await _walked(graph, {"instances": [1]}, SERVICES) for _ in range(400)]
        return Counter(asked[0] for _, _, asked in found)

    drawn = asyncio.run(many())
    # 320 expected, standard deviation 8.
    assert 240 < drawn["double"] < 390
    assert drawn["double"] + drawn["echo"] == 400


def test_an_ensemble_asks_all_at_once_and_joins_by_name() -> None:
    inside: list[int] = []
    peak: list[int] = []

    async def slow(request: Any) -> Any:
        inside.append(1)
        peak.append(len(inside))
        await asyncio.sleep(0.02)
        inside.pop()
        return request

    graph = one("Ensemble", GraphStep("a", service="slow"), GraphStep(service="slow"), GraphStep("c", service="bad"))
    status, found, _ = walked(graph, {"x": 1}, {**SERVICES, "slow": slow})
    assert (status, found) == (200, {"a": {"x": 1}, "1": {"x": 1}, "c": {"error": "broken"}})
    assert max(peak) == 2
    graph = one("Ensemble", GraphStep(service="slow"), GraphStep(service="bad", dependency="Hard"))
    assert walked(graph, {}, {**SERVICES, "slow": slow})[:2] == (500, {"error": "broken"})
    graph = one("Ensemble", GraphStep(service="text"))
    assert walked(graph, {}, SERVICES)[0] == 502


def test_nodes_lead_to_nodes() -> None:
    graph = GraphSpec(
        {
            "root": GraphNode("Sequence", (GraphStep(service="double"), GraphStep(node="both", data="$response"))),
            "both": GraphNode("Ensemble", (GraphStep("a", service="echo"), GraphStep("b", node="pick"))),
            "pick": GraphNode("Switch", (GraphStep(service="cat", condition="predictions"),)),
        }
    )
    status, found, _ = walked(graph, {"instances": [1]}, SERVICES)
    assert (status, found) == (200, {"a": {"predictions": [2]}, "b": {"predictions": ["cat"]}})


def test_a_graph_that_takes_too_long_says_so() -> None:
    async def forever(request: Any) -> Any:
        await asyncio.sleep(3600)

    graph = one("Sequence", GraphStep(service="forever"), timeout_s=0.05)
    status, told, _ = walked(graph, {}, {"forever": forever})
    assert status == 504
    assert "0.05 s" in told["error"]


@pytest.mark.parametrize(
    ("protocols", "request_", "path"),
    [
        (("v1",), {"instances": [1]}, "/v1/models/m:predict"),
        (("v2",), {"inputs": []}, "/v2/models/m/infer"),
        (("v1", "v2"), {"inputs": []}, "/v2/models/m/infer"),
        (("v2", "v1", "http"), {"instances": []}, "/v1/models/m:predict"),
        (("v2", "v1"), {"other": 1}, "/v2/models/m/infer"),
        (("http",), {}, "/"),
        (("openai",), {"messages": []}, "/v1/chat/completions"),
        (("openai",), {"prompt": ""}, "/v1/completions"),
        (("openai",), {"input": ""}, "/v1/embeddings"),
    ],
)
def test_the_path_that_a_step_asks(protocols: tuple[str, ...], request_: Any, path: str) -> None:
    route = RouteRow(
        "endp_m", "wksp_1", "m", "default", "model", "rev_1", model_ids=("m",), serves=("m",), protocols=protocols
    )
    found = path_for(route, json.dumps(request_).encode())
    assert found is not None
    assert found[0] == path
    if "openai" in protocols:
        assert json.loads(found[1])["model"] == "m"
    assert path_for(RouteRow("e", "w", "f", "default", "function", "r"), b"{}") is None


def test_nodes_that_multiply_are_stopped() -> None:
    wide = {f"n{at}": GraphNode("Ensemble", tuple(GraphStep(node=f"n{at + 1}", name=str(n)) for n in range(100)))
            for at in range(20)}  # fmt: skip
    nodes = {"root": wide["n0"], **wide, "n20": GraphNode("Sequence", (GraphStep(service="echo"),))}
    status, answer, asked = walked(GraphSpec(nodes), {}, SERVICES)
    assert (status, asked) == (508, [])
    assert "more than 1000 steps" in answer["error"]


def test_large_and_deep_bodies_are_looked_into_all_the_same() -> None:
    graph = one("Switch", GraphStep(service="echo", condition="a.#(b==2)"))
    large = {"a": [{"b": 1}] * 20_000 + [{"b": 2}]}
    assert walked(graph, large, SERVICES)[::2] == (200, ["echo"])
    assert walked(graph, b'{"a":' + b"[" * 100_000, SERVICES)[0] == 404
    assert walked(one("Switch", GraphStep(service="echo", condition=f"a.{'9' * 2000}")), {"a": [1]}, SERVICES)[0] == 404
