"""What a data directory has after its first start: the pepper, a workspace, a capacity, and a key for its owner.

Every step can be killed at any instruction and is finished by the next start.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from nanopod.model.capacity import Capacity
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.ids import base62, key_id_of, make_id, make_key
from nanopod.model.layout import Layout
from nanopod.server.api.auth import digest_of
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

PEPPER_BYTES: Final = 32
TOKEN_CHARACTERS: Final = 32
WORKSPACE: Final = "default"
CAPACITY: Final = "default"


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


def prepare(write: Transaction, pepper: bytes, admin_key: str, now: float) -> tuple[str, int]:
    """Workspace, capacity, the owner's key, and the count of starts: (cluster id, era)."""
    cluster_id = write.setting("cluster_id")
    if cluster_id is None:
        cluster_id = "cluster_" + base62(secrets.token_bytes(21), 21)
        write.put_setting("cluster_id", cluster_id)
    workspaces = {name: workspace_id for workspace_id, name, _ in write.workspaces()}
    if WORKSPACE not in workspaces:
        workspaces[WORKSPACE] = make_id("workspace", secrets.token_bytes(21))
        write.add_workspace(workspaces[WORKSPACE], WORKSPACE, now)
    workspace_id = workspaces[WORKSPACE]
    if write.capacity_named(workspace_id, CAPACITY) is None:
        write.add_capacity(Capacity(make_id("capacity", secrets.token_bytes(21)), workspace_id, CAPACITY), now)
    key_id = key_id_of(admin_key)
    assert key_id is not None, "checked when it was read"
    if write.key(key_id) is None:
        digest = digest_of(pepper, admin_key)
        write.add_key(Key(key_id, workspace_id, "admin", digest, ("admin",), None, now, None, None, None))
    era = int(write.setting("era") or "0") + 1
    write.put_setting("era", str(era))
    return cluster_id, era


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
