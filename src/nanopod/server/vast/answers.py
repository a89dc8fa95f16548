"""Requests and answers of the Vast-shaped routes: who asks, what the body says, `{success, msg}` for refusals."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid, NanopodError
from nanopod.server.api.auth import check_key
from nanopod.server.api.bodies import read_body
from nanopod.server.api.context import Context
from nanopod.server.vast.state import Vast

log = logging.getLogger(__name__)

Handler = Callable[[Context, Vast, Request], Awaitable[Response]]


def route(context: Context, vast: Vast, method: str, path: str, handler: Handler) -> list[Route]:
    """Routes of a handler, with and without the trailing slash, behind the one mapping of errors."""

    @functools.wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            return await handler(context, vast, request)
        except ClientDisconnect:
            return Response(status_code=499)
        except NanopodError as error:
            return JSONResponse({"success": False, "error": error.code, "msg": error.message}, error.status)
        except Exception as error:
            log.error("vast=failed path=%s", request.url.path, exc_info=error)
            return JSONResponse({"success": False, "error": "internal_error", "msg": "see: nanopod logs server"}, 500)

    bare = path.rstrip("/")
    return [Route(bare, handle, methods=[method]), Route(f"{bare}/", handle, methods=[method])]


def key_text(request: Request, body: dict[str, Any] | None = None) -> str:
    """The key of a request: its header, else its `api_key` parameter, else that of its body."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    return str(request.query_params.get("api_key") or (body or {}).get("api_key") or "")


async def keyholder(
    context: Context, request: Request, body: dict[str, Any] | None = None, scope: str = "admin"
) -> Key:
    """Whose key it is. Raises `Unauthenticated` or `Denied`."""
    return await check_key(context, key_text(request, body), scope)


async def fields_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object; empty for no body. Raises `Invalid`."""
    data = await read_body(request)
    if not data.strip():
        return {}
    try:
        found = json.loads(data)
    except ValueError as error:
        raise Invalid(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Invalid("the body is a JSON object")
    return found


def number_of(value: Any, field: str) -> int:
    """A whole number of a path or body. Raises `Invalid`."""
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.isdigit())):
        raise Invalid(f"{field}: {value!r} is no number", field=field)
    return int(value)
