"""From what Vast's client sends (settings and a tar) to an endpoint's specification."""

from __future__ import annotations

import hashlib
import re
import shlex
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.client.autoscaling import checked, scale_spec
from nanopod.client.query import parse_query
from nanopod.control.update import fingerprinted
from nanopod.model.endpoint import EndpointSpec, Fingerprints, FunctionSpec, ImageSpec
from nanopod.model.errors import Invalid
from nanopod.server.vast.scan import functions_of

MODULE: Final = "deployment"
SCALE: Final = (
    "cold_workers", "max_workers", "min_load", "min_cold_load", "target_util", "cold_mult", "max_queue_time",
    "target_queue_time", "inactivity_timeout",
)  # fmt: skip
_OWN_VARIABLES: Final = frozenset({"REPORT_ADDR", "VAST_API_URL", "USE_SYSTEM_PYTHON", "ENV_PATH"})
_FILE_BYTES_MAX: Final = 16 << 20


class Wish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of PUT /api/v0/deployments/: what a client wants to run. Times are seconds, `storage` is in GB.

    Without a file it is an endpoint alone, which workers of Vast's own make serve.
    """

    name: str
    image: str = ""
    file_hash: str = ""
    file_size: int = 0
    env: str = ""
    tag: str = "default"
    search_params: str = ""
    storage: float = 50.0
    ttl: float | None = None
    version_label: str = ""
    docker_login_user: str = ""
    docker_login_pass: str = ""
    docker_login_repo: str = ""
    cold_workers: int | None = None
    max_workers: int | None = None
    min_load: float | None = None
    min_cold_load: float | None = None
    target_util: float | None = None
    cold_mult: float | None = None
    max_queue_time: float | None = None
    target_queue_time: float | None = None
    inactivity_timeout: float | None = None
    autoscaler_instance: str = ""

    def check(self) -> None:
        """Raise `Invalid` naming the field that cannot be."""
        if not re.fullmatch(r"[0-9a-fA-F]{16,128}", self.file_hash):
            raise Invalid("file_hash: is no digest in hexadecimal digits", field="file_hash")
        if self.file_size <= 0:
            raise Invalid("file_size: is the size of the tar in bytes, above 0", field="file_size")
        if not self.image:
            raise Invalid("image: name the image to run in", field="image")
        if self.ttl is not None and not self.ttl > 0:
            raise Invalid("ttl: is a number of seconds above 0", field="ttl")
        self.check_settings()

    def check_settings(self) -> None:
        """The part of `check` that endpoints without a file have as well."""
        scale_spec(checked(self.scale()))
        query_of(self.search_params)

    def scale(self) -> dict[str, Any]:
        """The autoscaling settings that were given."""
        return {name: value for name in SCALE if (value := getattr(self, name)) is not None}

    def kept(self) -> dict[str, Any]:
        """What is stored of it: all but the registry's password."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        fields.pop("docker_login_pass", None)
        return fields


class _Config(msgspec.Struct, frozen=True):
    """config.json in the tar."""

    name: str = ""
    pip_installs: tuple[str, ...] = ()
    apt_gets: tuple[str, ...] = ()
    envs: tuple[tuple[str, str], ...] = ()
    runs: tuple[str | tuple[str, ...], ...] = ()


def query_of(text: str) -> dict[str, Any]:
    """Conditions of a search string. Raises `Invalid`."""
    try:
        return dict(parse_query(text))
    except ValueError as error:
        raise Invalid(f"search_params: {error}", field="search_params") from None


def wish_of(config: Mapping[str, Any]) -> Wish:
    """A stored wish."""
    return msgspec.convert(dict(config), Wish)


def changed(old: Wish, new: Wish) -> str:
    """The action that leads from one wish to the next; the highest tier that applies."""
    parts = ("image", "env", "search_params", "storage", "docker_login_user", "docker_login_repo")
    if any(getattr(old, part) != getattr(new, part) for part in parts):
        return "hard_update"
    if old.file_hash != new.file_hash:
        return "soft_update"
    if old.scale() != new.scale() or old.ttl != new.ttl:
        return "autoscale_update"
    return "exists"


def spec_of(wish: Wish, tar: Path, digest: str) -> EndpointSpec:
    """The specification with its fingerprints. Raises `Invalid` for a tar that holds no deployment."""
    config, functions = _read(tar)
    if not functions:
        raise Invalid("file: deployment.py defines no function with @<deployment>.remote", field="file")
    variables, ports, python = _environment(wish.env)
    image = ImageSpec(
        from_image=wish.image,
        env={**dict(config.envs), **variables},
        apt_get=config.apt_gets,
        pip_install=config.pip_installs,
        runs=config.runs,
        python=python,
        storage_gb=max(1, round(wish.storage)),
        ports=ports,
        query=query_of(wish.search_params),
    )
    spec = EndpointSpec(
        name=_name(wish.name),
        tag=wish.tag,
        bundle=digest,
        bundle_bytes=tar.stat().st_size,
        module=MODULE,
        functions=tuple(functions),
        image=image,
        scale=scale_spec(checked(wish.scale())),
        ttl_s=wish.ttl,
        version_label=wish.version_label,
        fingerprints=Fingerprints(code=hashlib.sha256(wish.file_hash.encode()).hexdigest()),
    )
    return fingerprinted(spec)


def asleep(spec: EndpointSpec) -> EndpointSpec:
    """The same deployment without any worker: what `stop` makes of it."""
    scale = replace(spec.scale, cold_workers=0, min_load=0.0, min_cold_load=0.0, inactivity_timeout=0.0)
    prints = replace(spec.fingerprints, scale=hashlib.sha256(repr(scale).encode()).hexdigest())
    return replace(spec, scale=scale, fingerprints=prints)


def _name(text: str) -> str:
    """The endpoint's name: Vast's `__main__` starts with what names here may not."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-") or "deployment"


def _read(tar: Path) -> tuple[_Config, list[FunctionSpec]]:
    functions: list[FunctionSpec] = []
    config = _Config()
    try:
        with tarfile.open(tar, "r:gz") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                code = path == f"{MODULE}.py" or (path.startswith(f"{MODULE}/") and path.endswith(".py"))
                if not member.isreg() or not (code or path == "config.json"):
                    continue
                if member.size > _FILE_BYTES_MAX:
                    raise Invalid(f"file: {path} in the tar is larger than {_FILE_BYTES_MAX >> 20} MiB", field="file")
                file = archive.extractfile(member)
                assert file is not None, "a regular file has content"
                if code:
                    functions += functions_of(file.read(), path)
                else:
                    config = msgspec.json.decode(file.read(), type=_Config)
    except (tarfile.TarError, zlib.error, EOFError, OSError, msgspec.MsgspecError) as error:
        raise Invalid(f"file: the tar cannot be read: {error}", field="file") from None
    return config, functions


def _environment(text: str) -> tuple[dict[str, str], tuple[tuple[int, str], ...], str | None]:
    """(variables, ports, interpreter) of Vast's `-e K=V -p N:N/tcp` string."""
    variables: dict[str, str] = {}
    ports: list[tuple[int, str]] = []
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise Invalid(f"env: {error}", field="env") from None
    for word in words:
        value = next(words, "")
        if word == "-p":
            number, _, kind = value.rpartition(":")[2].partition("/")
            if not number.isdigit() or not 0 < int(number) < 65536:
                raise Invalid(f"env: {value!r} is no port; write N:N/tcp", field="env")
            ports.append((int(number), kind or "tcp"))
        elif word == "-e" and "=" in value:
            name, _, content = value.partition("=")
            variables[name] = content
        else:
            raise Invalid(f"env: {word} {value} is neither -p N:N/tcp nor -e NAME=VALUE", field="env")
    python = "" if variables.get("USE_SYSTEM_PYTHON") == "true" else variables.get("ENV_PATH")
    kept = {name: value for name, value in variables.items() if name not in _OWN_VARIABLES}
    return kept, tuple(ports) or ((3000, "tcp"),), python
