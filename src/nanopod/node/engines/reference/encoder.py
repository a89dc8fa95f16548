"""Sentence vectors inside a Python function, without an engine around them: `TextEncoder`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanopod.node.engines.reference.bert import Bert, BertConfig
from nanopod.node.engines.reference.kernels import Array
from nanopod.node.engines.reference.resolve import resolve_model
from nanopod.node.engines.reference.safetensors import Checkpoint
from nanopod.node.engines.reference.tokenizer import Tokenizer


class TextEncoder:
    """A BERT-family sentence encoder by name (a directory, a hub id). Made for `@app.context` classes.

    Its files come from this machine's model caches or are fetched once. Raises `ModelNotFound` naming the places tried.
    """

    def __init__(
        self, model: str, *, cache_dir: Path | None = None, tokens_max: int = 128, offline: bool = False
    ) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = resolve_model(model, cache_dir or base / "nanopod" / "models", offline=offline)
        config = BertConfig.parse(json.loads((directory / "config.json").read_bytes()), directory)
        self._bert = Bert(config, Checkpoint(directory))
        self._tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        self._tokens_max = min(tokens_max, config.sequence_max)

    def embed(self, texts: Sequence[str]) -> Array:
        """Unit vectors, shape (texts, width), float32, in order. Longer texts are cut at `tokens_max`."""
        ids = [self._tokenizer.encode_cut(text, self._tokens_max) for text in texts]
        rows: list[Array | None] = [None] * len(ids)
        for batch in self._bert.batches(ids):
            for index, vector in zip(batch, self._bert.embed([ids[index] for index in batch]), strict=True):
                rows[index] = vector
        return np.array(rows, dtype=np.float32)
