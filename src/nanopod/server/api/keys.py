"""API keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid, NotFound
from nanopod.model.ids import NAME_PATTERN, make_key
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.auth import SCOPES, digest_of
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.tenants import workspace_of
from nanopod.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be made. `endpoints` limits it to calls of these; `expires_in_s` None: never expires.

    The cluster's operator may name another `workspace` for it than the one of the key that asks.
    """

    name: str
    scopes: tuple[str, ...] = ("admin",)
    endpoints: tuple[str, ...] | None = None
    expires_in_s: float | None = None
    workspace: str | None = None


class KeyAnswer(TypedDict):
    """An API key without its secret."""

    id: str
    object: str
    name: str
    workspace_id: str
    scopes: tuple[str, ...]
    endpoints: tuple[str, ...] | None
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    revoked_at: int | None


class NewKeyAnswer(KeyAnswer):
    """An API key with its secret, `key`, which is shown this once."""

    key: str


def show(key: Key) -> KeyAnswer:
    """A key as the API shows it, without its secret."""
    return {
        "id": key.key_id,
        "object": "key",
        "name": key.name,
        "workspace_id": key.workspace_id,
        "scopes": key.scopes,
        "endpoints": key.endpoints,
        "created_at": int(key.created_at),
        "expires_at": int(key.expires_at) if key.expires_at is not None else None,
        "last_used_at": int(key.last_used_at) if key.last_used_at is not None else None,
        "revoked_at": int(key.revoked_at) if key.revoked_at is not None else None,
    }


def check(wanted: NewKey) -> None:
    """Raises `Invalid` naming the field and what is possible."""
    if not NAME_PATTERN.fullmatch(wanted.name):
        raise Invalid("name: use letters, digits and . _ -, beginning with a letter or digit", field="name")
    unknown = [scope for scope in wanted.scopes if scope not in SCOPES]
    if unknown or not wanted.scopes:
        raise Invalid(f"scopes: choose from {', '.join(SCOPES)} (seen: {', '.join(unknown) or 'none'})", field="scopes")
    if wanted.expires_in_s is not None and wanted.expires_in_s <= 0:
        raise Invalid("expires_in_s: give a number of seconds above 0, or leave it out", field="expires_in_s")


async def create_key(context: Context, request: Request, key: Key) -> Response:
    """Make a key; its secret is shown this once."""
    wanted = await body_as(request, NewKey)
    check(wanted)
    now = context.clock()
    key_id, text = make_key(context.random_bytes(40))
    target = await context.store.read(lambda read: workspace_of(read, key, wanted.workspace))
    made = Key(
        key_id=key_id,
        workspace_id=target.workspace_id,
        name=wanted.name,
        digest=digest_of(context.secrets.pepper, text),
        scopes=wanted.scopes,
        endpoints=wanted.endpoints,
        created_at=now,
        expires_at=now + wanted.expires_in_s if wanted.expires_in_s is not None else None,
        last_used_at=None,
        revoked_at=None,
    )
    await context.store.write(lambda write: write.add_key(made))
    await context.tables.settle()
    shown: NewKeyAnswer = {**show(made), "key": text}
    return answer(shown, 201)


async def list_keys(context: Context, request: Request, key: Key) -> Response:
    """Every key of the workspace (the operator may name another one), newest first, revoked ones as well."""

    def read(read: Transaction) -> list[Key]:
        return read.api_keys(workspace_of(read, key, request.query_params.get("workspace")).workspace_id)

    return whole_list(request, await context.store.read(read), show)


async def revoke_key(context: Context, request: Request, key: Key) -> Response:
    """Revoke a key by id or name. Revoking it again changes nothing."""
    reference = request.path_params["id"]
    now = context.clock()

    def revoke(write: Transaction) -> Key:
        known = write.api_keys(workspace_of(write, key, request.query_params.get("workspace")).workspace_id)
        found = [k for k in known if k.key_id == reference] or [
            k for k in known if k.name == reference and k.revoked_at is None
        ]
        if not found:
            raise NotFound(f"there is no key {reference!r} here; nanopod keys list shows those there are")
        if len(found) > 1:
            raise Invalid(f"{len(found)} keys are named {reference!r}: give the id of one of them", field="id")
        if found[0].revoked_at is None:
            write.revoke_key(found[0].key_id, now)
        after = write.key(found[0].key_id)
        assert after is not None
        return after

    gone = await context.store.write(revoke)
    await context.tables.settle()
    return answer(show(gone))


OPERATIONS: Final = (
    Operation("POST", "/v1/keys", create_key, "Make an API key", body=NewKey, answer=NewKeyAnswer, status=201),
    Operation(
        "GET", "/v1/keys", list_keys, "List API keys", query=("workspace", "limit", "starting_after"), answer=KeyAnswer,
        listed=True,
    ),
    Operation(
        "DELETE", "/v1/keys/{id}", revoke_key, "Revoke an API key at once", query=("workspace",), answer=KeyAnswer,
        errors=(404,),
    ),
)  # fmt: skip
