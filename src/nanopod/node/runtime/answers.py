"""How a call ends: its answer as frames, kept in the table and sent to whoever waits. Any thread may end a call."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

from nanopod.model import calls, codec, frames
from nanopod.model.errors import CallTimeout, Cancelled, Invalid, NanopodError, WorkerLost
from nanopod.node import redact
from nanopod.node.runtime import output
from nanopod.node.runtime.connection import Stream
from nanopod.node.runtime.table import DONE, Call, Table
from nanopod.node.runtime.values import Values

LOG_TAIL_CHARS: Final = 8192
MESSAGE_CHARS: Final = 2000


class Answers:
    """The answers of one worker's calls; what a batch of calls produces leaves with one write."""

    def __init__(self, table: Table, values: Values) -> None:
        self.active: dict[bytes, Call] = {}
        """Calls whose function runs or waits for its batch, those included that were answered without it."""
        self.on_value: Callable[[Call, int, int], None] = lambda call, run_us, at_once: None
        """Told of every call that succeeded: (call, microseconds, calls of its function that ran with it)."""
        self._table = table
        self._values = values
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._dirty = False
        self._flushing: list[Stream] = []

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called on the thread of the loop that calls run on."""
        self._loop = loop
        self._loop_thread = threading.get_ident()

    # --- ends of a call ---

    def returned(self, call: Call, payload: bytes, run_us: int, at_once: int = 0) -> None:
        """It has a value. `at_once`: calls that shared the time it took, 0: not known."""
        if len(payload) > calls.INLINE_BYTES_MAX:
            self.failed(call, too_large("the result", len(payload)), run_us)
            return
        header = calls.Result(call.id, len(payload), calls.Usage(run_us))
        answer = calls.split(header, payload) if len(payload) > calls.PART_BYTES else [calls.encode(header, payload)]
        self.on_value(call, run_us, at_once)
        self.ended(call, answer, run_us, True)

    def exhausted(self, call: Call, run_us: int) -> None:
        """A generator came to its end, or to the end of its caller's interest."""
        if call.cancel_code:
            self.ended(call, [self.cancel_frame(call)], run_us, False)
            return
        self.on_value(call, run_us, 0)
        self.ended(call, [calls.encode(calls.End(call.id, calls.Usage(run_us)))], run_us, True)

    def failed(self, call: Call, error: BaseException, run_us: int) -> None:
        """It raised."""
        output.end_of(call)
        if call.is_probe:
            call.raised = error
        if call.header.codec:
            payload = redact.here().blotted(self._values.foreign_error(error))
            answer = calls.split(calls.Result(call.id, len(payload), calls.Usage(run_us)), payload)
        else:
            answer = self._error(call, error, run_us, True)
        self.ended(call, answer, run_us, False)

    def cancelled(self, call: Call, error: BaseException, run_us: int) -> None:
        """Its task ended by CancelledError: by our wish, or by a mistake of its own."""
        if call.cancel_code:
            self.ended(call, [self.cancel_frame(call)], run_us, False)
        else:
            self.failed(call, error, run_us)

    def refuse(self, call: Call, error: NanopodError) -> None:
        """Answer a call that cannot be run and did not start."""
        self.active.pop(call.id, None)
        if call.is_probe:
            call.raised = error
        self.finish(call, self._error(call, error, None, False), b'{"run_us":0,"ok":false}')

    def lost(self, call: Call, error: WorkerLost) -> None:
        """The worker ends before the call does; what the call still does goes nowhere."""
        output.end_of(call)
        self.finish(call, self._error(call, error, None, True), b'{"run_us":0,"ok":false}')

    def _error(self, call: Call, error: BaseException, run_us: int | None, started: bool) -> list[bytes]:
        tail = call.log_tail[-LOG_TAIL_CHARS:]
        try:
            payload = codec.encode_exception(error, log_tail=tail)
        except Exception:  # an exception that cannot even be described
            payload = codec.encode_exception(RuntimeError(type(error).__name__), log_tail=tail)
        if len(payload) > calls.INLINE_BYTES_MAX:
            payload = codec.encode_exception(RuntimeError(f"{type(error).__name__}: its content is too large"))
        if isinstance(error, NanopodError):
            code, message = error.code, redact.here().text(error.message) if not started else describe(error)
        else:
            code, message = "remote_error", describe(error)
        usage = calls.Usage(run_us) if run_us is not None else None
        header = calls.Error(
            call.id, code, message, len(payload), usage, "run", tail, started, call.attempt,
            types=class_names(type(error), self._values.module),
        )  # fmt: skip
        return calls.split(header, redact.here().blotted(payload))

    def cancel_frame(self, call: Call) -> bytes:
        """The answer to a call that was withdrawn, or whose time is over."""
        error: NanopodError = Cancelled("the call was cancelled")
        if call.cancel_code == CallTimeout.code:
            error = CallTimeout(f"the call ran longer than its timeout of {call.header.timeout_s:g} s")
        output.end_of(call)
        if call.is_probe:
            call.raised = error
        return calls.encode(
            calls.Error(
                call.id, error.code, error.message, stage="run", log_tail=call.log_tail[-LOG_TAIL_CHARS:],
                started=call.started, attempt=call.attempt, types=class_names(type(error), self._values.module),
            )
        )  # fmt: skip

    def ended(self, call: Call, answer: list[bytes], run_us: int, ok: bool) -> None:
        """The function is over: its slot is free, its answer leaves."""
        self.active.pop(call.id, None)
        output.end_of(call)
        end = b'{"run_us":%d,"ok":%s}' % (run_us, b"true" if ok else b"false")
        if call.workload is not None:
            end = b'%s,"workload":%.9g}' % (end[:-1], call.workload)
        self.finish(call, answer, end)

    def finish(self, call: Call, answer: list[bytes], end: bytes) -> None:
        """Keep the answer and send it; only a call's first one counts."""
        with self._table.lock:
            if call.state == DONE:
                return
            if not call.is_generator:
                call.final, call.end, call.final_bytes = answer, end, sum(map(len, answer))
            self._table.finished(call, time.monotonic())
            stream = call.stream
        # What the function held must not live as long as its result.
        call.handle = call.context = call.lines = call.run = call.batch = None
        if stream is not None:
            self.deliver(stream, answer, end)

    # --- sending ---

    def deliver(self, stream: Stream, answer: list[bytes], end: bytes) -> None:
        """DATA of an answer, then END."""
        pack, number, epoch = frames.pack, stream.id, stream.epoch
        last = pack(frames.END, number, end, 0, epoch)
        if len(answer) == 1:
            stream.post(pack(frames.DATA, number, answer[0], 0, epoch) + last, len(answer[0]), last=True)
        else:
            for frame in answer:
                stream.post(pack(frames.DATA, number, frame, 0, epoch), len(frame))
            stream.post(last, last=True)
        self.flush_soon(stream)

    def flush_soon(self, stream: Stream) -> None:
        """Send what the present pass of the loop produced with one write; at once from other threads."""
        loop = self._loop
        if loop is None or threading.get_ident() != self._loop_thread:
            stream.connection.flush()
            return
        flushing = self._flushing
        if not flushing or flushing[-1].connection is not stream.connection:
            flushing.append(stream)
        if not self._dirty:
            self._dirty = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._dirty = False
        flushing, self._flushing = self._flushing, []
        for stream in flushing:
            stream.connection.flush()


def class_names(cls: type, module: str) -> list[str]:
    """The names of a class and its bases as retry policies may have them: `module.qualname`, builtins bare.

    A class of the user's module (`module` here) goes by `__main__` too: that is its module where the file is run.
    """
    names = []
    for base in cls.__mro__[:-1]:
        if base.__module__ == "builtins":
            names.append(base.__qualname__)
            continue
        names.append(f"{base.__module__}.{base.__qualname__}")
        if base.__module__ == module:
            names.append(f"__main__.{base.__qualname__}")
    return names


def too_large(what: str, size: int) -> Invalid:
    """The refusal of a value that is too long for one call."""
    return Invalid(
        f"{what} is {size} bytes, at most {calls.INLINE_BYTES_MAX} travel in one piece; store it and return where"
    )


def describe(error: BaseException) -> str:
    """Class and text of an exception, in one line or a few."""
    try:
        text = str(error)
    except Exception:  # whatever a user's __str__ raises
        text = ""
    name = type(error).__qualname__
    return redact.here().text(f"{name}: {text}" if text else name)[:MESSAGE_CHARS]
