"""The state of one generation request: its choices, what the caller has of each, and what to send next.

Everything is rebuilt from (request body, prompt ids, delivered output ids), so any worker can pick a stream up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from nanopod.node.engines.base import Request, Sink, Timings, Usage
from nanopod.node.engines.reference.kernels import Array
from nanopod.node.engines.reference.llama import KvCache
from nanopod.node.engines.reference.requests import GenerateSpec, ModelFacts
from nanopod.node.engines.reference.sampling import Sampler, TokenLogprob, logprobs_of
from nanopod.node.engines.reference.textflow import Flush, TextFlow
from nanopod.node.engines.reference.wire import DONE, Wire


class Job:
    """One request on its way through the engine thread."""

    __slots__ = ("_on_done", "arrived", "deadline", "dropped", "request", "sink")

    def __init__(self, request: Request, sink: Sink, on_done: Callable[[], None]) -> None:
        """`on_done` is called once, from any thread, when nothing more will be sent."""
        self.request = request
        self.sink = sink
        self.arrived = time.monotonic()
        self.deadline = self.arrived + request.timeout_s
        self.dropped = False
        self._on_done: Callable[[], None] | None = on_done

    @property
    def cancelled(self) -> bool:
        """The caller left, or the sink broke."""
        return self.dropped or self.sink.cancelled

    def done(self) -> None:
        """Tell the waiting side, once."""
        if self._on_done is not None:
            on_done, self._on_done = self._on_done, None
            on_done()


class Choice:
    """One output sequence. `ids` are prompt and output together; the cache holds all but the last once it is ready."""

    def __init__(self, index: int, spec: GenerateSpec, facts: ModelFacts, ends: Sequence[int]) -> None:
        """A choice with no output yet."""
        number = index // spec.n
        self.index = index
        self.prompt = spec.prompts[number]
        self.max_tokens = spec.max_tokens[number]
        self.ids: list[int] = list(self.prompt)
        self.finish: str | None = None
        self.texts: list[str] = []
        self.offsets: list[int] = []
        self.cache: KvCache | None = None
        self.opened = False
        self._ends = () if spec.sampling.ignore_eos else tuple(ends)
        self._flow = TextFlow(facts.tokenizer.token_bytes, spec.stops, spec.sampling.min_tokens)
        self._sampler = Sampler(spec.sampling, index, self.prompt, ends, facts.vocab)
        self._top = spec.logprobs
        echo = spec.echo and spec.logprobs is not None
        self.prompt_entries: list[TokenLogprob | None] = [None] * len(self.prompt) if echo else []
        self.entries: list[TokenLogprob | None] = []
        self._wants_past = spec.logprobs is not None and not spec.stream
        self._wants_prompt = echo
        if self.max_tokens == 0:
            self.finish = "length"

    @property
    def produced(self) -> int:
        """Output tokens so far."""
        return len(self.ids) - len(self.prompt)

    def _accept(self, token: int) -> list[Flush]:
        """Take the next output id: text that may leave now, and whether the choice is finished."""
        self.ids.append(token)
        self._sampler.observe(token)
        flushes: list[Flush | None]
        if token in self._ends:
            self.finish = "stop"
            flushes = [self._flow.finish(token)]
        else:
            self.entries.append(None)
            flushes = [self._flow.push(token)]
            if flushes[0] is not None and flushes[0].stopped:
                self.finish = "stop"
            elif self.produced >= self.max_tokens:
                self.finish = "length"
                flushes.append(self._flow.finish())
        kept = [flush for flush in flushes if flush is not None]
        for flush in kept:
            self.texts.append(flush.text)
            self.offsets.extend(flush.offsets)
        return kept

    def restore(self, delivered: Sequence[int]) -> None:
        """Walk again over output the caller already has."""
        for token in delivered:
            if self.finish is not None:
                break
            self._accept(token)
        rest = self._flow.settle()
        if rest is not None:
            self.texts.append(rest.text)
            self.offsets.extend(rest.offsets)
        self.opened = bool(delivered)
        if delivered and not self._wants_past:
            # A stream's past log probabilities are with the caller already.
            self._wants_prompt = False

    def advance(self, logits: Array) -> list[Flush]:
        """Choose the next token from its logits."""
        token = self._sampler.pick(logits)
        flushes = self._accept(token)
        if self._top is not None and token not in self._ends:
            self.entries[-1] = logprobs_of(logits, token, self._top)
        return flushes

    def share_prompt(self, leader: Choice) -> None:
        """Copy the cache of a sibling with the same prompt instead of computing it again."""
        if self.cache is None or leader.cache is None or self.cache.length:
            return
        # The row of the last prompt token is left out: its logits may be wanted here too.
        self.cache.copy_prefix(leader.cache, min(leader.cache.length, len(self.prompt) - 1))
        self.prompt_entries = list(leader.prompt_entries)

    def _wanted_from(self) -> int:
        """First position whose logits are needed for log probabilities of tokens already known."""
        if self._wants_prompt:
            return 0
        return len(self.prompt) - 1 if self._wants_past else len(self.ids)

    def rows_missing(self) -> int:
        """Rows still to prefill before this choice can go on (or be reported)."""
        if self.finish is not None and self._wanted_from() >= len(self.ids) - 1:
            return 0
        return len(self.ids) - 1 - (0 if self.cache is None else self.cache.length)

    def wanted_offsets(self, start: int, count: int) -> list[int]:
        """Offsets of rows start..start + count - 1 whose logits `note` must see."""
        return list(range(max(0, self._wanted_from() - start), count))

    def note(self, position: int, logits: Array) -> None:
        """Record the log probability of the known token after `position`."""
        token = self.ids[position + 1]
        place = position + 1 - len(self.prompt)
        if place < 0:
            self.prompt_entries[position + 1] = logprobs_of(logits, token, self._top or 0)
        elif place < len(self.entries):
            self.entries[place] = logprobs_of(logits, token, self._top or 0)


class Generation:
    """All choices of one request and the way their output reaches the sink."""

    def __init__(self, job: Job, spec: GenerateSpec, facts: ModelFacts, ends: Sequence[int], wire: Wire) -> None:
        """Choices take up what `job.request.attempt` says was delivered."""
        self.job = job
        self.spec = spec
        self._wire = wire
        self._tokenizer = facts.tokenizer
        self.compute_s = 0.0
        self._first_token_s = 0.0
        self.choices = [Choice(i, spec, facts, ends) for i in range(len(spec.prompts) * spec.n)]
        for choice, delivered in zip(self.choices, job.request.attempt.choices, strict=False):
            choice.restore(delivered)
        echoes = [facts.tokenizer.decode(p) if spec.echo else "" for p in spec.prompts]
        self._echoes = [echoes[i // spec.n] for i in range(len(self.choices))]

    def prompt_ids(self) -> list[int]:
        """What HEAD reports: the prompt, or all prompts one after the other (the body tells them apart again)."""
        return [token for prompt in self.spec.prompts for token in prompt]

    def due(self) -> list[Choice]:
        """Choices to step now: none until all are prefilled, then the unfinished ones with the fewest tokens.

        Keeping choices level makes their interleaving in a stream the same after a move.
        """
        if any(choice.rows_missing() for choice in self.choices):
            return []
        open_choices = [choice for choice in self.choices if choice.finish is None]
        least = min((choice.produced for choice in open_choices), default=0)
        return [choice for choice in open_choices if choice.produced == least]

    @property
    def complete(self) -> bool:
        """All output is there and every log probability asked for is known."""
        return all(c.finish is not None and not c.rows_missing() for c in self.choices)

    def emit(self, choice: Choice, flushes: Sequence[Flush]) -> None:
        """Send flushed ids: ready SSE bytes for a stream, bare progress for a JSON answer."""
        for flush in flushes:
            if not self._first_token_s:
                self._first_token_s = time.monotonic() - self.job.arrived
            sse = self._sse(choice, flush) if self.spec.stream else b""
            self.job.sink.tokens(choice.index, flush.first, flush.ids, sse)

    def _sse(self, choice: Choice, flush: Flush) -> bytes:
        out = b""
        if not choice.opened:
            out = self._opening(choice)
        entries = choice.entries[flush.first : flush.first + len(flush.ids)]
        if flush.text or (entries and self.spec.logprobs is not None):
            out += self._wire.piece(choice.index, flush.text, self._logprobs(choice, entries, flush.offsets))
        return out

    def _opening(self, choice: Choice) -> bytes:
        choice.opened = True
        return self._wire.opening(choice.index, self._echoes[choice.index], choice.prompt_entries, choice.prompt)

    def _logprobs(
        self, choice: Choice, entries: Sequence[TokenLogprob | None], offsets: Sequence[int]
    ) -> dict[str, Any] | None:
        known = [entry for entry in entries if entry is not None]
        return self._wire.logprobs(known, offsets, len(self._echoes[choice.index]))

    def usage(self) -> Usage:
        """Units over all attempts."""
        prompt_tokens = sum(len(prompt) for prompt in self.spec.prompts)
        return Usage(prompt_tokens, sum(choice.produced for choice in self.choices))

    def close(self) -> None:
        """Send what ends the answer: closing chunks, usage, DONE, or the JSON body."""
        sink, usage = self.job.sink, self.usage()
        finish = [choice.finish or "stop" for choice in self.choices]
        if self.spec.stream:
            tail = b""
            for choice, reason in zip(self.choices, finish, strict=True):
                if not choice.opened:
                    tail += self._opening(choice)
                tail += self._wire.closing(choice.index, reason)
            sink.data(tail)
            if self.spec.include_usage:
                sink.data(self._wire.usage(usage))
            sink.data(DONE)
        else:
            sink.data(self._wire.body([self._whole(c, r) for c, r in zip(self.choices, finish, strict=True)], usage))
        sink.end(usage, finish, Timings(int(self.compute_s * 1e6), int(self._first_token_s * 1e6)))

    def _whole(self, choice: Choice, finish: str) -> tuple[int, str, dict[str, Any] | None, str]:
        """Index, text, log probabilities and finish reason of one choice of a JSON answer."""
        echo = self._echoes[choice.index]
        logprobs = self._logprobs(choice, choice.entries, choice.offsets)
        if choice.prompt_entries and logprobs is not None:
            lead = self._wire.prompt_logprobs(choice.prompt, choice.prompt_entries)
            logprobs = {k: None if v is None else [*lead[k], *v] for k, v in logprobs.items()}
        return choice.index, echo + "".join(choice.texts), logprobs, finish
