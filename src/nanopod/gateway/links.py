"""The gateway's end of a worker link: frames in, frames out, and the truth about one worker's life.

The worker dialled us (gateways reach workers behind any NAT this way). A link that is quiet for three pings is closed;
its jobs then hear `on_link_lost` and decide for themselves.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from nanopod.gateway import choosing
from nanopod.gateway.greetings import Hello, State, decode_hello, decode_state
from nanopod.gateway.jobs import Job
from nanopod.gateway.pool import Pool
from nanopod.gateway.preferring import plain
from nanopod.gateway.wheel import Timed
from nanopod.model import frames
from nanopod.model.endpoint import DEFAULT_WORKLOAD
from nanopod.model.wire import WorkerRow, WorkerState

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

PING_S: Final = 2.0
MISSES_MAX: Final = 3
WINDOW_BYTES: Final = 262_144
CREDIT_BYTES: Final = 65_536
"""Credit is given back in steps of at least this much."""
REFUSED_S: Final = 0.05
"""A worker that handed a job back gets no other one for so long."""
HELLO_S_MAX: Final = 10.0
WRITE_BACKLOG_MAX: Final = 256 << 20
LARGE_BYTES: Final = 65_536
"""Payloads from this size on are not copied to be sent."""
LEAVING_S: Final = 30.0
UNLIMITED: Final = 1 << 30
KEYS_MAX: Final = 8
"""Route keys that a worker is taken to have at hand."""

_U32: Final = Struct(">I")
_U16: Final = Struct(">H")
_pack: Final = frames.HEADER.pack
_json: Final = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


def admit(workers: dict[str, WorkerRow], instance_id: str, epoch: str, token: str) -> int:
    """The HTTP status for a dialling worker: 101, 403 (unknown yet, or wrong token) or 410 (an older epoch: fenced)."""
    row = workers.get(instance_id)
    digest = hashlib.sha256(token.encode()).hexdigest()
    if row is None or not epoch.isascii() or not epoch.isdigit() or int(epoch) > row.epoch:
        return 403
    if int(epoch) < row.epoch:
        return 410
    return 101 if hmac.compare_digest(digest, row.token_digest) else 403


def write(transport: asyncio.Transport, out: list[bytes]) -> None:
    """Send what a pass produced, with one write where that costs less than a copy."""
    if len(out) == 1:
        transport.write(out[0])
    elif len(out) > 64 or sum(map(len, out)) < LARGE_BYTES:
        transport.write(b"".join(out))
    else:
        transport.writelines(out)


class WorkerLink(asyncio.Protocol, Timed):
    """One linked worker. Speaks from 101 on."""

    __slots__ = (
        "_announced_at", "_by_function", "_dirty", "_gw", "_next", "_out", "_pings", "_reader", "_refused_until",
        "_release", "_seen", "_streams", "_transport", "closed", "continuation", "doomed_at", "draining", "engine",
        "epoch", "gpu", "greeted", "in_flight", "instance_id", "keys", "kv_use", "limit", "load", "models", "models_of",
        "perf", "pool", "queued", "ready", "region", "revision_id", "sessions", "slots", "state_detail", "usable",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, row: WorkerRow, pool: Pool) -> None:
        Timed.__init__(self)
        self._gw = gateway
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Job] = {}
        self._next = 1
        self._out: list[bytes] = []
        self._dirty = False
        self._pings = 0
        self._seen = gateway.now
        self._refused_until = 0.0
        self._release: list[bytes] = []
        self._by_function: dict[str, int] = {}
        self.pool = pool
        self.instance_id = row.instance_id
        self.epoch = row.epoch
        self.revision_id = row.revision_id
        self.slots = row.slots
        self.kv_use = -1.0
        """Share of its engine's key-value cache that is in use; -1: not known."""
        self.queued = 0
        """Requests that wait inside its engine, as far as one knows."""
        self.bound()
        self.doomed_at = self._announced_at = row.doomed_at
        self.draining = row.draining
        self.engine = ""
        self.continuation = "none"
        self.gpu = self.region = ""
        """As `Preference` compares them."""
        self.in_flight = 0
        """Taken slots; those that are lent are free."""
        self.load = 0.0
        """Workload of the jobs on it."""
        self.keys: dict[str, None] = {}
        """Route keys that it had last, the newest at the end."""
        self.sessions = 0
        """Sessions that are pinned to it."""
        self.perf: float | None = None
        self.state_detail = ""
        self.models_of = ""
        """The revision whose models these are."""
        self.models: dict[str, str] | None = None
        """Of a model server, {model: "" once it is ready, else why it is not}; None: it has what its route names."""
        self.greeted = False
        self.ready = False
        self.usable = False
        """Ready, not draining and known to the tables: takes new work."""
        self.closed = False

    # --- what pools and jobs ask ---

    def bound(self) -> None:
        """Work out `limit`: the requests that it may have now. An engine with a queue of its own gets none."""
        stated = self.pool.route.concurrency
        self.limit = self.slots if stated < 0 else stated or UNLIMITED
        if self.pool.prefixes is not None and choosing.saturated(self.kv_use, self.queued):
            self.limit = 0

    @property
    def leaving(self) -> bool:
        """True when its end is announced and near: what is lost with it was preempted."""
        doomed_at = self.doomed_at
        return self.draining or (doomed_at is not None and doomed_at - time.time() < LEAVING_S)

    def has_room(self, job: Job, now: float) -> bool:
        """True when a slot, and one of the job's function, is free, and what it has will not keep it busy for too long.

        A worker's expected wait is the workload it has by its measured speed. Usual calls in its slots never count as
        too much: only calls that are heavier than most of their function.
        """
        if (self.in_flight >= self.limit and not job.slotless) or now < self._refused_until:
            return False
        function = job.function
        if function and self._by_function.get(function, 0) >= job.concurrency:
            return False
        perf = self.perf
        if perf and self.load > perf * job.queue_s_max:
            return self.load <= min(self.limit, job.concurrency) * job.pool.usual.get(function, DEFAULT_WORKLOAD)
        return True

    def open(self, job: Job, head: bytes, body: bytes, *, end: bool = True) -> int:
        """Open a stream for `job`; its number. The OPEN frame leaves with this pass."""
        stream = self._next
        self._next = stream + 1
        self._streams[stream] = job
        self.in_flight += 1
        self.load += job.workload
        function = job.function
        if function:
            self._by_function[function] = self._by_function.get(function, 0) + 1
        if job.route_key:
            self._had(job.route_key)
        job.link = self
        job.stream = stream
        job.opened_at = self._gw.now
        size = 2 + len(head) + len(body)
        self._write(
            b"".join(
                (
                    _pack(size, stream, frames.OPEN, frames.FLAG_END if end else 0, job.epoch & 0xFFFF),
                    _U16.pack(len(head)),
                    head,
                    body,
                )
            )
        )
        return stream

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """More of a request body, or a frame for a running call."""
        begin = _pack(len(payload), stream, frames.DATA, frames.FLAG_END if end else 0, 0)
        if len(payload) < LARGE_BYTES:
            self._write(begin + payload)
        else:
            self._write(begin)
            self._write(payload)

    def window(self, stream: int, credit: int) -> None:
        """Let the worker send `credit` further bytes on a stream."""
        self._write(_pack(4, stream, frames.WINDOW, 0, 0) + _U32.pack(credit))

    def reset(self, job: Job, code: int, text: str = "") -> None:
        """End a job's stream from this side and free its slot."""
        stream = job.stream
        if self._streams.get(stream) is job:
            self._write(frames.pack_reset(stream, code, text, job.epoch & 0xFFFF))
            self.close_stream(job)

    def close_stream(self, job: Job) -> None:
        """The job's stream is over: free its slot."""
        if self._streams.pop(job.stream, None) is not job:
            return
        # Sums of floats drift: an idle worker has no load.
        self.load = self.load - job.workload if self._streams else 0.0
        job.link = None
        job.stream = 0
        if job.lent:
            job.lent = False
            return
        self.in_flight -= 1
        function = job.function
        if function:
            self._by_function[function] -= 1
        if self.queued:
            # One of those that waited in its engine runs now; its next STATE says how it is.
            self.queued -= 1
            self.bound()
        self.pool.released(self)

    def lend(self, job: Job) -> None:
        """The job waits for calls of its own: its slot, and that of its function, are free meanwhile."""
        if job.lent or self._streams.get(job.stream) is not job:
            return
        job.lent = True
        self.in_flight -= 1
        if job.function:
            self._by_function[job.function] -= 1
        self.pool.released(self)

    def take_back(self, job: Job) -> None:
        """The job goes on: it has its slot again, even if that makes one too many for a moment."""
        if not job.lent:
            return
        job.lent = False
        self.in_flight += 1
        self.pool.in_flight += 1
        if job.function:
            self._by_function[job.function] += 1

    def _had(self, key: str) -> None:
        keys = self.keys
        keys.pop(key, None)
        keys[key] = None
        if len(keys) > KEYS_MAX:
            del keys[next(iter(keys))]

    def refused(self) -> None:
        """The worker handed a job back: give it a moment."""
        self._refused_until = self._gw.now + REFUSED_S

    def release(self, call_id: bytes) -> None:
        """The worker may forget this call's result; sent in batches."""
        if not self._release:
            self._gw.releasing.append(self)
        self._release.append(call_id)

    def release_now(self, call_id: bytes) -> None:
        """The same, before anything that is sent later: the call may be opened here again."""
        self._write(frames.pack(frames.RELEASE, 0, call_id))

    def flush_releases(self) -> None:
        """Send the RELEASE frames that are due."""
        while self._release:
            batch, self._release = self._release[:4096], self._release[4096:]
            self._write(frames.pack(frames.RELEASE, 0, b"".join(batch)))

    def jobs(self) -> list[Job]:
        """Jobs with an open stream here."""
        return list(self._streams.values())

    def row_changed(self, row: WorkerRow | None) -> None:
        """The tables say something new about this worker; None: it is not known any more and gets no new work."""
        if row is None:
            self.usable = False
            if self.sessions:
                self._gw.sessions.leaving(self)
            return
        self.revision_id = row.revision_id  # a worker that takes new function bodies belongs to another one then
        if row.doomed_at != self._announced_at:
            self.doomed_at = self._announced_at = row.doomed_at  # an end that was announced may be taken back
        self.usable = self.ready and not self.draining and not row.draining
        if self.sessions and (self.draining or row.draining):
            self._gw.sessions.leaving(self)

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._dirty:
            self._dirty = True
            if self.in_flight > 1:
                # Busy: what other callers send in this turn of the loop leaves with the same write. The pass that made
                # these bytes still writes its journal lines first, at its end.
                self._gw.loop.call_soon(self.flush)
            else:
                self._gw.dirty.append(self)

    def flush(self) -> None:
        """Send what this pass produced, with one write."""
        self._dirty = False
        out, self._out = self._out, []
        transport = self._transport
        if transport is None or self.closed:
            return
        write(transport, out)
        if transport.get_write_buffer_size() > WRITE_BACKLOG_MAX:
            self.lose("the worker does not read")

    # --- the wire ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Taken over from the HTTP protocol after 101."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1 << 20)
        self._gw.wheel.at(self, self._gw.now + HELLO_S_MAX)

    def data_received(self, data: bytes) -> None:
        """A read's worth of frames; everything they cause leaves in one pass."""
        gw = self._gw
        gw.now = self._seen = gw.loop.time()
        self._pings = 0
        try:
            for kind, stream, flags, epoch, payload in self._reader.feed(data):
                if stream:
                    job = self._streams.get(stream)
                    if job is not None:
                        job.on_frame(kind, flags, epoch, payload)
                    else:
                        gw.counters["frames_unknown_stream"] += 1
                else:
                    self._link_frame(kind, flags, payload)
                if self.closed:
                    break
        except (frames.ProtocolError, msgspec.MsgspecError, ValueError) as error:
            self.lose(f"protocol error: {error}")
        gw.flush()

    def _link_frame(self, kind: int, flags: int, payload: bytes) -> None:
        if not self.greeted:
            if kind != frames.HELLO:
                raise frames.ProtocolError("the first frame must be HELLO")
            self._hello(decode_hello(payload))
        elif kind == frames.PING:
            self._write(frames.pack(frames.PONG, 0, payload[:8]))
        elif kind == frames.STATE:
            self._state(decode_state(payload))
        elif kind == frames.GOAWAY:
            self.draining = True
            self._became(self.ready)
        elif kind != frames.PONG and kind not in (frames.WINDOW, frames.HELLO) and not flags & frames.FLAG_OPTIONAL:
            name = frames.NAMES[kind] if kind < len(frames.NAMES) else str(kind)
            raise frames.ProtocolError(f"frame {name} does not belong on stream 0")

    def _hello(self, hello: Hello) -> None:
        if hello.protocol != frames.PROTOCOL:
            raise frames.ProtocolError(f"the worker speaks protocol {hello.protocol}, this gateway {frames.PROTOCOL}")
        if hello.instance_id != self.instance_id or hello.epoch != self.epoch:
            raise frames.ProtocolError("HELLO names another instance than the request did")
        self.greeted = True
        self.slots = max(1, hello.slots)
        self.bound()
        self.draining = self.draining or hello.draining
        self.engine = hello.engine or hello.capability.engine
        self.continuation = hello.capability.continuation
        self.gpu, self.region = plain(hello.gpu), hello.region.lower()
        self.models, self.models_of = hello.models, hello.revision
        welcome: dict[str, Any] = {
            "protocol": frames.PROTOCOL,
            "gateway_id": self._gw.gateway_id,
            "window_bytes": WINDOW_BYTES,
            "ping_s": PING_S,
        }
        self._write(frames.pack(frames.WELCOME, 0, _json(welcome)))
        self._gw.wheel.at(self, self._gw.now + PING_S)
        self.pool.links.append(self)
        self._gw.sessions.linked(self)
        self._gw.recall.adopt(self, hello.calls)
        self._became(hello.ready)

    def _state(self, state: State) -> None:
        before = self.ready, self.draining, self.doomed_at, self.perf, self.state_detail, self.models, self.models_of
        if state.slots is not None:
            self.slots = max(1, state.slots)
        self.draining = state.draining
        if state.doomed_at is not None:
            self.doomed_at = state.doomed_at
        if self.perf != state.perf:
            self.perf = state.perf
            self.pool.speeds_changed()
        self.state_detail = state.detail
        if (state.kv_use, state.queued) != (self.kv_use, self.queued):
            self.kv_use, self.queued = state.kv_use, state.queued
            self._gw.loads_changed[self] = None
        self.bound()
        self.models, self.models_of = state.models, state.revision
        now = state.ready, self.draining, self.doomed_at, self.perf, self.state_detail, self.models, self.models_of
        if before != now:
            self._became(state.ready)
        elif self.usable:
            self.pool.pump()

    def _became(self, ready: bool) -> None:
        """Readiness (or anything the server sees) changed: tell it, and let waiting jobs go."""
        self.ready = ready
        self.row_changed(self._gw.tables.workers.get(self.instance_id))
        self._gw.report(self.worker_state())
        if self.usable:
            self.pool.pump()
            self._models_changed()
        else:
            self.pool.poke()

    def _models_changed(self) -> None:
        """Jobs that wait for a model may have nobody left to wait for."""
        if self.models and self.pool.waiting:
            for job in self.pool.waiting_jobs():
                job.on_models()

    def lacks(self, model: str) -> str:
        """Why this worker cannot answer for a model of its endpoint; "" when it can."""
        if self.models is None:
            return ""
        # A server of further models alone does not have the one that it is called by: it says so itself.
        why = self.models.get(model, "" if model in self.pool.route.serves[:1] else "loading")
        return "" if why.startswith("ready") else why

    def worker_state(self) -> WorkerState:
        """What the server is told about this worker."""
        return WorkerState(
            self.instance_id, self.epoch, not self.closed, self.ready and not self.closed,
            self.in_flight, self.perf, self.state_detail, self.kv_use, self.queued, self.models or {}, self.models_of,
        )  # fmt: skip

    def on_timer(self, now: float) -> None:
        """Ping every 2 s; a worker that says nothing for three of them is lost."""
        if self.closed:
            return
        if not self.greeted:
            self.lose(f"no HELLO within {HELLO_S_MAX:.0f} s")
            return
        if self._pings >= MISSES_MAX:
            self.lose(f"silent for {now - self._seen:.1f} s")
            return
        self._pings += 1
        self._write(frames.pack(frames.PING, 0, int(now * 1e6).to_bytes(8, "big")))
        self._gw.wheel.at(self, now + PING_S)

    def lose(self, reason: str) -> None:
        """Close the link; every job on it hears why."""
        if self.closed:
            return
        self.closed = True
        self.usable = self.ready = False
        gw = self._gw
        gw.wheel.clear(self)
        if self in self.pool.links:
            self.pool.links.remove(self)
        if gw.links.get(self.instance_id) is self:
            del gw.links[self.instance_id]
            if self.greeted:
                gw.report(self.worker_state())
        _log.info("worker %s epoch %d: link closed: %s", self.instance_id, self.epoch, reason)
        if self._transport is not None:
            self._transport.abort()
        for job in list(self._streams.values()):
            self.close_stream(job)
            job.on_link_lost(self, reason)
        if self.sessions:
            self._gw.sessions.link_lost(self)
        self.pool.poke()
        self._models_changed()

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker's process or host is gone."""
        self._gw.now = self._gw.loop.time()
        self.lose(f"connection lost: {exc}" if exc else "closed by the worker")
        self._gw.flush()

    def eof_received(self) -> bool:
        """Workers do not half-close: this is the end of the link."""
        return False
