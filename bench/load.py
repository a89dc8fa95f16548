"""Closed-loop HTTP load from a process of its own: `python -m bench.load`; one JSON object on stdout.

Raw protocols on keep-alive connections: the client must cost less than what it measures. Every answer is checked: a
wrong status, length or number of events ends the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

from bench.figures import percentile
from bench.upstream import EVENTS, PATH, STEP_S, TOKENS, Secrets, request_body


def cpu_ns(pids: list[int]) -> int:
    """User plus system time of these processes, all their threads, in nanoseconds: finer than the ticks of `stat`."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()
    )


class Run:
    """What all connections share: the clock, what to send, what was counted."""

    def __init__(self, cell: str, key: str) -> None:
        body = request_body(cell)
        self.request = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nUser-Agent: bench\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.streamed = cell != "plain"
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.counting = False
        self.ended = False
        self.events = 0
        self.times: list[float] = []
        self.firsts: list[float] = []

    def fail(self, why: str) -> None:
        """End the run."""
        if not self.failed.done() and not self.ended:
            self.failed.set_exception(RuntimeError(why))


class Caller(asyncio.Protocol):
    """One connection: a request, its whole answer, the next request."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._began = 0.0
        self._buffer = b""
        self._size = 0
        self._events = 0
        self._first = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected; `send` begins."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep-alive connections do not end by themselves."""
        self._run.fail(f"a connection closed: {exc}")

    def send(self) -> None:
        """The next request."""
        self._buffer, self._size, self._events, self._first, self._tail = b"", 0, 0, 0.0, b""
        self._began = time.perf_counter()
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        if not self._size:
            self._buffer = data = self._buffer + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            if not data.startswith(b"HTTP/1.1 200"):
                self._run.fail(f"not the answer that was expected: {data[:300]!r}")
                return
            self._size = 1
            if not self._run.streamed:
                length = data[:end].lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                self._size = end + 4 + int(length)
            else:
                data = data[end + 4 :]
        elif not self._run.streamed:
            self._buffer += data
        if self._run.streamed:
            self._on_stream(data)
        elif len(self._buffer) >= self._size:
            self._complete()

    def _on_stream(self, data: bytes) -> None:
        if not data:
            return
        run = self._run
        found = data.count(b"\n\n") + (self._tail[-1:] == b"\n" and data[:1] == b"\n")
        if found:
            if not self._first:
                self._first = time.perf_counter() - self._began
            self._events += found
            if run.counting:
                run.events += found
        self._tail = (self._tail + data)[-5:]
        if self._tail == b"0\r\n\r\n":
            if self._events != EVENTS:
                run.fail(f"a stream had {self._events} events instead of {EVENTS}")
                return
            self._complete()

    def _complete(self) -> None:
        run = self._run
        if run.counting:
            run.times.append(time.perf_counter() - self._began)
            if run.streamed:
                run.firsts.append(self._first)
        if not run.ended:
            self.send()


async def drive(args: argparse.Namespace) -> dict[str, Any]:
    """Connect, warm up, count for `args.seconds`; see `main` for what comes back."""
    run = Run(args.cell, Secrets.load(args.directory).key)
    loop = asyncio.get_running_loop()
    pids = [int(pid) for pid in args.pids.split(",") if pid]
    callers: list[Caller] = []
    for _ in range(args.connections):
        _, caller = await loop.create_connection(lambda: Caller(run), "127.0.0.1", args.port)
        callers.append(caller)
    # Spread over one stream's time, so that streams start and end evenly and not as a herd.
    pause_s = TOKENS * STEP_S / args.connections if args.cell == "paced" else 0.0
    for caller in callers:
        caller.send()
        await asyncio.sleep(pause_s)
    await asyncio.wait([run.failed], timeout=args.warm_s)
    used, own, begin = cpu_ns(pids), time.process_time(), time.perf_counter()
    run.counting = True
    await asyncio.wait([run.failed], timeout=args.seconds)
    run.counting = False
    used, own, seconds = cpu_ns(pids) - used, time.process_time() - own, time.perf_counter() - begin
    run.ended = True
    if run.failed.done():
        run.failed.result()
    if not run.times:
        raise RuntimeError("not a single request was answered")
    return {
        "requests": len(run.times), "events": run.events, "seconds": seconds, "cpu_s": used / 1e9,
        "p50_s": percentile(run.times, 0.5), "p99_s": percentile(run.times, 0.99),
        "ttft_s": percentile(run.firsts, 0.5) if run.firsts else 0.0, "client_share": own / seconds,
    }  # fmt: skip


def main() -> int:
    """Print counts, seconds, the CPU time that `--pids` used meanwhile, percentiles, and our own share of a core."""
    import uvloop

    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cell", choices=("plain", "burst", "paced"), required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--warm-s", type=float, default=0.7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--pids", default="")
    args = parser.parse_args()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(drive(args))))
    except (RuntimeError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
