"""Answers judged by the OpenAPI document that the same server publishes."""

from __future__ import annotations

import contextlib
from typing import Any

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012


class Document:
    """The published description, by which answers are judged."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._registry = Registry().with_resource("doc:", Resource(document, DRAFT202012))
        self._paths = sorted(document["paths"], key=lambda path: path.count("{"))
        self.seen: set[tuple[str, str, int]] = set()
        """(method, path, status) of every answer that was judged."""

    def _path(self, path: str) -> str | None:
        parts = path.split("/")
        for known in self._paths:
            pieces = known.split("/")
            if len(pieces) == len(parts) and all(
                piece.startswith("{") or piece == part for piece, part in zip(pieces, parts, strict=True)
            ):
                return str(known)
        return None

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """Fails when an answer is not as it was described, or has fields that nobody described."""
        known = self._path(path.partition("?")[0])
        if known is None or method.lower() not in self.document["paths"][known]:
            return
        described = self.document["paths"][known][method.lower()]["responses"].get(str(status))
        assert described is not None, f"{method} {known} answers {status}, which is not described"
        if "$ref" in described:
            described = self.document["components"]["responses"][described["$ref"].rpartition("/")[2]]
        if body is None and (method == "HEAD" or status == 204):
            return
        schema = described["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator(_absolute(schema), registry=self._registry).validate(body)
        self._no_more(schema, body, f"{method} {known}")
        self.seen.add((method, known, status))

    def _no_more(self, schema: Any, value: Any, where: str) -> None:
        """Every field of `value` is in the schema."""
        if isinstance(schema, bool):
            return None
        if "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        for one in schema.get("anyOf", ()):
            with contextlib.suppress(jsonschema.ValidationError):
                jsonschema.Draft202012Validator(_absolute(one), registry=self._registry).validate(value)
                return self._no_more(one, value, where)
        if isinstance(value, dict) and schema.get("properties"):
            strange = value.keys() - schema["properties"].keys()
            assert not strange, f"{where}: {strange} is not described"
            for name, inner in value.items():
                self._no_more(schema["properties"][name], inner, f"{where}.{name}")
        if isinstance(value, list) and "items" in schema:
            for inner in value:
                self._no_more(schema["items"], inner, f"{where}[]")
        return None


def _absolute(schema: Any) -> Any:
    """References into the document as references to it."""
    if isinstance(schema, dict):
        return {
            name: "doc:" + value if name == "$ref" and value.startswith("#") else _absolute(value)
            for name, value in schema.items()
        }
    return [_absolute(one) for one in schema] if isinstance(schema, list) else schema
