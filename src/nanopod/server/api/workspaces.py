"""Workspaces and the accounts that they belong to, and what a key may do."""

from __future__ import annotations

from typing import Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.ledger.balance import balance
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Account, Key, Workspace
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.model.ids import NAME_PATTERN, PREFIXES
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.showing import Scoped, Summary
from nanopod.server.api.tenants import (
    OPERATOR_WORKSPACE,
    is_operator,
    operator_only,
    reachable,
    workspace_of,
    workspace_path,
)
from nanopod.store.transaction import Transaction

DEFAULT_CAPACITY: Final = "default"
VERBS: Final = ("read", "write", "delete", "list", "create", "call")


class WorkspaceWish(msgspec.Struct, frozen=True):
    """A workspace to be made. `account`: the id or name of the account it belongs to; else it gets one of its own."""

    name: str
    account: str | None = None


class WorkspaceChange(msgspec.Struct, frozen=True):
    """What to change of a workspace."""

    name: str | msgspec.UnsetType = msgspec.UNSET


class PermissionQuestion(msgspec.Struct, frozen=True):
    """May this key do `action` to objects of `resource`?"""

    resource: str
    action: str
    workspace: str | None = None


def check_name(name: str) -> None:
    """Raises `Invalid` unless it may be the name of something."""
    if not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"name: {name!r} must have 1 to 255 letters, digits and . _ -, beginning with a letter or digit",
            field="name",
        )
    if name.startswith((PREFIXES["workspace"], PREFIXES["account"])):
        raise Invalid(f"name: {name!r} looks like an id; choose another", field="name")


class WorkspaceAnswer(Scoped):
    """A workspace."""

    account: Summary
    account_id: str


class AccountAnswer(TypedDict):
    """An account: its orders never meet each other."""

    id: str
    object: str
    name: str
    kind: str
    created_at: int


class MeAnswer(TypedDict):
    """The key that asks. `operator`: it runs the cluster."""

    object: str
    id: str
    type: str
    name: str
    scopes: list[str]
    endpoints: list[str] | None
    workspace_id: str
    workspace: str | None
    account: Summary | None
    operator: bool
    cluster_id: str
    expires_at: int | None


class PermissionAnswer(TypedDict):
    """Whether a key may do something, and what it lacks."""

    object: str
    resource: str
    action: str
    allowed: bool
    scope: str
    reason: str | None


def show(found: Workspace, account: Account | None) -> WorkspaceAnswer:
    """A workspace as the API shows it."""
    owner = account.name if account else ""
    return {
        "id": found.workspace_id,
        "object": "workspace",
        "name": found.name,
        "resource_path": f"np:workspace:{owner}:{found.name}",
        "account": {"id": found.account_id, "name": owner},
        "account_id": found.account_id,
        "owner": owner,
        "workspace": found.name,
        "workspace_id": found.workspace_id,
        "created_at": int(found.created_at),
    }


def _shown(read: Transaction, found: Workspace) -> WorkspaceAnswer:
    return show(found, read.account(found.account_id))


async def create_workspace(context: Context, request: Request, key: Key) -> Response:
    """Make a workspace with a capacity `default`, an account of its own, no balance and no credit."""
    wish = await body_as(request, WorkspaceWish)
    check_name(wish.name)
    now = context.clock()
    ids = {kind: context.new_id(kind) for kind in ("workspace", "account", "capacity")}

    def write(write: Transaction) -> WorkspaceAnswer:
        operator_only(write, key, "make workspaces")
        if write.workspace_named(wish.name) is not None:
            raise BadRequest(f"name: a workspace {wish.name!r} exists already; choose another name", field="name")
        if wish.account is None:
            if write.account_named(wish.name) is not None:
                raise BadRequest(
                    f"name: an account {wish.name!r} exists already; name it as `account`, or choose another name",
                    field="name",
                )
            account = Account(ids["account"], wish.name, "user", now)
            write.add_account(account)
        else:
            known = write.account(wish.account) or write.account_named(wish.account)
            if known is None or known.kind != "user":
                raise Invalid(f"account: there is no user account {wish.account!r}", field="account")
            account = known
        made = Workspace(ids["workspace"], wish.name, account.account_id, now)
        write.add_workspace(made)
        capacity = Capacity(
            ids["capacity"], made.workspace_id, DEFAULT_CAPACITY, account_id=account.account_id, created_at=now,
            updated_at=now,
        )  # fmt: skip
        write.add_capacity(capacity, now)
        write.add_notice(now, made.workspace_id, "workspace.created", made.workspace_id, {"name": made.name})
        return show(made, account)

    return answer(await context.store.write(write), 201)


async def list_workspaces(context: Context, request: Request, key: Key) -> Response:
    """The workspaces that this key may see."""

    def read(read: Transaction) -> list[WorkspaceAnswer]:
        return [_shown(read, found) for found in reachable(read, key, request)]

    page = page_of(request, "wksp_")
    rows = cut(page, await context.store.read(read), lambda row: row["id"])
    return page_answer(page, rows, lambda row: row, lambda row: row["id"])


async def get_workspace(context: Context, request: Request, key: Key) -> Response:
    """One workspace by id, name or resource path."""
    return answer(await context.store.read(lambda read: _shown(read, workspace_path(read, key, request))))


async def change_workspace(context: Context, request: Request, key: Key) -> Response:
    """Rename a workspace. Its id stays."""
    wish = await body_as(request, WorkspaceChange)
    now = context.clock()

    def write(write: Transaction) -> WorkspaceAnswer:
        operator_only(write, key, "rename workspaces")
        found = workspace_path(write, key, request)
        if wish.name is not msgspec.UNSET and wish.name != found.name:
            assert isinstance(wish.name, str)
            check_name(wish.name)
            if found.name == OPERATOR_WORKSPACE:
                raise Invalid(f"name: workspace {found.name!r} is the cluster's own and keeps its name", field="name")
            if write.workspace_named(wish.name) is not None:
                raise BadRequest(f"name: a workspace {wish.name!r} exists already; choose another", field="name")
            write.rename_workspace(found.workspace_id, wish.name)
            write.add_notice(now, found.workspace_id, "workspace.updated", found.workspace_id, {"name": wish.name})
        after = write.workspace(found.workspace_id)
        assert after is not None
        return _shown(write, after)

    return answer(await context.store.write(write))


def _in_the_way(write: Transaction, found: Workspace) -> list[str]:
    """What a workspace still has, in words. An unused capacity `default` is nobody's."""
    held: list[str] = []
    for capacity in write.capacities(found.workspace_id):
        used = (
            write.orders_open_of(capacity.capacity_id)
            or write.instances_on_capacity(capacity.capacity_id)
            or write.procurements_of(capacity.capacity_id)
        )
        if capacity.name != DEFAULT_CAPACITY or used:
            held.append(f"capacity {capacity.name}")
    held += [f"endpoint {endpoint.full_name}" for endpoint in write.endpoints(found.workspace_id)]
    held += [f"deployment {deployment.name}" for deployment in write.deployments(found.workspace_id)]
    held += [f"template {template.name}" for template in write.templates(found.workspace_id)]
    held += [f"image {i.name}" for i in write.images(found.workspace_id) if i.workspace_id == found.workspace_id]
    return held


async def delete_workspace(context: Context, request: Request, key: Key) -> Response:
    """Delete a workspace that is empty and owes nothing; its keys go with it."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        operator_only(write, key, "delete workspaces")
        found = workspace_path(write, key, request)
        if found.workspace_id == key.workspace_id:
            raise Conflict("this key belongs to that workspace; use another workspace's key")
        if any(provider.workspace_id == found.workspace_id for provider in write.providers()):
            raise Conflict(f"workspace {found.name} belongs to a provider; it stays as long as the provider")
        held = _in_the_way(write, found)
        if held:
            rest = f" and {len(held) - 10} more" if len(held) > 10 else ""
            raise Conflict(f"workspace {found.name} is not empty; delete first: {', '.join(held[:10])}{rest}")
        if balance(found.workspace_id, write.ledger_account).current:
            raise Conflict(f"workspace {found.name} has money or debts; settle its balance first")
        for capacity in write.capacities(found.workspace_id):
            with context.desk.session(write, now) as market:
                market.delete_check(capacity.capacity_id)
            write.delete_capacity(capacity.capacity_id)
        write.drop_plan(found.workspace_id)
        write.delete_workspace(found.workspace_id)
        return {"object": "workspace", "id": found.workspace_id, "deleted": True}

    return answer(await context.store.write(write))


# --- accounts ---


def show_account(account: Account) -> AccountAnswer:
    """An account as the API shows it."""
    return {
        "id": account.account_id,
        "object": "account",
        "name": account.name,
        "kind": account.kind,
        "created_at": int(account.created_at),
    }


async def list_accounts(context: Context, request: Request, key: Key) -> Response:
    """The accounts that this key may see: its own; all for the operator."""

    def read(read: Transaction) -> list[Account]:
        if is_operator(read, key):
            return read.accounts()
        own = read.workspace(key.workspace_id)
        account = read.account(own.account_id) if own else None
        return [account] if account else []

    page = page_of(request, "acct_")
    rows = cut(page, await context.store.read(read), lambda row: row.account_id)
    return page_answer(page, rows, show_account, lambda row: row.account_id)


# --- who am I ---


async def get_me(context: Context, _request: Request, key: Key) -> Response:
    """The key that asks, its workspace and its account."""

    def read(read: Transaction) -> MeAnswer:
        own = read.workspace(key.workspace_id)
        account = read.account(own.account_id) if own else None
        return {
            "object": "me",
            "id": key.key_id,
            "type": "token",
            "name": key.name,
            "scopes": list(key.scopes),
            "endpoints": list(key.endpoints) if key.endpoints is not None else None,
            "workspace_id": key.workspace_id,
            "workspace": own.name if own else None,
            "account": {"id": account.account_id, "name": account.name} if account else None,
            "operator": is_operator(read, key),
            "cluster_id": context.cluster_id,
            "expires_at": int(key.expires_at) if key.expires_at is not None else None,
        }

    return answer(await context.store.read(read))


async def check_permission(context: Context, request: Request, key: Key) -> Response:
    """Whether the key that asks may do something, by its scopes; without doing it."""
    wish = await body_as(request, PermissionQuestion)
    if wish.action not in VERBS:
        raise Invalid(f"action: {wish.action!r} is not one of {', '.join(VERBS)}", field="action")
    needed = {"read": "read", "list": "read", "call": "call"}.get(wish.action, "admin")
    enough = {"call", "read", "admin"} if needed == "call" else {needed, "admin"}
    allowed = not enough.isdisjoint(key.scopes)

    def visible(read: Transaction) -> bool:
        try:
            workspace_of(read, key, wish.workspace)
            return True
        except NotFound:
            return False

    seen = await context.store.read(visible)
    reason = None if allowed else f"the key needs the scope {needed!r}"
    reason = reason if seen else "the key may not see that workspace"
    said: PermissionAnswer = {
        "object": "permission_check", "resource": wish.resource, "action": wish.action, "allowed": allowed and seen,
        "scope": needed, "reason": reason,
    }  # fmt: skip
    return answer(said)


_WORKSPACE: Final = Query("workspace", "Only this one.")
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/workspaces", create_workspace, "Make a workspace", body=WorkspaceWish, answer=WorkspaceAnswer,
        status=201, errors=(400, 403),
    ),
    Operation(
        "GET", "/v1/workspaces", list_workspaces, "List workspaces", scope="read", query=(_WORKSPACE, *PAGING),
        answer=WorkspaceAnswer, listed=True,
    ),
    Operation(
        "GET", "/v1/workspaces/{id}", get_workspace, "One workspace", scope="read", answer=WorkspaceAnswer,
        errors=(404,),
    ),
    Operation(
        "PATCH", "/v1/workspaces/{id}", change_workspace, "Rename a workspace", body=WorkspaceChange,
        answer=WorkspaceAnswer, errors=(400, 403, 404),
    ),
    Operation(
        "DELETE", "/v1/workspaces/{id}", delete_workspace, "Delete an empty workspace", answer=Deleted,
        errors=(403, 404, 409),
    ),
    Operation(
        "GET", "/v1/accounts", list_accounts, "List accounts", scope="read", query=PAGING, answer=AccountAnswer,
        listed=True,
    ),
    Operation("GET", "/v1/me", get_me, "Who the key that asks is", scope="call", answer=MeAnswer),
    Operation(
        "POST", "/v1/permissions/check", check_permission, "May this key do something?", scope="call",
        body=PermissionQuestion, answer=PermissionAnswer,
    ),
)  # fmt: skip
