"""POST /v1/embeddings and /v1/rerank over a BERT-family encoder."""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from nanopod.node.engines.base import Load, Timings, Usage
from nanopod.node.engines.reference import reranking
from nanopod.node.engines.reference.bert import Bert, unit
from nanopod.node.engines.reference.errors import JSON_HEADERS, ApiError
from nanopod.node.engines.reference.fields import integer, parse_object, reject_unknown, required, token_ids
from nanopod.node.engines.reference.generation import Job
from nanopod.node.engines.reference.kernels import Array
from nanopod.node.engines.reference.reranking import Ranking
from nanopod.node.engines.reference.tokenizer import Tokenizer

INPUTS_MAX = 2048
"""Texts per request, as in the API this follows."""

WAITING_MAX = 1024
_KNOWN = {"model", "input", "encoding_format", "dimensions", "user"}


@dataclass(slots=True)
class _Work:
    """One request in progress: its sequences, the batches left, and the vectors so far."""

    job: Job
    model: str
    sequences: list[list[int]]
    dimensions: int
    base64: bool
    left: deque[list[int]]
    vectors: Array
    compute_s: float = 0.0
    first_s: float = field(default=0.0)
    ranking: Ranking | None = None
    """The documents are to be ranked; the vectors are not told then."""


class Embedder:
    """The embedding service of one engine thread; one batch per step, requests in turn."""

    def __init__(self, model: Bert, tokenizer: Tokenizer, model_id: str) -> None:
        """Serve `model` under the name `model_id`."""
        self._model = model
        self._tokenizer = tokenizer
        self._model_id = model_id
        self._queue: deque[_Work] = deque()

    def load(self) -> Load:
        """Requests running and waiting; safe from any thread."""
        waiting = len(self._queue)
        return Load(running=min(1, waiting), waiting=max(0, waiting - 1))

    @property
    def busy(self) -> bool:
        """Whether there is anything to step."""
        return bool(self._queue)

    def take(self, job: Job) -> None:
        """Check a request and queue it; raises `ApiError` for the caller's mistakes."""
        request = job.request
        if request.path not in ("/v1/embeddings", reranking.PATH) or request.method != "POST":
            text = f"{request.method} {request.path} is not offered by this model; it makes embeddings"
            raise ApiError(text, status=404, code="unknown_url")
        if len(self._queue) >= WAITING_MAX:
            job.sink.reset("refused", f"{WAITING_MAX} requests are waiting already")
            job.done()
            return
        body = parse_object(request.body)
        ranking = None
        if request.path == reranking.PATH:
            texts, ranking = reranking.parse(body, INPUTS_MAX - 1)
            body = {"model": body.get("model"), "input": texts}
        reject_unknown(body, _KNOWN)
        form = body.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise ApiError("encoding_format must be float or base64", param="encoding_format")
        hidden = self._model.config.hidden
        sequences = self._sequences(body)
        dimensions = integer(body, "dimensions", hidden, 1, hidden) or hidden
        self._queue.append(
            _Work(
                job=job,
                model=str(body.get("model") or self._model_id),
                sequences=sequences,
                dimensions=dimensions,
                base64=form == "base64",
                left=deque(self._model.batches(sequences)),
                vectors=np.empty((len(sequences), hidden), np.float32),
                ranking=ranking,
            )
        )

    def _sequences(self, body: Mapping[str, Any]) -> list[list[int]]:
        """Ids of every input with special tokens, cut to the model's length."""
        value = required(body, "input")
        longest = self._model.config.sequence_max
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not value:
            raise ApiError("input must be a string, a list of strings, token ids, or a list of these", param="input")
        if type(value[0]) is int:
            value = [value]
        if len(value) > INPUTS_MAX:
            raise ApiError(f"input may hold at most {INPUTS_MAX} texts, found {len(value)}", param="input")
        out = []
        for number, item in enumerate(value):
            where = f"input[{number}]"
            if not isinstance(item, str | list) or not item:
                raise ApiError(f"{where} must be a non-empty string or a non-empty list of token ids", param="input")
            if isinstance(item, str):
                out.append(self._tokenizer.encode_cut(item, longest))
            else:
                ids = token_ids(item, "input", self._model.config.vocab)
                out.append(self._tokenizer.frame(ids, longest))
        return out

    def step(self) -> None:
        """Encode one batch of the oldest request; answer it when it was the last."""
        now = time.monotonic()
        for work in [w for w in self._queue if w.job.cancelled or now > w.job.deadline]:
            self._queue.remove(work)
            if not work.job.cancelled:
                work.job.sink.reset("deadline", f"not finished within {work.job.request.timeout_s:g} s")
            work.job.done()
        if not self._queue:
            return
        work = self._queue[0]
        batch = work.left.popleft()
        work.vectors[batch] = self._model.embed([work.sequences[i] for i in batch])
        work.compute_s += time.monotonic() - now
        work.first_s = work.first_s or time.monotonic() - work.job.arrived
        if not work.left:
            self._queue.popleft()
            try:
                self._answer(work)
            finally:
                work.job.done()
        elif len(self._queue) > 1:
            # Long requests take turns, so that a short one is not stuck behind thousands of texts.
            self._queue.rotate(-1)

    def _answer(self, work: _Work) -> None:
        if work.ranking is not None:
            results = reranking.ranked(work.ranking, work.vectors)
            request_id = work.job.request.attempt.request_id
            self._say(work, {"id": f"rerank-{request_id}", "object": "rerank", "results": results})
            return
        vectors = work.vectors
        if work.dimensions < vectors.shape[1]:
            vectors = unit(np.ascontiguousarray(vectors[:, : work.dimensions]))
        data = [
            {
                "object": "embedding",
                "index": number,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if work.base64 else row.tolist(),
            }
            for number, row in enumerate(vectors)
        ]
        self._say(work, {"object": "list", "data": data})

    def _say(self, work: _Work, answer: dict[str, Any]) -> None:
        tokens = sum(map(len, work.sequences))
        details = {"cached_tokens": 0}
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": details}
        sink = work.job.sink
        sink.head(200, JSON_HEADERS, streaming=False)
        sink.data(msgspec.json.encode({**answer, "model": work.model, "usage": usage}))
        sink.end(Usage(prompt_tokens=tokens), [], Timings(int(work.compute_s * 1e6), int(work.first_s * 1e6)))

    def abort(self, code: str, text: str) -> None:
        """Reset every request."""
        for work in self._queue:
            if not work.job.cancelled:
                work.job.sink.reset(code, text)
            work.job.done()
        self._queue.clear()
