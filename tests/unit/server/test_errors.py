"""Errors as answers: status, type, the field, and when to come back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from nanopod.model import errors
from nanopod.server.api.bodies import TooLarge
from nanopod.server.api.errors import BadRequest, CodedError, error_answer


def body(error: Exception) -> tuple[int, dict[str, Any]]:
    answer = error_answer(error)
    return answer.status_code, dict(json.loads(bytes(answer.body))["error"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("x", field="name"), 400, "invalid_request_error"),
        (errors.Unauthenticated("x"), 401, "authentication_error"),
        (errors.PaymentRequired("x", field="balance"), 402, "payment_required"),
        (errors.Denied("x"), 403, "forbidden"),
        (errors.NotFound("x", field="capacity"), 404, "not_found"),
        (errors.Conflict("x"), 409, "conflict"),
        (TooLarge("x"), 413, "request_too_large"),
        (errors.Invalid("x", field="side"), 422, "unprocessable_entity"),
        (errors.QuotaExceeded("x"), 429, "too_many_requests"),
        (errors.NanopodError("x"), 500, "api_error"),
        (ZeroDivisionError("secret"), 500, "api_error"),
        (errors.NoCapacity("x"), 503, "service_unavailable"),
        (HTTPException(404), 404, "not_found"),
        (HTTPException(405), 405, "invalid_request_error"),
    ],
)
def test_every_row(error: Exception, status: int, kind: str) -> None:
    found, shown = body(error)
    assert (found, shown["type"]) == (status, kind)
    [detail] = shown["details"]
    assert set(detail) == {"field", "code", "message"}
    assert detail["field"] == getattr(error, "field", None)
    assert "secret" not in json.dumps(shown)


def test_when_to_come_back() -> None:
    answer = error_answer(errors.NoCapacity("full", retry_after_s=0.2))
    assert answer.headers["retry-after"] == "1"
    assert "retry-after" not in error_answer(errors.Conflict("x")).headers
    assert error_answer(errors.Unauthenticated("x")).headers["www-authenticate"].startswith("Bearer")


def test_a_narrower_code() -> None:
    _, shown = body(CodedError(errors.Conflict("gone", field="bundle"), "blob_missing"))
    assert (shown["type"], shown["code"], shown["details"][0]["code"]) == ("conflict", "blob_missing", "blob_missing")
