"""The OpenAPI document, made from the table of operations and the types of their bodies and answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod import __version__
from nanopod.server.api.answers import LIMIT_DEFAULT, LIMIT_MAX
from nanopod.server.api.context import Operation, Query

_VARIABLE: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_REF: Final = "#/components/schemas/{name}"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

ERROR_TEXTS: Final[dict[int, str]] = {
    400: "The request cannot be read (malformed JSON), or the name is taken.",
    401: "The key is missing, wrong, expired or revoked.",
    402: "The balance does not cover the hold.",
    403: "The key may not do this.",
    404: "There is no such object that this key may see.",
    409: "Something else is in the way, or the object changed meanwhile.",
    413: "The body is too long.",
    422: "A value is impossible; `details` name the field and what would do.",
    429: "Too many at once; `Retry-After` says when to come back.",
    500: "Something went wrong inside the server.",
    501: "Not offered here.",
    503: "Cannot be done now; `Retry-After` says when to come back.",
}
ERROR_TYPES: Final = (
    "invalid_request_error", "authentication_error", "payment_required", "forbidden", "not_found", "conflict",
    "unprocessable_entity", "too_many_requests", "api_error", "not_implemented", "service_unavailable",
    "idempotency_error", "request_timed_out", "gone", "upgrade_required", "request_too_large",
)  # fmt: skip
_KNOWN: Final[dict[str, Query]] = {
    "limit": Query("limit", "Rows of a page.", "integer", least=1, most=LIMIT_MAX, default=LIMIT_DEFAULT),
    "starting_after": Query("starting_after", "The cursor of the page before this one."),
    "ending_before": Query("ending_before", "The cursor of the page after this one."),
    "created_after": Query("created_after", "Made after this time, Unix seconds.", "integer"),
    "created_before": Query("created_before", "Made before this time, Unix seconds.", "integer"),
    "workspace": Query("workspace", "Another workspace than the key's own; for the cluster's operator."),
}
"""Parameters that operations may declare by their name alone."""
_NAMING: Final = frozenset(
    {"workspace", "capacity", "pool", "instance_sku", "procurement", "order", "provider", "endpoint"}
)
"""Parameters that name an object, which may not be there."""


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the management API."""
    kinds: list[Any] = []
    for operation in operations:
        kinds += [kind for kind in (operation.body, operation.answer) if _is_type(kind) and kind not in kinds]
    references, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = dict(zip(map(id, kinds), references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    used: dict[str, int] = {}
    for operation in operations:
        path = _VARIABLE.sub(lambda found: f"{{{found[1]}}}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, schemas, used)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": DIALECT,
        "info": {
            "title": "nanopod management API",
            "version": __version__,
            "description": "Objects are named by id, resource path or bare name. Times are Unix seconds, prices "
            "decimal dollars per node-hour, amounts decimal dollars.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in sorted({_tag(operation) for operation in operations})],
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "responses": {str(status): _refusal(status) for status in ERROR_TEXTS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _is_type(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, Mapping)


def _tag(operation: Operation) -> str:
    parts = operation.path.strip("/").split("/")
    return parts[1] if len(parts) > 1 else parts[0]


def _operation_id(operation: Operation, used: dict[str, int]) -> str:
    """The handler's name; a path that shares its handler (an alias) has its noun in front."""
    name = operation.handler.__name__
    used[name] = used.get(name, 0) + 1
    return name if used[name] == 1 else f"{_tag(operation)}_{name}" + ("" if used[name] == 2 else f"_{used[name]}")


def _described(operation: Operation, schemas: Mapping[int, Any], used: dict[str, int]) -> dict[str, Any]:
    answer = operation.answer
    schema = schemas[id(answer)] if _is_type(answer) else answer if answer is not None else {}
    if operation.listed:
        schema = _page(schema)
    queries = [_query(query) for query in operation.query]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation, used),
        "tags": [_tag(operation)],
        "parameters": [
            *(_path(name) for name in _VARIABLE.findall(operation.path)),
            *queries,
            *(_header(name, text) for name, text in (operation.headers or {}).items()),
        ],
        "responses": _responses(operation, schema),
    }
    notes = [operation.text] if operation.text else []
    if operation.once:
        described["parameters"].append(_header("Idempotency-Key", _ONCE, 255))
    notes.append(f"Needs a key with the scope `{operation.scope}`.")
    described["description"] = " ".join(notes)
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[id(operation.body)]}},
        }
    return described


def _responses(operation: Operation, schema: Any) -> dict[str, Any]:
    content = {operation.media: {"schema": schema}}
    if operation.method == "GET" and _streams(operation):
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {str(operation.status): {"description": operation.summary + ".", "content": content}}
    if operation.once:
        responses["200"] = {
            "description": "A repeat of an earlier request with this Idempotency-Key: what that one made.",
            "headers": {"Idempotency-Replayed": {"schema": {"const": "true"}}},
            "content": content,
        }
    for status in operation.also:
        responses[str(status)] = {"description": operation.summary + ".", "content": content}
    statuses = {401, 403, 422, 500, 503, *operation.errors}
    names_objects = any(_query(query)["name"] in _NAMING for query in operation.query)
    if "{" in operation.path or operation.body is not None or names_objects:
        statuses.add(404)
    if operation.body is not None:
        statuses |= {400, 413}
    responses.update({str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)})
    return responses


def _streams(operation: Operation) -> bool:
    return any(isinstance(query, Query) and query.name == "stream" for query in operation.query)


def _page(schema: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "cursor": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
            "data": {"type": "array", "items": schema},
        },
        "required": ["object", "cursor", "has_more", "data"],
    }


def _query(asked: str | Query) -> dict[str, Any]:
    query = asked if isinstance(asked, Query) else _KNOWN.get(asked, Query(asked))
    schema: dict[str, Any] = {"type": query.kind}
    if query.values:
        schema["enum"] = list(query.values)
    if query.least is not None:
        schema["minimum"] = query.least
    if query.most is not None:
        schema["maximum"] = query.most
    if query.pattern:
        schema["pattern"] = query.pattern
    if query.default is not None:
        schema["default"] = query.default
    found: dict[str, Any] = {"name": query.name, "in": "query", "required": query.required, "schema": schema}
    if query.repeated:
        found["schema"] = {"type": "array", "items": schema}
        found |= {"style": "form", "explode": True}
    if query.text:
        found["description"] = query.text
    return found


def _path(name: str) -> dict[str, Any]:
    found = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    return {**found, "description": "Id, resource path or name."} if name == "id" else found


def _header(name: str, text: str, most: int | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"} if most is None else {"type": "string", "maxLength": most}
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _refusal(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": ERROR_TEXTS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    return found


_ONCE: Final = (
    "A text of the caller's choice, unique in the workspace and operation: a repeat is answered with what the first "
    "request made, and makes nothing."
)
_ERROR: Final[dict[str, Any]] = {
    "title": "Error",
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "examples": list(ERROR_TYPES)},
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "field": {"type": ["string", "null"]},
                            "code": {"type": "string"},
                            "message": {"type": "string"},
                        },
                        "required": ["field", "code", "message"],
                    },
                },
            },
            "required": ["type", "code", "message", "details"],
        }
    },
    "required": ["error"],
}


def make_handler(operations: Sequence[Operation]) -> Callable[[Request], Awaitable[Response]]:
    """A handler that answers with the document, which is made when it is asked for first."""
    made: list[bytes] = []

    async def handle(_request: Request) -> Response:
        if not made:
            made.append(msgspec.json.encode(document(operations)))
        return Response(made[0], media_type="application/json")

    return handle
