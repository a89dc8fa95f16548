"""Continuous batching: one step at a time over everything that runs.

Each step takes one row from every choice that is due and, beside them, up to `PREFILL_ROWS` prompt rows of requests
that are still reading. Requests are admitted in the order they came. A request that ends or is cancelled frees its room
before the next step.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from nanopod.node.engines.base import Load
from nanopod.node.engines.reference.errors import JSON_HEADERS, ApiError
from nanopod.node.engines.reference.fields import parse_object
from nanopod.node.engines.reference.generation import Choice, Generation, Job
from nanopod.node.engines.reference.llama import KvCache, Llama, Segment
from nanopod.node.engines.reference.requests import ModelFacts, parse_generate
from nanopod.node.engines.reference.wire import SSE_HEADERS, Wire

PREFILL_ROWS = 64
"""Prompt rows per step, so that running streams never wait long for a long prompt."""

WAITING_MAX = 1024
"""Requests waiting for room; beyond, they are refused and go to another worker."""

_PATHS = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
_log = logging.getLogger(__name__)


class Batcher:
    """The generation service of one engine thread; only that thread calls `take`, `step` and `abort`."""

    def __init__(self, model: Llama, facts: ModelFacts, ends: tuple[int, ...], model_id: str, max_batch: int) -> None:
        """`max_batch` choices run at once; a request with more of them runs alone."""
        self._model = model
        self._facts = facts
        self._ends = ends
        self._model_id = model_id
        self._max_batch = max_batch
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []

    def load(self) -> Load:
        """Requests running and waiting; safe from any thread."""
        return Load(running=len(self._running), waiting=len(self._waiting))

    @property
    def busy(self) -> bool:
        """Whether there is anything to step."""
        return bool(self._running or self._waiting)

    def take(self, job: Job) -> None:
        """Check a request and queue it; raises `ApiError` for the caller's mistakes."""
        request = job.request
        kind = _PATHS.get(request.path)
        if kind is None or request.method != "POST":
            text = f"{request.method} {request.path} is not offered by this model"
            raise ApiError(text, status=404, code="unknown_url")
        if len(self._waiting) >= WAITING_MAX:
            job.sink.reset("refused", f"{WAITING_MAX} requests are waiting already")
            job.done()
            return
        attempt = request.attempt
        known = [*(attempt.prompt_ids or ()), *(token for ids in attempt.choices for token in ids)]
        if known and not 0 <= min(known) <= max(known) < self._facts.vocab:
            # One bad id would fail the step of everybody.
            job.sink.reset("refused", "the attempt names token ids outside this model's vocabulary")
            job.done()
            return
        spec = parse_generate(
            "chat" if kind == "chat" else "completion",
            parse_object(request.body),
            self._facts,
            seed=attempt.seed,
            prompt_ids=attempt.prompt_ids,
        )
        wire = Wire(
            spec,
            self._facts.tokenizer,
            response_id=attempt.response_id or f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{attempt.request_id}",
            created=attempt.created or int(time.time()),
            model=spec.model or self._model_id,
            fingerprint=attempt.system_fingerprint,
        )
        generation = Generation(job, spec, self._facts, self._ends, wire)
        headers = SSE_HEADERS if spec.stream else JSON_HEADERS
        job.sink.head(200, headers, streaming=spec.stream, prompt_ids=generation.prompt_ids())
        self._waiting.append(generation)

    def step(self) -> None:
        """Drop who left, admit, run one forward pass, send what came out."""
        self._drop()
        self._admit()
        segments, decoded, prefilled = self._plan()
        if segments:
            started = time.monotonic()
            self._model.forward(segments)
            spent = time.monotonic() - started
            rows = sum(len(segment.ids) for segment in segments)
            for generation, _, segment in [*decoded, *prefilled]:
                generation.compute_s += spent * len(segment.ids) / rows
        for _, choice, segment in prefilled:
            if segment.logits is not None:
                base = segment.cache.length - len(segment.ids)
                for offset, row in zip(segment.wants, segment.logits, strict=True):
                    choice.note(base + offset, row)
        for generation, choice, segment in decoded:
            if segment.logits is not None and not generation.job.dropped:
                self._advance(generation, choice, segment)
        for generation in [g for g in self._running if g.complete and not g.job.dropped]:
            self._close(generation)

    def _drop(self) -> None:
        now = time.monotonic()
        for group in (self._running, self._waiting):
            for generation in [g for g in group if g.job.cancelled or now > g.job.deadline]:
                group.remove(generation)
                job = generation.job
                if not job.cancelled:
                    job.sink.reset("deadline", f"not finished within {job.request.timeout_s:g} s")
                job.done()

    def _admit(self) -> None:
        """First come, first served, while rows are free."""
        rows = sum(len(g.choices) for g in self._running)
        while self._waiting:
            generation = self._waiting[0]
            if self._running and rows + len(generation.choices) > self._max_batch:
                return
            self._waiting.popleft()
            rows += len(generation.choices)
            self._running.append(generation)
            for choice in generation.choices:
                if choice.finish is None or choice.rows_missing():
                    choice.cache = KvCache(self._model.config, len(choice.prompt) + choice.max_tokens)

    def _plan(
        self,
    ) -> tuple[list[Segment], list[tuple[Generation, Choice, Segment]], list[tuple[Generation, Choice, Segment]]]:
        """The rows of this step: one per due choice, then prompt rows in order of arrival."""
        decoded: list[tuple[Generation, Choice, Segment]] = []
        prefilled: list[tuple[Generation, Choice, Segment]] = []
        budget = PREFILL_ROWS
        for generation in self._running:
            for choice in generation.due():
                if choice.cache is not None:
                    decoded.append((generation, choice, Segment(choice.cache, choice.ids[-1:], (0,))))
            leaders: dict[tuple[int, ...], Choice] = {}
            for choice in generation.choices:
                missing = choice.rows_missing()
                if missing and choice.cache is not None and budget:
                    leader = leaders.get(choice.prompt)
                    if leader is not None:
                        choice.share_prompt(leader)
                        missing = choice.rows_missing()
                    count = min(missing, budget)
                    if count:
                        start = choice.cache.length
                        wants = choice.wanted_offsets(start, count)
                        prefilled.append(
                            (generation, choice, Segment(choice.cache, choice.ids[start : start + count], wants))
                        )
                        budget -= count
                        if count < missing:
                            break
                if choice.cache is not None:
                    leaders.setdefault(choice.prompt, choice)
        return [segment for _, _, segment in [*decoded, *prefilled]], decoded, prefilled

    def _advance(self, generation: Generation, choice: Choice, segment: Segment) -> None:
        if segment.logits is None:
            return
        try:
            generation.emit(choice, choice.advance(segment.logits[0]))
        except Exception:
            self._broken(generation)

    def _close(self, generation: Generation) -> None:
        try:
            generation.close()
        except Exception:
            self._broken(generation)
        self._running.remove(generation)
        generation.job.done()

    def _broken(self, generation: Generation) -> None:
        """The sink failed: that request ends, the others go on."""
        _log.warning("request %s: the sink failed", generation.job.request.attempt.request_id, exc_info=True)
        generation.job.dropped = True

    def abort(self, code: str, text: str) -> None:
        """Reset every request (a failed step, or the end of the engine)."""
        for generation in [*self._running, *self._waiting]:
            if not generation.job.cancelled:
                generation.job.sink.reset(code, text)
            generation.job.done()
        self._running.clear()
        self._waiting.clear()
