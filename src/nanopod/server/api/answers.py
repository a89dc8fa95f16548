"""Answers: JSON bodies and pages of lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.errors import Invalid

T = TypeVar("T")
LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 200

_encode: Final = msgspec.json.Encoder().encode


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(_encode(body), status, dict(headers or {}), media_type="application/json")


def page(data: Sequence[Any], *, has_more: bool = False, cursor: str | None = None) -> Response:
    """One page of a list."""
    return answer({"object": "list", "data": list(data), "has_more": has_more, "cursor": cursor})


def limit_of(request: Request) -> int:
    """`?limit=`, 1..200. Raises `Invalid`."""
    text = request.query_params.get("limit")
    if text is None:
        return LIMIT_DEFAULT
    if not text.isdigit() or not 1 <= int(text) <= LIMIT_MAX:
        raise Invalid(f"limit: {text!r} is not a number from 1 to {LIMIT_MAX}", field="limit")
    return int(text)


def after_of(request: Request) -> str | None:
    """The cursor after which a page starts: `?starting_after=` or `?cursor=`."""
    return request.query_params.get("starting_after") or request.query_params.get("cursor")


def number_of(request: Request, name: str) -> float | None:
    """A query parameter as a number. Raises `Invalid`."""
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"{name}: {text!r} is not a number (Unix seconds)", field=name) from None


def whole_list(request: Request, rows: Sequence[T], show: Callable[[T], Mapping[str, Any]]) -> Response:
    """A page of a list that is in memory as a whole; the cursor is an object's id."""
    limit, after = limit_of(request), after_of(request)
    shown = [show(row) for row in rows]
    start = 0
    if after is not None:
        ids = [row["id"] for row in shown]
        if after not in ids:
            raise Invalid(f"starting_after: {after!r} is not in this list", field="starting_after")
        start = ids.index(after) + 1
    data = shown[start : start + limit]
    more = start + limit < len(shown)
    return page(data, has_more=more, cursor=str(data[-1]["id"]) if data and more else None)
