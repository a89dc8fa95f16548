"""Who asks: API keys by their HMAC under the pepper, compared in constant time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from typing import Final

from starlette.requests import Request

from nanopod.model.chain import Key
from nanopod.model.errors import Denied, NoCapacity, Unauthenticated
from nanopod.model.ids import key_id_of
from nanopod.server.api.context import Context

SCOPES: Final = ("admin", "read", "call")
KEY_CHARACTERS_MAX: Final = 256
_REFUSED: Final = (
    "the API key is missing, wrong, expired or revoked; send `Authorization: Bearer <key>` with a key of this cloud "
    "(NANOPOD_API_KEY; the first one is in the data directory's admin.key)"
)


def digest_of(pepper: bytes, key: str) -> str:
    """What is stored of a key."""
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


async def authenticate(context: Context, request: Request, scope: str) -> Key:
    """The key of a request. Raises `Unauthenticated` (never saying why) or `Denied` when its scopes do not reach."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip()
    key_id = key_id_of(text) if scheme.lower() == "bearer" and len(text) <= KEY_CHARACTERS_MAX else None
    if key_id is None:
        raise Unauthenticated(_REFUSED)
    key = await context.store.read(lambda read: read.key(key_id))
    now = context.clock()
    good = hmac.compare_digest(key.digest if key else "", digest_of(context.secrets.pepper, text))
    if key is None or not good or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise Unauthenticated(_REFUSED)
    enough = {"admin", "read", "call"} if scope == "call" else {"admin", scope}
    if enough.isdisjoint(key.scopes):
        raise Denied(f"this key may {' and '.join(key.scopes)} only; this needs a key with the scope {scope!r}")
    if key.last_used_at is None or now // 60 * 60 > key.last_used_at:
        # A nicety: a full disk must not keep people from looking.
        with contextlib.suppress(NoCapacity):
            await context.store.write(lambda write: write.key_used(key_id, now), durable=False)
    return key
