"""What a Llama-family `config.json` says, checked, with everything this engine cannot compute refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanopod.node.engines.reference.kernels import Array

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Architectures of one shape: RMSNorm, rotary positions, grouped queries, SwiGLU."""


class ConfigError(ValueError):
    """`config.json` lacks a field or asks for something unknown; the message names the field."""


def field_int(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A positive integer field; raises `ConfigError` when it is absent (without default) or wrong."""
    value = config.get(name)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise ConfigError(f"config.json: {name} must be an integer >= 1, found {config.get(name)!r}")
    return value


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of the network. `rope` holds the rotary settings as the file gave them."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    positions: int
    eps: float
    tied: bool
    window: int
    """Sliding-window length in tokens, 0 for full attention."""
    rope_theta: float
    rope: Mapping[str, Any]
    eos_ids: tuple[int, ...]
    bos_id: int | None

    @classmethod
    def parse(cls, config: Mapping[str, Any], generation: Mapping[str, Any]) -> LlamaConfig:
        """Read `config.json` and `generation_config.json` (which may be empty); raises `ConfigError`."""
        architecture = (config.get("architectures") or ["?"])[0]
        if architecture not in ARCHITECTURES:
            raise ConfigError(f"config.json: architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ConfigError(f"config.json: hidden_act {config['hidden_act']!r} is unknown, expected silu")
        hidden, heads = field_int(config, "hidden_size"), field_int(config, "num_attention_heads")
        kv_heads = field_int(config, "num_key_value_heads", heads)
        head_dim = field_int(config, "head_dim", max(1, hidden // heads))
        if heads % kv_heads:
            raise ConfigError(
                f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        if head_dim % 2:
            raise ConfigError(f"config.json: head_dim {head_dim} must be even for rotary positions")
        rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
        theta = config.get("rope_theta", rope.get("rope_theta", 10000.0))
        eos = generation.get("eos_token_id", config.get("eos_token_id"))
        return cls(
            vocab=field_int(config, "vocab_size"),
            hidden=hidden,
            layers=field_int(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=field_int(config, "intermediate_size"),
            positions=field_int(config, "max_position_embeddings", 2048),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
            window=_window(config, architecture),
            rope_theta=float(theta),
            rope=rope,
            eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
            bos_id=config.get("bos_token_id"),
        )


def _window(config: Mapping[str, Any], architecture: str) -> int:
    """The sliding window, where the architecture uses one in every layer."""
    if architecture == "LlamaForCausalLM" or config.get("use_sliding_window") is False:
        return 0
    if architecture == "Qwen2ForCausalLM" and config.get("use_sliding_window"):
        raise ConfigError("config.json: use_sliding_window true (a window in some layers only) is not supported")
    return 0 if architecture == "Qwen2ForCausalLM" else int(config.get("sliding_window") or 0)


def inverse_frequencies(config: LlamaConfig) -> Array:
    """Rotary angular speeds, shape (head_dim / 2,), with the `linear` and `llama3` long-context rules applied.

    The llama3 rule (Llama 3.1 model card): waves longer than the old context are slowed by `factor`, short ones stay,
    those between are blended linearly in the number of turns they make over the old context.
    """
    speeds = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    kind = config.rope.get("rope_type", config.rope.get("type", "default"))
    if kind == "default":
        return np.asarray(speeds)
    try:
        factor = float(config.rope["factor"])
        if kind == "linear":
            return np.asarray(speeds / factor)
        if kind == "llama3":
            low, high = float(config.rope["low_freq_factor"]), float(config.rope["high_freq_factor"])
            old = float(config.rope["original_max_position_embeddings"])
            turns = old * speeds / (2.0 * math.pi)
            blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
            return np.asarray(speeds * (blend + (1.0 - blend) / factor))
    except KeyError as error:
        raise ConfigError(f"config.json: rope_scaling of type {kind!r} lacks {error.args[0]!r}") from error
    raise ConfigError(f"config.json: rope_scaling.rope_type {kind!r} is unknown; known: default, linear, llama3")
