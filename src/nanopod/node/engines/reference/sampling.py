"""From logits to a token: penalties, truncation, and a counter-based draw.

Nothing here remembers a random state. Penalty counts are rebuilt from the output ids alone, so a continued stream that
observes them again picks what the first worker would have picked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nanopod.node.engines.reference.kernels import Array
from nanopod.node.engines.reference.philox import uniform


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; neutral values change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k likeliest; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int = 0


class Sampler:
    """The choice of one output sequence."""

    def __init__(
        self, params: SamplingParams, choice: int, prompt_ids: Iterable[int], end_ids: Iterable[int], vocab: int
    ) -> None:
        """Counts start empty; `observe` each output id, delivered earlier or drawn now."""
        self._params = params
        self._choice = choice
        self._ends = np.array(sorted(i for i in end_ids if i < vocab), dtype=np.int64)
        self._position = 0
        self._counts: Array | None = None
        self._seen: Array | None = None
        if params.frequency_penalty or params.presence_penalty:
            self._counts = np.zeros(vocab)
        if params.repetition_penalty != 1.0:
            self._seen = np.zeros(vocab, dtype=np.bool_)
            self._seen[[i for i in prompt_ids if i < vocab]] = True
        self._bias_ids = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias = np.array(list(params.logit_bias.values()), dtype=np.float64)

    def observe(self, token: int) -> None:
        """Count one output id, whether it was drawn here or by an earlier worker."""
        self._position += 1
        if self._counts is not None and token < len(self._counts):
            self._counts[token] += 1.0
        if self._seen is not None and token < len(self._seen):
            self._seen[token] = True

    def pick(self, logits: Array) -> int:
        """The next token for a row of raw logits (left as it is)."""
        p = self._params
        if p.temperature == 0.0 and self._plain():
            return int(logits.argmax())
        row = self._adjusted(logits)
        if p.temperature == 0.0:
            return int(row.argmax())
        return self._draw(row)

    def _plain(self) -> bool:
        return (
            self._counts is None
            and self._seen is None
            and not len(self._bias_ids)
            and self._position >= self._params.min_tokens
        )

    def _adjusted(self, logits: Array) -> Array:
        """Logits after penalties, bias and the ban on ending early."""
        p = self._params
        row = logits.copy()
        if self._seen is not None:
            part = row[self._seen]
            row[self._seen] = np.where(part > 0, part / p.repetition_penalty, part * p.repetition_penalty)
        if self._counts is not None:
            row -= p.frequency_penalty * self._counts
            row -= p.presence_penalty * (self._counts > 0)
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._position < p.min_tokens and len(self._ends):
            row[self._ends] = -np.inf
        return row

    def _draw(self, row: Array) -> int:
        """Temperature, then top-k, top-p over what is left, min-p, then one uniform number through the sums."""
        p = self._params
        row -= row.max()
        row /= p.temperature
        weights = np.exp(row)
        ids: Array | None = None
        if p.top_k or p.top_p < 1.0 or p.min_p > 0.0:
            ids = self._kept(weights)
            weights = weights[ids]
        sums = np.cumsum(weights)
        mark = uniform(p.seed, self._choice, self._position) * float(sums[-1])
        at = min(int(np.searchsorted(sums, mark, side="right")), len(sums) - 1)
        return at if ids is None else int(ids[at])

    def _kept(self, weights: Array) -> Array:
        """Ids that survive truncation, likeliest first, equal ones by id."""
        p = self._params
        floor = p.min_p * float(weights.max())
        if not p.top_k and p.top_p < 1.0:
            # Tokens this small sum to less than what top-p drops, so they need not be sorted.
            floor = max(floor, float(weights.sum()) * (1.0 - p.top_p) / len(weights))
        ids = np.flatnonzero(weights >= floor)
        if p.top_k and p.top_k < len(ids):
            ids = ids[_top(weights[ids], p.top_k)]
        else:
            ids = ids[np.argsort(-weights[ids], kind="stable")]
        if p.top_p < 1.0:
            base = weights if not p.top_k else weights[_top(weights, p.top_k)]
            sums = np.cumsum(weights[ids])
            ids = ids[: int(np.searchsorted(sums, p.top_p * float(base.sum()), side="left")) + 1]
        return ids


def _top(values: Array, count: int) -> Array:
    """Indices of the `count` largest values, largest first, equal ones by index."""
    if count < len(values):
        edge = np.partition(values, len(values) - count)[len(values) - count]
        near = np.flatnonzero(values >= edge)
    else:
        near = np.arange(len(values))
    return near[np.argsort(-values[near], kind="stable")][:count]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token under the model alone (before temperature and penalties), and its rivals."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits: Array, token: int, top: int) -> TokenLogprob:
    """Natural log probabilities rounded to 6 decimals, so that printing them never shows rounding noise."""
    peak = float(logits.max())
    total = peak + math.log(float(np.exp(logits - peak).sum()))
    rivals = [(int(i), round(float(logits[i]) - total, 6) + 0.0) for i in _top(logits, top)] if top else []
    return TokenLogprob(token, round(float(logits[token]) - total, 6) + 0.0, tuple(rivals))
