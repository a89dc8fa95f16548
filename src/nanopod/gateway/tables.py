"""What the gateway knows: keys, routes and workers as the server pushed them last, indexed for the request path.

The tables are also kept on disk, so that a restarted gateway serves at once and goes on without its server.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from nanopod.model.wire import KeyRow, RouteRow, Tables, WorkerRow

CACHE_MAX: Final = 10_000
AUTHORIZATION_BYTES_MAX: Final = 512

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Tables).decode


def encode(tables: Tables) -> bytes:
    """The tables as they are kept on disk."""
    return _encode(tables)


def save(path: Path, data: bytes) -> None:
    """Replace the file atomically, mode 0600. Blocks."""
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def load(path: Path) -> Tables | None:
    """The tables saved last; None when there are none or they cannot be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return _decode(path.read_bytes())
    return None


class Known:
    """One version of the tables with its indexes. Look-ups are dict gets."""

    __slots__ = (
        "_auth",
        "_names",
        "_tokens",
        "default_workspace",
        "keys",
        "mark",
        "models",
        "pepper",
        "routes",
        "served",
        "version",
        "workers",
    )

    def __init__(self, tables: Tables | None = None) -> None:
        self.version = tables.version if tables else -1
        self.mark = object()
        """What was looked up in these tables is remembered with it, which keeps nothing else of them alive."""
        self.pepper = tables.pepper if tables else b""
        self.keys: dict[str, KeyRow] = tables.keys if tables else {}
        self.routes: dict[str, RouteRow] = tables.routes if tables else {}
        self.default_workspace = tables.default_workspace if tables else ""
        self.workers: dict[str, WorkerRow] = tables.workers if tables else {}
        self._tokens = {row.token_digest: row for row in self.workers.values()}
        self._auth: dict[str, KeyRow] = {}
        self._names: dict[tuple[str, str], RouteRow] = {}
        self.models: dict[str, dict[str, RouteRow]] = {}
        """{workspace id: {model id: route}}"""
        self.served: dict[str, dict[str, RouteRow]] = {}
        """{workspace id: {name of a model in V1 and V2 paths: route}}"""
        for route in self.routes.values():
            workspace = route.workspace_id
            self._names[workspace, route.endpoint_id] = route
            self._names[workspace, f"{route.name}:{route.tag}"] = route
            # A bare name means the default tag, or the only one there is.
            if route.tag == "default" or (workspace, route.name) not in self._names:
                self._names[workspace, route.name] = route
            speaks = route.protocols or ("openai",)
            if "openai" in speaks:
                for model in route.model_ids:
                    self.models.setdefault(workspace, {}).setdefault(model, route)
            if "v1" in speaks or "v2" in speaks:
                for model in route.serves or route.model_ids:
                    self.served.setdefault(workspace, {}).setdefault(model, route)
        for route in self.routes.values():
            # An endpoint's own name is a name of its model, unless another endpoint's model is called so.
            if route.tag == "default" and route.workspace_id in self.served and self._speaks_kserve(route):
                self.served[route.workspace_id].setdefault(route.name, route)

    def authenticate(self, authorization: str) -> KeyRow | None:
        """The key behind an `Authorization` value; None when it is missing, wrong, expired or revoked."""
        row = self._auth.get(authorization)
        if row is None:
            scheme, _, key = authorization.partition(" ")
            if scheme.lower() != "bearer" or len(authorization) > AUTHORIZATION_BYTES_MAX:
                return None
            secret = key.strip().encode()
            row = self.keys.get(hmac.digest(self.pepper, secret, hashlib.sha256).hex()) or self._worker_key(secret)
            if row is None:
                return None
            if len(self._auth) >= CACHE_MAX:
                self._auth.clear()
            self._auth[authorization] = row
        if row.expires_at is not None and row.expires_at <= time.time():
            return None
        return row

    @staticmethod
    def _speaks_kserve(route: RouteRow) -> bool:
        return "v1" in route.protocols or "v2" in route.protocols

    def _worker_key(self, secret: bytes) -> KeyRow | None:
        """A join token as a key: code on a worker may call what its workspace has."""
        worker = self._tokens.get(hashlib.sha256(secret).hexdigest())
        route = self.routes.get(worker.endpoint_id) if worker is not None else None
        if worker is None or route is None:
            return None
        return KeyRow(worker.instance_id, route.workspace_id, ("call",))

    def endpoint(self, workspace_id: str, name: str) -> RouteRow | None:
        """The endpoint with this id, `name` or `name:tag` in a workspace."""
        return self._names.get((workspace_id, name))

    def model(self, workspace_id: str, model: str) -> RouteRow | None:
        """The endpoint that serves a model id; an endpoint's name does as well."""
        models = self.models.get(workspace_id)
        route = models.get(model) if models else None
        if route is None:
            route = self._names.get((workspace_id, model))
            if route is not None and (route.kind != "model" or "openai" not in (route.protocols or ("openai",))):
                return None
        return route

    def names(self, workspace_id: str) -> list[str]:
        """`name:tag` of every endpoint of a workspace, for messages."""
        return sorted(f"{r.name}:{r.tag}" for r in self.routes.values() if r.workspace_id == workspace_id)


def may_call(key: KeyRow) -> bool:
    """True when the key's scopes allow inference and function calls."""
    scopes = key.scopes
    return "admin" in scopes or "call" in scopes or "internal" in scopes


def may_use(key: KeyRow, route: RouteRow) -> bool:
    """True when the key is not limited to other endpoints."""
    allowed = key.endpoints
    return allowed is None or route.name in allowed or f"{route.name}:{route.tag}" in allowed


def key_expired(key: KeyRow) -> bool:
    """True when the key's time is over."""
    return key.expires_at is not None and key.expires_at <= time.time()
