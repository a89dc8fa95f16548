"""What stands before a predictor in the same worker: a logger, a transformer and an explainer, each a child process.

```
request ── logger ──┬─ predict, infer ── transformer ──(loopback)──┐
                    ├─ explain ───────── explainer ───(loopback)── predictor
                    └─ everything else ────────────────────────────┘
```
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from nanopod.model.endpoint import ModelSpec
from nanopod.node.engines.base import Card, Engine, Load, Request, Sink, Timings, Usage
from nanopod.node.engines.command import CommandEngine
from nanopod.node.engines.serving.events import MODES, Events
from nanopod.node.engines.serving.formats import LoadFailed, plain_options
from nanopod.node.engines.serving.loopback import HOST, Loopback
from nanopod.node.engines.serving.paths import place

LOGGED_BYTES_MAX: Final = 4 << 20
"""A longer body is logged without its end."""
_LOGGED: Final = ("predict", "explain", "infer", "openai")
_log: Final = logging.getLogger(__name__)


def needed(model: ModelSpec) -> bool:
    """True when a specification has something that stands before its predictor."""
    return bool(model.transformer or model.explainer or _logger_url(plain_options(model.options)))


def _logger_url(options: Mapping[str, str]) -> str:
    return options.get("loggerurl") or options.get("logurl") or ""


def _events_of(options: Mapping[str, str], service: str) -> Events | None:
    url = _logger_url(options)
    if not url:
        return None
    mode = (options.get("loggermode") or options.get("logmode") or "all").lower()
    if mode not in MODES or not url.startswith(("http://", "https://")):
        text = f"model.options: logger_mode is one of {', '.join(MODES)}, logger_url begins with http:// or https://"
        raise LoadFailed(text)
    return Events(url, "request" if mode == "request" else "response" if mode == "response" else "all", service)


class Fronted:
    """Implements `base.Engine` around a predictor's engine."""

    def __init__(self, model: ModelSpec, predictor: Engine, *, service: str = "") -> None:
        self.caps = predictor.caps
        self.exited: asyncio.Future[str] | None = None
        """Resolved when one of the commands ends by itself."""
        self._model = model
        self.predictor = predictor
        self._events = _events_of(plain_options(model.options), service or model.model_id)
        self._loopback: Loopback | None = None
        self._transformer: CommandEngine | None = None
        self._explainer: CommandEngine | None = None

    async def start(self) -> Card:
        """The predictor first, then what talks to it. Raises what they raise."""
        card = await self.predictor.start()
        self.caps = self.predictor.caps
        try:
            port = await self._port()
            if self._model.transformer:
                self._transformer = await self._child(self._model.transformer, port)
            if self._model.explainer:
                before = self._transformer.port if self._transformer is not None else port
                self._explainer = await self._child(self._model.explainer, before)
        except BaseException:
            await self.stop(1.0)
            raise
        if self._events is not None:
            self._events.start()
        self._watch()
        return card

    async def _port(self) -> int:
        """Where children reach the predictor."""
        if isinstance(self.predictor, CommandEngine):
            return self.predictor.port
        if self._model.transformer or self._model.explainer:
            self._loopback = Loopback(self.predictor)
            await self._loopback.start()
            return self._loopback.port
        return 0

    async def _child(self, argv: tuple[str, ...], port: int) -> CommandEngine:
        model = self._model
        more = ("--predictor_host", f"{HOST}:{port}", "--model_name", model.model_id)
        protocols = tuple(one for one in model.protocols if one != "openai") or ("http",)
        child = CommandEngine(
            ModelSpec(
                model.model_id, "command", argv=argv + more, slots=model.slots, start_s_max=model.start_s_max,
                protocols=protocols,
            )
        )  # fmt: skip
        await child.start()
        return child

    def _watch(self) -> None:
        exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        for one in (self.predictor, self._transformer, self._explainer):
            theirs: asyncio.Future[str] | None = getattr(one, "exited", None)
            if theirs is not None:
                theirs.add_done_callback(
                    lambda done: None if exited.done() or done.cancelled() else exited.set_result(done.result())
                )
        self.exited = exited

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request through whoever stands before the predictor."""
        action = place(request.path).action
        engine: Engine = self.predictor
        if action == "explain" and self._explainer is not None:
            engine = self._explainer
        elif self._transformer is not None and (action in ("predict", "infer") or "http" in self._model.protocols):
            engine = self._transformer
        events = self._events
        if events is None or action not in _LOGGED:
            await engine.handle(request, sink)
            return
        identity = request.attempt.request_id
        kind = request.headers.get("content-type", "application/json")
        events.request(identity, request.path, kind, request.body[:LOGGED_BYTES_MAX])
        await engine.handle(request, _Logged(sink, events, identity, request.path))

    def load(self) -> Load:
        """Of the predictor and its transformer."""
        now = self.predictor.load()
        if self._transformer is None:
            return now
        before = self._transformer.load()
        return Load(max(now.running, before.running), now.waiting)

    async def stop(self, grace_s: float) -> None:
        """Children first: they need the predictor for what they have."""
        children = [child for child in (self._explainer, self._transformer) if child is not None]
        await asyncio.gather(*(child.stop(grace_s) for child in children))
        if self._loopback is not None:
            await self._loopback.stop()
        await self.predictor.stop(grace_s)
        if self._events is not None:
            await self._events.stop()


class _Logged:
    """A sink that tells the logger what passed through it."""

    def __init__(self, sink: Sink, events: Events, identity: str, path: str) -> None:
        self._sink = sink
        self._events = events
        self._identity = identity
        self._path = path
        self._kind = "application/json"
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def cancelled(self) -> bool:
        """As the sink says."""
        return self._sink.cancelled

    def head(
        self, status: int, headers: Mapping[str, str], *, streaming: bool, prompt_ids: Sequence[int] | None = None
    ) -> None:
        """Passed on."""
        self._kind = headers.get("content-type", self._kind)
        self._sink.head(status, headers, streaming=streaming, prompt_ids=prompt_ids)

    def tokens(self, choice: int, first_index: int, ids: Sequence[int], sse: bytes) -> None:
        """Passed on, and kept."""
        self._keep(sse)
        self._sink.tokens(choice, first_index, ids, sse)

    def data(self, chunk: bytes) -> None:
        """Passed on, and kept."""
        self._keep(chunk)
        self._sink.data(chunk)

    def _keep(self, data: bytes) -> None:
        if self._size < LOGGED_BYTES_MAX:
            self._parts.append(data[: LOGGED_BYTES_MAX - self._size])
            self._size += len(data)

    async def drained(self) -> None:
        """As the sink says."""
        await self._sink.drained()

    def end(self, usage: Usage, finish: Sequence[str], timings: Timings) -> None:
        """Passed on, then told."""
        self._sink.end(usage, finish, timings)
        self._events.response(self._identity, self._path, self._kind, b"".join(self._parts))

    def reset(self, code: str, text: str) -> None:
        """Passed on; there is no answer to be told."""
        self._sink.reset(code, text)
