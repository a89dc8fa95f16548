"""Calls between two links: those whose worker is away, those a killed gateway had dispatched, and finished ones."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from nanopod.gateway.called import HELD, RESUME_S, Called
from nanopod.gateway.calls import LEASE_S, CallJob
from nanopod.gateway.journal import Dispatch
from nanopod.model import calls
from nanopod.model.wire import KeyRow

if TYPE_CHECKING:
    from nanopod.gateway.greetings import HeldCall
    from nanopod.gateway.links import WorkerLink
    from nanopod.gateway.process import Gateway

KEPT_S: Final = 600.0
KEPT_BYTES_MAX: Final = 256 << 20
KEPT_CALLS_MAX: Final = 65_536


class Recall:
    """Calls whose worker is away, by instance, until it reports them or their lease is over."""

    def __init__(self, gateway: Gateway) -> None:
        self._gw = gateway
        self._held: dict[str, dict[bytes, CallJob]] = {}
        self._recovered = False

    def hold(self, instance_id: str, job: CallJob) -> None:
        """The worker of this call is away."""
        self._held.setdefault(instance_id, {})[job.id] = job

    def drop(self, job: Called) -> None:
        """This call waits for no worker any more."""
        held = self._held.get(job.instance_id)
        if held is not None and held.pop(job.id, None) is not None and not held:
            del self._held[job.instance_id]

    def recover(self) -> None:
        """After a restart: whatever the journal says was dispatched is held until its worker reports it.

        Needs tables; called again with the first ones when there were none on disk. Until a worker reports them they
        are no load: most have ended, and only their client has not said so. No endpoint at zero is woken for them.
        """
        gw = self._gw
        if gw.tables.version < 0 or self._recovered:
            return
        self._recovered = True
        until = gw.now + LEASE_S
        for dispatch in list(gw.journal.recovered.values()):
            job = self._remake(dispatch)
            if job is None:
                gw.journal.finished(dispatch.call_id)
                continue
            job.state = HELD
            job.held_until = until
            self.hold(dispatch.instance_id, job)
            gw.wheel.at(job, job.held_until)

    def _remake(self, dispatch: Dispatch) -> CallJob | None:
        gw = self._gw
        route = gw.tables.routes.get(dispatch.endpoint_id)
        if route is None or dispatch.call_id in gw.calls:
            return None
        call = calls.Call(
            dispatch.call_id, dispatch.endpoint_id, dispatch.function, timeout_s=dispatch.timeout_s,
            idempotent=dispatch.idempotent,
        )  # fmt: skip
        key = KeyRow(dispatch.key_id, dispatch.workspace_id)
        job = CallJob(gw, call, gw.pool(route), route.functions.get(dispatch.function), key)
        job.instance_id = dispatch.instance_id
        job.revision_id = dispatch.revision_id
        job.arrival = dispatch.t_arrival
        job.attempt = dispatch.attempt
        job.resume_until = gw.now + LEASE_S + RESUME_S
        gw.calls[job.id] = job
        return job

    def adopt(self, link: WorkerLink, reported: list[HeldCall]) -> None:
        """A worker linked and said which calls it has: bind ours to the link, give up those it does not have."""
        gw = self._gw
        held = self._held.pop(link.instance_id, {})
        for entry in reported:
            try:
                call_id = bytes.fromhex(entry.id)
            except ValueError:
                continue
            job = held.pop(call_id, None)
            if job is not None:
                job.adopt(link, entry.started)
                continue
            known = gw.calls.get(call_id)
            if known is None or (known.answered and known.link is None):
                # Nobody will ask for it: its client has the answer, or was told that it is lost.
                link.release(call_id)
        for job in held.values():
            job.worker_forgot()


class Kept:
    """Finished calls whose client has not acknowledged the answer: for 600 s, within bounds."""

    def __init__(self, gateway: Gateway) -> None:
        self._gw = gateway
        self._jobs: OrderedDict[bytes, tuple[Called, float, int]] = OrderedDict()
        self._bytes = 0

    def add(self, job: Called) -> None:
        """Keep a finished call's frames."""
        size = sum(map(len, job.finished_frames))
        self._jobs[job.id] = (job, self._gw.now + KEPT_S, size)
        self._bytes += size
        while self._bytes > KEPT_BYTES_MAX or len(self._jobs) > KEPT_CALLS_MAX:
            self._forget(next(iter(self._jobs)))

    def acked(self, call_id: bytes, workspace_id: str) -> None:
        """The client has the answer: so the worker may forget it too."""
        kept = self._jobs.get(call_id)
        if kept is None or kept[0].workspace_id != workspace_id:
            return
        job = kept[0]
        self._forget(call_id)
        link = self._gw.links.get(job.instance_id)
        if link is not None and job.link is None:
            link.release(call_id)

    def expire(self, now: float) -> None:
        """Forget what was kept long enough."""
        while self._jobs:
            call_id, (_, until, _) = next(iter(self._jobs.items()))
            if until > now:
                return
            self._forget(call_id)

    def _forget(self, call_id: bytes) -> None:
        job, _, size = self._jobs.pop(call_id)
        self._bytes -= size
        # Only now, not at its end: a gateway killed before the client had the answer must know, when the client sends
        # the call again, that it was started.
        self._gw.journal.finished(call_id)
        if self._gw.calls.get(call_id) is job:
            del self._gw.calls[call_id]

    def __len__(self) -> int:
        return len(self._jobs)
