"""The reference engine: our own NumPy inference for Llama- and BERT-family checkpoints, with exact continuation."""

from __future__ import annotations

from nanopod.node.engines.reference.encoder import TextEncoder
from nanopod.node.engines.reference.engine import ReferenceEngine
from nanopod.node.engines.reference.resolve import ModelNotFound, resolve_model

__all__ = ["ModelNotFound", "ReferenceEngine", "TextEncoder", "resolve_model"]
