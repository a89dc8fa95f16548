"""Reading fields of a JSON body with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from nanopod.model import unreadable
from nanopod.node.engines.reference.errors import ApiError


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; raises `ApiError` 400 `invalid_json`."""
    try:
        value = msgspec.json.decode(body)
    except unreadable.JSON as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    return value


def reject_unknown(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise for the first field this engine does not know: a misspelt option must not be ignored in silence."""
    for name in body:
        if name not in known:
            raise ApiError(f"unknown parameter {name!r}", param=name)


def required(body: Mapping[str, Any], name: str) -> Any:
    """The field's value; raises when it is absent or null."""
    if body.get(name) is None:
        raise ApiError(f"the parameter {name!r} is required", param=name, code="missing_required_parameter")
    return body[name]


def boolean(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A boolean field."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false", param=name)
    return value


def number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A finite number in [low, high]."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ApiError(f"{name} must be a number", param=name)
    if not low <= value <= high:
        raise ApiError(f"{name} must be between {low:g} and {high:g}, found {value:g}", param=name)
    return float(value)


def integer(body: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    """An integer in [low, high], or the default when absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(f"{name} must be an integer", param=name)
    if not low <= value <= high:
        raise ApiError(f"{name} must be between {low} and {high}, found {value}", param=name)
    return value


def token_ids(value: list[Any], name: str, vocab: int) -> list[int]:
    """A list of token ids inside the vocabulary."""
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
            raise ApiError(f"{name}: token ids must be integers from 0 to {vocab - 1}, found {token!r}", param=name)
    return value
