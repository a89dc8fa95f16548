"""Which request goes where: the OpenAI surface and the links are answered here, everything else by the server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from nanopod import __version__
from nanopod.gateway import families, heads, hosts, kserve, tables
from nanopod.gateway.asked import Wishes
from nanopod.gateway.callers import ClientLink
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.hosts import Addressed
from nanopod.gateway.kserve import Kserve
from nanopod.gateway.links import WorkerLink, admit
from nanopod.gateway.proxy import Proxied
from nanopod.gateway.relay import Request
from nanopod.gateway.server import Handler, HttpConnection, Refused, Streamer
from nanopod.gateway.web import route_web
from nanopod.gateway.webjob import BODY_BYTES_MAX as WEB_BODY_BYTES_MAX
from nanopod.gateway.webroutes import PREFIX as WEB_PREFIX
from nanopod.model import calls, frames, unreadable, websocket
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

BLOB_BYTES_MAX: Final = 256 << 20
IMAGE_PART_BYTES_MAX: Final = 5 << 30
"""A part of an image; it is streamed through and never held."""
CALLS_BYTES_MAX: Final = 64 << 20
"""Calls that are spawned with one request."""
INFERENCE: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "embedding",
    "/v1/responses": "chat",
    "/v1/moderations": "embedding",
    "/v1/audio/transcriptions": "completion",
    "/v1/audio/translations": "completion",
    "/v1/audio/speech": "completion",
}
"""Paths that workers answer, and what their records are called."""
GENERATION: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
OPENAI_PREFIX: Final = "KSERVE_OPENAI_ROUTE_PREFIX"
"""Environment variable: OpenAI's paths are also below this prefix; `openai` when it is not set."""
NOT_OFFERED: Final = ("/v1/assistants", "/v1/threads", "/v1/fine_tuning", "/v1/vector_stores", "/v1/realtime")

_LINKS: Final = ("websocket", frames.UPGRADE)
_json: Final = msgspec.json.Encoder().encode
_FORM_MODEL: Final = re.compile(rb'name="?model"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')

Routed = tuple[Streamer | None, Handler | None, Refused | None, int]


class StreamOptions(msgspec.Struct, frozen=True):
    """Of `stream_options`."""

    include_usage: Any = None


class Body(msgspec.Struct, frozen=True):
    """The fields of a request body that decide its way; the rest is skipped unparsed."""

    model: Any = None
    stream: Any = None
    seed: Any = None
    stream_options: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None


_decode_body: Final = msgspec.json.Decoder(Body).decode


class Surface:
    """The routes of one gateway process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gw = gateway
        self._kserve = Kserve(gateway, self)
        given = os.environ.get(OPENAI_PREFIX, "openai").strip("/")
        self._prefix = f"/{given}" if given else ""
        """What OpenAI's `/v1` may have before it."""

    def body_limit(self, head: Head | None) -> int:
        """Largest body of a request, in bytes."""
        if head is not None and head.path.startswith(WEB_PREFIX):
            return WEB_BODY_BYTES_MAX
        if head is not None and head.method in ("PUT", "POST"):
            if head.path.startswith(("/v1/blobs/", "/v1/spills/")):
                return BLOB_BYTES_MAX
            if head.path.startswith("/v1/images/") and "/parts" in head.path:
                return IMAGE_PART_BYTES_MAX
            if head.path == "/v1/calls":
                return CALLS_BYTES_MAX
        return heads.BODY_BYTES_MAX

    def too_large(self, head: Head, limit: int) -> Failed:
        """413, in the shape that the path speaks."""
        text = f"the body is above {limit} bytes"
        if head.path.startswith(WEB_PREFIX):
            return heads.Problem(413, "request_too_large", text)
        if kserve.is_v2(head.path) or kserve.is_v1(head.path) or head.path.startswith(hosts.PREFIX):
            return families.refused(413, text)
        return heads.invalid("request_too_large", text, status=413)

    def route(self, connection: HttpConnection, head: Head) -> Routed | None:
        """(streamer, handler, refusal, body limit) for a request; None when it was upgraded."""
        gw, way = self._gw, head.way
        if way is not None and way[0] is gw.tables.mark and not gw.meter.full:
            known: Routed = way[1]
            return known
        limit = heads.BODY_BYTES_MAX
        try:
            given = head
            if head.upgrade not in _LINKS:
                to = hosts.addressed(gw.tables, head)
                routed = self._kserve.of_endpoint(to) if to is not None else None
                if to is not None and routed is not None:
                    return self.keep(given, to.key, routed)
                if self._prefix and head.path.startswith(self._prefix):
                    head = self._unprefixed(head)
            path = head.path
            if path in INFERENCE:
                _must_be_post(head)
                key = self.key(head)
                return self.keep(given, key, self._inference(head, key))
            if path == "/healthz" or path == "/health":
                return None, self._healthz, None, limit
            if path == "/":
                return kserve.alive
            if path == "/v1/link":
                return self._client_link(connection, head)
            if path == "/v1/worker-link":
                return self._worker_link(connection, head)
            if path.startswith(WEB_PREFIX):
                limit = WEB_BODY_BYTES_MAX
                return route_web(self._gw, connection, head)
            if kserve.is_v2(path) or kserve.is_v1(path):
                return self._kserve.route(head)
            if path == "/v1/models" or path.startswith("/v1/models/"):
                return self._models_of(head)
            if path.startswith(NOT_OFFERED) or path.startswith(("/v1/responses/", "/v1/audio/")):
                raise heads.invalid("unknown_url", f"Unknown request URL: {head.method} {path}", status=404)
        except Failed as failed:
            return None, None, Refused(failed), limit
        return self._proxy, None, None, self.body_limit(head)

    def keep(self, head: Head, key: KeyRow, routed: Routed) -> Routed:
        """Let later requests with this head go the same way while the tables are these; `key` allowed it."""
        if key.expires_at is None:
            head.way = (self._gw.tables.mark, routed)
        return routed

    # --- checks before the body ---

    def without_prefix(self, path: str) -> str:
        """A path below `/openai/v1` as it is below `/v1`."""
        if self._prefix and path.startswith(f"{self._prefix}/v1/"):
            return path[len(self._prefix) :]
        return path

    def is_inference(self, path: str) -> bool:
        """True for OpenAI's paths that workers answer."""
        return path in INFERENCE

    def _unprefixed(self, head: Head) -> Head:
        path = self.without_prefix(head.path)
        return head if path == head.path else hosts.moved(head, head.target[len(self._prefix) :])

    def key(self, head: Head) -> KeyRow:
        """The key of a request. Raises `Failed` 401, or 503 while no key is known yet."""
        gw = self._gw
        key = gw.tables.authenticate(head.authorization)
        if key is None:
            if gw.tables.version < 0:
                raise heads.overloaded("the gateway has no tables yet: its server is starting", retry_s=1)
            raise heads.unauthenticated()
        return key

    def may_ask(self, key: KeyRow) -> None:
        """Raises `Failed` when a key may not call endpoints now."""
        if not tables.may_call(key):
            raise heads.denied("this key may not call endpoints: it lacks the scope `call`")
        if self._gw.meter.full:
            raise heads.overloaded("usage cannot be recorded now (the gateway's disk does not take it)")

    # --- answers ---

    def _healthz(self, connection: HttpConnection, head: Head, body: bytes) -> None:
        gw = self._gw
        facts = {
            "status": "ok" if not gw.stopping else "stopping",
            "version": __version__,
            "table_age_s": gw.table_age_s(),
            "workers": sum(link.greeted for link in gw.links.values()),
            "in_flight": sum(pool.total for pool in gw.pools.values()),
        }
        connection.respond(200, _json(facts))

    def _models_of(self, head: Head) -> Routed:
        """`/v1/models` of a workspace: OpenAI's list, V1's where nothing speaks OpenAI."""
        key = self.key(head)
        name = unquote(head.path[len("/v1/models/") :])
        speaks_openai = bool(self._gw.tables.models.get(key.workspace_id))
        if name and self._gw.tables.model(key.workspace_id, name) is None:
            route = self._kserve.known(key, name)
            if route is not None and "v1" in route.protocols:
                return self._kserve.ready(head, key, route)
        names = self._kserve.names(key, "v1")
        if names and not speaks_openai:
            if name:
                raise families.refused(404, f"there is no model {name} here; there is {', '.join(names[:10])}")
            if head.method in ("GET", "HEAD"):
                return kserve.answering({"models": names})
        return self._models(head, key, self._gw.tables.models.get(key.workspace_id, {}))

    def openai_of(self, to: Addressed, path: str) -> Routed | None:
        """OpenAI's paths of one endpoint, whatever model their bodies name; None for another path."""
        head = to.head if to.head.path == path else hosts.moved(to.head, path)
        if path in INFERENCE:
            _must_be_post(head)
            return self._inference(head, to.key, to.route)
        if path == "/v1/models" or (path.startswith("/v1/models/") and not kserve.is_v1(path)):
            name = unquote(path[len("/v1/models/") :])
            if name and name not in to.route.model_ids and "v1" in families.protocols_of(to.route):
                return None
            return self._models(head, to.key, dict.fromkeys(to.route.model_ids, to.route))
        return None

    def _models(self, head: Head, key: KeyRow, found: Mapping[str, RouteRow]) -> Routed:
        if head.method not in ("GET", "HEAD"):
            raise _not_allowed(head, "GET")

        def show(connection: HttpConnection, _: Head, body: bytes) -> None:
            self._listed(connection, head, key, found)

        return None, show, None, heads.BODY_BYTES_MAX

    def _listed(
        self, connection: HttpConnection, head: Head, key: KeyRow, found: Mapping[str, RouteRow]
    ) -> None:  # fmt: skip
        cards = [self._card(name, route) for name, route in sorted(found.items()) if tables.may_use(key, route)]
        wanted = unquote(head.path[len("/v1/models/") :])
        extra = f"x-request-id: {heads.request_id_of(head) or self._gw.request_id()}\r\n"
        if not wanted:
            connection.respond(200, _json({"object": "list", "data": cards}), extra=extra)
            return
        for card in cards:
            if card["id"] == wanted:
                connection.respond(200, _json(card), extra=extra)
                return
        raise _no_model(wanted, [card["id"] for card in cards])

    def _card(self, name: str, route: RouteRow) -> dict[str, Any]:
        pool = self._gw.pools.get(route.endpoint_id)
        ready = pool is not None and any(link.usable for link in pool.links)
        waking = pool is not None and pool.waiting > 0
        state = "ready" if ready else "failed" if route.failure else "waking" if waking else "asleep"
        # Who asks by V1's words reads these; an endpoint that sleeps is ready to be woken.
        v1 = {"name": name, "ready": state != "failed"} if "v1" in route.protocols else {}
        return {
            **v1,
            "id": name,
            "object": "model",
            "created": route.created_at,
            "owned_by": "nanopod",
            "nanopod": {"state": state, "endpoint": f"{route.name}:{route.tag}", "detail": route.phase_text},
        }

    def _inference(self, head: Head, key: KeyRow, to: RouteRow | None = None) -> Routed:
        """OpenAI's paths that workers answer; `to`: of this endpoint, and its bodies need not name a model."""
        self.may_ask(key)
        gw, kind, generation = self._gw, INFERENCE[head.path], head.path in GENERATION
        meant = to.name if to is not None else ""
        read = _read_form if head.headers.get("content-type", "").startswith("multipart/form-data") else _read

        def ask(connection: HttpConnection, _: Head, body: bytes) -> None:
            wishes, model = read(body, meant)
            route = to or gw.tables.model(key.workspace_id, model)
            if route is None or not tables.may_use(key, route):
                known = gw.tables.models.get(key.workspace_id, {})
                raise _no_model(model, [name for name, row in known.items() if tables.may_use(key, row)])
            Request(gw, connection, head, body, key, gw.pool(route), kind, wishes, generation).start()

        return None, ask, None, heads.BODY_BYTES_MAX

    def _proxy(self, connection: HttpConnection, head: Head) -> Proxied:
        proxied = Proxied(self._gw, connection, head)
        proxied.start()
        return proxied

    # --- links ---

    def _client_link(self, connection: HttpConnection, head: Head) -> Routed | None:
        """Open an SDK's websocket."""
        key = self.key(head)
        given = head.headers
        if head.upgrade != "websocket" or head.method != "GET":
            raise Failed(
                426, "invalid_request_error", "upgrade_required", "this is a websocket: GET it with Upgrade: websocket",
                extra="upgrade: websocket\r\n",
            )  # fmt: skip
        if given.get("sec-websocket-version") != "13":
            raise Failed(
                426, "invalid_request_error", "upgrade_required", "only websocket version 13 is spoken here",
                extra="sec-websocket-version: 13\r\n",
            )  # fmt: skip
        if not websocket.is_client_key(given.get("sec-websocket-key", "")):
            raise heads.invalid("invalid_value", "Sec-WebSocket-Key is not base64 of 16 bytes")
        offered = [name.strip() for name in given.get("sec-websocket-protocol", "").split(",")]
        if calls.SUBPROTOCOL not in offered:
            raise heads.invalid("invalid_value", f"offer the subprotocol {calls.SUBPROTOCOL}")
        if not tables.may_call(key):
            raise heads.denied("this key may not call functions: it lacks the scope `call`")
        if self._gw.stopping:
            raise heads.overloaded("this gateway is stopping", retry_s=1)
        answer = websocket.server_response(given["sec-websocket-key"], calls.SUBPROTOCOL)
        connection.upgrade(ClientLink(self._gw, key, head.authorization), answer)
        return None

    def _worker_link(self, connection: HttpConnection, head: Head) -> Routed | None:
        """Open a worker's link."""
        gw = self._gw
        if head.upgrade != frames.UPGRADE:
            raise Failed(
                426, "invalid_request_error", "upgrade_required", f"send Upgrade: {frames.UPGRADE}",
                extra=f"upgrade: {frames.UPGRADE}\r\n",
            )  # fmt: skip
        instance = head.headers.get("x-nanopod-instance", "")
        token = head.authorization.partition(" ")[2].strip()
        status = admit(gw.tables.workers, instance, head.headers.get("x-nanopod-epoch", ""), token)
        row = gw.tables.workers.get(instance)
        route = gw.tables.routes.get(row.endpoint_id) if row is not None else None
        if status == 410:
            raise Failed(410, "invalid_request_error", "fenced", "a newer epoch of this instance exists: stop")
        if status != 101 or row is None or route is None or gw.stopping:
            raise Failed(403, "permission_error", "permission_denied", "this instance is not known here (yet)")
        older = gw.links.get(instance)
        if older is not None:
            older.lose("the worker dialled again")
        link = WorkerLink(gw, row, gw.pool(route))
        gw.links[instance] = link
        lines = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {frames.UPGRADE}\r\n\r\n"
        connection.upgrade(link, lines.encode())
        return None


def _must_be_post(head: Head) -> None:
    if head.method != "POST":
        raise _not_allowed(head, "POST")


def _not_allowed(head: Head, allowed: str) -> Failed:
    return Failed(
        405, "invalid_request_error", "method_not_allowed", f"{head.path} takes {allowed}, not {head.method}",
        extra=f"allow: {allowed}\r\n",
    )  # fmt: skip


def _no_model(model: str, known: list[str]) -> Failed:
    names = ", ".join(sorted(known)[:10]) or "none yet: `nanopod serve nanopod-tiny` makes one"
    return heads.invalid("model_not_found", f"The model `{model}` does not exist here; there is {names}.", "model", 404)


def _read_form(body: bytes, model: str) -> tuple[Wishes, str]:
    """As `_read`, of a form."""
    found = _FORM_MODEL.search(body)
    if found is not None:
        return Wishes(), found[1].decode(errors="replace")
    if not model:
        raise heads.invalid("missing_required_parameter", "the form has no field `model`", "model")
    return Wishes(), model


def _read(body: bytes, model: str) -> tuple[Wishes, str]:
    """What the body says about its way: (wishes, model). `model`: what is meant where the body names none."""
    try:
        fields = _decode_body(body)
    except msgspec.ValidationError:
        raise heads.invalid("invalid_json", "the body must be a JSON object") from None
    except unreadable.JSON as error:
        raise heads.invalid("invalid_json", f"the body is not JSON: {error}") from None
    named = model if fields.model is None and model else fields.model
    if named is None:
        raise heads.invalid("missing_required_parameter", "you must name a model", "model")
    if not isinstance(named, str):
        raise heads.invalid("invalid_value", "`model` must be a string", "model")
    if fields.stream is not None and not isinstance(fields.stream, bool):
        raise heads.invalid("invalid_value", "`stream` must be true or false", "stream")
    options = fields.stream_options
    usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
    seed = fields.seed if isinstance(fields.seed, int) and not isinstance(fields.seed, bool) else None
    most = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    return Wishes(stream=bool(fields.stream), seed=seed, include_usage=usage, most_tokens=most), named
