"""Which workspace a request is about: a key's own, or any of them for the cluster's operator."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from nanopod.model.chain import Key, Workspace
from nanopod.model.errors import Denied, NotFound
from nanopod.store.transaction import Transaction

OPERATOR_WORKSPACE: Final = "default"
"""An admin key of this workspace runs the cluster."""


def is_operator(read: Transaction, key: Key) -> bool:
    """True for an admin key of the cluster's own workspace."""
    if "admin" not in key.scopes:
        return False
    own = read.workspace(key.workspace_id)
    return own is not None and own.name == OPERATOR_WORKSPACE


def operator_only(read: Transaction, key: Key, what: str) -> None:
    """Raises `Denied` for every other key."""
    if not is_operator(read, key):
        raise Denied(f"only the cluster's operator may {what}: use an admin key of workspace {OPERATOR_WORKSPACE!r}")


def found_workspace(read: Transaction, reference: str) -> Workspace | None:
    """A workspace by id, name or resource path (`np:workspace:<account>:<name>`)."""
    name = reference.rpartition(":")[2]
    return read.workspace(reference) or read.workspace_named(name)


def workspace_of(read: Transaction, key: Key, reference: str | None, field: str = "workspace") -> Workspace:
    """The workspace that is named, else the key's own. Raises `NotFound` for one that this key may not see."""
    own = read.workspace(key.workspace_id)
    assert own is not None, "a key belongs to a workspace"
    if not reference:
        return own
    found = found_workspace(read, reference)
    if found is None or (found.workspace_id != own.workspace_id and not is_operator(read, key)):
        raise NotFound(f"{field}: there is no workspace {reference!r} that this key may see", field=field)
    return found


def workspace_path(read: Transaction, key: Key, request: Request) -> Workspace:
    """The workspace in the path, `{workspace}` or `{id}`. Raises `NotFound`."""
    params = request.path_params
    return workspace_of(read, key, params.get("workspace") or params.get("id"))


def reachable(read: Transaction, key: Key, request: Request) -> list[Workspace]:
    """The workspaces a list is about: `?workspace=`, else all for the operator, else the key's own."""
    reference = request.query_params.get("workspace")
    if reference or not is_operator(read, key):
        return [workspace_of(read, key, reference)]

    def order(found: Workspace) -> tuple[bool, float, str]:
        return found.workspace_id != key.workspace_id, found.created_at, found.workspace_id

    return sorted(read.workspaces_all(), key=order)
