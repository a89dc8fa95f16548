"""Paths of V1 and V2 without a host, and everything that is asked of one endpoint by its host or prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import msgspec

from nanopod import __version__
from nanopod.gateway import everywhere, families, heads, tables
from nanopod.gateway.everywhere import Everywhere
from nanopod.gateway.families import Anything, Predict, protocols_of
from nanopod.gateway.graphs import GraphRun
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.hosts import Addressed
from nanopod.gateway.server import HttpConnection
from nanopod.gateway.several import OneOfSeveral
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.surface import Routed, Surface

V1: Final = "/v1/models/"
V2_MODELS: Final = "/v2/models/"
V2_REPOSITORY: Final = "/v2/repository/models/"
VERBS: Final = (":predict", ":explain")
EXTENSIONS: Final = ("binary_tensor_data", "model_repository")
_ACTIONS: Final = frozenset({"infer", "ready", "explain", "config", "stats", "generate", "generate_stream"})
_json: Final = msgspec.json.Encoder().encode


def is_v2(path: str) -> bool:
    """True for paths of V2."""
    return path.startswith("/v2") and path[3:4] in ("", "/")


def is_v1(path: str) -> bool:
    """True for V1's predictions and explanations; `/v1/models` itself is OpenAI's as well."""
    return path.startswith(V1) and path.endswith(VERBS)


def model_of(path: str) -> str:
    """The model that a path of V1 or V2 names; "" when it names none."""
    if path.startswith(V1):
        rest = path[len(V1) :]
        for verb in VERBS:
            rest = rest.removesuffix(verb)
        return unquote(rest)
    if path.startswith(V2_REPOSITORY):
        return unquote(path[len(V2_REPOSITORY) :].rpartition("/")[0])
    if path.startswith(V2_MODELS):
        rest = path[len(V2_MODELS) :]
        name, _, last = rest.rpartition("/")
        if name and last in _ACTIONS:
            rest = name
        return unquote(rest.partition("/versions/")[0])
    return ""


class Startable(Protocol):
    """What answers a request, before it has begun to."""

    def start(self) -> None:
        """Begin. Raises `Failed` when it cannot."""


class Kserve:
    """A part of the surface."""

    def __init__(self, gateway: Gateway, surface: Surface) -> None:
        self._gw = gateway
        self._surface = surface

    # --- without a host ---

    def route(self, head: Head) -> Routed:
        """What `Surface.route` answers for a path of V1 or V2. Raises `Plain`."""
        path = head.path
        if path == "/v2/health/live":
            return answering({"live": True})
        if path == "/v2/health/ready":
            ready = not self._gw.stopping and self._gw.tables.version >= 0
            return answering({"ready": ready}, 200 if ready else 503)
        try:
            key = self._surface.key(head)
            if path.rstrip("/") == "/v2":
                return answering({"name": "nanopod", "version": __version__, "extensions": list(EXTENSIONS)})
            if path.rstrip("/") == "/v2/models":
                return answering({"models": self.names(key, "v2")})
            name = model_of(path)
            if not name:
                raise families.refused(404, f"there is no {path} here: V2 is below /v2/models, V1 below /v1/models")
            routed = self._predict(head, key, self._named(key, name, path))
            return self._surface.keep(head, key, routed)
        except Failed as failed:
            raise families.plain(failed) from None

    def names(self, key: KeyRow, protocol: str) -> list[str]:
        """Models of the key's workspace that speak a protocol."""
        found = self._gw.tables.served.get(key.workspace_id, {})
        return sorted(
            name
            for name, route in found.items()
            if protocol in route.protocols and name in route.serves and tables.may_use(key, route)
        )

    def known(self, key: KeyRow, name: str) -> RouteRow | None:
        """The endpoint of a model of V1 or V2."""
        route = self._gw.tables.served.get(key.workspace_id, {}).get(name)
        return route if route is not None and tables.may_use(key, route) else None

    def _named(self, key: KeyRow, name: str, path: str) -> RouteRow:
        route = self.known(key, name)
        protocol = "v2" if is_v2(path) else "v1"
        if route is None:
            there = ", ".join(self.names(key, protocol)[:10]) or "none"
            raise families.refused(404, f"there is no model {name} in this workspace; there is {there}")
        if protocol not in route.protocols:
            text = f"the model {name} does not speak {protocol.upper()}: it speaks {', '.join(route.protocols)}"
            raise families.refused(404, text)
        return route

    def ready(self, head: Head, key: KeyRow, route: RouteRow) -> Routed:
        """`GET /v1/models/NAME` of V1."""
        if head.method not in ("GET", "HEAD"):
            raise families.refused(405, f"{head.path} takes GET, not {head.method}")
        return self._predict(head, key, route)

    def _predict(self, head: Head, key: KeyRow, route: RouteRow) -> Routed:
        if not everywhere.is_repository(head.path):
            several = len(route.serves) > 1
            name = model_of(self._surface.without_prefix(head.path)) if several else ""
            kind = functools.partial(OneOfSeveral, name) if name in route.serves else Predict
            return self._by(kind, head, key, route)
        if head.method != "POST":
            raise families.refused(405, f"{head.path} takes POST, not {head.method}")
        return self._by(Everywhere, head, key, route)

    def _by(self, kind: Callable[..., Startable], head: Head, key: KeyRow, route: RouteRow) -> Routed:
        """A request of this kind. Raises `Plain` when the key may not make it."""
        try:
            self._surface.may_ask(key)
        except Failed as failed:
            raise families.plain(failed) from None

        def start(connection: HttpConnection, _: Head, body: bytes) -> None:
            kind(self._gw, connection, head, body, key, route).start()

        return None, start, None, heads.BODY_BYTES_MAX

    # --- by host or prefix ---

    def of_endpoint(self, to: Addressed) -> Routed | None:
        """What `Surface.route` answers for a request of one endpoint; None where its host means nothing.

        That is so for paths outside of the endpoint's families: a cluster may be reached by a name that an endpoint has
        as well. Raises `Failed` in the shape of the family.
        """
        route, key, head = to.route, to.key, to.head
        speaks = protocols_of(route)
        path = self._surface.without_prefix(head.path)
        if not tables.may_use(key, route):
            failed: Failed = heads.denied(f"this key may not call the endpoint `{route.name}`")
            raise failed if "openai" in speaks else families.plain(failed)
        if route.graph is not None:
            if head.method != "POST":
                raise families.refused(405, f"a graph takes POST, not {head.method}")
            return self._by(GraphRun, head, key, route)
        if "openai" in speaks:
            found = self._surface.openai_of(to, path)
            if found is not None:
                return found
        if path == "/" and "http" not in speaks:
            return alive
        if path == "/v2/health/live" and "v2" in speaks:
            return answering({"live": True})
        if ("v2" in speaks and is_v2(path)) or ("v1" in speaks and (path + "/").startswith(V1)):
            return self._predict(head, key, route)
        if "http" in speaks or path in ("/health", "/metrics"):
            return self._by(Anything, head, key, route)
        if not to.by_prefix and not is_v2(path) and not self._surface.is_inference(path):
            return None
        text = f"the endpoint {route.name} has no {path}: it speaks {', '.join(speaks) or 'nothing'}"
        raise families.refused(404, text)


def answering(value: Any, status: int = 200) -> Routed:
    """GET answers a fixed value."""
    data = bytes(_json(value))

    def handle(connection: HttpConnection, head: Head, body: bytes) -> None:
        if head.method not in ("GET", "HEAD"):
            raise families.refused(405, f"{head.path} takes GET, not {head.method}")
        connection.respond(status, data)

    return None, handle, None, heads.BODY_BYTES_MAX


alive: Final = answering({"status": "alive"})
"""V1's liveness."""
