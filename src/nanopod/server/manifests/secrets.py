"""Secrets and ServiceAccounts: pairs that are sealed with the workspace's secrets and never shown, and who has which.

A Secret becomes a secret of its own name. Its keys may be no names for variables (`tls.crt`): such pairs open storage
and are files of mounts, and no variables of a worker that has all pairs of the Secret.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nanopod.model.endpoint import SecretRef
from nanopod.model.errors import Conflict, Invalid
from nanopod.server.api.objects import room_for, users_of_secret, versions_in_use
from nanopod.server.api.secrets import KEYS_MAX, SECRET_BYTES_MAX
from nanopod.server.manifests.around import SecretKey, SecretSeen
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.services import read_meta
from nanopod.server.sealing import Sealer, open_pairs, seal_pairs
from nanopod.store.secrets import Secret
from nanopod.store.transaction import Transaction

OPAQUE: Final = "Opaque"
REGISTRY: Final = "kubernetes.io/dockerconfigjson"
KINDS: Final = (OPAQUE, REGISTRY, "kubernetes.io/basic-auth", "kubernetes.io/tls", "kubernetes.io/ssh-auth")
HIDDEN: Final = "***"
_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_OURS: Final = "NANOPOD_"


@dataclass(frozen=True, slots=True)
class SecretAsked:
    """A Secret as it was read."""

    name: str
    kind: str = OPAQUE
    pairs: Mapping[str, str] = field(default_factory=dict, repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def seen(self) -> SecretSeen:
        """What others may know of it."""
        return SecretSeen(tuple(sorted(self.pairs)), self.annotations, self.kind)


@dataclass(frozen=True, slots=True)
class AccountAsked:
    """A ServiceAccount: names of the Secrets that are attached to what names it."""

    name: str
    secrets: tuple[str, ...] = ()
    """Those of `secrets`, then those of `imagePullSecrets`."""


def read_secret(document: Document, problems: Problems) -> SecretAsked:
    """A Secret. What is wrong is noted in `problems`, never with a value."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole, dns=False)
    kind = whole.text("type", OPAQUE)
    if kind not in KINDS:
        whole.warn("type", f"{kind!r} is treated like {OPAQUE}")
    pairs: dict[str, str] = {}
    for name, value in _texts(whole, "data"):
        try:
            raw = base64.b64decode("".join(value.split()), validate=True)
            pairs[name] = raw.decode()
        except UnicodeDecodeError:
            problems.error(f"data.{name}", "is not UTF-8 text; keep binary files in a volume")
        except ValueError:
            problems.error(f"data.{name}", "is not base64; encode it, or write it as it is under stringData")
    pairs |= dict(_texts(whole, "stringData"))
    whole.quietly("immutable")
    whole.done()
    _check(pairs, whole, kind)
    return SecretAsked(meta.name, kind, pairs, dict(meta.annotations))


def _texts(whole: Reader, name: str) -> list[tuple[str, str]]:
    inner = whole.object(name)
    if inner is None:
        return []
    found = []
    for key, value in inner.value.items():
        if isinstance(value, str):
            found.append((str(key), value))
        else:  # the value may be what the user meant to hide
            inner.error(str(key), "must be text; put it in quotes")
    return found


def _check(pairs: Mapping[str, str], whole: Reader, kind: str) -> None:
    problems = whole.problems
    if not pairs and not problems.rejected:
        problems.error("data", "holds no pairs; give at least one, under data (base64) or stringData")
    if len(pairs) > KEYS_MAX:
        problems.error("data", f"has {len(pairs)} pairs; at most {KEYS_MAX}, make a second Secret")
    if sum(len(key) + len(value.encode()) for key, value in pairs.items()) > SECRET_BYTES_MAX:
        problems.error("data", f"has more than {SECRET_BYTES_MAX >> 10} KiB together; keep large files in a volume")
    for key, value in pairs.items():
        encoded = whole.value.get("data")
        at = f"data.{key}" if isinstance(encoded, Mapping) and key in encoded else f"stringData.{key}"
        if not _KEY.fullmatch(key) or key.startswith(_OURS):
            problems.error(at, f"{key[:80]!r} must be letters, digits, - _ . and not begin with {_OURS}")
        if "\0" in value:
            problems.error(at, "holds a zero byte, which no variable can; keep binary files in a volume")
    if kind == REGISTRY:
        try:
            json.loads(pairs.get(".dockerconfigjson", ""))
        except ValueError:
            problems.error("data", "of a registry's Secret must hold .dockerconfigjson with a JSON document")


def without_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a Secret as it may be stored and shown."""
    shown = dict(data)
    for name in ("data", "stringData"):
        if isinstance(shown.get(name), Mapping):
            shown[name] = dict.fromkeys(shown[name], HIDDEN)
    meta = shown.get("metadata")
    if isinstance(meta, Mapping) and isinstance(meta.get("annotations"), Mapping):
        # `kubectl apply` keeps a copy of the whole object there, values included.
        kept = {k: v for k, v in meta["annotations"].items() if not str(k).endswith("last-applied-configuration")}
        shown["metadata"] = {**meta, "annotations": kept}
    return shown


def keep_secret(
    write: Transaction, workspace_id: str, asked: SecretAsked, sealer: Sealer, new_id: Callable[[str], str], now: float
) -> str:
    """Have a secret with these pairs: its id. The same pairs again make no new version. Raises `Invalid`."""
    found = write.secret(workspace_id, asked.name)
    if found is None:
        room_for(write.secrets_count(workspace_id), "secrets")
        found = Secret(new_id("secret"), workspace_id, asked.name, 0, (), now, now)
        write.add_secret(found)
    elif _same(write, found, asked.pairs, sealer):
        return found.secret_id
    version, keys = found.version + 1, tuple(sorted(asked.pairs))
    sealed = seal_pairs(sealer, asked.pairs, found.secret_id, version)
    in_use = versions_in_use(write, workspace_id, found.name)
    write.add_secret_version(found.secret_id, version, keys, sealed, now, in_use)
    return found.secret_id


def _same(write: Transaction, found: Secret, pairs: Mapping[str, str], sealer: Sealer) -> bool:
    sealed = write.sealed_secret(found.secret_id, found.version)
    try:
        before = open_pairs(sealer, sealed or b"", found.secret_id, found.version)
    except Invalid:
        return False  # it cannot be opened any more: set anew
    return before.keys() == pairs.keys() and all(
        hmac.compare_digest(before[key].encode("utf-8", "surrogatepass"), value.encode("utf-8", "surrogatepass"))
        for key, value in pairs.items()
    )


def drop_secret(write: Transaction, workspace_id: str, name: str) -> None:
    """Forget a secret. Raises `Conflict` while an endpoint starts with it."""
    found = write.secret(workspace_id, name)
    if found is None:
        return
    if users := users_of_secret(write, workspace_id, name):
        raise Conflict(f"Secret {name!r} is used by {', '.join(users)}; delete these first")
    write.delete_secret(found.secret_id)


def refs_of(keys: Sequence[SecretKey], whole: Sequence[str] = ()) -> tuple[SecretRef, ...]:
    """What an image starts with: Secrets with all their pairs (`whole`), and single pairs under names of their own."""
    single: dict[str, list[tuple[str, str]]] = {}
    for one in keys:
        single.setdefault(one.secret, []).append((one.variable, one.key))
    found = [SecretRef(name) for name in dict.fromkeys(whole)]
    return (*found, *(SecretRef(name, keys=tuple(pairs)) for name, pairs in single.items()))


def read_account(document: Document, problems: Problems) -> AccountAsked:
    """A ServiceAccount."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole, dns=False)
    names: list[str] = []
    for part in ("secrets", "imagePullSecrets"):
        for one in whole.objects(part):
            names.append(one.text("name", required=True, fix="name a Secret"))
            one.quietly("namespace", "kind", "apiVersion", "fieldPath", "resourceVersion", "uid")
            one.done()
    whole.quietly("automountServiceAccountToken")
    whole.done()
    return AccountAsked(meta.name, tuple(dict.fromkeys(name for name in names if name)))
