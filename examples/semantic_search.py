"""Search by meaning: a context holds a sentence encoder and the index, remote functions fill it and ask it.

The documents are what Python's own standard library says about itself. The encoder is all-MiniLM-L6-v2 on nanopod's
reference engine; its files are taken from this machine's model caches, or fetched once.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nanopod import Deployment

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

Document = tuple[str, str]
"""(title, text)"""
Hit = tuple[float, str, str]
"""(cosine similarity, title, text)"""

app = Deployment(name="semantic-search")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)


@app.context(MODEL)
class Library:
    """The encoder and what was indexed so far, in the memory of one worker."""

    def __init__(self, model: str) -> None:
        self.name = model
        self.titles: dict[str, int] = {}
        self.documents: list[Document] = []
        self.vectors: list[Any] = []

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._load)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.documents.clear()
        self.vectors.clear()

    def _load(self) -> None:
        from nanopod.node.engines.reference import TextEncoder

        self.encoder = TextEncoder(self.name)

    def add(self, documents: Sequence[Document]) -> int:
        """Index documents; one with a known title takes the other's place. How many there are now."""
        vectors = self.encoder.embed([f"{title}: {text}" for title, text in documents])
        for document, vector in zip(documents, vectors, strict=True):
            at = self.titles.setdefault(document[0], len(self.documents))
            self.documents[at : at + 1] = [document]
            self.vectors[at : at + 1] = [vector]
        return len(self.documents)

    def nearest(self, question: str, k: int) -> list[Hit]:
        """The `k` documents whose meaning is nearest to the question's."""
        import numpy as np

        if not self.documents:
            return []
        scores = np.stack(self.vectors) @ self.encoder.embed([question])[0]
        return [(float(scores[at]), *self.documents[at]) for at in np.argsort(-scores)[:k].tolist()]


@app.remote
def index(documents: list[Document]) -> int:
    """Add documents to the index; how many it holds."""
    library: Library = app.get_context(Library)
    return library.add(documents)


@app.remote
def ask(question: str, k: int = 3) -> list[Hit]:
    """The documents that best answer a question."""
    library: Library = app.get_context(Library)
    return library.nearest(question, k)


def documents() -> list[Document]:
    """(module, first paragraphs of its documentation) of the standard library, without importing any of it."""
    found = []
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in ("this", "antigravity", "idlelib"):
            continue
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        text = _documentation(name, spec.origin if spec is not None else None)
        if len(text) > 30:
            found.append((name, text))
    return found


def _documentation(name: str, origin: str | None) -> str:
    """The module's docstring without its first line's repetition of the name, at most two paragraphs."""
    if origin is not None and origin.endswith(".py"):
        whole = ast.get_docstring(ast.parse(Path(origin).read_bytes())) or ""
    else:
        whole = (sys.modules[name].__doc__ or "") if name in sys.modules else ""
    return " ".join(" ".join(whole.split("\n\n")[:2]).split())[:600]


async def main() -> None:
    """Index everything, ask what the command line says."""
    question = " ".join(sys.argv[1:]) or "How do I compress a file?"
    await app.async_ensure_ready()
    shelf = documents()
    for at in range(0, len(shelf), 16):
        print(f"\rindexed {await index(shelf[at : at + 16])} of {len(shelf)} documents", end="", flush=True)
    print(f"\n{question}")
    for score, title, text in await ask(question):
        print(f"  {score:.2f}  {title:<12} {text[:90]}")


if __name__ == "__main__":
    asyncio.run(main())
