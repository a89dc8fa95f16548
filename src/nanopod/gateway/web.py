"""`/web/{endpoint}/{path}`: who may ask, and which function or application of which endpoint answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanopod.gateway import breaker, tables
from nanopod.gateway.heads import Head, Problem
from nanopod.gateway.pool import Pool
from nanopod.gateway.server import Exchange, Handler, HttpConnection, Streamer
from nanopod.gateway.webhttp import WebRequest
from nanopod.gateway.webjob import BODY_BYTES_MAX, HEAD_BYTES_MAX, HELD_BYTES_MAX
from nanopod.gateway.webroutes import Refusal, Target, split
from nanopod.gateway.websockets import WebSocketJob
from nanopod.model import websocket
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.surface import Routed


def route_web(gw: Gateway, connection: HttpConnection, head: Head) -> Routed:
    """What `Surface.route` answers for a path below `/web/`. Raises `Problem`."""
    name, root, rest = split(head.path)
    key, route = _find_route(gw, head, name)
    found = gw.web_tables.of(route).find(head.method, rest)
    if found.auth == "key" or (isinstance(found, Refusal) and key is not None):
        _check_key(gw, key, route)
    if isinstance(found, Refusal):
        if found.status == 404 and key is None:
            raise Problem(404, "not_found", f"nothing answers {rest} here")
        extra = f"allow: {', '.join(found.allowed)}\r\n" if found.allowed else ""
        if head.method == "OPTIONS" and found.allowed:
            return None, _options(extra), None, 0
        code = "method_not_allowed" if found.allowed else "not_found"
        raise Problem(found.status, code, found.message, extra=extra)
    if len(head.target) + sum(len(n) + len(v) + 8 for n, v in head.raw_headers) > HEAD_BYTES_MAX:
        raise Problem(431, "head_too_large", f"the request head is above {HEAD_BYTES_MAX} bytes")
    pool = gw.pool(route)
    if gw.meter.full or gw.stopping:
        raise Problem(503, "overloaded", "the gateway is restarting, or its disk does not take usage records",
                      extra="retry-after: 1\r\n")  # fmt: skip
    refused = breaker.check(pool, "")
    if refused is not None:
        raise Problem(refused.status, refused.code, refused.message, extra=refused.extra)
    if pool.full(min(head.length, HELD_BYTES_MAX)):
        raise Problem(503, "overloaded", "too many requests wait for this endpoint", extra="retry-after: 5\r\n")
    theirs = key if key is not None and key.workspace_id == route.workspace_id else None
    return _streamer(gw, head, pool, found, theirs, root, rest), None, None, BODY_BYTES_MAX


def _streamer(
    gw: Gateway, head: Head, pool: Pool, target: Target, key: KeyRow | None, root: str, rest: str
) -> Streamer:
    make: type[WebRequest] = WebRequest
    if head.upgrade == "websocket":
        if target.mount is None:
            raise Problem(426, "no_websocket", "a function has no websocket; mount an application with @app.asgi")
        if head.headers.get("sec-websocket-version") != "13" or head.method != "GET":
            raise Problem(426, "upgrade_required", "only websocket version 13 is spoken here",
                          extra="sec-websocket-version: 13\r\n")  # fmt: skip
        if not websocket.is_client_key(head.headers.get("sec-websocket-key", "")):
            raise Problem(400, "bad_request", "Sec-WebSocket-Key is not base64 of 16 bytes")
        make = WebSocketJob

    def stream(connection: HttpConnection, head: Head) -> Exchange:
        return make(gw, connection, head, pool, target, key, root, rest)

    return stream


def _find_route(gw: Gateway, head: Head, name: str) -> tuple[KeyRow | None, RouteRow]:
    """(the caller's key, the endpoint): by name in the key's workspace, else by id, else in the default workspace."""
    known = gw.tables
    if known.version < 0:
        raise Problem(503, "overloaded", "the gateway has no tables yet: its server is starting",
                      extra="retry-after: 1\r\n")  # fmt: skip
    key = known.authenticate(head.authorization) if head.authorization else None
    route = known.endpoint(key.workspace_id, name) if key is not None else None
    if route is None:
        route = known.routes.get(name)
    if route is None and known.default_workspace:
        route = known.endpoint(known.default_workspace, name)
    if route is None or route.kind != "function":
        if key is None:
            raise _unauthenticated()
        there = ", ".join(known.names(key.workspace_id)[:10]) or "none yet"
        raise Problem(404, "not_found", f"there is no endpoint `{name}` with web paths; this workspace has {there}")
    return key, route


def _check_key(gw: Gateway, key: KeyRow | None, route: RouteRow) -> None:
    if key is None:
        raise _unauthenticated()
    if key.workspace_id != route.workspace_id:
        raise Problem(404, "not_found", "there is no such endpoint in this key's workspace")
    if not tables.may_call(key):
        raise Problem(403, "permission_denied", "this key may not call endpoints: it lacks the scope `call`")
    if not tables.may_use(key, route):
        raise Problem(403, "permission_denied", f"this key may not call the endpoint `{route.name}`")


def _unauthenticated() -> Problem:
    return Problem(
        401, "unauthenticated", "send `Authorization: Bearer <key>`: this path is not public, or does not exist",
        extra="www-authenticate: Bearer\r\n",
    )  # fmt: skip


def _options(extra: str) -> Handler:
    def answer(connection: HttpConnection, head: Head, body: bytes) -> None:
        end = "connection: close\r\n\r\n" if connection.close_after else "\r\n"
        connection.write(f"HTTP/1.1 204 No Content\r\n{extra}{end}".encode())
        connection.finish()

    return answer
