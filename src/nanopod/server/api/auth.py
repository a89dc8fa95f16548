"""Who asks: API keys by their HMAC under the pepper, compared in constant time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from typing import Final

from starlette.requests import Request

from nanopod.model.chain import Instance, Key
from nanopod.model.errors import Denied, NoCapacity, Unauthenticated
from nanopod.model.ids import key_id_of
from nanopod.model.wire import Tables, WorkerRow
from nanopod.server.api.context import Context
from nanopod.store.transaction import Transaction

SCOPES: Final = ("admin", "read", "call")
KEY_CHARACTERS_MAX: Final = 256
TOKEN_CHARACTERS: Final = 32
"""Of the join token of an instance."""
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
    return await check_key(context, text.strip() if scheme.lower() == "bearer" else "", scope)


async def check_key(context: Context, text: str, scope: str) -> Key:
    """The key whose whole text this is. Raises as `authenticate` does."""
    key_id = key_id_of(text) if len(text) <= KEY_CHARACTERS_MAX else None
    if key_id is None:
        return await _check_token(context, text, scope)
    key = await context.store.read(lambda read: read.key(key_id))
    now = context.clock()
    good = hmac.compare_digest(key.digest if key else "", digest_of(context.secrets.pepper, text))
    if key is None or not good or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise Unauthenticated(_REFUSED)
    _reach(key, scope)
    if key.last_used_at is None or now // 60 * 60 > key.last_used_at:
        # A nicety: a full disk must not keep people from looking.
        with contextlib.suppress(NoCapacity):
            await context.store.write(lambda write: write.key_used(key_id, now), durable=False)
    return key


def _reach(key: Key, scope: str) -> None:
    enough = {"admin", "read", "call"} if scope == "call" else {"admin", scope}
    if enough.isdisjoint(key.scopes):
        raise Denied(f"this key may {' and '.join(key.scopes)} only; this needs a key with the scope {scope!r}")


async def _check_token(context: Context, text: str, scope: str) -> Key:
    """The key that the join token of a running instance stands for: it may call and use what its workspace shares."""
    tables = context.tables.current
    if len(text) != TOKEN_CHARACTERS or tables is None:
        raise Unauthenticated(_REFUSED)
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = _index.of(tables).get(digest)
    found = await context.store.read(
        lambda read: read.instance(row.instance_id) if row else _machine(context, read, text)
    )
    if found is None or (row is not None and found.epoch != row.epoch) or found.ended_at is not None:
        raise Unauthenticated(_REFUSED)
    key = Key(
        found.instance_id, found.workspace_id, found.name or found.instance_id, "", ("call",), None, found.created_at,
        None, None, None,
    )  # fmt: skip
    _reach(key, scope)
    return key


def _machine(context: Context, read: Transaction, text: str) -> Instance | None:
    """The machine with one command whose join token this is. No gateway knows of machines: they are in no table."""
    for found in read.instances_live():
        if not found.endpoint_id and found.node_id is not None and found.cloud_init:
            token = context.secrets.join_token(found.instance_id, found.epoch)
            if hmac.compare_digest(token.encode(), text.encode("utf-8", "replace")):
                return found
    return None


class _Index:
    """The workers of the newest tables by the digest of their join token."""

    def __init__(self) -> None:
        self._tables: Tables | None = None
        self._rows: dict[str, WorkerRow] = {}

    def of(self, tables: Tables) -> dict[str, WorkerRow]:
        """Made once for each tables."""
        if self._tables is not tables:
            self._tables = tables
            self._rows = {row.token_digest: row for row in tables.workers.values()}
        return self._rows


_index: Final = _Index()
