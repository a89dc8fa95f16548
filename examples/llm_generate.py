"""A language model in a context, streaming: the one that ships inside nanopod, on NumPy; no GPU, no download."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import nanopod
from nanopod import Deployment
from nanopod.node.engines.reference.llama import KvCache, Llama, Segment
from nanopod.node.engines.reference.llama_config import LlamaConfig
from nanopod.node.engines.reference.safetensors import Checkpoint
from nanopod.node.engines.reference.tokenizer import Tokenizer

app = Deployment(name="llm-generate")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)


@app.context(Path(nanopod.__file__).parent / "node" / "engines" / "tiny")
class Engine:
    """A model and its tokenizer, loaded once on each worker. vLLM would go here in the same way."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def __aenter__(self) -> Self:
        self.config = LlamaConfig.parse(json.loads((self.directory / "config.json").read_text()), {})
        self.tokenizer = Tokenizer.from_file(self.directory / "tokenizer.json")
        self.model = Llama(self.config, Checkpoint(self.directory), 1024)
        return self

    async def __aexit__(self, *error: object) -> None:
        del self.model


@app.remote(benchmark_dataset=[{"prompt": "Once", "tokens": 8}], workload_calculator=lambda prompt, tokens: tokens)
async def generate(prompt: str, tokens: int = 40) -> AsyncIterator[str]:
    """The most likely continuation of a prompt, piece by piece."""
    engine: Engine = app.get_context(Engine)
    ids = engine.tokenizer.encode(prompt, add_special=True)
    cache = KvCache(engine.config, len(ids) + tokens)
    for _ in range(tokens):
        step = Segment(cache, ids, wants=(len(ids) - 1,))
        await asyncio.to_thread(engine.model.forward, [step])
        ids = [int(step.logits[0].argmax())]
        if ids[0] in engine.config.eos_ids:
            return
        yield engine.tokenizer.decode(ids)


if __name__ == "__main__":
    app.ensure_ready()
    for piece in generate("Once upon a time", 40):
        print(piece, end="", flush=True)
    print()
