"""Secrets: named pairs that become environment variables of workers. They are set, never shown."""

from __future__ import annotations

import hmac
import logging
import re
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.objects import check_name, room_for, users_of_secret, versions_in_use
from nanopod.server.api.tenants import workspace_of
from nanopod.server.sealing import open_pairs, seal_pairs, sealer_of
from nanopod.store.secrets import Secret
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

KEYS_MAX: Final = 100
VALUE_BYTES_MAX: Final = 65_536
SECRET_BYTES_MAX: Final = 512 << 10
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_OURS: Final = "NANOPOD_"


@dataclass(frozen=True, slots=True)
class SecretBody:
    """All pairs of a secret, {environment variable: value}; they replace those it had."""

    values: dict[str, str] = field(repr=False)


class SecretAnswer(TypedDict):
    """A secret without its values. `keys` are the names of its pairs; `version` rises with each change."""

    id: str
    object: str
    name: str
    version: int
    keys: tuple[str, ...]
    created_at: int
    updated_at: int


class SecretCard(SecretAnswer):
    """One secret, with the endpoints that start with it."""

    used_by: list[str]


class DeletedSecret(TypedDict):
    """What is left of a secret."""

    id: str
    object: str
    name: str
    deleted: bool


def show(found: Secret) -> SecretAnswer:
    """A secret as the API shows it."""
    return {
        "id": found.secret_id,
        "object": "secret",
        "name": found.name,
        "version": found.version,
        "keys": found.keys,
        "created_at": int(found.created_at),
        "updated_at": int(found.updated_at),
    }


def check(values: dict[str, str]) -> None:
    """Raises `Invalid` naming the key, never its value."""
    if not values:
        raise Invalid("values: give at least one pair, such as HF_TOKEN=...", field="values")
    if len(values) > KEYS_MAX:
        raise Invalid(f"values: {len(values)} pairs; at most {KEYS_MAX}, make a second secret", field="values")
    for name, value in values.items():
        where = f"values.{name}"
        if not _VARIABLE.fullmatch(name) or name.startswith(_OURS):
            raise Invalid(
                f"values: {name!r} must be a name for an environment variable that does not begin with {_OURS}",
                field="values",
            )
        if "\0" in value:
            raise Invalid(f"{where}: an environment variable cannot hold a zero byte; encode it first", field=where)
        if len(value.encode("utf-8", "surrogatepass")) > VALUE_BYTES_MAX:
            raise Invalid(f"{where}: is longer than {VALUE_BYTES_MAX >> 10} KiB; keep it in a volume", field=where)
    if (
        sum(len(name) + len(value.encode("utf-8", "surrogatepass")) for name, value in values.items())
        > SECRET_BYTES_MAX
    ):
        raise Invalid(f"values: they have more than {SECRET_BYTES_MAX >> 10} KiB together", field="values")


def _find(read: Transaction, key: Key, reference: str, workspace: str | None) -> Secret:
    place = workspace_of(read, key, workspace).workspace_id
    found = read.secret(place, reference)
    if found is None:
        known = ", ".join(one.name for one in read.secrets(place)[:20]) or "none yet"
        raise NotFound(f"there is no secret {reference!r} in this workspace (there are: {known})")
    return found


async def put_secret(context: Context, request: Request, key: Key) -> Response:
    """Make a secret, or a new version of it: 201 for a new one. The same content again changes nothing."""
    name = request.path_params["id"]
    wanted = await body_as(request, SecretBody)
    check(wanted.values)
    now, fresh_id = context.clock(), context.new_id("secret")
    sealer = sealer_of(context.secrets.pepper)
    workspace = request.query_params.get("workspace")

    def write(write: Transaction) -> tuple[Secret, bool]:
        place = workspace_of(write, key, workspace).workspace_id
        found = write.secret(place, name)
        fresh = found is None
        if found is None:
            check_name(name)
            room_for(write.secrets_count(place), "secrets")
            found = Secret(fresh_id, place, name, 0, (), now, now)
            write.add_secret(found)
        elif _same(write, found, wanted.values):
            return found, False
        version, keys = found.version + 1, tuple(sorted(wanted.values))
        sealed = seal_pairs(sealer, wanted.values, found.secret_id, version)
        in_use = versions_in_use(write, place, found.name)
        write.add_secret_version(found.secret_id, version, keys, sealed, now, in_use)
        return replace(found, version=version, keys=keys, updated_at=now), fresh

    def _same(write: Transaction, found: Secret, values: dict[str, str]) -> bool:
        sealed = write.sealed_secret(found.secret_id, found.version)
        try:
            before = open_pairs(sealer, sealed or b"", found.secret_id, found.version)
        except Invalid:
            return False  # it cannot be opened any more: set anew
        return before.keys() == values.keys() and all(
            hmac.compare_digest(before[one].encode("utf-8", "surrogatepass"), value.encode("utf-8", "surrogatepass"))
            for one, value in values.items()
        )

    made, fresh = await context.store.write(write)
    log.info("secret=%s version=%d keys=%d key=%s", made.name, made.version, len(made.keys), key.key_id)
    return answer(show(made), 201 if fresh else 200)


async def list_secrets(context: Context, request: Request, key: Key) -> Response:
    """Every secret of the workspace by name, without values."""
    workspace = request.query_params.get("workspace")
    found = await context.store.read(lambda read: read.secrets(workspace_of(read, key, workspace).workspace_id))
    return whole_list(request, found, show)


async def get_secret(context: Context, request: Request, key: Key) -> Response:
    """One secret by name or id, without values."""
    reference, workspace = request.path_params["id"], request.query_params.get("workspace")

    def read(read: Transaction) -> SecretCard:
        found = _find(read, key, reference, workspace)
        return {**show(found), "used_by": users_of_secret(read, found.workspace_id, found.name)}

    return answer(await context.store.read(read))


async def delete_secret(context: Context, request: Request, key: Key) -> Response:
    """Forget a secret with all its versions. One that an endpoint starts with is kept (409)."""
    reference, workspace = request.path_params["id"], request.query_params.get("workspace")

    def delete(write: Transaction) -> Secret:
        found = _find(write, key, reference, workspace)
        if users := users_of_secret(write, found.workspace_id, found.name):
            raise Conflict(
                f"secret {found.name!r} is used by {', '.join(users)}: deploy without it, or delete these endpoints "
                "first"
            )
        write.delete_secret(found.secret_id)
        return found

    gone = await context.store.write(delete)
    log.info("secret=%s action=deleted key=%s", gone.name, key.key_id)
    deleted: DeletedSecret = {"id": gone.secret_id, "object": "secret", "name": gone.name, "deleted": True}
    return answer(deleted)


OPERATIONS: Final = (
    Operation(
        "PUT", "/v1/secrets/{id}", put_secret, "Set a secret", body=SecretBody, answer=SecretAnswer, also=(201,),
        query=("workspace",), text="Endpoints get a new version when they are deployed the next time.",
    ),
    Operation(
        "GET", "/v1/secrets", list_secrets, "List secrets", scope="read", answer=SecretAnswer, listed=True,
        query=("workspace", "limit", "starting_after"),
    ),
    Operation(
        "GET", "/v1/secrets/{id}", get_secret, "One secret, without its values", scope="read", answer=SecretCard,
        query=("workspace",), errors=(404,),
    ),
    Operation(
        "DELETE", "/v1/secrets/{id}", delete_secret, "Delete a secret", answer=DeletedSecret, query=("workspace",),
        errors=(404, 409),
    ),
)  # fmt: skip
