"""Hugging Face models by transformers: classification of texts or tokens, masked words, vectors of texts.

The task comes from the option `task`, else from the architecture's name. Models that generate are in `generating`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nanopod.node.engines.serving.formats import LoadFailed, flag, number
from nanopod.node.engines.serving.predictors import INPUT, OUTPUT, Locked, Predictor, guarded
from nanopod.node.engines.serving.tensors import Facts, Tensor, tensor
from nanopod.node.engines.serving.vectors import texts_in, texts_of

TASKS: Final[Mapping[str, str]] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "fill_mask": "AutoModelForMaskedLM",
    "text_embedding": "AutoModel",
}
"""Tasks of V1 and V2, and the class that loads each."""
ALIASES: Final[Mapping[str, str]] = {
    "text_classification": "sequence_classification", "sentiment_analysis": "sequence_classification",
    "ner": "token_classification", "feature_extraction": "text_embedding", "embedding": "text_embedding",
    "sentence_similarity": "text_embedding", "embed": "text_embedding",
}  # fmt: skip
_ENDINGS: Final = (
    ("ForSequenceClassification", "sequence_classification"),
    ("ForTokenClassification", "token_classification"),
    ("ForMaskedLM", "fill_mask"),
)


def task_of(options: Mapping[str, str], architecture: str) -> str:
    """The task that is stated, else the one of the architecture. Raises `LoadFailed` naming the option."""
    stated = options.get("task", "").replace("-", "_").lower()
    if stated:
        task = ALIASES.get(stated, stated)
        if task not in TASKS:
            raise LoadFailed(f"model.options.task: {stated!r} is not one of {', '.join(TASKS)} (or text_generation)")
        return task
    return next((task for ending, task in _ENDINGS if architecture.endswith(ending)), "text_embedding")


class Huggingface(Predictor):
    """An encoder and its tokenizer. One batch at a time: torch uses the threads it has."""

    platform = "transformers"
    inputs = (Facts(INPUT, "BYTES", (-1,)),)

    def __init__(self, directory: Path, task: str, options: Mapping[str, str]) -> None:
        import torch
        import transformers

        torch.set_num_threads(number(options, "nthread", 1))
        local = {"local_files_only": True, "trust_remote_code": flag(options, "trustremotecode")}
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), **local)
        self._model = getattr(transformers, TASKS[task]).from_pretrained(str(directory), **local)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()
        self._task = task
        self._length_max = number(options, "maxlength", 0) or int(
            getattr(self._model.config, "max_position_embeddings", 512)
        )
        self._shares = flag(options, "returnprobabilities")
        self._lock = Locked()
        self.outputs = (Facts(OUTPUT, "INT64" if task.endswith("classification") else "BYTES", (-1,)),)
        if task == "text_embedding":
            self.outputs = (Facts(OUTPUT, "FP32", (-1, int(self._model.config.hidden_size))),)

    def rows(self, instances: list[Any]) -> Any:
        """One prediction per text."""
        return guarded(self._predict, texts_of(instances))

    def infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of texts; what is no tensor (shares by class, labels of tokens) is told as JSON texts."""
        found = guarded(self._predict, texts_in(inputs))
        if isinstance(found, list) and found and isinstance(found[0], dict | list):
            found = [json.dumps(one) for one in found]
        return [tensor(OUTPUT, found)]

    def _predict(self, texts: list[str]) -> Any:
        import torch

        with self._lock, torch.inference_mode():
            given = self._tokenizer(
                texts, return_tensors="pt", padding=True, truncation=True, max_length=self._length_max
            ).to(self._device)
            found = self._model(**given)
            mask = given["attention_mask"]
            if self._task == "text_embedding":
                hidden = found.last_hidden_state
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                return torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy()
            if self._task == "sequence_classification":
                if self._shares:
                    rows = found.logits.float().softmax(-1).tolist()
                    return [{str(place): share for place, share in enumerate(row)} for row in rows]
                return found.logits.argmax(-1).cpu().numpy()
            best = found.logits.argmax(-1)
            if self._task == "token_classification":
                return [row[kept.bool()].tolist() for row, kept in zip(best, mask, strict=True)]
            masked = given["input_ids"] == self._tokenizer.mask_token_id
            if not masked.any(-1).all():
                raise ValueError(f"each text must have a {self._tokenizer.mask_token} to be filled in")
            return [self._tokenizer.decode(row[where]).strip() for row, where in zip(best, masked, strict=True)]


def load_huggingface(path: Path, options: Mapping[str, str]) -> Huggingface:
    """A directory with config.json, a tokenizer and weights."""
    config = json.loads((path / "config.json").read_bytes())
    task = task_of(options, str((config.get("architectures") or [""])[0]))
    return Huggingface(path, task, options)
