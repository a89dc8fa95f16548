"""What a data directory has after its first start: the pepper, accounts with their workspaces, a capacity and a
provider for the machines of this cluster, and a key for its owner.

Every step can be killed at any instruction and is finished by the next start.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
from pathlib import Path
from typing import Final, Literal

from nanopod.control.market.drafts import BLOCK_SETTING
from nanopod.ledger import chart
from nanopod.ledger.recipes import set_line
from nanopod.ledger.transfers import AMOUNT_MAX
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Account, AccountKind, Image, Key, Workspace
from nanopod.model.errors import Invalid
from nanopod.model.ids import base62, key_id_of, make_id, make_key
from nanopod.model.layout import Layout
from nanopod.model.procurement import Provider
from nanopod.server.api.auth import digest_of
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

PEPPER_BYTES: Final = 32
TOKEN_CHARACTERS: Final = 32
WORKSPACE: Final = "default"
CAPACITY: Final = "default"
LOCAL_ACCOUNT: Final = "local"
"""Who uses this cluster when nobody said otherwise. Its overage limit is as good as none."""
PROVIDER: Final = "local-node"
"""Who sells the time of the machines whose agents are linked: an account, workspace, provider and capacity."""
PLATFORM: Final = "nanopod"
HOST_IMAGE: Final = "host"
"""The image that is the machine's own system."""


class FileSecrets:
    """The pepper, and what is derived from it."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper

    def __repr__(self) -> str:
        return "FileSecrets(...)"

    @property
    def pepper(self) -> bytes:
        """What API keys are hashed with."""
        return self._pepper

    def join_token(self, instance_id: str, epoch: int) -> str:
        """The join token of one start of an instance.

        Derived instead of stored: it is as unguessable as a random one to everybody without the pepper, is the same
        after a restart, and nothing in the database can be used to join.
        """
        digest = hmac.digest(self._pepper, f"join {instance_id} {epoch}".encode(), "sha256")
        return base62(digest, TOKEN_CHARACTERS)


def write_secret(path: Path, data: bytes) -> None:
    """Make `path` with mode 0600 so that it is either absent or whole, also after a power cut."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load_pepper(layout: Layout, *, has_keys: bool) -> bytes:
    """The pepper; made on the first start. Raises `Invalid` when it is gone although keys depend on it."""
    with contextlib.suppress(FileNotFoundError):
        found = layout.pepper.read_bytes()
        if len(found) == PEPPER_BYTES:
            return found
        raise Invalid(f"{layout.pepper} has {len(found)} bytes instead of {PEPPER_BYTES}: restore it from a backup")
    if has_keys:
        raise Invalid(
            f"{layout.pepper} is missing, and without it none of this cloud's API keys is valid: restore the file "
            "from a backup, or start with a new data directory"
        )
    write_secret(layout.pepper, secrets.token_bytes(PEPPER_BYTES))
    log.info("pepper=created")
    return layout.pepper.read_bytes()


def prepare(write: Transaction, pepper: bytes, admin_key: str, now: float, at: float | None = None) -> tuple[str, int]:
    """Everybody and everything that a cluster begins with, and the count of starts: (cluster id, era).

    `now` is wall time, `at` the cluster's (by default the same). What is there already stays as it is.
    """
    at = now if at is None else at
    cluster_id = write.setting("cluster_id")
    if cluster_id is None:
        cluster_id = "cluster_" + base62(secrets.token_bytes(21), 21)
        write.put_setting("cluster_id", cluster_id)
        write.put_setting(BLOCK_SETTING, str(write.block_s))
    workspace_id = _people(write, at)
    key_id = key_id_of(admin_key)
    assert key_id is not None, "checked when it was read"
    if write.key(key_id) is None:
        digest = digest_of(pepper, admin_key)
        write.add_key(Key(key_id, workspace_id, "admin", digest, ("admin",), None, now, None, None, None))
    era = int(write.setting("era") or "0") + 1
    write.put_setting("era", str(era))
    return cluster_id, era


def _new(kind: str) -> str:
    return make_id(kind, secrets.token_bytes(21))


def _people(write: Transaction, at: float) -> str:
    """Accounts, workspaces, capacities, the provider and the image of this machine; the default workspace's id."""
    _account(write, PLATFORM, "platform", at)
    local = _account(write, LOCAL_ACCOUNT, "user", at)
    workspace_id = _workspace(write, WORKSPACE, local, at)
    # A database of an earlier version has workspaces that belong to nobody yet.
    for other in write.workspaces_all():
        if not other.account_id:
            write.set_workspace_account(other.workspace_id, local)
    owners = {one.workspace_id: one.account_id for one in write.workspaces_all()}
    for capacity in write.capacities():
        if not capacity.account_id:
            write.set_capacity(capacity, account_id=owners[capacity.workspace_id])
    _capacity(write, workspace_id, local, CAPACITY, "market", at)
    _credit(write, workspace_id, at)
    _provider(write, at)
    if write.image_named(workspace_id, HOST_IMAGE) is None:
        write.add_image(Image(_new("image"), workspace_id, HOST_IMAGE, "completed", "", 0, True, (), at, at))
    return workspace_id


def _account(write: Transaction, name: str, kind: AccountKind, at: float) -> str:
    found = write.account_named(name)
    if found is None:
        found = Account(_new("account"), name, kind, at)
        write.add_account(found)
    return found.account_id


def _workspace(write: Transaction, name: str, account_id: str, at: float) -> str:
    found = write.workspace_named(name)
    if found is None:
        found = Workspace(_new("workspace"), name, account_id, at)
        write.add_workspace(found)
    return found.workspace_id


def _capacity(
    write: Transaction, workspace_id: str, account_id: str, name: str, kind: Literal["market", "originating"], at: float
) -> str:
    found = write.capacity_named(workspace_id, name)
    if found is None:
        found = Capacity(_new("capacity"), workspace_id, name, kind, account_id=account_id)
        write.add_capacity(found, at)
    return found.capacity_id


def _credit(write: Transaction, workspace_id: str, at: float) -> None:
    """An overage limit so high that whoever owns the machines never pays for them."""
    if write.ledger_account(chart.credit_line(workspace_id)) is None:
        chain = set_line(f"first_start/{workspace_id}", workspace_id, AMOUNT_MAX)
        write.open_accounts(chart.accounts_of(chain))
        results = write.post_transfers(chain, int(at * 1_000_000))
        assert all(result.done for result in results), "a line can always be granted"


def _provider(write: Transaction, at: float) -> None:
    """The seller of this cluster's own machines; their floor is 0 unless its offers say otherwise."""
    account_id = _account(write, PROVIDER, "provider", at)
    workspace_id = _workspace(write, PROVIDER, account_id, at)
    capacity_id = _capacity(write, workspace_id, account_id, PROVIDER, "originating", at)
    found = write.provider_of_capacity(capacity_id)
    if found is None:
        found = Provider(_new("provider"), PROVIDER, account_id, workspace_id, capacity_id, created_at=at)
        write.add_provider(found)
    for node in write.nodes():
        if not node.provider_id:
            write.set_node_provider(node.node_id, found.provider_id)


def read_admin_key(layout: Layout) -> str:
    """The owner's key: from its file, else the one an interrupted start left behind, else a new one (left behind)."""
    pending = layout.admin_key.with_name(layout.admin_key.name + ".pending")
    for path in (layout.admin_key, pending):
        with contextlib.suppress(FileNotFoundError):
            found = path.read_text().strip()
            if key_id_of(found) is None:
                raise Invalid(f"{path} does not hold an API key: restore it, or remove it to have a new one made")
            return found
    _, key = make_key(secrets.token_bytes(40))
    write_secret(pending, key.encode() + b"\n")
    return key


def publish_admin_key(layout: Layout) -> None:
    """The key is in the database now: show it under its name."""
    pending = layout.admin_key.with_name(layout.admin_key.name + ".pending")
    if pending.exists():
        if layout.admin_key.exists():
            pending.unlink()
        else:
            os.replace(pending, layout.admin_key)
            log.info("admin_key=written path=%s", layout.admin_key)
        sync_directory(layout.data)
