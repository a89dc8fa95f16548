"""Sticky sessions: calls that all go to one worker, for as long as somebody calls and the worker lives.

A session belongs to no connection: its client may come and go. Every call extends its lifetime. When it ends, a
function of the endpoint may be called on its worker, so that what the session held there can be put away.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from nanopod.gateway import admission
from nanopod.gateway.called import Called
from nanopod.gateway.callframes import error_frame
from nanopod.gateway.calls import LEASE_S, CallJob
from nanopod.gateway.jobs import Job
from nanopod.gateway.pool import Pool
from nanopod.gateway.wheel import Timed
from nanopod.model import calls, ids
from nanopod.model.errors import (
    Cancelled,
    DeploymentFailed,
    Invalid,
    NanopodError,
    NoCapacity,
    QuotaExceeded,
    SessionLost,
    WakeTimeout,
)  # fmt: skip
from nanopod.model.wire import KeyRow

if TYPE_CHECKING:
    from nanopod.gateway.callers import ClientLink
    from nanopod.gateway.links import WorkerLink
    from nanopod.gateway.process import Gateway

SESSIONS_MAX: Final = 10
"""Sessions of one worker."""
LIFETIME_S_MAX: Final = 86_400.0
CLOSE_S_MAX: Final = 60.0
"""How long the function that is called at the end may run."""
CLOSE_WAIT_S_MAX: Final = 10.0
"""How long that call may wait for a slot."""
_log = logging.getLogger(__name__)


class Opening(Job):
    """A session that waits for its worker."""

    __slots__ = ("client", "header", "key", "payload", "sessions", "wait_until")

    def __init__(
        self, sessions: Sessions, client: ClientLink, header: calls.SessionOpen, payload: bytes, pool: Pool
    ) -> None:
        super().__init__(pool)
        self.sessions = sessions
        self.client: ClientLink | None = client
        self.key = client.key
        self.header = header
        self.payload = payload
        self.slotless = True
        self.line = "\0session"
        self.wait_until = 0.0

    def fits(self, link: WorkerLink) -> bool:
        """A worker has so many sessions and no more."""
        return link.sessions < SESSIONS_MAX

    def dispatch(self, link: WorkerLink) -> None:
        """A worker has room for it: that is all a session needs."""
        self.pool.in_flight -= 1
        self.sessions.opened(self, link)

    def on_route_failed(self) -> None:
        """No worker of the endpoint can start."""
        failure = self.pool.route.failure
        if failure is not None:
            text = f"no worker can start: {failure.message}"
            self.sessions.refused(self, DeploymentFailed(text, stage=failure.stage, log_tail=failure.log_tail))

    def on_timer(self, now: float) -> None:
        """It waited long enough."""
        if self.waiting:
            self.sessions.refused(self, WakeTimeout(f"no worker took the session within {self.header.wait_s:g} s"))


class Session(Timed):
    """One open session."""

    __slots__ = (
        "_gw", "_sessions", "closing", "epoch", "expires_at", "header", "id", "instance_id", "jobs", "key",
        "lost_at", "payload", "pool",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, opening: Opening, link: WorkerLink) -> None:
        super().__init__()
        self._gw = gateway
        self._sessions = gateway.sessions
        self.id = ids.make_id("session", os.urandom(ids.ID_LENGTH))
        self.header = opening.header
        self.key: KeyRow = opening.key
        self.payload = opening.payload
        self.pool = opening.pool
        self.instance_id = link.instance_id
        self.epoch = link.epoch
        self.jobs: set[Called] = set()
        self.closing = False
        self.lost_at = 0.0
        """When its worker is given up; 0 while it is linked."""
        self.expires_at = gateway.now + self.header.lifetime_s

    def joined(self, job: CallJob) -> None:
        """A call of this session."""
        self.jobs.add(job)
        job.session = self
        job.pin = self.instance_id

    def left(self, job: Called) -> None:
        """A call of it ended: its lifetime begins anew."""
        self.jobs.discard(job)
        job.session = None
        self.expires_at = self._gw.now + self.header.lifetime_s
        if not self.jobs and self.closing:
            self._sessions.put_away(self)

    def on_timer(self, now: float) -> None:
        """Whatever is due: its worker's return, or its end."""
        if self.lost_at and now >= self.lost_at:
            self._sessions.end(self, "its worker was lost", lost=True)
        elif not self.jobs and now >= self.expires_at:
            self._sessions.end(self, f"no call came for {self.header.lifetime_s:g} s")
        else:
            due = now + self.header.lifetime_s if self.jobs else self.expires_at
            self._gw.wheel.at(self, min(due, self.lost_at) if self.lost_at else due)


class Sessions:
    """The sessions of one gateway process. They do not survive it: later calls hear `SessionLost`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gw = gateway
        self._by_id: dict[str, Session] = {}
        self._by_request: dict[tuple[str, bytes], Session | Opening] = {}
        """{(workspace, the client's id of the request): what became of it}, so that it can be sent again."""
        self._by_instance: dict[str, set[Session]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    # --- opening ---

    def open(self, client: ClientLink, header: calls.SessionOpen, payload: bytes) -> None:
        """A client wants a session."""
        known = self._by_request.get((client.key.workspace_id, header.id))
        if isinstance(known, Session):
            client.send(self._state(known))
        elif known is not None:
            known.client = client
        else:
            try:
                self._begin(client, header, payload)
            except NanopodError as error:
                client.send(error_frame(header.id, error, False, 1))

    def _begin(self, client: ClientLink, header: calls.SessionOpen, payload: bytes) -> None:
        gw = self._gw
        if len(header.id) != 16:
            raise Invalid("a request's id is 16 bytes", field="id")
        if not 0 < header.lifetime_s <= LIFETIME_S_MAX:
            text = (
                f"lifetime: a session's lifetime is above 0 and at most {LIFETIME_S_MAX:g} s, not {header.lifetime_s:g}"
            )
            raise Invalid(text, field="lifetime_s")
        if not header.wait_s >= 0:
            raise Invalid("wait_s must not be below 0", field="wait_s")
        route = admission.route_of(gw, client.key, header.endpoint)
        if header.on_close:
            admission.function_of(route, header.on_close, "on_close")
        pool = gw.pool(route)
        usable = [link for link in pool.links if link.usable]
        if usable and all(link.sessions >= SESSIONS_MAX for link in usable):
            text = f"each of the {len(usable)} workers has {SESSIONS_MAX} sessions; close some, or allow more workers"
            raise QuotaExceeded(text, field="session", retry_after_s=5.0)
        if pool.full(len(payload)):
            raise NoCapacity("too many calls wait for this endpoint", retry_after_s=5.0)
        opening = Opening(self, client, header, payload, pool)
        opening.bytes_held = len(payload)
        opening.wait_until = gw.now + header.wait_s
        self._by_request[client.key.workspace_id, header.id] = opening
        pool.enter(0.0)
        if not pool.submit(opening) and opening.waiting:
            gw.wheel.at(opening, opening.wait_until)

    def opened(self, opening: Opening, link: WorkerLink) -> None:
        """A worker was found."""
        gw = self._gw
        gw.wheel.clear(opening)
        opening.pool.leave()
        session = Session(gw, opening, link)
        link.sessions += 1
        self._by_id[session.id] = session
        self._by_request[opening.key.workspace_id, opening.header.id] = session
        self._by_instance.setdefault(link.instance_id, set()).add(session)
        gw.wheel.at(session, session.expires_at)
        if opening.client is not None:
            opening.client.send(self._state(session))

    def refused(self, opening: Opening, error: NanopodError) -> None:
        """No worker is to be had."""
        opening.pool.withdraw(opening)
        opening.pool.leave()
        self._gw.wheel.clear(opening)
        del self._by_request[opening.key.workspace_id, opening.header.id]
        if opening.client is not None:
            opening.client.send(error_frame(opening.header.id, error, False, 1))

    def cancel(self, client: ClientLink, request_id: bytes) -> bool:
        """A client does not want its session any more, whether it is open or not; False when it asked for none."""
        known = self._by_request.get((client.key.workspace_id, request_id))
        if isinstance(known, Opening):
            self.refused(known, Cancelled("cancelled by the caller"))
        elif known is not None:
            self.end(known, "it was given up")
        return known is not None

    def _state(self, session: Session) -> bytes:
        lifetime_s = session.header.lifetime_s
        return calls.encode(calls.SessionState(session.header.id, session.id, session.instance_id, lifetime_s))

    # --- calls ---

    def join(self, job: CallJob) -> None:
        """Pin a new call to its session's worker. Raises `SessionLost`."""
        session = self._by_id.get(job.session_id)
        if session is None or session.key.workspace_id != job.workspace_id or session.closing:
            text = f"the session {job.session_id} is not open (it ended, or its worker was lost); open a new one"
            raise SessionLost(text, started=False, field="session")
        if session.pool is not job.pool:
            name = session.pool.route.name
            raise Invalid(f"the session {session.id} belongs to the endpoint `{name}`", field="session")
        session.joined(job)

    def close(self, client: ClientLink, header: calls.SessionClose) -> None:
        """A client ends its session (or one that ended already)."""
        session = self._by_id.get(header.session)
        if session is not None and session.key.workspace_id == client.key.workspace_id:
            self.end(session, "it was closed")
        client.send(calls.encode(calls.SessionState(header.id, header.session)))

    # --- workers ---

    def linked(self, link: WorkerLink) -> None:
        """A worker is (again) here: with its sessions, if it is the same process."""
        for session in list(self._by_instance.get(link.instance_id, ())):
            if session.epoch == link.epoch:
                session.lost_at = 0.0
                link.sessions += 1
            else:
                self.end(session, "its worker was started anew", lost=True)

    def link_lost(self, link: WorkerLink) -> None:
        """A worker's link is gone: it has a moment to come back."""
        gw = self._gw
        for session in list(self._by_instance.get(link.instance_id, ())):
            if link.leaving:
                self.end(session, "its worker was taken away", lost=True)
            else:
                session.lost_at = gw.now + LEASE_S
                gw.wheel.by(session, session.lost_at)

    def leaving(self, link: WorkerLink) -> None:
        """A worker takes no new work any more."""
        for session in list(self._by_instance.get(link.instance_id, ())):
            self.end(session, "its worker is going to end", lost=link.draining)

    # --- the end ---

    def end(self, session: Session, reason: str, *, lost: bool = False) -> None:
        """No further calls. Those that run go on; `lost`: nothing can be called on the worker any more."""
        if session.closing:
            return
        session.closing = True
        self._by_id.pop(session.id, None)
        self._by_request.pop((session.key.workspace_id, session.header.id), None)
        own = self._by_instance.get(session.instance_id)
        if own is not None:
            own.discard(session)
            if not own:
                del self._by_instance[session.instance_id]
        self._gw.wheel.clear(session)
        link = self._gw.links.get(session.instance_id)
        if link is not None and link.epoch == session.epoch:
            link.sessions = max(0, link.sessions - 1)
        if lost:
            session.header = _without_close(session.header)
        for job in list(session.jobs):
            if not job.instance_id:
                job.fail(SessionLost(f"the session ended before this call started: {reason}"), started=False)
        if not session.jobs:
            self.put_away(session)
        session.pool.pump()

    def put_away(self, session: Session) -> None:
        """The last call of a session that ended: the function that its client named, on its worker."""
        name, session.header = session.header.on_close, _without_close(session.header)
        if not name:
            return
        gw = self._gw
        spec = session.pool.route.functions.get(name)
        if spec is None:
            _log.warning("session %s: its endpoint has no function %s any more", session.id, name)
            return
        payload = session.payload
        call = calls.Call(
            os.urandom(16), session.pool.route.endpoint_id, name, size=len(payload), session=session.id,
            timeout_s=min(spec.timeout_s, CLOSE_S_MAX), queue_timeout_s=CLOSE_WAIT_S_MAX,
        )  # fmt: skip
        job = CallJob(gw, call, session.pool, spec, session.key)
        job.retries = None
        job.pin = session.instance_id
        job.orphan = job.parting = True
        gw.calls[job.id] = job
        job.add_frame(calls.encode(call, payload), len(payload))


def _without_close(header: calls.SessionOpen) -> calls.SessionOpen:
    return calls.SessionOpen(header.id, header.endpoint, header.lifetime_s)
