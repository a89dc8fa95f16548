"""Hugging Face directories that answer OpenAI's paths: by the reference engine where it can, else by transformers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.model.endpoint import ModelSpec
from nanopod.node.engines.base import Engine
from nanopod.node.engines.serving import formats
from nanopod.node.engines.serving.predictors import Predictor, first_line

_log: Final = logging.getLogger(__name__)
_REFERENCE: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "BertModel")


class Generating(Predictor):
    """Stands for a model that answers OpenAI's paths only."""

    def __init__(self, platform: str) -> None:
        self.platform = platform
        self.batchable = False


def _config(directory: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode((directory / "config.json").read_bytes())
        if isinstance(found, dict):
            return found
    return {}


async def opened(
    model: ModelSpec, directory: Path, options: Mapping[str, str], pool: Executor
) -> tuple[Engine, Predictor] | None:
    """(engine, predictor) of a model that generates or embeds; None for one of V1 and V2 alone. Raises `LoadFailed`."""
    config = await asyncio.to_thread(_config, directory)
    architecture = str((config.get("architectures") or [""])[0])
    task = options.get("task", "").replace("-", "_")
    backend = options.get("backend", "auto").lower()
    if backend in ("auto", "reference", "vllm") and task in ("", "text_generation", "text_embedding"):
        engine = await _reference(model, directory, architecture)
        if engine is not None:
            return engine, await _beside(engine, directory, architecture, pool)
    generates = architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))
    if task in ("text_generation", "text2text_generation") or (not task and generates):
        formats.need("huggingface")
        from nanopod.node.engines.serving.generating import TransformersEngine

        made = TransformersEngine(model.model_id, directory, options, slots=model.slots)
        await made.start()
        return made, Generating("transformers")
    return None


async def _reference(model: ModelSpec, directory: Path, architecture: str) -> Engine | None:
    """The reference engine, when it can load what is there."""
    if architecture not in _REFERENCE:
        return None
    from nanopod.node.engines.reference import ReferenceEngine

    engine = ReferenceEngine(directory, model_id=model.model_id, max_batch=max(1, model.slots))
    try:
        await engine.start()
    except (ValueError, OSError, KeyError) as error:
        # Not one of its models after all (weights in another form, a tokenizer of its own): transformers may know it.
        _log.warning("the reference engine cannot serve %s: %s; transformers is tried", directory, first_line(error))
        await engine.stop(0.0)
        return None
    return engine


async def _beside(engine: Engine, directory: Path, architecture: str, pool: Executor) -> Predictor:
    """What answers V1 and V2 of a model that the reference engine serves: vectors of an encoder, else nothing."""
    if not architecture.startswith("Bert"):
        return Generating("reference")
    from nanopod.node.engines.serving.vectors import Vectors

    return await asyncio.get_running_loop().run_in_executor(pool, Vectors, directory)
