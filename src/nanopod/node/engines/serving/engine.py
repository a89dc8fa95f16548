"""Our own model server behind `base.Engine`: V1, V2 and OpenAI's paths for the models of one specification.

Bodies are read on the loop, models run on as many threads as the worker has slots. What a path means is `paths`, what a
model can do `predictors`; the models themselves are in the `repository`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from nanopod import __version__
from nanopod.model.endpoint import ModelSpec
from nanopod.node.engines.base import Caps, Card, Engine, Load, Request, Sink, Timings, Usage
from nanopod.node.engines.serving import openai, v1, v2
from nanopod.node.engines.serving.answers import Answer, Refused, inflated, json_object, said
from nanopod.node.engines.serving.batching import Batcher
from nanopod.node.engines.serving.directories import directory_of
from nanopod.node.engines.serving.formats import LoadFailed, number, plain_options
from nanopod.node.engines.serving.further import Further
from nanopod.node.engines.serving.paths import Place, place
from nanopod.node.engines.serving.predictors import Predictor
from nanopod.node.engines.serving.repository import Entry, Repository, memory_limit
from nanopod.node.engines.serving.tensors import Tensor

BATCH_ROWS_MAX: Final = 32
BATCH_WAIT_MS: Final = 50.0
INLINE_BYTES_MAX: Final = 64 << 10
"""Bodies up to this size are read on the loop."""
Made = TypeVar("Made")
_log: Final = logging.getLogger(__name__)


class ServerEngine:
    """Serves `ModelSpec.format` (and `models`). `name` is the endpoint's, which is a name of the main model as well."""

    exited: asyncio.Future[str] | None = None

    def __init__(self, model: ModelSpec, *, name: str = "", models_dir: Path | None = None) -> None:
        self.caps = Caps(max_concurrency=max(1, model.slots))
        self._model = model
        self._name = name
        self._models_dir = models_dir
        self._options = plain_options(model.options)
        self._pool = ThreadPoolExecutor(max(1, model.slots), thread_name_prefix="model")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        """Of its own, so that predictions go on while a model is loaded."""
        self._repository = Repository(self._loader, number(self._options, "memory", 0) or memory_limit())
        self.further = Further(self._repository)
        """Models that may change while it runs."""
        self._openai: Engine | None = None
        self._batcher: Batcher[Any, Any] | None = _batcher_of(self, self._options)
        self._running = 0
        self._answered: Counter[tuple[str, int]] = Counter()
        """{(action, status): answers}, for /metrics."""

    # --- base.Engine ---

    async def start(self) -> Card:
        """Load every model, the main one first. Raises `LoadFailed`."""
        began = time.monotonic()
        model = self._model
        if model.source or model.storage or not model.models:
            directory = directory_of(model.source, model.storage)
            main = Entry(model.model_id, model.format, directory, self._options, loaded_by=self._load_main)
            self._repository.add(main, self._name)
            await self._repository.load(main.name)
        await self.further.start(model.models)
        _log.info("%d models are loaded after %.2f s", len(self._repository.names), time.monotonic() - began)
        return Card(model.model_id, int(time.time()), extra={"engine": "server", "format": model.format})

    def models(self) -> dict[str, str]:
        """{model: "" once it is ready, else why it is not}."""
        return self._repository.states()

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call this when `models` may say something else."""
        self._repository.on_change = on_change

    async def _load_main(self) -> Predictor:
        """The main model; one that generates or embeds gets an engine for OpenAI's paths beside its predictor."""
        from nanopod.node.engines.serving.formats import guess, load

        model = self._model
        directory = directory_of(model.source, model.storage)
        form = model.format or await asyncio.to_thread(guess, directory)
        if form == "huggingface":
            found = await openai.opened(model, directory, self._options, self._loader)
            if found is not None:
                engine, predictor = found
                self._openai, self.caps = engine, engine.caps
                return predictor
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loader, load, model.model_id, form, directory, self._options)

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request."""
        where = place(request.path)
        if where.action == "openai" and self._openai is not None:
            await self._openai.handle(request, sink)
            return
        began = time.perf_counter()
        answer = await self.answer(request.method, request.path, request.headers, request.body)
        spent = int((time.perf_counter() - began) * 1e6)
        sink.head(answer.status, answer.headers, streaming=False)
        sink.data(answer.body)
        sink.end(Usage(), [], Timings(spent, spent))

    def load(self) -> Load:
        """Requests that models have, or wait for a thread."""
        inner = self._openai.load() if self._openai is not None else Load()
        slots = self.caps.max_concurrency
        return Load(inner.running + min(self._running, slots), inner.waiting + max(0, self._running - slots))

    async def stop(self, grace_s: float) -> None:
        """Running predictions cannot be interrupted; they are left behind."""
        if self._openai is not None:
            await self._openai.stop(grace_s)
        for pool in (self._pool, self._loader):
            pool.shutdown(wait=False, cancel_futures=True)

    # --- requests ---

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """A whole answer to any request; never raises."""
        where = place(path)
        try:
            found = await self._answer(where, method, path, headers, await _read(inflated, body, headers))
        except Refused as refused:
            found = refused.answer()
        except Exception as error:
            _log.exception("%s %s failed", method, path)
            found = said({"error": f"{type(error).__name__}: {error}"}, 500)
        self._answered[where.action, found.status] += 1
        return found

    async def _answer(self, where: Place, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if where.action == "unknown":
            raise Refused(404, f"there is no {path} here: V1 is below /v1/models, V2 below /v2")
        if where.action == "openai":
            raise Refused(404, f"the model {self._model.model_id} does not speak {path}: use its V1 or V2 paths")
        if method != where.method and (method, where.method) != ("HEAD", "GET"):
            raise Refused(405, f"{path} takes {where.method}, not {method}")
        if where.model:
            return await self._of_model(where, headers, body)
        return self._of_server(where)

    def _of_server(self, where: Place) -> Answer:
        repository = self._repository
        if where.action in ("list", "models"):
            return said({"models": repository.names})
        if where.action == "server":
            return said({"name": "nanopod", "version": __version__, "extensions": list(v2.EXTENSIONS)})
        if where.action == "live":
            return said({"live": True})
        if where.action == "server_ready":
            return said({"ready": repository.ready}, 200 if repository.ready else 503)
        if where.action == "metrics":
            return Answer(200, self._metrics(), {"content-type": "text/plain; version=0.0.4"})
        return said({"status": "alive"})

    async def _of_model(self, where: Place, headers: Mapping[str, str], body: bytes) -> Answer:
        name, action = where.model, where.action
        if where.version:
            self._repository.entry(name)
            raise Refused(501, "versions of models are not served: leave out /versions/ and name the model")
        if action == "predict":
            predictor = self._repository.predictor(name)
            return v1.answer(await self._rows(name, await _read(v1.instances, body), predictor))
        if action == "infer":
            predictor = self._repository.predictor(name)
            asked = await _read(v2.parse, body, headers)
            return v2.answer(name, asked, await self._infer(name, asked.inputs, predictor))
        if action == "explain":
            self._repository.entry(name)
            raise Refused(501, f"the model {name} has no explainer: set model.explainer")
        if action == "load" or action == "unload":
            return await self._change(where, body)
        entry = self._repository.entry(name)
        if action == "metadata":
            found = self._repository.predictor(name)
            return said(v2.metadata(name, found.platform, found.inputs, found.outputs))
        if entry.state != "ready":
            raise Refused(503, f"the model {name} is not ready ({entry.state}{entry.error and ': '}{entry.error})")
        return said({"name": name, "ready": True})

    async def _change(self, where: Place, body: bytes) -> Answer:
        if body:
            json_object(body)
        try:
            if where.action == "load":
                await self._repository.load(where.model)
            else:
                await self._repository.unload(where.model)
        except LoadFailed as error:
            raise Refused(503, str(error)) from error
        return said({"name": where.model, where.action: True})

    async def _rows(self, name: str, rows: list[Any], predictor: Predictor) -> Any:
        if self._batcher is not None and predictor.batchable:
            return await self._batcher.submit(("v1", name, type(rows[0])), rows, len(rows))
        return await self._run(predictor.rows, rows)

    async def _infer(self, name: str, inputs: Sequence[Tensor], predictor: Predictor) -> list[Tensor]:
        counts = {one.shape[0] if one.shape else 0 for one in inputs}
        if self._batcher is None or not predictor.batchable or len(counts) != 1 or 0 in counts:
            made: list[Tensor] = await self._run(predictor.infer, inputs)
            return made
        key = ("v2", name, tuple((one.name, one.datatype, tuple(one.shape[1:])) for one in inputs))
        found: list[Tensor] = await self._batcher.submit(key, inputs, counts.pop())
        return found

    async def _run(self, call: Any, given: Any) -> Any:
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call, given)
        finally:
            self._running -= 1

    # --- batches ---

    async def run_batch(self, key: Hashable, given: Sequence[Any]) -> Sequence[Any]:
        """Several requests as one prediction, and the result of each."""
        assert isinstance(key, tuple), "keys are made above"
        predictor = self._repository.predictor(key[1])
        if len(given) == 1:
            call = predictor.rows if key[0] == "v1" else predictor.infer
            return [await self._run(call, given[0])]
        if key[0] == "v1":
            made = await self._run(predictor.rows, [row for rows in given for row in rows])
            return _cut(made, [len(rows) for rows in given])
        counts = [inputs[0].shape[0] for inputs in given]
        joined = [
            Tensor(one.name, np.concatenate([inputs[place].array for inputs in given]), one.datatype, one.parameters)
            for place, one in enumerate(given[0])
        ]
        outputs = await self._run(predictor.infer, joined)
        if any(not output.shape or output.shape[0] != sum(counts) for output in outputs):
            # Not one row per row: this model's answers cannot be told apart.
            return [await self._run(predictor.infer, inputs) for inputs in given]
        parts = [_cut(output.array, counts) for output in outputs]
        return [
            [Tensor(output.name, part[place], output.datatype) for output, part in zip(outputs, parts, strict=True)]
            for place in range(len(given))
        ]

    def _metrics(self) -> bytes:
        lines = ["# TYPE nanopod_model_requests_total counter"]
        for (action, status), count in sorted(self._answered.items()):
            lines.append(f'nanopod_model_requests_total{{action="{action}",status="{status}"}} {count}')
        load = self.load()
        lines += ["# TYPE nanopod_model_running gauge", f"nanopod_model_running {load.running}"]
        lines += ["# TYPE nanopod_model_waiting gauge", f"nanopod_model_waiting {load.waiting}"]
        return ("\n".join(lines) + "\n").encode()


async def _read(call: Callable[..., Made], body: bytes, *more: Any) -> Made:
    """`call(body, *more)`: large bodies on a thread, for the worker's loop has others to serve."""
    if len(body) <= INLINE_BYTES_MAX:
        return call(body, *more)
    return await asyncio.to_thread(call, body, *more)


def _cut(made: Any, counts: Sequence[int]) -> list[Any]:
    """Consecutive parts of `made`, so many rows each."""
    if len(made) != sum(counts):
        raise ValueError(f"the model made {len(made)} predictions for {sum(counts)} rows")
    found, at = [], 0
    for count in counts:
        found.append(made[at : at + count])
        at += count
    return found


def _batcher_of(engine: ServerEngine, options: Mapping[str, str]) -> Batcher[Any, Any] | None:
    """A batcher when the options have `max_batch_size` or `max_latency_ms`."""
    size = options.get("maxbatchsize") or options.get("batchermaxbatchsize")
    latency = options.get("maxlatencyms") or options.get("maxlatency") or options.get("batchermaxlatency")
    if not size and not latency and options.get("enablebatcher", "").lower() not in ("true", "1"):
        return None
    try:
        rows, wait_ms = int(size or BATCH_ROWS_MAX), float(latency or BATCH_WAIT_MS)
    except ValueError:
        text = f"model.options: max_batch_size {size!r} and max_latency_ms {latency!r} must be numbers"
        raise LoadFailed(text) from None
    return Batcher(engine.run_batch, rows, wait_ms / 1000)
