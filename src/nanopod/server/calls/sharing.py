"""Tokens that show one call to whoever has them: its state, result and log, nothing else."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from starlette.requests import Request

from nanopod.model.chain import Key
from nanopod.model.errors import Unauthenticated
from nanopod.model.ids import base62
from nanopod.server.api.auth import authenticate
from nanopod.server.api.context import Context
from nanopod.server.calls import wire

TOKEN_PREFIX: Final = "cst_"
TOKEN_CHARACTERS: Final = 40
SCOPE: Final = "share"
HEADER: Final = "Nanopod-Call-Token"


def new_token(random: bytes) -> str:
    """A token from 40 random bytes."""
    return TOKEN_PREFIX + base62(random, TOKEN_CHARACTERS)


def digest_of(token: str) -> str:
    """What is stored of a token. It is random and long: a plain hash tells nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


async def visitor(context: Context, request: Request) -> Key:
    """The key of a request about one call: a share token (as bearer or in `Nanopod-Call-Token`), else a key that may
    call. Raises `Unauthenticated` or `Denied`.
    """
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    token = request.headers.get(HEADER) or (text.strip() if scheme.lower() == "bearer" else "")
    if not token.startswith(TOKEN_PREFIX):
        return await authenticate(context, request, "call")
    call_id = wire.check_id(request.path_params["id"])
    found = await context.store.read(lambda read: read.call(call_id))
    digest = digest_of(token)
    if found is None or not found.share_digest or not hmac.compare_digest(found.share_digest, digest):
        raise Unauthenticated(
            "the share token is wrong, was replaced, or its call has expired; ask for a new one (POST .../share)"
        )
    return Key(SCOPE, found.workspace_id, "share token", "", (SCOPE,), None, found.created_at, None, None, None)
