"""`Secret`: values that workers get as environment variables, and that no bundle, specification or log ever holds.

| | |
| --- | --- |
| `Secret("hf")` | one that the server keeps; see `nanopod secrets create` |
| `Secret.from_env(["HF_TOKEN"])` | variables of the program that deploys, sent when it deploys |
| `Secret.from_dict({"HF_TOKEN": token})` | the same with values at hand |
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nanopod.model.errors import Invalid
from nanopod.model.ids import NAME_PATTERN

if TYPE_CHECKING:
    from nanopod.client.api import Api

AUTOMATIC: Final = "auto."
"""How the names of secrets begin that a file brings along."""


class Secret:
    """A secret by its name, or one that is sent along with a deployment under a name of its own."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise Invalid(
                f"Secret: {name!r} must be letters, digits and . _ -, beginning with a letter or digit", field="name"
            )
        self.name = name
        self._values: dict[str, str] | None = None
        self._variables: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Secret:
        """These pairs, sent when the deployment is made ready."""
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise Invalid(f"Secret.from_dict: {name!r} must map text to text", field="values")
        if not values:
            raise Invalid("Secret.from_dict: give at least one pair, such as {'HF_TOKEN': token}", field="values")
        made = cls._along(values)
        made._values = dict(values)
        return made

    @classmethod
    def from_env(cls, names: Sequence[str]) -> Secret:
        """Variables of this program's environment, read and sent when the deployment is made ready."""
        wanted = (names,) if isinstance(names, str) else tuple(names)
        if not wanted:
            raise Invalid("Secret.from_env: name at least one variable, such as ['HF_TOKEN']", field="names")
        made = cls._along(wanted)
        made._variables = wanted
        return made

    @classmethod
    def _along(cls, names: Any) -> Secret:
        return cls(AUTOMATIC + hashlib.sha256("\0".join(sorted(names)).encode()).hexdigest()[:12])

    @property
    def is_sent_along(self) -> bool:
        """True for one that comes with a deployment."""
        return self._values is not None or bool(self._variables)

    def name_for(self, owner: str) -> str:
        """What the server calls it; one that is sent along has a name for each deployment."""
        if not self.is_sent_along:
            return self.name
        mark = self.name.removeprefix(AUTOMATIC)
        return f"{AUTOMATIC}{owner[:200]}.{mark}" if owner else self.name

    def values(self) -> dict[str, str]:
        """What is sent along. Raises `Invalid` naming a variable that is not set."""
        if self._values is not None:
            return dict(self._values)
        missing = [name for name in self._variables if name not in os.environ]
        if missing:
            raise Invalid(
                f"Secret.from_env: {', '.join(missing)} is not set in this environment; set it where you deploy, or "
                "use Secret(NAME) with one that the server keeps",
                field=missing[0],
            )
        return {name: os.environ[name] for name in self._variables}

    def provide(self, api: Api, owner: str) -> None:
        """Send it, if it is sent along; the same values again change nothing."""
        if self.is_sent_along:
            api.put(f"/v1/secrets/{self.name_for(owner)}", {"values": self.values()})

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"

    # --- those that the server keeps ---

    @classmethod
    def create(cls, name: str, values: Mapping[str, str]) -> Secret:
        """Set a secret on the server: make it, or a new version of it. Deployments get that when they are deployed."""
        made = cls(name)
        _send("PUT", f"/v1/secrets/{name}", {"values": dict(values)})
        return made

    @classmethod
    def list(cls) -> list[dict[str, Any]]:
        """The workspace's secrets without values: name, version, keys, times."""
        return list(_api().items("/v1/secrets"))

    @classmethod
    def delete(cls, name: str) -> None:
        """Forget a secret. Raises `Conflict` naming the endpoints that start with it, `NotFound`."""
        _send("DELETE", f"/v1/secrets/{cls(name).name}")


def _api() -> Api:
    from nanopod.client.api import Api
    from nanopod.client.wires import where

    return Api(where())


def _send(method: str, path: str, body: Any = None) -> dict[str, Any]:
    return _api().request(method, path, body=body)
