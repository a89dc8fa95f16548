"""The built-in engine: NumPy inference behind `base.Engine`, one thread for all its work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal, Protocol

from nanopod.node.engines.base import Caps, Card, Load, Request, Sink, Timings, Usage
from nanopod.node.engines.reference.batcher import Batcher
from nanopod.node.engines.reference.bert import Bert, BertConfig
from nanopod.node.engines.reference.chat import ChatFormat
from nanopod.node.engines.reference.embedding import Embedder
from nanopod.node.engines.reference.errors import JSON_HEADERS, ApiError
from nanopod.node.engines.reference.generation import Job
from nanopod.node.engines.reference.kernels import pin_blas_threads
from nanopod.node.engines.reference.llama import KvCache, Llama, Segment
from nanopod.node.engines.reference.llama_config import ConfigError, LlamaConfig
from nanopod.node.engines.reference.requests import ModelFacts
from nanopod.node.engines.reference.safetensors import Checkpoint
from nanopod.node.engines.reference.tokenizer import Tokenizer

CONTEXT_MAX = 8192
"""Longest context offered, whatever the model could do: float64 caches are large."""

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_log = logging.getLogger(__name__)


class Service(Protocol):
    """What the engine thread runs: generation or embeddings. Only `load` is called from other threads."""

    @property
    def busy(self) -> bool:
        """Whether `step` has work."""
        ...

    def load(self) -> Load:
        """Current load."""
        ...

    def take(self, job: Job) -> None:
        """Check and queue a request; raises `ApiError`."""
        ...

    def step(self) -> None:
        """Do one bounded piece of work."""
        ...

    def abort(self, code: str, text: str) -> None:
        """Reset everything."""
        ...


class ReferenceEngine:
    """Serves one model directory. Exact continuation for Llama-family models, none for encoders (answers are short)."""

    def __init__(self, model_dir: Path, *, model_id: str, max_batch: int = 8, threads: int = 1) -> None:
        """Nothing is read before `start`. `max_batch` is choices run at once, `threads` the BLAS threads."""
        self._dir = model_dir
        self._model_id = model_id
        self._max_batch = max_batch
        self._threads = threads
        self.caps = Caps(max_concurrency=max_batch)
        self._service: Service | None = None
        self._inbox: deque[Job] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._deadline = 0.0

    # ------------------------------------------------------------------------------------------------ base.Engine

    async def start(self) -> Card:
        """Load the model, prove its kernels on this machine, produce one token or vector; raises `ValueError`."""
        card = await asyncio.to_thread(self._build)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"reference-{self._model_id}", daemon=True)
        self._thread.start()
        return card

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request; returns when it ended. Cancelling this frees its place before the next step."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def on_done() -> None:
            # The loop may be gone when an engine outlives it; nobody waits then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        job = Job(request, sink, on_done)
        with self._wake:
            if self._closing or self._service is None:
                sink.reset("refused", "the engine is stopping")
                return
            self._inbox.append(job)
            self._wake.notify()
        try:
            await ended.wait()
        finally:
            job.dropped = True

    def load(self) -> Load:
        """Requests running and waiting."""
        now = Load() if self._service is None else self._service.load()
        return Load(now.running, now.waiting + len(self._inbox))

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let running ones end within `grace_s`, then reset the rest with `engine_lost`."""
        with self._wake:
            self._closing = True
            self._deadline = time.monotonic() + grace_s
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, grace_s + 10.0)
            self._thread = None
        self._service = None

    # ------------------------------------------------------------------------------------------------ engine thread

    def _run(self) -> None:
        service = self._service
        while service is not None:
            with self._wake:
                while not self._inbox and not service.busy and not self._closing:
                    self._wake.wait(1.0)
                arrived = list(self._inbox)
                self._inbox.clear()
                closing = self._closing
            for job in arrived:
                self._take(service, job)
            if closing and (not service.busy or time.monotonic() > self._deadline):
                service.abort("engine_lost", "the engine stopped")
                return
            if service.busy:
                try:
                    service.step()
                except Exception as error:
                    _log.exception("a step of the reference engine failed")
                    service.abort("internal", f"the reference engine failed: {type(error).__name__}")

    def _take(self, service: Service, job: Job) -> None:
        try:
            if job.cancelled:
                job.done()
                return
            service.take(job)
        except ApiError as error:
            self._refuse(job, error)
        except Exception as error:
            _log.exception("request %s could not be taken", job.request.attempt.request_id)
            with contextlib.suppress(Exception):
                job.sink.reset("internal", f"the request could not be read: {type(error).__name__}")
            job.done()

    def _refuse(self, job: Job, error: ApiError) -> None:
        try:
            job.sink.head(error.status, JSON_HEADERS, streaming=False)
            job.sink.data(error.body())
            job.sink.end(Usage(), [], Timings())
        except Exception:
            _log.warning("request %s: the sink failed", job.request.attempt.request_id, exc_info=True)
        job.done()

    # ------------------------------------------------------------------------------------------------ loading

    def _build(self) -> Card:
        pin_blas_threads(self._threads)
        config = _read(self._dir / "config.json", needed=True)
        tokenizer = Tokenizer.from_file(self._dir / "tokenizer.json")
        checkpoint = Checkpoint(self._dir)
        architecture = str((config.get("architectures") or ["?"])[0])
        if config.get("model_type") == "bert" or architecture.startswith("Bert"):
            return self._build_bert(config, tokenizer, checkpoint)
        return self._build_llama(config, tokenizer, checkpoint)

    def _build_bert(self, config: dict[str, Any], tokenizer: Tokenizer, checkpoint: Checkpoint) -> Card:
        model = Bert(BertConfig.parse(config, self._dir), checkpoint)
        model.embed([tokenizer.encode("ready", add_special=True)])
        self._service = Embedder(model, tokenizer, self._model_id)
        self.caps = Caps(continuation="none", max_concurrency=self._max_batch)
        extra = {"dimensions": model.config.hidden, "engine": "reference"}
        return Card(self._model_id, self._created(), "embedding", model.config.sequence_max, extra)

    def _build_llama(self, config: dict[str, Any], tokenizer: Tokenizer, checkpoint: Checkpoint) -> Card:
        generation = _read(self._dir / "generation_config.json")
        parsed = LlamaConfig.parse(config, generation)
        if tokenizer.size > parsed.vocab:
            raise ConfigError(
                f"{self._dir}: tokenizer.json has ids up to {tokenizer.size - 1}, vocab_size is {parsed.vocab}"
            )
        model = Llama(parsed, checkpoint, CONTEXT_MAX)
        exact = model.self_check()
        if not exact:
            _log.warning("%s: the BLAS here lets rows depend on their company; continuation is best effort", self._dir)
        chat = ChatFormat(tokenizer, self._dir)
        ends = tuple(dict.fromkeys([*parsed.eos_ids, *chat.end_ids]))
        defaults = {k: float(generation[k]) for k in _DEFAULTS if isinstance(generation.get(k), int | float)}
        facts = ModelFacts(parsed.vocab, model.context, tokenizer, chat, defaults)
        model.forward([Segment(KvCache(parsed, 1), [parsed.bos_id or 0], (0,))])
        self._service = Batcher(model, facts, ends, self._model_id, self._max_batch)
        self.caps = Caps(
            continuation="exact" if exact else "best_effort",
            seed=True,
            token_ids=True,
            max_concurrency=self._max_batch,
        )
        kind: Literal["chat", "completion"] = "chat" if chat.available else "completion"
        return Card(self._model_id, self._created(), kind, model.context, {"engine": "reference"})

    def _created(self) -> int:
        return int((self._dir / "config.json").stat().st_mtime)


def _read(path: Path, *, needed: bool = False) -> dict[str, Any]:
    """A JSON object from a file, empty when an optional file is absent; raises `ConfigError` naming the file."""
    if not path.is_file():
        if needed:
            raise ConfigError(
                f"{path} is missing: a model directory has config.json, tokenizer.json and model.safetensors"
            )
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return value
