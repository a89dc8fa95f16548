"""The OpenAPI document, made from the table of operations and the types of their bodies."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod import __version__
from nanopod.server.api.context import Operation

_VARIABLE = re.compile(r"\{(\w+)\}")


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the management API."""
    bodies = [operation.body for operation in operations if operation.body is not None]
    references, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(bodies, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described: dict[str, Any] = {
            "summary": operation.summary,
            "operationId": operation.handler.__name__,
            "tags": [operation.path.split("/")[2]],
            "parameters": [
                *(_parameter(name, "path", True) for name in _VARIABLE.findall(operation.path)),
                *(_parameter(name, "query", False) for name in operation.query),
            ],
            "responses": {
                "200": {"description": "done"},
                "default": {
                    "description": "refused",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        }
        if operation.body is not None:
            described["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schemas[operation.body]}},
            }
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "nanopod management API", "version": __version__},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _parameter(name: str, where: str, required: bool) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": {"type": "string"}}


_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}


def make_handler(operations: Sequence[Operation]) -> Callable[[Request], Awaitable[Response]]:
    """A handler that answers with the document, which is made when it is asked for first."""
    made: list[bytes] = []

    async def handle(_request: Request) -> Response:
        if not made:
            made.append(msgspec.json.encode(document(operations)))
        return Response(made[0], media_type="application/json")

    return handle
