"""What a worker's environment is made of: packages, commands, files, variables and the hardware it needs."""

from __future__ import annotations

from typing import Any, Self

from nanopod.client.bundle import destination
from nanopod.client.query import Query
from nanopod.model.endpoint import ImageSpec
from nanopod.model.errors import Invalid


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

    def prefer(self, *queries: Query) -> Self:
        """Hardware in order of preference, such as `gpu_name.prefer([H100_SXM, A100_SXM4])`: any of it will do."""
        return self.require(*queries)

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

    def spec(self) -> ImageSpec:
        """The plain value that travels."""
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
        )

    def bundle_config(self) -> dict[str, Any]:
        """What config.json of the bundle says besides name and module."""
        return {
            "pip_installs": list(self.pips),
            "apt_gets": list(self.apts),
            "envs": [list(pair) for pair in self.variables.items()],
            "runs": [run if isinstance(run, str) else list(run) for run in self.runs],
        }


def _texts(field: str, values: tuple[Any, ...]) -> list[str]:
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise Invalid(f"{field} takes text, not {value!r}; separate several by commas", field=field)
    return [str(value) for value in values]
