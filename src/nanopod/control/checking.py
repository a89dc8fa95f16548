"""Specifications of models, graphs and traffic that cannot work are refused here, by the name of the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nanopod.model import graphs
from nanopod.model.endpoint import EndpointSpec, ModelSpec, StorageSpec, Traffic
from nanopod.model.errors import Invalid

SLOTS_MAX: Final = 10_000
INTEGER_MAX: Final = 2**63 - 1
FORMATS: Final = ("sklearn", "xgboost", "lightgbm", "onnx", "pytorch", "huggingface")
"""What our own model server serves."""
TRAFFIC_MAX: Final = 100
_TAG: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_model(spec: EndpointSpec) -> None:
    """Raises `Invalid` for a model that no engine can serve as it is specified."""
    model = spec.model
    if model is None:
        raise Invalid("model: an endpoint of kind 'model' needs {model_id, engine, source or argv}", field="model")
    if not model.model_id or len(model.model_id) > 255:
        raise Invalid("model.model_id: give the name that requests use, at most 255 characters", field="model.model_id")
    if not 1 <= model.slots <= SLOTS_MAX:
        raise Invalid(f"model.slots: {model.slots} must be from 1 to {SLOTS_MAX}", field="model.slots")
    if model.engine == "command" and not model.argv:
        raise Invalid("model.argv: engine 'command' needs the command line that starts it", field="model.argv")
    if model.engine == "reference" and not model.source:
        raise Invalid(
            "model.source: engine 'reference' needs a directory, a packaged name or a hub id", field="model.source"
        )
    if model.engine == "python":
        raise Invalid("model.engine: choose 'reference', 'command' or 'server'", field="model.engine")
    if model.engine == "server":
        _check_server(model)
    if not model.protocols:
        raise Invalid("model.protocols: name at least one of 'openai', 'v1', 'v2', 'http'", field="model.protocols")
    if not 0 <= model.port <= 65_535:
        raise Invalid(f"model.port: {model.port} must be from 1 to 65535, or 0 for a free one", field="model.port")
    for index, storage in enumerate(model.storage):
        _check_storage(storage, f"model.storage[{index}]")
    names = [model.model_id]
    for index, other in enumerate(model.models):
        at = f"model.models[{index}]"
        if not other.name or other.name in names:
            raise Invalid(f"{at}.name: {other.name!r} is empty or there twice", field=f"{at}.name")
        if other.format not in FORMATS:
            raise Invalid(f"{at}.format: {other.format!r} must be one of {', '.join(FORMATS)}", field=f"{at}.format")
        _check_storage(other.storage, f"{at}.storage")
        names.append(other.name)


def _check_server(model: ModelSpec) -> None:
    if model.format not in FORMATS:
        raise Invalid(
            f"model.format: {model.format!r} must be one of {', '.join(FORMATS)} for engine 'server'",
            field="model.format",
        )
    if not model.storage and not model.source and not model.models:
        raise Invalid(
            "model.storage: engine 'server' needs the files of its model: give {uri, path}, or a directory as source",
            field="model.storage",
        )


def _check_storage(storage: StorageSpec, at: str) -> None:
    if not storage.uri.strip():
        raise Invalid(f"{at}.uri: say where the files are, such as s3://bucket/prefix", field=f"{at}.uri")
    if not storage.path.startswith("/") or ".." in storage.path.split("/"):
        raise Invalid(f"{at}.path: {storage.path!r} must be an absolute path without '..'", field=f"{at}.path")


def check_numbers(value: Any, field: str = "") -> None:
    """Raises `Invalid` naming a whole number of more than 64 bits: what has one can be sent to no node or gateway."""
    if isinstance(value, int):
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise Invalid(f"{field}: a whole number of {value.bit_length()} bits; at most 63 can be kept", field=field)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_numbers(inner, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            check_numbers(inner, f"{field}[{at}]")


def check_traffic(traffic: Sequence[Traffic]) -> None:
    """Raises `Invalid` for shares that are not 100 in all, or tags that cannot be part of a host."""
    if not traffic:
        return
    if len(traffic) > TRAFFIC_MAX:
        raise Invalid(f"traffic: at most {TRAFFIC_MAX} rows, not {len(traffic)}", field="traffic")
    tags: set[str] = set()
    for index, row in enumerate(traffic):
        at = f"traffic[{index}]"
        if not 0 <= row.percent <= 100:
            raise Invalid(f"{at}.percent: {row.percent} must be from 0 to 100", field=f"{at}.percent")
        if row.tag and not _TAG.fullmatch(row.tag):
            raise Invalid(
                f"{at}.tag: {row.tag!r} must be lower-case letters, digits and -, at most 63, as part of a host name",
                field=f"{at}.tag",
            )
        if row.tag in tags:
            raise Invalid(f"{at}.tag: {row.tag!r} is there twice", field=f"{at}.tag")
        tags |= {row.tag} - {""}
    total = sum(row.percent for row in traffic)
    if total != 100:
        raise Invalid(f"traffic: the percents add up to {total}; they must be 100", field="traffic")


def check_graph(spec: EndpointSpec) -> None:
    """Raises `Invalid` for an endpoint that is more than a graph, or whose graph cannot be walked."""
    graph = spec.graph
    if graph is None:
        raise Invalid("graph: an endpoint of kind 'graph' needs {nodes: {root: ...}}", field="graph")
    if spec.model is not None or spec.functions or spec.asgi or spec.bundle:
        raise Invalid("graph: an endpoint of kind 'graph' has no model, functions or bundle of its own", field="graph")
    graphs.check_graph(graph)
