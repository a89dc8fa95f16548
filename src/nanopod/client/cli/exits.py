"""Exit statuses, and how an error is told: a line for people, the API's error object for programs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from nanopod.model.errors import NanopodError

MEANINGS: Final = {
    0: "done", 1: "failed for another reason", 2: "usage: an option or value is wrong or missing", 3: "not found",
    4: "no key, or one that may not do this", 5: "payment required", 6: "conflict", 7: "the order did not fill",
    130: "interrupted",
}  # fmt: skip
_BY_HTTP: Final = {400: 2, 401: 4, 402: 5, 403: 4, 404: 3, 409: 6, 422: 2}
_TYPES: Final = {
    401: "authentication_error", 402: "payment_required", 403: "forbidden", 404: "not_found", 409: "conflict",
    422: "unprocessable_entity", 429: "too_many_requests", 503: "service_unavailable",
}  # fmt: skip


def status_of(error: NanopodError) -> int:
    """The exit status for an error: by what the server answered, else by its class."""
    return _BY_HTTP.get(int(error.__dict__.get("http_status", error.status)), 1)


def body_of(error: NanopodError) -> dict[str, Any]:
    """The API's error object: as it was answered, or of the same form for an error of this program."""
    body = error.__dict__.get("body")
    if isinstance(body, dict) and "error" in body:
        return body
    details = [{"field": error.field, "code": error.code, "message": error.message}] if error.field else []
    return {"error": {"type": _TYPES.get(error.status, "api_error"), "message": error.message, "details": details}}


def report(error: NanopodError, args: argparse.Namespace) -> int:
    """Tell an error; its exit status."""
    if getattr(args, "json", False) or getattr(args, "output", None) == "json":
        print(json.dumps(body_of(error), indent=2, default=str))
    else:
        words = [word for name, word in vars(args).items() if name == "verb" or name.startswith("action")]
        print(f"nanopod {' '.join(filter(None, words))}: {error.message}", file=sys.stderr)
    return status_of(error)
