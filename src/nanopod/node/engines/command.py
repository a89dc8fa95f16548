"""An engine somebody else wrote: a command that speaks `ModelSpec.protocols` on a loopback port, behind our link.

Ready means that a token (or a vector) came out, not that a health page answers; a command that does not speak OpenAI's
API is ready when its protocol's health path says so, or as soon as it listens. What it streams is passed on as it
comes; usage is read from it on the way. Its answers cannot be continued exactly elsewhere: continuation is best effort.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import re
import signal
import socket
import stat
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import yarl

from nanopod.model import unreadable
from nanopod.model.endpoint import ModelSpec
from nanopod.node import files, procs
from nanopod.node.engines.base import Caps, Card, Load, Request, Sink, Timings, Usage
from nanopod.node.engines.details import Details
from nanopod.node.engines.observed import Seen
from nanopod.node.engines.scraping import Scraping

HOST: Final = "127.0.0.1"
PROBE_S_MIN: Final = 0.01
PROBE_S_MAX: Final = 1.0
PROBE_SHARE: Final = 0.08
"""Between two looks goes this share of the time that the command has taken so far: it is noticed soon, and long starts
are not disturbed."""
PROBE_ANSWER_S_MAX: Final = 120.0
CONNECT_S_MAX: Final = 5.0
TAIL_LINES: Final = 30
SETTLE_S: Final = 0.01
SETTLE_S_MAX: Final = 1.0
"""What a command printed passes through the shim: how long its last lines may take to the log."""
READY_PATH: Final = ModelSpec("").ready_path
_WORD: Final = re.compile(r"\{\{(?:port|host|model)\}\}|\{(?:port|host|model)\}")
OPENAI_PREFIX: Final = "KSERVE_OPENAI_ROUTE_PREFIX"
"""Environment variable of commands that have OpenAI's paths below a prefix of their own."""
_NOT_PASSED: Final = frozenset(
    {"host", "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade",
     "transfer-encoding", "content-length", "expect", "date", "server", "x-nanopod-account"}
)  # fmt: skip
"""Headers of the hop, in either direction."""
_TOKEN_PROBES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
    ("/v1/completions", {"prompt": "Hi", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "Hi"}),
)
OPENAI: Final = frozenset(path for path, _ in _TOKEN_PROBES) | {"/v1/responses", "/v1/rerank"}
_json: Final = msgspec.json.Encoder().encode
_log: Final = logging.getLogger("nanopod.node.engines.command")


class EngineFailed(Exception):
    """The command did not become an engine; the message holds its last lines."""


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """True when nobody listens on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def filled(argv: tuple[str, ...], *, port: int, model: str) -> list[str]:
    """The command with `{port}`, `{host}` and `{model}` replaced; `{{port}}` is that word itself, other braces stay."""
    words = {"{port}": str(port), "{host}": HOST, "{model}": model}
    return [_WORD.sub(lambda found: words.get(found[0]) or found[0][1:-1], word) for word in argv]


class CommandEngine:
    """Implements `base.Engine` for a child process. Its output goes where ours goes: to the instance's log."""

    def __init__(self, model: ModelSpec) -> None:
        if not model.argv:
            raise EngineFailed("the engine `command` needs model.argv: the command that serves the model")
        self.caps = Caps(continuation="best_effort", max_concurrency=max(1, model.slots))
        self.exited: asyncio.Future[str] | None = None
        """Resolved with a sentence when the command ends by itself; there from `start` on."""
        self._model = model
        self._speaks_openai = "openai" in model.protocols
        self._any_path = "http" in model.protocols
        self._prefix = ""
        """What the command has before OpenAI's `/v1`."""
        self.port = 0
        """Where the command listens; set by `start`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._upstream_model = model.model_id
        self._running = 0
        self._scraping: Scraping | None = None
        self._scrape: asyncio.Task[None] | None = None
        self._stopping = False
        self._log_start = 0

    # --- life ---

    async def start(self) -> Card:
        """Start the command and wait for its first token, at most `start_s_max` seconds. Raises `EngineFailed`."""
        limit = time.monotonic() + self._model.start_s_max
        self.port = self._free_port()
        self._launch()
        self._session = aiohttp.ClientSession(
            f"http://{HOST}:{self.port}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX),
            auto_decompress=False,
        )
        try:
            if self._speaks_openai:
                await self._until_up(limit)
                await self._first_token(limit)
            else:
                await self._until_healthy(limit)
        except BaseException:
            await self.stop(1.0)
            raise
        if "openai" in self._model.protocols:
            self._scraping = Scraping(self._session, lambda: self._running)
            self._scrape = asyncio.create_task(self._scraping.run())
        return Card(self._model.model_id, int(time.time()), extra={"engine": "command"})

    def _free_port(self) -> int:
        """The port that the specification names, while it is free; commands that heed `PORT` can have any."""
        named = self._model.port
        if named and is_free(named):
            return named
        port = free_port()
        if named:
            _log.warning("port %d (model.port) is taken; the command is told %d in PORT", named, port)
        return port

    def _launch(self) -> None:
        argv = filled(self._model.argv, port=self.port, model=self._model.source or self._model.model_id)
        parent = os.getpid()
        path = _log_file()
        self._log_start = path.stat().st_size if path is not None and path.exists() else 0

        def in_child() -> None:
            procs.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)

        env = {**os.environ, "PORT": str(self.port), "HOST": HOST}
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, env=env, start_new_session=True, preexec_fn=in_child
            )
        except OSError as error:
            raise EngineFailed(f"cannot start {argv[0]}: {error.strerror}") from error
        _log.info("started pid %d: %s", self._process.pid, " ".join(argv)[:500])
        self._watch(self._process)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        exited = self.exited = loop.create_future()
        fd = os.pidfd_open(process.pid)

        def on_exit() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            process.wait()
            tell(time.monotonic() + SETTLE_S_MAX)

        def tell(limit: float) -> None:
            if self._stopping or exited.done():
                return
            if _unread() and time.monotonic() < limit:
                loop.call_later(SETTLE_S, tell, limit)
            else:
                # What was read from the pipe is on its way into the log.
                loop.call_later(SETTLE_S, told)

        def told() -> None:
            if not exited.done() and not self._stopping:
                exited.set_result(self._said(_how(process.returncode)))

        loop.add_reader(fd, on_exit)

    def _said(self, what: str) -> str:
        """What happened, and the last lines the command printed."""
        tail = _tail(self._log_start)
        return f"{what}; its last lines:\n{tail}" if tail else f"{what}; it printed nothing"

    async def _pause(self, limit: float, wait_s: float, doing: str) -> None:
        """Wait a moment; raises when the command ended or the time is over."""
        assert self.exited is not None, "launched before it is waited for"
        await asyncio.wait([self.exited], timeout=wait_s)
        if self.exited.done():
            raise EngineFailed(self.exited.result())
        if time.monotonic() > limit:
            text = f"{doing} within {self._model.start_s_max:.0f} s (model.start_s_max)"
            raise EngineFailed(self._said(text))

    async def _until_up(self, limit: float) -> None:
        """Until `ready_path` answers 200, with or without the prefix that some servers have before it."""
        began = time.monotonic()
        given = os.environ.get(OPENAI_PREFIX, "openai").strip("/")
        prefixes = ("", f"/{given}") if given and self._model.ready_path == READY_PATH else ("",)
        while True:
            for prefix in prefixes:
                status, body = await self._get(prefix + self._model.ready_path, limit)
                if status == 200:
                    self._upstream_model, self._prefix = self._named(body), prefix
                    return
                if not status:
                    break
            await self._pause(limit, _wait_s(began), f"{self._model.ready_path} did not answer 200")

    async def _until_healthy(self, limit: float) -> None:
        """Without OpenAI's API: until `ready_path` answers below 400, or its protocol's health path does not say no."""
        path, protocols = self._model.ready_path, self._model.protocols
        stated = path != READY_PATH
        if not stated:
            path = f"/v1/models/{self._model.model_id}" if "v1" in protocols else ""
            path = "/v2/health/ready" if "v2" in protocols else path
        began = time.monotonic()
        while True:
            if path:
                status, _ = await self._get(path, limit)
                # A server need not have the path that its protocol says; only that it is not ready counts.
                if 200 <= status < 400 or (status and status != 503 and not stated):
                    return
                doing = f"{path} answered {status or 'nothing'}"
            else:
                with contextlib.suppress(OSError, TimeoutError):
                    _, writer = await asyncio.wait_for(asyncio.open_connection(HOST, self.port), CONNECT_S_MAX)
                    writer.close()
                    return
                doing = f"nothing listened on port {self.port} (the environment's PORT)"
            await self._pause(limit, _wait_s(began), doing)

    async def _get(self, path: str, limit: float) -> tuple[int, bytes]:
        """(status, body); 0 when there is no answer."""
        assert self._session is not None
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.get(path, timeout=_limit(limit)) as answer:
                return answer.status, await answer.read()
        return 0, b""

    def _named(self, body: bytes) -> str:
        """The name under which the command knows the model, when it lists models and ours is not among them."""
        try:
            known = [str(model["id"]) for model in msgspec.json.decode(body)["data"]]
        except (msgspec.MsgspecError, KeyError, TypeError):
            return self._model.model_id
        return self._model.model_id if self._model.model_id in known or not known else known[0]

    async def _first_token(self, limit: float) -> None:
        """Ask for one token, or one vector; an API that has neither is taken at its word."""
        assert self._session is not None
        refused = []
        began = time.monotonic()
        for path, body in _TOKEN_PROBES:
            while True:
                status = 0
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with self._session.post(
                        self._prefix + path, json={"model": self._upstream_model, **body}, timeout=_limit(limit)
                    ) as answer:
                        await answer.read()
                        status = answer.status
                if status == 200:
                    return
                if 400 <= status < 500 and status != 429:
                    refused.append(f"{path} {status}")
                    break
                await self._pause(limit, _wait_s(began), f"no token came out of {path} (status {status or 'none'})")
        _log.warning("no token could be made to come out (%s); it is taken as ready", ", ".join(refused))

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL of everything it started."""
        self._stopping = True
        if self._scrape is not None:
            self._scrape.cancel()
        process, session = self._process, self._session
        self._session = None
        if session is not None:
            await session.close()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, grace_s)
        await asyncio.to_thread(procs.kill_session, process.pid)
        await asyncio.to_thread(process.wait)

    def load(self) -> Load:
        """Requests passed on and not answered yet, and what the engine says of those."""
        return self._scraping.load() if self._scraping is not None else Load(self._running, 0)

    # --- requests ---

    async def handle(self, request: Request, sink: Sink) -> None:
        """Pass one request on and its answer back; cancelling it hangs up on the command."""
        if self._session is None or self._stopping:
            sink.reset("refused", "the engine is stopping")
            return
        self._running += 1
        began = time.perf_counter()
        try:
            await self._relay(request, sink, began)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            sink.reset("engine_lost", f"the engine did not answer to the end: {type(error).__name__}: {error}")
        finally:
            self._running -= 1

    async def _relay(self, request: Request, sink: Sink, began: float) -> None:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED}
        openai = self._speaks_openai and request.path in OPENAI
        path = (self._prefix if openai else "") + request.path + (f"?{request.query}" if request.query else "")
        # Whole, as a path that begins with // would name another host.
        url = yarl.URL(f"http://{HOST}:{self.port}{path}", encoded=True)
        async with self._session.request(
            request.method, url, data=self._body(request), headers=headers,
            timeout=aiohttp.ClientTimeout(total=request.timeout_s, sock_connect=CONNECT_S_MAX),
            skip_auto_headers=("user-agent", "accept-encoding"), allow_redirects=not self._any_path,
        ) as answer:  # fmt: skip
            kind = answer.headers.get("content-type", "application/json")
            events = kind.startswith("text/event-stream")
            streaming = events or (self._any_path and not openai and answer.content_length is None)
            seen = Seen(events)
            details = Details(events) if openai and "content-encoding" not in answer.headers else None
            sink.head(answer.status, _shown(answer.headers, kind), streaming=streaming)
            first_us = 0
            async for chunk in answer.content.iter_any():
                first_us = first_us or int((time.perf_counter() - began) * 1e6)
                seen.feed(chunk)
                if passed := details.feed(chunk) if details is not None else chunk:
                    sink.data(passed)
                    await sink.drained()
            if details is not None and (passed := details.rest()):
                sink.data(passed)
        usage = Usage(seen.prompt_tokens, seen.completion_tokens, seen.cached_tokens)
        sink.end(usage, seen.finish, Timings(int((time.perf_counter() - began) * 1e6), first_us))

    def _body(self, request: Request) -> bytes:
        """The body, with the model named as the command knows it."""
        if self._upstream_model == self._model.model_id or not request.body.startswith(b"{"):
            return request.body
        try:
            fields = msgspec.json.decode(request.body)
        except unreadable.JSON:
            return request.body
        return _json({**fields, "model": self._upstream_model}) if "model" in fields else request.body


def _limit(limit: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=max(0.1, min(PROBE_ANSWER_S_MAX, limit - time.monotonic())))


def _shown(headers: Mapping[str, str], kind: str) -> dict[str, str]:
    """Headers of the answer that mean something beyond the hop, bytes as Latin-1; of several `set-cookie` the first."""
    shown = {"content-type": _latin(kind)}
    for name, value in headers.items():
        if name.lower() not in _NOT_PASSED:
            shown.setdefault(name.lower(), _latin(value))
    return shown


def _latin(value: str) -> str:
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def _how(status: int) -> str:
    return f"the engine ended with exit status {status}" if status >= 0 else f"the engine was ended by signal {-status}"


def _wait_s(began: float) -> float:
    """Until the next look at a command that is being waited for since `began`."""
    wait_s = PROBE_SHARE * (time.monotonic() - began)
    return min(PROBE_S_MAX, max(PROBE_S_MIN, wait_s)) * random.uniform(0.8, 1.2)


def _log_file() -> Path | None:
    directory = os.environ.get("NANOPOD_INSTANCE_DIR")
    return Path(directory) / files.LOG if directory else None


def _unread() -> bool:
    """True while something that was printed has not been taken from our pipes to the log."""
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                count = bytearray(4)
                fcntl.ioctl(fd, termios.FIONREAD, count)
                if any(count):
                    return True
    return False


def _tail(start: int) -> str:
    """The last lines of the log since `start`."""
    path = _log_file()
    if path is None:
        return ""
    try:
        with path.open("rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - files.TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])
