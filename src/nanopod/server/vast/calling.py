"""Calls in Vast's shape, `POST <worker url>/remote/<function>`: a ticket, JSON arguments, `{"result": {"ok": ...}}`.

A call that started is always answered 200, because Vast's client sends anything from 500 on again: its failure is then
an error object in the result. What has certainly not started is answered 429 or 503, and may be sent again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanopod.model import calls, vastjson
from nanopod.model.errors import (
    CallTimeout,
    Invalid,
    NanopodError,
    NoCapacity,
    NotFound,
    QueueTimeout,
    QuotaExceeded,
    Unauthenticated,
    WorkerLost,
)  # fmt: skip
from nanopod.server.api.bodies import TooLarge
from nanopod.server.api.context import Context
from nanopod.server.vast.answers import number_of
from nanopod.server.vast.state import Vast
from nanopod.server.vast.tickets import ticket_of
from nanopod.store.vast import VastDeployment

SESSION_S_MAX: Final = 86_400.0
DISCONNECT_LOOK_S: Final = 1.0
CLOSE_S_MAX: Final = 30.0

log = logging.getLogger(__name__)


class Callers(Protocol):
    """How the server itself calls remote functions of a workspace."""

    async def call(self, workspace_id: str, header: calls.Call, payload: bytes) -> bytes:
        """Run a call; the payload of its value. Raises the errors of the link, and what the function raised."""
        ...

    async def open_session(self, workspace_id: str, endpoint: str, lifetime_s: float) -> str:
        """Pin a session to a worker of an endpoint; its id. Raises `QuotaExceeded` when there are too many."""
        ...

    async def close_session(self, workspace_id: str, session: str) -> None:
        """End a session; one that is over is no error."""
        ...


@dataclass(slots=True)
class Session:
    """A caller bound to one worker; `auth` is what opened it and opens it again."""

    session: str
    deployment: int
    workspace_id: str
    endpoint_id: str
    lifetime_s: float
    expires_at: float
    auth: Mapping[str, Any]
    on_close: tuple[str, Any] | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Calling:
    """The worker side of the routes."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self.sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def remote(self, context: Context, vast: Vast, request: Request) -> Response:
        """POST /vast/{id}/remote/{function}."""
        found, body = await self._read(context, request)
        auth, session_id = _auth(body), body.get("session_id")
        if session_id is None:
            self._spend(vast, found, auth)
            session = None
        else:
            session = self._session(str(session_id), auth, found)
            if session is None:
                return JSONResponse({"error": "invalid session"}, 410)
            self._extend(session)
        payload = body.get("payload")
        if not isinstance(payload, dict) or not isinstance(payload.get("kwargs", {}), dict):
            return JSONResponse({"payload": "is an object with kwargs (and args)"}, 422)
        header = calls.Call(
            os.urandom(16),
            endpoint=found.endpoint_id,
            function=request.path_params["function"],
            workload=float(auth.get("cost") or 0.0),
            codec=vastjson.CODEC,
            session=session.session if session else "",
        )
        sent = json.dumps({"args": payload.get("args") or [], "kwargs": payload.get("kwargs") or {}}).encode()
        if len(sent) > calls.INLINE_BYTES_MAX:
            raise TooLarge(f"the arguments take more than {calls.INLINE_BYTES_MAX >> 20} MiB")
        return await self._run(request, found, header, sent)

    async def _run(self, request: Request, found: VastDeployment, header: calls.Call, payload: bytes) -> Response:
        """Run the call; leave it when its caller leaves."""
        task = asyncio.ensure_future(self._callers.call(found.workspace_id, header, payload))
        try:
            while not task.done():
                await asyncio.wait((task,), timeout=DISCONNECT_LOOK_S)
                if not task.done() and await request.is_disconnected():
                    task.cancel()
                    await asyncio.wait((task,))
                    return Response(status_code=499)
        except BaseException:
            task.cancel()
            raise
        try:
            answer = task.result()
        except asyncio.CancelledError:
            return Response(status_code=499)
        except Exception as error:
            return _failed(error)
        return Response(b'{"result":' + answer + b"}", media_type="application/json")

    # --- sessions ---

    async def create(self, context: Context, vast: Vast, request: Request) -> Response:
        """POST /vast/{id}/session/create."""
        found, body = await self._read(context, request)
        auth, payload = _auth(body), body.get("payload")
        wishes = payload if isinstance(payload, dict) else {}
        lifetime = wishes.get("lifetime", 60)
        if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not 0 < lifetime <= SESSION_S_MAX:
            return JSONResponse({"lifetime": f"is a number of seconds up to {SESSION_S_MAX:.0f}"}, 422)
        self._spend(vast, found, auth)
        try:
            name = await self._callers.open_session(found.workspace_id, found.endpoint_id, float(lifetime))
        except QuotaExceeded as error:
            return JSONResponse({"error": error.message}, 429)
        route, content = wishes.get("on_close_route"), wishes.get("on_close_payload")
        session = Session(
            name, found.number, found.workspace_id, found.endpoint_id, float(lifetime), 0.0, auth,
            (str(route), content or {}) if route else None,
        )  # fmt: skip
        self.sessions[name] = session
        self._extend(session)
        return JSONResponse({"session_id": name, "expiration": session.expires_at}, 201)

    async def end(self, _context: Context, _vast: Vast, request: Request) -> Response:
        """POST /vast/{id}/session/end."""
        session = await self._named(request)
        if session is None:
            return JSONResponse({"error": "invalid session"}, 410)
        await self._close(session)
        return JSONResponse({"success": True})

    async def get(self, _context: Context, _vast: Vast, request: Request) -> Response:
        """POST /vast/{id}/session/get, and /session/health."""
        session = await self._named(request)
        if session is None:
            return JSONResponse({"error": "invalid session"}, 410)
        return JSONResponse(
            {"session_id": session.session, "auth_data": dict(session.auth), "lifetime": session.lifetime_s,
             "expiration": session.expires_at, "ok": True}
        )  # fmt: skip

    async def _named(self, request: Request) -> Session | None:
        body = await _json(request)
        auth = body.get("session_auth")
        number = number_of(request.path_params["id"], "id")
        session = self.sessions.get(str(body.get("session_id")))
        if session is None or session.deployment != number or not _same(session.auth, auth):
            return None
        return session

    def _session(self, session_id: str, auth: Mapping[str, Any], found: VastDeployment) -> Session | None:
        session = self.sessions.get(session_id)
        if session is None or session.deployment != found.number or not _same(session.auth, auth):
            return None
        return session

    def _extend(self, session: Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
        session.expires_at = time.time() + session.lifetime_s
        session.timer = asyncio.get_running_loop().call_later(session.lifetime_s, self._expire, session)

    def _expire(self, session: Session) -> None:
        task = asyncio.ensure_future(self._close(session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, session: Session) -> None:
        if self.sessions.pop(session.session, None) is None:
            return
        if session.timer is not None:
            session.timer.cancel()
        if session.on_close is not None:
            await self._tell(session, *session.on_close)
        await self._callers.close_session(session.workspace_id, session.session)

    async def _tell(self, session: Session, route: str, payload: Any) -> None:
        """Call the function that wants to know of the session's end, on its worker; its failure is its own."""
        wishes = payload if isinstance(payload, dict) else {}
        header = calls.Call(
            os.urandom(16), endpoint=session.endpoint_id, function=route.rpartition("/")[2], codec=vastjson.CODEC,
            session=session.session, queue_timeout_s=CLOSE_S_MAX, timeout_s=CLOSE_S_MAX,
        )  # fmt: skip
        sent = json.dumps({"args": wishes.get("args") or [], "kwargs": wishes.get("kwargs") or {}}).encode()
        try:
            await self._callers.call(session.workspace_id, header, sent)
        except Exception as error:
            log.warning("vast session=%s on_close=%s error=%s", session.session, route, error)

    # --- requests ---

    async def _read(self, context: Context, request: Request) -> tuple[VastDeployment, dict[str, Any]]:
        number = number_of(request.path_params["id"], "id")
        found = await context.store.read(lambda read: read.vast_deployment(number))
        if found is None or not found.endpoint_id:
            raise NotFound(f"there is no deployment {number} that runs")
        return found, await _json(request)

    def _spend(self, vast: Vast, found: VastDeployment, auth: Mapping[str, Any]) -> None:
        """Raise `Unauthenticated` unless the call is what its ticket is for; the ticket is spent then."""
        sealed = auth.get("ticket")
        if not isinstance(sealed, dict) or not isinstance(sealed.get("fields"), dict):
            raise Unauthenticated("the call carries no ticket; send the whole answer of /route/ as auth_data")
        ticket = ticket_of(sealed["fields"])
        shown = (ticket.endpoint, ticket.cost, ticket.request_idx, ticket.url)
        said = tuple(auth.get(name) for name in ("endpoint", "cost", "request_idx", "url"))
        if ticket.deployment != found.number or shown != said:
            raise Unauthenticated("the ticket is for another call: its endpoint, cost, number or url differ")
        vast.tickets.check(ticket, str(sealed.get("signature", "")), time.time())


def _auth(body: Mapping[str, Any]) -> dict[str, Any]:
    auth = body.get("auth_data")
    if not isinstance(auth, dict):
        raise Invalid("auth_data: is missing; send the answer of /route/", field="auth_data")
    return auth


def _same(auth: Mapping[str, Any], other: Any) -> bool:
    """Whether a session's holder shows what opened it."""
    mine, theirs = auth.get("ticket"), other.get("ticket") if isinstance(other, dict) else None
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return False
    return secrets.compare_digest(str(mine.get("signature")), str(theirs.get("signature")))


async def _json(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > 2 * calls.INLINE_BYTES_MAX:
            raise TooLarge(f"a call may have at most {2 * calls.INLINE_BYTES_MAX >> 20} MiB")
    try:
        found = json.loads(bytes(data))
    except ValueError:
        raise Invalid("invalid JSON") from None
    if not isinstance(found, dict):
        raise Invalid("the body is a JSON object")
    return found


def _failed(error: Exception) -> Response:
    """The answer to a call that has no value."""
    started = isinstance(error, WorkerLost) and error.started is not False
    if isinstance(error, NoCapacity | QueueTimeout | QuotaExceeded) and not started:
        headers = {"Retry-After": str(max(1, round(error.retry_after_s or 1)))}
        return JSONResponse({"error": error.message}, 429, headers)
    if isinstance(error, NotFound):
        return JSONResponse({"error": error.message}, 404)
    if isinstance(error, CallTimeout | NanopodError):
        return JSONResponse({"result": vastjson.failure(type(error).__name__, error.message)})
    return JSONResponse({"result": vastjson.failure(type(error).__name__, str(error))})
