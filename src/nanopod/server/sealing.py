"""Secrets at rest: AES-256-GCM under a key that HKDF derives from the cluster's own secret, and their way to agents.

A sealed value is `version byte | id of the key (4 bytes) | nonce (12 bytes) | ciphertext and tag`. What it belongs to
is authenticated with it, so a row that is copied elsewhere in the database does not open there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nanopod.model.chain import Instance
from nanopod.model.endpoint import ImageSpec, StorageSpec
from nanopod.model.errors import Invalid, NanopodError
from nanopod.model.wire import SecretQuery, SecretValues
from nanopod.node import cloudinit
from nanopod.store.transaction import Transaction

if TYPE_CHECKING:
    from nanopod.control.ports import Secrets
    from nanopod.store.writer import GroupStore

FORMAT: Final = b"\x01"
NONCE_BYTES: Final = 12
KEY_ID_BYTES: Final = 4
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INFO: Final = b"nanopod secrets"
_encode: Final = msgspec.json.Encoder(order="sorted").encode
_decode: Final = msgspec.json.Decoder(dict[str, str]).decode


def _derived(secret: bytes) -> tuple[bytes, AESGCM]:
    key = HKDF(SHA256(), 32, None, _INFO).derive(secret)
    return hashlib.sha256(b"id" + key).digest()[:KEY_ID_BYTES], AESGCM(key)


class Sealer:
    """Seals under the first of some secrets of the cluster; opens what was sealed under any of them.

    To change the cluster's secret, give the new one first and the old one behind it until everything is sealed anew.
    """

    def __init__(self, secret: bytes, *former: bytes) -> None:
        self._key_id, self._key = _derived(secret)
        self._keys = dict([*map(_derived, former), (self._key_id, self._key)])

    def __repr__(self) -> str:
        return "Sealer(...)"

    def seal(self, data: bytes, about: str) -> bytes:
        """`data` sealed; it opens only with the same `about`."""
        nonce = os.urandom(NONCE_BYTES)
        head = FORMAT + self._key_id
        return head + nonce + self._key.encrypt(nonce, data, head + about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """What was sealed. Raises `Invalid` when the key is not at hand or the bytes were changed."""
        head, rest = sealed[: 1 + KEY_ID_BYTES], sealed[1 + KEY_ID_BYTES :]
        key = self._keys.get(head[1:]) if head[:1] == FORMAT else None
        if key is None:
            raise Invalid("it was sealed with another key than this cluster has: restore the file `pepper`")
        try:
            return key.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], head + about.encode())
        except InvalidTag:
            raise Invalid("its row in the database was changed by hand: set the secret again") from None


@lru_cache(4)
def sealer_of(secret: bytes) -> Sealer:
    """The sealer of a cluster's secret."""
    return Sealer(secret)


def seal_pairs(sealer: Sealer, pairs: Mapping[str, str], secret_id: str, version: int) -> bytes:
    """The pairs of one version of a secret, sealed."""
    return sealer.seal(_encode(dict(pairs)), f"{secret_id} {version}")


def open_pairs(sealer: Sealer, sealed: bytes, secret_id: str, version: int) -> dict[str, str]:
    """The inverse of `seal_pairs`. Raises `Invalid`."""
    return _decode(sealer.open(sealed, f"{secret_id} {version}"))


class SecretAnswers:
    """Answers agents that ask for the secrets of an instance which they are about to start."""

    def __init__(self, store: GroupStore, secrets: Secrets) -> None:
        self._store = store
        self._secrets = secrets

    async def answer(self, machine_id: str, query: SecretQuery) -> SecretValues:
        """The values; an `error` for an instance that does not run on this machine, or a secret that is gone."""
        try:
            return await self._store.read(lambda read: self._values(read, machine_id, query))
        except NanopodError as error:
            return SecretValues(query.request_id, error=error.message)

    def _values(self, read: Transaction, machine_id: str, query: SecretQuery) -> SecretValues:
        found = next((one for one in read.instances_on(machine_id) if one.instance_id == query.instance_id), None)
        needs = self._needs(read, found) if found is not None else None
        if found is None or needs is None:
            return SecretValues(query.request_id, error=f"instance {query.instance_id} is not one of this machine's")
        image, storages = needs
        env: dict[str, str] = {}
        for ref in image.secrets:
            pairs = self._pairs(read, found.workspace_id, ref.name, ref.version)
            if ref.keys:
                env |= {variable: pairs[key] for variable, key in ref.keys if key in pairs}
            else:  # keys of a Kubernetes Secret may be no names for variables
                env |= {name: value for name, value in pairs.items() if _VARIABLE.fullmatch(name)}
        mounts = {
            mount.secret: self._pairs(read, found.workspace_id, mount.secret, 0)
            for mount in image.volumes
            if mount.secret
        }
        for name in {one.secret for one in storages} - mounts.keys() - {""}:
            mounts[name] = self._pairs(read, found.workspace_id, name, 0)
        return SecretValues(query.request_id, env, mounts=mounts)

    def _needs(self, read: Transaction, found: Instance) -> tuple[ImageSpec, Sequence[StorageSpec]] | None:
        """What an instance starts with: its revision's, or what a machine's one command has."""
        revision = read.revision(found.revision_id)
        if revision is not None:
            model = revision.spec.model
            more = (*model.storage, *(further.storage for further in model.models)) if model is not None else ()
            return revision.spec.image, more
        try:
            run = cloudinit.parse(found.cloud_init).run
        except cloudinit.BootError as error:
            raise Invalid(str(error)) from None
        return (ImageSpec(secrets=run.secrets), run.storage) if run is not None else None

    def _pairs(self, read: Transaction, workspace_id: str, name: str, version: int) -> dict[str, str]:
        found = read.secret(workspace_id, name)
        if found is None:
            raise Invalid(
                f"secret {name!r} does not exist any more; make it again: nanopod secrets create {name} KEY=VALUE"
            )
        number = version or found.version
        sealed = read.sealed_secret(found.secret_id, number)
        if sealed is None:
            raise Invalid(f"secret {name!r} has no version {number} any more; deploy again to start with the newest")
        try:
            return open_pairs(sealer_of(self._secrets.pepper), sealed, found.secret_id, number)
        except Invalid as error:
            raise Invalid(f"secret {name!r} cannot be opened: {error.message}") from None
