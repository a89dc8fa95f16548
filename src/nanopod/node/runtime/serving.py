"""What the link's thread does with frames: remote calls go to the executor, HTTP requests to an engine."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nanopod.model import calls, frames
from nanopod.model.registry import App
from nanopod.node.engines.base import Attempt, Caps, Engine, Request
from nanopod.node.records import Start
from nanopod.node.runtime.connection import Stream
from nanopod.node.runtime.executor import Executor
from nanopod.node.runtime.link import Link
from nanopod.node.runtime.sink import StreamSink
from nanopod.node.runtime.table import DONE, RECEIVING, Call
from nanopod.node.runtime.waiting import until
from nanopod.node.runtime.web import Web
from nanopod.node.runtime.webexchange import Exchange

_log: Final = logging.getLogger(__name__)
_CALL_HEAD: Final = b'{"k":"call"}'
_WEB_HEAD: Final = b'{"k":"web",'
BODY_BYTES_MAX: Final = 33 << 20
LOAD_S: Final = 1.0


class OpenHead(msgspec.Struct, frozen=True):
    """Head of an OPEN frame."""

    k: str
    id: str = ""
    method: str = "POST"
    path: str = "/"
    headers: dict[str, str] = {}
    timeout_s: float = 600.0
    attempt: Attempt | int | None = None
    """Of a request what all its tries share; of a call the number of this one."""


_decode_head: Final = msgspec.json.Decoder(OpenHead).decode


def _in_words(name: str, told: dict[str, Any]) -> str:
    """One function's benchmark for people."""
    more = f", {told['errors']:g} errors" if told["errors"] else ""
    more += ", measured earlier" if told.get("kept") else ""
    return f"{name}: {told['perf']:.4g} units/s, p50 {told['p50_ms']:g} ms, p99 {told['p99_ms']:g} ms{more}"


class Serving:
    """Common to all workers: identity, state, and the end. The rest of `link.Handler` is the subclasses'."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.link: Link | None = None
        self.is_ready = False
        self.is_draining = False
        self.perf: float | None = None
        self.benchmark: dict[str, dict[str, Any]] = {}
        """By function: what its benchmark showed."""
        self.engine_name = "python"
        self.caps = Caps()
        self.engine_load: tuple[int, float] | None = None
        """(requests that wait inside the engine, share of its key-value cache in use) as they were told last."""
        self.models: dict[str, str] | None = None
        """Of a model server, {model: "" once it is ready, else why it is not}; replaced as a whole."""
        self.fenced = ""
        self.on_end: Callable[[], None] = lambda: None
        """Called on the loop when the worker is fenced."""

    @property
    def slots(self) -> int:
        """Requests at once."""
        return max(1, self.start.instance.slots)

    def in_flight(self) -> int:
        """Requests now."""
        return 0

    def tell(self) -> None:
        """Send the state to the gateway and the phase to the shim."""
        if self.link is None:
            return
        state: dict[str, Any] = {
            "ready": self.is_ready,
            "slots": self.slots,
            "in_flight": self.in_flight(),
            "draining": self.is_draining,
        }
        if self.perf is not None:
            state["perf"] = self.perf
        if self.engine_load is not None:
            state["queued"], state["kv_use"] = self.engine_load
        if self.models is not None:
            state["models"], state["revision"] = self.models, self.start.instance.revision_id
        if self.benchmark:
            state["benchmark"] = self.benchmark
            state["detail"] = "; ".join(_in_words(name, told) for name, told in self.benchmark.items())
        self.link.set_state(**state)
        self.link.tell_shim(phase="draining" if self.is_draining else "ready" if self.is_ready else "loading")

    def ready(self) -> None:
        """Take work from now on."""
        self.is_ready = True
        self.tell()

    # --- link.Handler, on the link's thread ---

    def hello(self) -> dict[str, Any]:
        """Fields of HELLO."""
        instance = self.start.instance
        model = instance.app.model
        return {
            "protocol": frames.PROTOCOL,
            "instance_id": instance.instance_id,
            "epoch": instance.epoch,
            "endpoint_id": instance.endpoint_id,
            "revision": instance.revision_id,
            "slots": self.slots,
            "ready": self.is_ready,
            "draining": self.is_draining,
            "engine": self.engine_name,
            "capability": {
                "continuation": self.caps.continuation,
                "seed": self.caps.seed,
                "token_ids": self.caps.token_ids,
            },
            "model_id": model.model_id if model is not None else "",
            "calls": [],
            "gpu": self.start.gpu,
            "region": self.start.region,
            "models": self.models,
        }

    def on_release(self, call_ids: list[bytes]) -> None:
        """Nothing is kept."""

    def on_fenced(self, reason: str) -> None:
        """A newer epoch runs: end."""
        self.fenced = reason
        if self.link is not None:
            self.link.handoff.put(lambda: self.on_end())
            self.link.handoff.post()

    def holds_calls(self) -> bool:
        """No."""
        return False


class Functions(Serving):
    """A worker of remote functions."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        app = start.instance.app
        self.executor = Executor(app.module, self.slots, app.serializer)
        self.web = Web(self._later)
        self.app = App("")
        """What was loaded; set once the user's module is imported."""

    def in_flight(self) -> int:
        """Running calls and web requests."""
        return len(self.executor.active) + len(self.web.active)

    def hello(self) -> dict[str, Any]:
        """With the calls that this worker has."""
        held = [
            {"id": call.id.hex(), "started": call.started, "done": call.state == DONE}
            for call in self.executor.table.held()
        ]
        return {**super().hello(), "calls": held}

    def holds_calls(self) -> bool:
        """While something runs, or finished within the last seconds."""
        limit = time.monotonic() - 10.0
        return any(call.state != DONE or call.done_at > limit for call in self.executor.table.held())

    def on_open(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        """A call, or the adoption of one."""
        head, body = frames.unpack_open(payload)
        if head == _CALL_HEAD:
            self._open_call(stream, body, end)
            return
        if head.startswith(_WEB_HEAD):
            self.web.open(stream, head, body, end=end)
            return
        opened = _decode_head(head)
        if opened.k == "adopt":
            call = self.executor.table.calls.get(bytes.fromhex(opened.id))
            if call is None:
                stream.reset(frames.INTERNAL, "this worker does not have that call")
            else:
                self._later(self.executor.adopt, stream, call)
        elif opened.k == "call":
            self._open_call(stream, body, end, opened.attempt if isinstance(opened.attempt, int) else 1)
        else:
            stream.reset(frames.REFUSED, "this worker serves remote functions only")

    def _open_call(self, stream: Stream, body: bytes, end: bool, attempt: int = 1) -> None:
        try:
            header, part = calls.decode(body)
        except ValueError as error:
            stream.reset(frames.INTERNAL, str(error))
            return
        if not isinstance(header, calls.Call) or header.size > calls.INLINE_BYTES_MAX:
            stream.reset(frames.TOO_LARGE, f"a call's payload is at most {calls.INLINE_BYTES_MAX} bytes")
            return
        call = Call(header, stream, part, time.monotonic(), attempt)
        known = self.executor.table.again(call)
        if known is not None:
            # Sent again under an id that is known: it has its answer, or will get it. It does not start twice.
            self._later(self.executor.adopt, stream, known)
            return
        stream.target = call
        if end:
            self._later(self.executor.start, call)

    def on_data(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        """More of a call's payload, or Credit or Cancel."""
        call = stream.target
        if not isinstance(call, Call):
            if isinstance(call, Exchange):
                self.web.data(call, payload, end=end)
            return
        if payload:
            try:
                header, part = calls.decode(payload)
            except ValueError as error:
                raise frames.ProtocolError(str(error)) from error
            if isinstance(header, calls.Part):
                call.size += len(part)
                if call.size > calls.INLINE_BYTES_MAX:
                    self.executor.table.drop(call)
                    stream.reset(frames.TOO_LARGE, f"a call's payload is at most {calls.INLINE_BYTES_MAX} bytes")
                    return
                call.parts.append(part)
            elif isinstance(header, calls.Cancel):
                self._later(self.executor.cancel, call, header.reason)
            elif isinstance(header, calls.Credit):
                self._later(self.executor.credit, call, header.items)
        if end and call.state == RECEIVING:
            self._later(self.executor.start, call)

    def on_reset(self, stream: Stream, code: int, text: str) -> None:
        """The gateway wants no answer any more."""
        call = stream.target
        if isinstance(call, Call):
            call.stream = None
            self._later(self.executor.cancel, call, text)
        elif isinstance(call, Exchange):
            self.web.lost(call)

    def on_release(self, call_ids: list[bytes]) -> None:
        """Results that the gateway has for good."""
        self.executor.table.release(call_ids)

    def on_lost(self, streams: list[Stream]) -> None:
        """Calls go on; they are reported on the next link. Web requests end."""
        for stream in streams:
            if isinstance(stream.target, Exchange):
                self.web.lost(stream.target)
        if streams:
            self._later(self.executor.link_lost, streams)

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        assert self.link is not None, "frames come by a link"
        self.link.handoff.put(call, *args)


class Body:
    """An HTTP-shaped request whose body is still coming, then its task."""

    __slots__ = ("head", "parts", "sink", "size", "task")

    def __init__(self, head: OpenHead, part: bytes, sink: StreamSink) -> None:
        self.head = head
        self.parts = [part]
        self.size = len(part)
        self.sink = sink
        self.task: asyncio.Task[None] | None = None


class Models(Serving):
    """A worker that hosts an engine."""

    def __init__(self, start: Start, engine: Engine) -> None:
        super().__init__(start)
        self.engine = engine
        self.running: set[Body] = set()
        self._lock = threading.Lock()

    def in_flight(self) -> int:
        """Requests the engine has."""
        return len(self.running)

    def on_open(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        """A request."""
        head, part = frames.unpack_open(payload)
        opened = _decode_head(head)
        if opened.k != "http":
            stream.reset(frames.REFUSED, "this worker serves a model; it has no remote functions")
            return
        body = Body(opened, part, StreamSink(stream))
        stream.target = body
        if end:
            self._later(self._begin, body)

    def on_data(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        """More of a request's body."""
        body = stream.target
        if not isinstance(body, Body) or body.task is not None:
            return
        body.size += len(payload)
        if body.size > BODY_BYTES_MAX:
            stream.reset(frames.TOO_LARGE, f"a request's body is at most {BODY_BYTES_MAX} bytes")
            return
        body.parts.append(payload)
        if end:
            self._later(self._begin, body)

    def on_reset(self, stream: Stream, code: int, text: str) -> None:
        """The caller left."""
        self.on_lost([stream])

    def on_lost(self, streams: list[Stream]) -> None:
        """Nobody hears the answers any more: the gateway continues them elsewhere."""
        for stream in streams:
            body = stream.target
            if isinstance(body, Body):
                body.sink.cancel()
                self._later(self._cancel, body)

    def _cancel(self, body: Body) -> None:
        if body.task is not None:
            body.task.cancel()

    def _begin(self, body: Body) -> None:
        if body.sink.cancelled:
            return
        if self.is_draining or not self.is_ready:
            body.sink.reset("refused", "draining" if self.is_draining else "not ready")
            return
        self.running.add(body)
        body.task = asyncio.get_running_loop().create_task(self._handle(body))

    async def _handle(self, body: Body) -> None:
        head, sink = body.head, body.sink
        attempt = head.attempt if isinstance(head.attempt, Attempt) else Attempt("")
        path, _, query = head.path.partition("?")
        request = Request(head.method, path, head.headers, b"".join(body.parts), attempt, head.timeout_s, query)
        body.parts = []
        try:
            async with asyncio.timeout(head.timeout_s):
                await self.engine.handle(request, sink)
            if not sink.is_over and not sink.cancelled:
                sink.reset("internal", "the engine ended without an answer")
        except TimeoutError:
            sink.reset("deadline", f"no answer within {head.timeout_s:g} s")
        except asyncio.CancelledError:
            if not sink.cancelled:
                sink.reset("engine_lost", "the worker had to end before the answer was complete")
        except Exception as error:
            _log.exception("request %s failed", attempt.request_id)
            sink.reset("internal", f"{type(error).__name__}: {error}")
        finally:
            self.running.discard(body)

    async def watch_load(self) -> None:
        """Tell the engine's load when it has changed, once a second at most, until cancelled."""
        while True:
            await asyncio.sleep(LOAD_S)
            load = self.engine.load()
            found = load.waiting, round(load.kv_use, 2)
            if found != (self.engine_load or (0, -1.0)):
                self.engine_load = found
                self.tell()

    async def drain(self, limit_s: float) -> int:
        """Let running requests end; the number of those given up."""
        await until(lambda: not self.running, limit_s)
        left = [body.task for body in self.running if body.task is not None]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)
        return len(left)

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        assert self.link is not None, "frames come by a link"
        self.link.handoff.put(call, *args)
