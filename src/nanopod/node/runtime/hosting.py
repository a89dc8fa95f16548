"""Makes the engine that a model's specification names. Engines are imported here alone, and only the one in use."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from nanopod.model.endpoint import ModelSpec
from nanopod.model.errors import Invalid
from nanopod.node.engines.base import Caps, Card, Engine, Load, Request, Sink
from nanopod.node.records import Start
from nanopod.node.storage.told import located_model

_log = logging.getLogger(__name__)


class Reference:
    """The built-in engine behind the search (and download) of its model, which is part of starting."""

    def __init__(self, source: str, models_dir: Path, *, model_id: str, max_batch: int) -> None:
        self.caps = Caps(max_concurrency=max_batch)
        self._source = source
        self._models_dir = models_dir
        self._model_id = model_id
        self._max_batch = max_batch
        self._engine: Engine | None = None

    async def start(self) -> Card:
        """Find the model, load it, produce one token."""
        from nanopod.node.engines.reference import ReferenceEngine, resolve_model

        offline = os.environ.get("NANOPOD_OFFLINE", "") not in ("", "0")
        found = await asyncio.to_thread(resolve_model, self._source, self._models_dir, offline=offline)
        engine = ReferenceEngine(found, model_id=self._model_id, max_batch=self._max_batch)
        card = await engine.start()
        self._engine, self.caps = engine, engine.caps
        return card

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request."""
        assert self._engine is not None, "started before it is asked"
        await self._engine.handle(request, sink)

    def load(self) -> Load:
        """Requests running and waiting."""
        return self._engine.load() if self._engine is not None else Load()

    async def stop(self, grace_s: float) -> None:
        """End within the grace."""
        if self._engine is not None:
            await self._engine.stop(grace_s)


def make_engine(start: Start) -> Engine:
    """The engine of a model's specification. Raises `Invalid` naming what is wrong with it."""
    model = start.instance.app.model
    if model is None:
        raise Invalid("a model endpoint needs a model: set model.model_id and model.engine", field="model")
    model = located_model(model)
    if model.engine == "reference":
        directory = Path(start.models_dir or Path.cwd() / "models")
        return Reference(
            model.source or model.model_id, directory, model_id=model.model_id, max_batch=max(1, model.slots)
        )
    if model.engine == "command":
        from nanopod.node.engines.command import CommandEngine

        return fronted(model, start, CommandEngine(model))
    if model.engine == "server":
        from nanopod.node.engines.serving.engine import ServerEngine

        return fronted(model, start, ServerEngine(model, name=start.instance.app.name))
    raise Invalid(
        f"engine {model.engine!r} does not serve models; use reference, command or server", field="model.engine"
    )


def fronted(model: ModelSpec, start: Start, engine: Engine) -> Engine:
    """The engine behind what its specification puts in front of it: a logger, a transformer, an explainer."""
    if not (model.transformer or model.explainer or model.options):
        return engine  # before its import, which a plain command need not wait for
    from nanopod.node.engines.serving.fronted import Fronted, needed

    return Fronted(model, engine, service=start.instance.app.name) if needed(model) else engine


async def start_engine(engine: Engine) -> Card:
    """Start it and say how long that took."""
    began = time.perf_counter()
    card = await engine.start()
    _log.info("%s is ready after %.2f s", card.model_id, time.perf_counter() - began)
    return card
