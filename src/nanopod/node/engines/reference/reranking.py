"""POST /v1/rerank over an encoder: documents in the order of their vectors' cosine with the query's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanopod.node.engines.reference.errors import ApiError
from nanopod.node.engines.reference.fields import boolean, integer, reject_unknown, required
from nanopod.node.engines.reference.kernels import Array

PATH = "/v1/rerank"
_KNOWN = {"model", "query", "documents", "top_n", "return_documents", "user"}


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a request asks for: the first text is the query, the others are ranked."""

    documents: tuple[str, ...]
    top: int
    shown: bool
    """The texts are part of the answer."""


def parse(body: Mapping[str, Any], documents_max: int) -> tuple[list[str], Ranking]:
    """(texts to be embedded, what is asked). Raises `ApiError` naming the field."""
    reject_unknown(body, _KNOWN)
    query = required(body, "query")
    if not isinstance(query, str) or not query:
        raise ApiError("query must be a text that is not empty", param="query")
    given = required(body, "documents")
    if not isinstance(given, list) or not 0 < len(given) <= documents_max:
        raise ApiError(f"documents must be a list of 1 to {documents_max} texts", param="documents")
    texts: list[str] = []
    for number, one in enumerate(given):
        text = one.get("text") if isinstance(one, dict) else one
        if isinstance(text, str) and text:
            texts.append(text)
        else:
            raise ApiError(f"documents[{number}] must be a text that is not empty, or {{text}}", param="documents")
    top = integer(body, "top_n", len(texts), 1, 2**31) or len(texts)
    shown = boolean(body, "return_documents", True)
    return [query, *texts], Ranking(tuple(texts), min(top, len(texts)), shown)


def ranked(asked: Ranking, vectors: Array) -> list[dict[str, Any]]:
    """The best documents first; `vectors` are unit vectors of the query and then of the documents."""
    scores = (vectors[1:] @ vectors[0]).tolist()
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[: asked.top]
    results = []
    for place in order:
        one: dict[str, Any] = {"index": place, "relevance_score": scores[place]}
        if asked.shown:
            one["document"] = {"text": asked.documents[place]}
        results.append(one)
    return results
