"""Idempotency keys: a repeated request is answered with the object that the first one made, and makes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from nanopod.model.errors import Invalid
from nanopod.store.transaction import Transaction

HEADER: Final = "Idempotency-Key"
KEY_CHARACTERS_MAX: Final = 255
REPLAYED: Final[Mapping[str, str]] = {"Idempotency-Replayed": "true"}
"""The header that a repeat is answered with."""


def key_of(request: Request) -> str:
    """The request's Idempotency-Key, "" when it has none. Raises `Invalid`."""
    text = request.headers.get(HEADER, "")
    if len(text) > KEY_CHARACTERS_MAX:
        raise Invalid(f"{HEADER}: {len(text)} characters; at most {KEY_CHARACTERS_MAX}", field=HEADER)
    return text


def replayed(write: Transaction, workspace_id: str, operation: str, key: str) -> str | None:
    """The id of what an earlier request with this key made, or None."""
    return write.seen_before(workspace_id, operation, key) if key else None


def remember(write: Transaction, workspace_id: str, operation: str, key: str, object_id: str, now: float) -> None:
    """Keep what a request made, as long as the object is kept."""
    if key:
        write.remember(workspace_id, operation, key, object_id, now)
