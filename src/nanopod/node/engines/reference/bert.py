"""BERT encoder in float32 NumPy with sentence-transformers pooling: texts to unit vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanopod.node.engines.reference.kernels import Array, softmax_rows
from nanopod.node.engines.reference.llama_config import ConfigError, field_int
from nanopod.node.engines.reference.safetensors import Checkpoint

BATCH_TOKENS_MAX = 2048
"""Padded tokens run together: enough to fill the matrix units, small enough to stay in cache."""

_F32 = np.dtype(np.float32)
_GELU_ROWS = 16

# erf(x) = tanh(x * P(x * x)) for |x| <= 4 with |error| < 6e-8: our own weighted least-squares fit of atanh(erf(x)) / x
# (Chebyshev basis on [0, 16], weights raised where the error was largest). NumPy has no erf of its own.
_ERF = (
    1.12837971e00,
    1.02765481e-01,
    -1.84382518e-04,
    -6.25720689e-04,
    8.97130425e-05,
    -5.98577019e-06,
    1.58965019e-07,
)


def gelu(x: Array, scratch: Array) -> None:
    """x * (1 + erf(x / sqrt 2)) / 2, in place over the rows of a 2-D array; `scratch` is (2, _GELU_ROWS, columns)."""
    for at in range(0, len(x), _GELU_ROWS):
        part = x[at : at + _GELU_ROWS]
        z, poly = scratch[0, : len(part)], scratch[1, : len(part)]
        # Beyond 4 standard units erf is 1 in float32; the fit must not be asked there.
        np.multiply(part, np.float32(0.5**0.5), out=z)
        np.minimum(z, np.float32(4.0), out=z)
        np.maximum(z, np.float32(-4.0), out=z)
        square = np.multiply(z, z)
        np.multiply(square, np.float32(_ERF[-1]), out=poly)
        for coefficient in _ERF[-2:0:-1]:
            poly += np.float32(coefficient)
            poly *= square
        poly += np.float32(_ERF[0])
        z *= poly
        np.tanh(z, out=z)
        z += np.float32(1.0)
        z *= np.float32(0.5)
        part *= z


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of the encoder and what sentence-transformers says about its use."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    types: int
    eps: float
    sequence_max: int
    pooling: str
    normalize: bool

    @classmethod
    def parse(cls, config: Mapping[str, Any], directory: Path) -> BertConfig:
        """Read `config.json` and the sentence-transformers files beside it; raises `ConfigError`."""
        if config.get("hidden_act", "gelu") != "gelu":
            raise ConfigError(f"config.json: hidden_act {config['hidden_act']!r} is unknown, expected gelu")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ConfigError("config.json: position_embedding_type must be absolute")
        positions = field_int(config, "max_position_embeddings")
        pooling, normalize = _pooling(directory)
        sentence = _read(directory / "sentence_bert_config.json")
        heads = field_int(config, "num_attention_heads")
        hidden = field_int(config, "hidden_size")
        if hidden % heads:
            raise ConfigError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
        return cls(
            vocab=field_int(config, "vocab_size"),
            hidden=hidden,
            layers=field_int(config, "num_hidden_layers"),
            heads=heads,
            intermediate=field_int(config, "intermediate_size"),
            positions=positions,
            types=field_int(config, "type_vocab_size", 2),
            eps=float(config.get("layer_norm_eps", 1e-12)),
            sequence_max=min(positions, int(sentence.get("max_seq_length") or positions)),
            pooling=pooling,
            normalize=normalize,
        )


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _pooling(directory: Path) -> tuple[str, bool]:
    """Pooling mode and whether vectors are normalized; a bare BERT is mean-pooled and normalized."""
    path = directory / "modules.json"
    if not path.is_file():
        return "mean", True
    mode, normalize = "mean", False
    for module in json.loads(path.read_bytes()):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            wanted = _read(directory / module["path"] / "config.json")
            modes = [m for m in ("cls_token", "mean_tokens", "max_tokens") if wanted.get(f"pooling_mode_{m}")]
            if len(modes) != 1:
                raise ConfigError(f"{module['path']}/config.json: exactly one of cls, mean, max pooling is supported")
            mode = modes[0].split("_")[0]
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigError(f"modules.json: module type {module.get('type')!r} is not supported")
    return mode, normalize


@dataclass(frozen=True, slots=True)
class _Layer:
    """One encoder layer; matrices are (inputs, outputs), the attention scale is folded into the queries."""

    qkv: Array
    qkv_bias: Array
    out: Array
    out_bias: Array
    out_norm: tuple[Array, Array]
    up: Array
    up_bias: Array
    down: Array
    down_bias: Array
    down_norm: tuple[Array, Array]


class Bert:
    """The encoder. Not thread safe: one thread runs it."""

    def __init__(self, config: BertConfig, checkpoint: Checkpoint) -> None:
        """Load weights as float32; raises `CheckpointError` when a tensor is missing or has another shape."""
        self.config = c = config
        self._checkpoint: Checkpoint | None = checkpoint
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in checkpoint else ""
        self._words = self._get("embeddings.word_embeddings.weight", c.vocab, c.hidden)
        types = self._get("embeddings.token_type_embeddings.weight", c.types, c.hidden)
        self._places = self._get("embeddings.position_embeddings.weight", c.positions, c.hidden) + types[0]
        self._norm = self._norm_pair("embeddings.LayerNorm")
        self._layers = [self._layer(f"encoder.layer.{n}.") for n in range(c.layers)]
        self._gelu_scratch = np.empty((2, _GELU_ROWS, c.intermediate), _F32)
        self._rooms: dict[str, Array] = {}
        self._checkpoint = None

    def _get(self, name: str, *shape: int) -> Array:
        if self._checkpoint is None:
            raise RuntimeError("the checkpoint is closed once the weights are loaded")
        return self._checkpoint.load(self._prefix + name, _F32, shape)

    def _norm_pair(self, name: str) -> tuple[Array, Array]:
        return self._get(f"{name}.weight", self.config.hidden), self._get(f"{name}.bias", self.config.hidden)

    def _layer(self, prefix: str) -> _Layer:
        c = self.config
        scale = np.float32((c.hidden // c.heads) ** -0.5)
        scales = (("query", scale), ("key", np.float32(1)), ("value", np.float32(1)))
        qkv = [self._get(f"{prefix}attention.self.{n}.weight", c.hidden, c.hidden) * s for n, s in scales]
        bias = [self._get(f"{prefix}attention.self.{n}.bias", c.hidden) * s for n, s in scales]

        def matrix(name: str, outputs: int, inputs: int) -> tuple[Array, Array]:
            weight = self._get(f"{prefix}{name}.weight", outputs, inputs)
            return np.ascontiguousarray(weight.T), self._get(f"{prefix}{name}.bias", outputs)

        out, out_bias = matrix("attention.output.dense", c.hidden, c.hidden)
        up, up_bias = matrix("intermediate.dense", c.intermediate, c.hidden)
        down, down_bias = matrix("output.dense", c.hidden, c.intermediate)
        return _Layer(
            qkv=np.ascontiguousarray(np.concatenate(qkv).T),
            qkv_bias=np.concatenate(bias),
            out=out,
            out_bias=out_bias,
            out_norm=self._norm_pair(f"{prefix}attention.output.LayerNorm"),
            up=up,
            up_bias=up_bias,
            down=down,
            down_bias=down_bias,
            down_norm=self._norm_pair(f"{prefix}output.LayerNorm"),
        )

    def _room(self, name: str, rows: int, width: int) -> Array:
        """A work array of that size, kept from call to call: fresh pages cost more than the arithmetic on them."""
        found = self._rooms.get(name)
        if found is None or len(found) < rows * width:
            found = self._rooms[name] = np.empty(rows * width, _F32)
        return found[: rows * width].reshape(rows, width)

    def _layer_norm(self, x: Array, pair: tuple[Array, Array]) -> None:
        """LayerNorm of the rows, in place."""
        width = np.float32(1.0 / x.shape[-1])
        x -= np.add.reduce(x, axis=-1, keepdims=True) * width
        spread = np.einsum("ij,ij->i", x, x)[:, None] * width
        spread += np.float32(self.config.eps)
        x *= np.float32(1.0) / np.sqrt(spread)
        x *= pair[0]
        x += pair[1]

    def _encode(self, batch: Sequence[Sequence[int]]) -> Array:
        """Pooled vectors of a few sequences of like length, (len(batch), hidden)."""
        c = self.config
        count, longest = len(batch), max(map(len, batch))
        ids = np.zeros((count, longest), np.int64)
        mask = np.zeros((count, longest), _F32)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1.0
        rows = count * longest
        x = self._room("x", rows, c.hidden)
        np.add(self._words[ids], self._places[:longest], out=x.reshape(count, longest, c.hidden))
        self._layer_norm(x, self._norm)
        hidden = None if mask.all() else ((mask - np.float32(1.0)) * np.float32(1e9))[:, None, None, :]
        back = self._room("back", rows, c.hidden)
        for layer in self._layers:
            np.matmul(self._attend(x, layer, count, longest, hidden), layer.out, out=back)
            back += layer.out_bias
            x += back
            self._layer_norm(x, layer.out_norm)
            wide = np.matmul(x, layer.up, out=self._room("wide", rows, c.intermediate))
            wide += layer.up_bias
            gelu(wide, self._gelu_scratch)
            np.matmul(wide, layer.down, out=back)
            back += layer.down_bias
            x += back
            self._layer_norm(x, layer.down_norm)
        return self._pool(x.reshape(count, longest, c.hidden), mask)

    def _attend(self, x: Array, layer: _Layer, count: int, longest: int, hidden: Array | None) -> Array:
        """Attention before its output matrix, (rows, hidden); `hidden` is added to scores of padding."""
        c = self.config
        size, rows = c.hidden // c.heads, count * longest
        qkv = np.matmul(x, layer.qkv, out=self._room("qkv", rows, 3 * c.hidden))
        qkv += layer.qkv_bias
        parts = qkv.reshape(count, longest, 3, c.heads, size)
        q, k, v = (parts[:, :, n].transpose(0, 2, 1, 3) for n in range(3))
        scores = self._room("scores", rows * c.heads, longest).reshape(count, c.heads, longest, longest)
        np.matmul(q, k.transpose(0, 1, 3, 2), out=scores)
        if hidden is not None:
            scores += hidden
        sums = softmax_rows(scores)
        mixed = self._room("mixed", rows, c.hidden)
        out = mixed.reshape(count, longest, c.heads, size).transpose(0, 2, 1, 3)
        np.matmul(scores, v, out=out)
        out /= sums
        return mixed

    def _pool(self, x: Array, mask: Array) -> Array:
        if self.config.pooling == "cls":
            return np.asarray(x[:, 0])
        if self.config.pooling == "max":
            return np.asarray(np.where(mask[:, :, None] > 0, x, np.float32(-1e9)).max(axis=1))
        return np.asarray(np.matmul(mask[:, None, :], x)[:, 0] / mask.sum(axis=1, keepdims=True))

    def batches(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices of `sequences` in batches of like length, each at most `BATCH_TOKENS_MAX` padded tokens."""
        out: list[list[int]] = []
        for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
            if out and (len(out[-1]) + 1) * len(sequences[out[-1][0]]) <= BATCH_TOKENS_MAX:
                out[-1].append(index)
            else:
                out.append([index])
        return out

    def embed(self, batch: Sequence[Sequence[int]]) -> Array:
        """Vectors of one batch of id sequences (special tokens included), float32, (len(batch), hidden)."""
        vectors = self._encode(batch)
        return unit(vectors) if self.config.normalize else vectors


def unit(vectors: Array) -> Array:
    """Rows scaled to length 1 (a zero row stays zero)."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)))
