"""Sentence vectors of an encoder for V1 and V2, by the reference engine's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanopod.node.engines.reference import TextEncoder
from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.predictors import INPUT, OUTPUT, Locked, Predictor
from nanopod.node.engines.serving.tensors import Facts, Tensor, tensor

TOKENS_MAX = 512


class Vectors(Predictor):
    """Texts in, unit vectors (float32) out."""

    platform = "reference"
    inputs = (Facts(INPUT, "BYTES", (-1,)),)

    def __init__(self, directory: Path) -> None:
        self._encoder = TextEncoder(str(directory), tokens_max=TOKENS_MAX, offline=True)
        self._lock = Locked()
        width = self._embed(["ready"]).shape[1]
        self.outputs = (Facts(OUTPUT, "FP32", (-1, width)),)

    def rows(self, instances: list[Any]) -> Any:
        """One vector per text."""
        return self._embed(texts_of(instances))

    def infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of texts."""
        return [tensor(OUTPUT, self._embed(texts_in(inputs)))]

    def _embed(self, texts: list[str]) -> Any:
        with self._lock:
            return self._encoder.embed(texts)


def texts_of(instances: list[Any]) -> list[str]:
    """V1 instances as texts. Raises `Refused` 400."""
    if not all(isinstance(one, str) and one for one in instances):
        raise Refused(400, "instances must be texts that are not empty")
    return instances


def texts_in(inputs: Sequence[Tensor]) -> list[str]:
    """The only input of a V2 request as texts. Raises `Refused` 400."""
    if len(inputs) != 1 or inputs[0].datatype != "BYTES":
        raise Refused(400, "inputs: the model takes one input of datatype BYTES")
    return texts_of([item.decode(errors="replace") for item in inputs[0].array.reshape(-1)])
