"""Llama-family transformer in float64 NumPy: weights, key/value caches, and one forward pass over mixed rows.

`Llama.forward` takes any mixture of prompt chunks and single next-token rows. Everything that crosses rows happens in
blocks of one fixed shape (see `kernels`); attention runs per row over a key range whose padded length depends on that
row's position alone. So the logits of a position are the same bits in any batch and on either path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanopod.node.engines.reference.kernels import (
    ROW_BLOCK,
    Array,
    blocks,
    rms_norm,
    rows_are_independent,
    silu_gate,
    softmax_rows,
)
from nanopod.node.engines.reference.llama_config import LlamaConfig, inverse_frequencies
from nanopod.node.engines.reference.safetensors import Checkpoint

KEY_BLOCK = 64
"""Attention lengths are padded to multiples of this many positions."""

LOGIT_STEPS = 2.0**24
"""Logits are rounded to multiples of 1/LOGIT_STEPS, far above float64 noise and far below what a reader can see, so a
worker on another CPU model (other vector width, other last bits) still agrees on ties and printed digits."""

_F64 = np.dtype(np.float64)


class KvCache:
    """Keys and values of one sequence: two arrays (layers, kv heads, capacity, head dim); `length` rows are filled."""

    __slots__ = ("k", "length", "v")

    def __init__(self, config: LlamaConfig, capacity: int) -> None:
        """Room for `capacity` positions, rounded up to whole key blocks; zeroed so that padding is finite."""
        size = (config.layers, config.kv_heads, -(-capacity // KEY_BLOCK) * KEY_BLOCK, config.head_dim)
        self.k: Array = np.zeros(size, _F64)
        self.v: Array = np.zeros(size, _F64)
        self.length = 0

    def copy_prefix(self, other: KvCache, length: int) -> None:
        """Take over the first `length` positions of `other`, which saw the same tokens there."""
        self.k[:, :, :length] = other.k[:, :, :length]
        self.v[:, :, :length] = other.v[:, :, :length]
        self.length = length


@dataclass(slots=True)
class Segment:
    """Consecutive tokens of one sequence to run now, from position `cache.length` on.

    `wants` are the offsets into `ids` whose logits are needed (ascending); `logits` receives them, (len(wants), vocab).
    """

    cache: KvCache
    ids: Sequence[int]
    wants: Sequence[int] = ()
    logits: Array | None = None


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's matrices, (inputs, outputs), norm gains and the attention scale folded in."""

    qkv: Array
    qkv_bias: Array | None
    out: Array
    out_bias: Array | None
    gate_up: Array
    down: Array


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Work arrays for a number of row blocks, made once per height so that a step allocates next to nothing."""

    x: Array
    h: Array
    qkv: Array
    attn: Array
    gate_up: Array
    act: Array


class Llama:
    """The network. Not thread safe: one thread runs it."""

    def __init__(self, config: LlamaConfig, checkpoint: Checkpoint, context_max: int) -> None:
        """Load weights as float64; raises `CheckpointError` when a tensor is missing or has another shape."""
        self.config = config
        self.context = min(config.positions, context_max)
        self._scratch: dict[int, _Scratch] = {}
        positions = np.arange(self.context, dtype=np.float64)[:, None]
        self._turn: Array = np.exp(1j * (positions * inverse_frequencies(config)[None, :]))
        self.embed = checkpoint.load("model.embed_tokens.weight", _F64, (config.vocab, config.hidden))
        self._final_gain = checkpoint.load("model.norm.weight", _F64, (config.hidden,))
        if config.tied or "lm_head.weight" not in checkpoint:
            self._head = self.embed
        else:
            self._head = checkpoint.load("lm_head.weight", _F64, (config.vocab, config.hidden))
        self._layers = [self._load_layer(checkpoint, n) for n in range(config.layers)]

    def _load_layer(self, checkpoint: Checkpoint, n: int) -> _Layer:
        c = self.config
        prefix = f"model.layers.{n}."
        q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim

        def matrix(name: str, outputs: int, inputs: int) -> Array:
            return checkpoint.load(f"{prefix}{name}.weight", _F64, (outputs, inputs))

        def bias(name: str, outputs: int) -> Array | None:
            full = f"{prefix}{name}.bias"
            return checkpoint.load(full, _F64, (outputs,)) if full in checkpoint else None

        attn_gain = checkpoint.load(f"{prefix}input_layernorm.weight", _F64, (c.hidden,))
        mlp_gain = checkpoint.load(f"{prefix}post_attention_layernorm.weight", _F64, (c.hidden,))
        sizes = (("q", q_size, c.heads), ("k", kv_size, c.kv_heads), ("v", kv_size, 0))
        weights, biases = [], []
        for letter, size, turned_heads in sizes:
            name = f"self_attn.{letter}_proj"
            scale = c.head_dim**-0.5 if letter == "q" else 1.0
            order = _pair_order(turned_heads, c.head_dim) if turned_heads else np.arange(size)
            weights.append(matrix(name, size, c.hidden)[order] * scale)
            found = bias(name, size)
            biases.append(None if found is None else found[order] * scale)
        qkv = np.ascontiguousarray((np.concatenate(weights) * attn_gain).T)
        qkv_bias = None
        if any(b is not None for b in biases):
            parts = [np.zeros(size) if b is None else b for b, (_, size, _) in zip(biases, sizes, strict=True)]
            qkv_bias = np.concatenate(parts)
        gate_up = np.concatenate(
            [matrix("mlp.gate_proj", c.intermediate, c.hidden), matrix("mlp.up_proj", c.intermediate, c.hidden)]
        )
        return _Layer(
            qkv=qkv,
            qkv_bias=qkv_bias,
            out=np.ascontiguousarray(matrix("self_attn.o_proj", c.hidden, q_size).T),
            out_bias=bias("self_attn.o_proj", c.hidden),
            gate_up=np.ascontiguousarray((gate_up * mlp_gain).T),
            down=np.ascontiguousarray(matrix("mlp.down_proj", c.hidden, c.intermediate).T),
        )

    def _work(self, n: int) -> _Scratch:
        found = self._scratch.get(n)
        if found is None:
            c = self.config

            def room(width: int) -> Array:
                return np.zeros((n, ROW_BLOCK, width), _F64)

            found = self._scratch[n] = _Scratch(
                x=room(c.hidden),
                h=room(c.hidden),
                qkv=room((c.heads + 2 * c.kv_heads) * c.head_dim),
                attn=room(c.heads * c.head_dim),
                gate_up=room(2 * c.intermediate),
                act=room(c.intermediate),
            )
        return found

    def forward(self, segments: Sequence[Segment]) -> None:
        """Run all segments together: fill their caches, set their `logits`. Caches must have room for the rows."""
        ids = [i for s in segments for i in s.ids]
        places = [s.cache.length + i for s in segments for i in range(len(s.ids))]
        count, n = len(ids), blocks(len(ids))
        work = self._work(n)
        c = self.config
        x = work.x
        flat = x.reshape(n * ROW_BLOCK, c.hidden)
        flat[:count] = self.embed[ids]
        flat[count:] = 0.0
        turn = np.ones((n * ROW_BLOCK, 1, c.head_dim // 2), np.complex128)
        turn[:count, 0] = self._turn[places]
        with np.errstate(over="ignore"):
            for number, layer in enumerate(self._layers):
                self._attention(number, layer, segments, work, turn)
                rms_norm(x, c.eps, work.h)
                np.matmul(work.h, layer.gate_up, out=work.gate_up)
                silu_gate(work.gate_up, work.act)
                np.matmul(work.act, layer.down, out=work.h)
                x += work.h
        self._logits(segments, flat)
        for segment in segments:
            segment.cache.length += len(segment.ids)

    def _attention(self, number: int, layer: _Layer, segments: Sequence[Segment], work: _Scratch, turn: Array) -> None:
        """One attention block: x += attention(norm(x))."""
        c = self.config
        rms_norm(work.x, c.eps, work.h)
        np.matmul(work.h, layer.qkv, out=work.qkv)
        if layer.qkv_bias is not None:
            np.add(work.qkv, layer.qkv_bias, out=work.qkv)
        heads_all = c.heads + 2 * c.kv_heads
        rows = work.qkv.reshape(-1, heads_all, c.head_dim)
        # Pairs lie side by side (see _pair_order), so the rotation is one complex product.
        pairs = rows.view(np.complex128)[:, : c.heads + c.kv_heads]
        np.multiply(pairs, turn, out=pairs)
        out = work.attn.reshape(-1, c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        at = 0
        for segment in segments:
            to = at + len(segment.ids)
            start = segment.cache.length
            keys, values = segment.cache.k[number], segment.cache.v[number]
            keys[:, start : start + to - at] = rows[at:to, c.heads : c.heads + c.kv_heads].transpose(1, 0, 2)
            values[:, start : start + to - at] = rows[at:to, c.heads + c.kv_heads :].transpose(1, 0, 2)
            query = rows[at:to, : c.heads].reshape(to - at, c.kv_heads, c.heads // c.kv_heads, c.head_dim)
            self._attend(query, keys, values, start, out[at:to])
            at = to
        np.matmul(work.attn, layer.out, out=work.h)
        if layer.out_bias is not None:
            np.add(work.h, layer.out_bias, out=work.h)
        np.add(work.x, work.h, out=work.x)

    def _attend(self, query: Array, keys: Array, values: Array, start: int, out: Array) -> None:
        """Causal attention of rows at positions start, start + 1, ...; query and out are (rows, kv, group, dim).

        Rows are taken in runs that share a padded key length; inside a run NumPy makes one small product per row and
        head, of the very shape a single decoding row gets.
        """
        rows, at, window = len(query), 0, self.config.window
        while at < rows:
            first = start + at
            padded = (first // KEY_BLOCK + 1) * KEY_BLOCK
            to = min(rows, padded - start)
            scores = np.matmul(query[at:to], keys[:, :padded].transpose(0, 2, 1))
            if to - at == 1:
                scores[..., first + 1 :] = -np.inf
                if window and first >= window:
                    scores[..., : first - window + 1] = -np.inf
            else:
                place = np.arange(first, start + to)[:, None]
                column = np.arange(padded)[None, :]
                hidden = column > place
                if window:
                    hidden |= column <= place - window
                np.copyto(scores, -np.inf, where=hidden[:, None, None, :])
            sums = softmax_rows(scores)
            mixed = np.matmul(scores, values[:, :padded])
            np.divide(mixed, sums, out=out[at:to])
            at = to

    def _logits(self, segments: Sequence[Segment], flat: Array) -> None:
        """Final norm and output head for the wanted rows only, then the rounding of `LOGIT_STEPS`."""
        wanted: list[int] = []
        at = 0
        for segment in segments:
            wanted.extend(at + offset for offset in segment.wants)
            at += len(segment.ids)
        if not wanted:
            return
        n = blocks(len(wanted))
        h = np.zeros((n, ROW_BLOCK, self.config.hidden), _F64)
        h.reshape(-1, self.config.hidden)[: len(wanted)] = flat[wanted]
        h = rms_norm(h, self.config.eps, np.empty_like(h))
        h *= self._final_gain
        logits = np.matmul(h, self._head.T).reshape(-1, self.config.vocab)[: len(wanted)]
        logits *= LOGIT_STEPS
        np.rint(logits, out=logits)
        logits *= 1.0 / LOGIT_STEPS
        at = 0
        for segment in segments:
            if segment.wants:
                segment.logits = logits[at : at + len(segment.wants)]
                at += len(segment.wants)

    def self_check(self) -> bool:
        """Whether logits really do not depend on path and company on this machine: kernels, then whole passes."""
        layer = self._layers[0]
        if not rows_are_independent([layer.qkv, layer.out, layer.gate_up, layer.down, self._head.T]):
            return False
        length = min(self.context, KEY_BLOCK + 9)
        ids = [int(i) for i in np.random.default_rng(3).integers(0, self.config.vocab, length)]
        whole = Segment(KvCache(self.config, length), ids, range(length))
        self.forward([whole])
        alone, beside = KvCache(self.config, length), KvCache(self.config, length)
        cut = max(1, length - 7)
        self.forward([Segment(alone, ids[:cut]), Segment(beside, ids[: cut // 2])])
        for place in range(cut, length):
            step = Segment(alone, [ids[place]], [0])
            other = Segment(beside, ids[beside.length : beside.length + 2], [1])
            self.forward([other, step] if place % 2 else [step])
            if whole.logits is None or step.logits is None or not np.array_equal(whole.logits[place], step.logits[0]):
                return False
        return True


def _pair_order(heads: int, head_dim: int) -> Array:
    """Output rows of a q or k matrix reordered so that the two halves of a rotary pair are neighbours.

    Scores are sums over the head dimension, so the same reordering of q and k leaves them as they were.
    """
    half = head_dim // 2
    one = np.stack([np.arange(half), np.arange(half) + half], axis=1).reshape(-1)
    return np.asarray((np.arange(heads)[:, None] * head_dim + one[None, :]).reshape(-1))
