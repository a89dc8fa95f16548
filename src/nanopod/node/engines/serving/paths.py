"""Which model and which action a path of V1 and V2 names. No IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote

Action = Literal[
    "alive", "list", "ready", "predict", "explain", "server", "live", "server_ready", "models", "metadata", "infer",
    "load", "unload", "openai", "health", "metrics", "unknown",
]  # fmt: skip
OPENAI: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"})
_FIXED: Final[dict[str, Action]] = {
    "/": "alive", "/v1/models": "list", "/v2": "server", "/v2/health/live": "live", "/v2/health/ready": "server_ready",
    "/v2/models": "models", "/health": "health", "/metrics": "metrics",
}  # fmt: skip
_V1: Final = "/v1/models/"
_V2: Final = "/v2/models/"
_REPOSITORY: Final = "/v2/repository/models/"


@dataclass(frozen=True, slots=True)
class Place:
    """A path's meaning. `version`: of a model, "" when none is named."""

    action: Action
    model: str = ""
    version: str = ""
    method: Literal["GET", "POST"] = "GET"


def place(path: str) -> Place:
    """What a path (without its query) is for."""
    fixed = _FIXED.get(path.rstrip("/") or "/")
    if fixed is not None:
        return Place(fixed)
    if path in OPENAI:
        return Place("openai", method="POST")
    if path.startswith(_V1):
        rest = unquote(path[len(_V1) :])
        for verb in ("predict", "explain"):
            name = rest.removesuffix(f":{verb}")
            if name != rest:
                return Place("predict" if verb == "predict" else "explain", name, method="POST")
        return Place("ready", rest)
    if path.startswith(_REPOSITORY):
        name, _, verb = path[len(_REPOSITORY) :].rpartition("/")
        if name and verb in ("load", "unload"):
            return Place("load" if verb == "load" else "unload", unquote(name), method="POST")
        return Place("unknown")
    if path.startswith(_V2):
        return _v2(path[len(_V2) :])
    return Place("unknown")


def _v2(rest: str) -> Place:
    """Below `/v2/models/`: `NAME[/versions/V][/ready|/infer]`; a name may have slashes."""
    action: Action = "metadata"
    method: Literal["GET", "POST"] = "GET"
    for verb in ("infer", "ready", "explain", "config", "stats", "generate", "generate_stream", "trace/setting"):
        name = rest.removesuffix(f"/{verb}")
        if name == rest:
            continue
        rest = name
        if verb == "infer":
            action, method = "infer", "POST"
        elif verb == "explain":
            action, method = "explain", "POST"
        elif verb == "ready":
            action = "ready"
        else:
            return Place("unknown", unquote(rest))
        break
    name, mark, version = rest.partition("/versions/")
    return Place(action, unquote(name), unquote(version) if mark else "", method)
