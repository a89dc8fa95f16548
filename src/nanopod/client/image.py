"""What a worker's environment is made of: packages, commands, files, variables and the hardware it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from nanopod.client import config
from nanopod.client.bundle import destination
from nanopod.client.query import Query, prefer_of
from nanopod.client.secrets import Secret
from nanopod.client.volumes import Volume
from nanopod.model.endpoint import ImageSpec, SecretRef, VolumeMount
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.api import Api

BUCKET_SCHEMES: Final = ("s3", "http", "https", "file")


class Image:
    """Built step by step; every method returns the image itself."""

    def __init__(
        self,
        from_image: str = "",
        storage: int = 50,
        worker_port: tuple[int, str] = (3000, "tcp"),
        docker_login_user: str | None = None,
        docker_login_pass: str | None = None,
        docker_login_repo: str | None = None,
    ) -> None:
        """`storage` is in GB. Registry credentials are kept in this process; local workers need none."""
        if not isinstance(from_image, str):
            raise Invalid(f"from_image is the name of an image, not {from_image!r}", field="from_image")
        if isinstance(storage, bool) or not isinstance(storage, int | float) or storage <= 0:
            raise Invalid(f"storage is a number of GB above 0, not {storage!r}", field="storage")
        self.from_image = from_image
        self.storage = int(storage)
        self.docker_login = (docker_login_user, docker_login_pass, docker_login_repo)
        self.query = Query()
        self.copies: list[tuple[str, str]] = []
        self.pips: list[str] = []
        self.apts: list[str] = []
        self.runs: list[str | tuple[str, ...]] = []
        self.variables: dict[str, str] = {}
        self.python: str | None = None
        self.ports: list[tuple[int, str]] = []
        self.secrets: list[Secret] = []
        self.mounts: list[tuple[VolumeMount, Secret | None]] = []
        self.publish_port(*worker_port)

    def pip_install(self, *packages: str) -> Self:
        """Python packages, installed before the code is imported."""
        self.pips += _texts("pip_install", packages)
        return self

    def uv_pip_install(self, *packages: str) -> Self:
        """The same as `pip_install`."""
        return self.pip_install(*packages)

    def apt_get(self, *packages: str) -> Self:
        """System packages."""
        self.apts += _texts("apt_get", packages)
        return self

    def run_script(self, script: str) -> Self:
        """A script for `sh -c`; a non-zero exit fails the start."""
        self.runs += _texts("run_script", (script,))
        return self

    def run_cmd(self, *args: str) -> Self:
        """A command by its arguments; a non-zero exit fails the start."""
        if not args:
            raise Invalid("run_cmd needs at least the program to run", field="run_cmd")
        self.runs.append(tuple(_texts("run_cmd", args)))
        return self

    def env(self, **variables: str) -> Self:
        """Environment variables, in clear text in the deployment: not for secrets."""
        for name, value in variables.items():
            if not isinstance(value, str | int | float):
                raise Invalid(f"env({name}=...) is text, not {type(value).__name__}", field=f"env.{name}")
            self.variables[name] = str(value)
        return self

    def require(self, *queries: Query) -> Self:
        """Hardware that workers need; see `nanopod.data.query`. All conditions must hold."""
        for query in queries:
            if not isinstance(query, Query):
                raise Invalid(f"require() takes conditions such as gpu_ram >= 24, not {query!r}", field="require")
        if queries and not self.query.query:
            self.query = Query.search_defaults()
        self.query.extend(*queries)
        return self

    def prefer(self, *queries: Query | Sequence[Query]) -> Self:
        """Hardware in order of preference, the best first: `prefer([gpu_name == H100_SXM, gpu_name == A100_SXM4])`.

        The first that can be had is used, and any of it will do. `gpu_name.prefer([...])` says the same in one column.
        """
        for one in queries:
            parts = [one] if isinstance(one, Query) else list(one)
            for part in parts:
                if not isinstance(part, Query):
                    raise Invalid(
                        f"prefer() takes conditions such as gpu_name == H100_SXM, not {part!r}", field="prefer"
                    )
        several = [part for one in queries for part in ([one] if isinstance(one, Query) else one)]
        if len(several) == 1:
            return self.require(several[0])
        return self.require(prefer_of(several)) if several else self

    def copy(self, src: str, dst: str) -> Self:
        """A file or directory to have at `dst` on the worker, below its root; `src` is relative to the user's file."""
        destination(dst)
        self.copies.append((str(src), str(dst)))
        return self

    def venv(self, path: str) -> Self:
        """Run in this interpreter or virtual environment of the worker's machine."""
        self.python = _texts("venv", (path,))[0]
        return self

    def use_system_python(self) -> Self:
        """Run in the system's Python instead of a managed environment."""
        self.python = ""
        return self

    def publish_port(self, number: int, type_: str = "tcp") -> Self:
        """Another port of the worker."""
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 65536:
            raise Invalid(f"{number!r} is not a port; give a number from 1 to 65535", field="publish_port")
        if type_ not in ("tcp", "udp"):
            raise Invalid(f"a port is tcp or udp, not {type_!r}", field="publish_port")
        if (number, type_) not in self.ports:
            self.ports.append((number, type_))
        return self

    def secret(self, *secrets: Secret | str) -> Self:
        """Secrets whose pairs become environment variables of the workers; later ones win. See `Secret`."""
        for one in secrets:
            found = Secret(one) if isinstance(one, str) else one
            if not isinstance(found, Secret):
                raise Invalid(f'secret() takes Secret("name"), not {one!r}', field="secret")
            self.secrets.append(found)
        return self

    def volume(self, path: str, volume: Volume | str, *, read_only: bool = False) -> Self:
        """Mount a volume. A relative `path` lies below the worker's directory; an absolute one is a link there, made
        where nothing is yet and the node lets workers do so. Both are in `$NANOPOD_VOLUMES/<volume>` as well.
        """
        found = Volume(volume) if isinstance(volume, str) else volume
        if not isinstance(found, Volume):
            raise Invalid(f'volume() takes a path and Volume("name"), not {volume!r}', field="volume")
        self.mounts.append((VolumeMount(_place(path, "volume"), volume=found.name, read_only=read_only,
                                        size_gb=found.size_gb, region=found.region), None))  # fmt: skip
        return self

    def bucket(self, url: str, path: str, *, secret: Secret | str | None = None, read_only: bool = True) -> Self:
        """Copy what a bucket holds (`s3://bucket/prefix`, `file:///directory`, or one file by `https://`) to `path`
        when a worker starts. `secret` holds its credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
        """
        scheme = url.partition("://")[0] if isinstance(url, str) else ""
        if scheme not in BUCKET_SCHEMES:
            known = ", ".join(f"{one}://" for one in BUCKET_SCHEMES)
            raise Invalid(f"bucket() takes a URL that begins with one of {known}, not {url!r}", field="bucket")
        if not read_only:
            raise Invalid("bucket() mounts are read-only; write to a volume, or with the bucket's own library",
                          field="read_only")  # fmt: skip
        found = Secret(secret) if isinstance(secret, str) else secret
        self.mounts.append((VolumeMount(_place(path, "bucket"), bucket=url, read_only=True), found))
        return self

    def provide(self, api: Api, owner: str) -> None:
        """Send the secrets that come along with a deployment."""
        for one in (*self.secrets, *(secret for _, secret in self.mounts if secret is not None)):
            one.provide(api, owner)

    def spec(self, owner: str = "") -> ImageSpec:
        """The plain value that travels; `owner` is the deployment, after which secrets are named that come along."""
        return ImageSpec(
            from_image=self.from_image,
            env=dict(self.variables),
            apt_get=tuple(self.apts),
            pip_install=tuple(self.pips),
            runs=tuple(self.runs),
            copies=tuple((destination(dst), dst) for _, dst in self.copies),
            python=self.python,
            storage_gb=self.storage,
            ports=tuple(self.ports),
            query=self.query.query,
            prefer=tuple(self.query.order),
            strict=config.is_true("NANOPOD_LOCAL_STRICT"),
            secrets=tuple(SecretRef(one.name_for(owner)) for one in self.secrets),
            volumes=tuple(
                mount if secret is None else replace(mount, secret=secret.name_for(owner))
                for mount, secret in self.mounts
            ),
        )

    def bundle_config(self) -> dict[str, Any]:
        """What config.json of the bundle says besides name and module."""
        return {
            "pip_installs": list(self.pips),
            "apt_gets": list(self.apts),
            "envs": [list(pair) for pair in self.variables.items()],
            "runs": [run if isinstance(run, str) else list(run) for run in self.runs],
        }


def _place(path: str, field: str) -> str:
    """A mount's path. Raises `Invalid`."""
    if not isinstance(path, str) or not path.strip("/") or ".." in path.split("/") or "\0" in path:
        raise Invalid(f"{field}() mounts at a path such as /models or data, without .., not at {path!r}", field="path")
    return path


def _texts(field: str, values: tuple[Any, ...]) -> list[str]:
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise Invalid(f"{field} takes text, not {value!r}; separate several by commas", field=field)
    return [str(value) for value in values]
