"""The one place where errors become answers: `{error: {type, code, message, details: [{field, code, message}]}}`."""

from __future__ import annotations

import logging
import math
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nanopod.model.errors import NanopodError
from nanopod.server.api.answers import answer

log = logging.getLogger(__name__)

_HTTP_TYPES: Final = {400: "invalid_request_error", 404: "not_found", 405: "invalid_request_error"}


class BadRequest(NanopodError):
    """The request cannot even be read: malformed JSON, a missing body."""

    status = 400
    code = "invalid_request_error"


class CodedError(NanopodError):
    """An error of a known class whose answer names a narrower code, such as `blob_missing`."""

    def __init__(self, error: NanopodError, code: str) -> None:
        super().__init__(error.message, field=error.field, retry_after_s=error.retry_after_s)
        self.error = error
        self.narrow = code


def error_answer(error: Exception) -> Response:
    """The answer to an exception. Unknown ones are logged and say nothing about the inside."""
    if isinstance(error, CodedError):
        return _answer(error.error.status, error.error.code, error.narrow, error.message, error.field, None)
    if isinstance(error, NanopodError):
        kind = "api_error" if error.status == 500 else error.code
        return _answer(error.status, kind, error.code, error.message, error.field, error.retry_after_s)
    if isinstance(error, HTTPException):
        kind = _HTTP_TYPES.get(error.status_code, "api_error")
        return _answer(error.status_code, kind, kind, str(error.detail), None, None)
    log.error("api=failed", exc_info=error)
    text = "something went wrong inside the server; its log says what (nanopod logs server)"
    return _answer(500, "api_error", "internal_error", text, None, None)


def _answer(
    status: int, kind: str, code: str, message: str, field: str | None, retry_after_s: float | None
) -> Response:
    body = {
        "error": {
            "type": kind,
            "code": code,
            "message": message,
            "details": [{"field": field, "code": code, "message": message}],
        }
    }
    headers = {}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="nanopod"'
    return answer(body, status, headers)


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """What routing refuses (unknown path, wrong method)."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    return error_answer(error)
