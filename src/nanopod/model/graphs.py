"""What an inference graph may look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from nanopod.model.endpoint import GraphNode, GraphSpec, GraphStep
from nanopod.model.errors import Invalid
from nanopod.model.jsonpath import read

ROOT: Final = "root"
NODES_MAX: Final = 100
STEPS_MAX: Final = 100
TIMEOUT_S_MAX: Final = 600.0
_ADDRESS: Final = re.compile(r"[!-~]+")


def check_graph(graph: GraphSpec) -> None:
    """Raises `Invalid` naming the node, the step and what to change."""
    if ROOT not in graph.nodes:
        raise _wrong("nodes", f"there is no node {ROOT!r}, where a graph begins")
    if len(graph.nodes) > NODES_MAX:
        raise _wrong("nodes", f"{len(graph.nodes)} nodes; at most {NODES_MAX}")
    if not 0 < graph.timeout_s <= TIMEOUT_S_MAX:
        raise _wrong("timeout_s", f"{graph.timeout_s:g} must be above 0 and at most {TIMEOUT_S_MAX:g} seconds")
    for name, node in graph.nodes.items():
        _check_node(f"nodes.{name}", node, graph.nodes)
    _check_ends(graph.nodes)


def _wrong(field: str, why: str) -> Invalid:
    return Invalid(f"graph.{field}: {why}", field=f"graph.{field}")


def _check_node(field: str, node: GraphNode, nodes: Mapping[str, GraphNode]) -> None:
    if not 1 <= len(node.steps) <= STEPS_MAX:
        raise _wrong(f"{field}.steps", f"{len(node.steps)} steps; give 1 to {STEPS_MAX}")
    for index, step in enumerate(node.steps):
        _check_step(f"{field}.steps[{index}]", step, node, nodes)
    if node.router == "Splitter":
        total = sum(step.weight for step in node.steps)
        if total != 100:
            raise _wrong(f"{field}.steps", f"the weights of a splitter sum to 100, not to {total}")
    if node.router == "Ensemble":
        keys = [step.name or str(index) for index, step in enumerate(node.steps)]
        if twice := next((key for key in keys if keys.count(key) > 1), ""):
            raise _wrong(f"{field}.steps", f"two answers of the ensemble would be called {twice!r}; give other names")


def _check_step(field: str, step: GraphStep, node: GraphNode, nodes: Mapping[str, GraphNode]) -> None:
    targets = [name for name in ("service", "url", "node") if getattr(step, name)]
    if len(targets) != 1:
        found = " and ".join(targets) or "none"
        raise _wrong(field, f"exactly one of serviceName, serviceUrl and nodeName says who answers, not {found}")
    if step.node and step.node not in nodes:
        raise _wrong(f"{field}.node", f"there is no node {step.node!r}; there is {', '.join(sorted(nodes))}")
    if step.url:
        if not _ADDRESS.fullmatch(step.url):
            raise _wrong(f"{field}.url", f"{step.url!r} holds blanks or letters that must be percent-encoded")
        try:
            parts = urlsplit(step.url)
            _ = parts.port  # read here alone, it says what is wrong with it
        except ValueError as error:
            raise _wrong(f"{field}.url", f"{step.url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _wrong(f"{field}.url", f"{step.url!r} is not an http:// or https:// address")
    if step.condition:
        try:
            read(step.condition)
        except Invalid as error:
            raise _wrong(f"{field}.condition", str(error).removeprefix("condition: ")) from None
    elif node.router == "Switch":
        raise _wrong(
            f"{field}.condition", "every step of a switch has a condition, a JSON path that must find something"
        )
    if node.router == "Splitter" and not 0 <= step.weight <= 100:
        raise _wrong(f"{field}.weight", f"{step.weight} must be from 0 to 100")


def _check_ends(nodes: Mapping[str, GraphNode]) -> None:
    """Every way through the graph ends."""
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " -> ".join((*way[way.index(name) :], name))
            raise _wrong(f"nodes.{name}", f"the graph goes in a circle: {circle}")
        if name in done:
            return
        for step in nodes[name].steps:
            if step.node:
                walk(step.node, (*way, name))
        done.add(name)

    for name in nodes:
        walk(name, ())
