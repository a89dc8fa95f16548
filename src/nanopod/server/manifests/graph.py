"""InferenceGraph of KServe as an endpoint that gateways walk."""

from __future__ import annotations

import re
from typing import Any, Final

from nanopod.model.endpoint import EndpointSpec, GraphNode, GraphSpec, GraphStep
from nanopod.server.manifests.around import Around
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.services import STOP, Service, annotated, read_meta, warn_of_annotations

ROUTERS: Final = ("Sequence", "Splitter", "Ensemble", "Switch")
ROOT: Final = "root"
DEPTH_MAX: Final = 32
_POD: Final = (
    "resources", "affinity", "nodeSelector", "tolerations", "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric",
    "routerTimeouts", "nodeName", "serviceAccountName",
)  # fmt: skip


def read_graph(document: Document, around: Around, problems: Problems) -> Service:
    """The endpoint that an InferenceGraph is. What is wrong is noted in `problems`."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole)
    spec = whole.object("spec", required=True, fix="give spec.nodes with a node root")
    whole.done()
    spec = spec or Reader({}, "spec", problems)
    warn_of_annotations(meta, problems)
    timeout = spec.whole("timeout", least=1, most=86_400)
    spec.ignored("gateways walk the graph themselves", *_POD)
    nodes: dict[str, GraphNode] = {}
    for name, node in spec.named("nodes"):
        nodes[name] = _node(node, around, meta.name)
    spec.done()
    if ROOT not in nodes:
        spec.error(
            "nodes", f"the node {ROOT!r} is missing; the graph begins there (there are: {', '.join(nodes) or 'none'})"
        )
    _check(spec, nodes, problems)
    graph = GraphSpec(nodes, float(timeout or 60))
    made = EndpointSpec(
        meta.name, kind="graph", graph=graph, manifest="InferenceGraph", stopped=annotated(meta, STOP, problems)
    )
    return Service(made)


def _node(node: Reader, around: Around, graph: str) -> GraphNode:
    router = node.text("routerType", "Sequence", one_of=ROUTERS, required=True, fix=f"one of {', '.join(ROUTERS)}")
    readers = node.objects("steps")
    steps = tuple(_step(one, router, around, graph) for one in readers)
    if not steps:
        node.error("steps", "is missing or empty; give at least one step")
    if router == "Splitter" and steps:
        total = sum(one.weight for one in steps)
        if total != 100:
            node.error("steps", f"the weights add up to {total}; they must be 100")
    node.done()
    return GraphNode(router, steps)  # type: ignore[arg-type]


def _step(step: Reader, router: str, around: Around, graph: str) -> GraphStep:
    service, url, node = step.text("serviceName"), step.text("serviceUrl"), step.text("nodeName")
    name, condition = step.text("name"), step.text("condition")
    data = step.text("data", "$request", one_of=("$request", "$response"))
    weight = step.whole("weight", most=100)
    dependency = step.text("dependency", "Soft", one_of=("Soft", "Hard"))
    mapped = step.flag("mapPredictionsToInstances")
    step.done()
    named = [field for field in ("serviceName", "serviceUrl", "nodeName") if step.has(field)]
    if len(named) != 1:
        step.problems.error(
            step.path, f"exactly one of serviceName, serviceUrl and nodeName says who answers, not {len(named)}"
        )
    if service and service not in around.services:
        step.error("serviceName", f"there is no service {service!r}; apply it first, or in the same input")
    if service == graph:
        step.error("serviceName", "a graph cannot call itself")
    if url and not re.match(r"https?://[^/\s]+", url):
        step.error("serviceUrl", f"{url!r} is no address; begin it with http:// or https://")
    if router == "Switch" and not condition:
        step.error("condition", "is missing; each step of a Switch has one, a JSON path")
    if router == "Splitter" and weight is None:
        step.error("weight", "is missing; each step of a Splitter has one, and they add up to 100")
    if router != "Splitter" and weight is not None:
        step.warn("weight", f"is ignored: a {router} has no weights")
    words: dict[str, Any] = {"data": data, "dependency": dependency}
    return GraphStep(
        name, service, url, node, condition=condition, weight=weight or 0 if router == "Splitter" else 0,
        map_predictions=mapped, **words,
    )  # fmt: skip


def _check(spec: Reader, nodes: dict[str, GraphNode], problems: Problems) -> None:
    """Unknown nodes and cycles."""
    for name, node in nodes.items():
        for at, step in enumerate(node.steps):
            if step.node and step.node not in nodes:
                path = f"{Reader({}, spec.at('nodes'), problems).at(name)}.steps[{at}].nodeName"
                problems.error(path, f"there is no node {step.node!r} (there are: {', '.join(nodes)})")
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        path = Reader({}, spec.at("nodes"), problems).at(name)
        if name in above:
            problems.error(path, f"it calls itself ({' -> '.join([*above, name])}); a graph has no cycles")
            return
        if len(above) >= DEPTH_MAX:
            problems.error(path, f"more than {DEPTH_MAX} nodes call each other in a row; join some")
            return
        if name in done or name not in nodes:
            return
        for step in nodes[name].steps:
            if step.node:
                walk(step.node, (*above, name))
        done.add(name)

    for name in nodes:
        walk(name, ())
