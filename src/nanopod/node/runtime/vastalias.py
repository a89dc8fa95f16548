"""Lets code that was written for Vast's package run on this worker: `import vastai` finds this cloud's SDK instead.

Only names that a deployment's file uses are there. The package itself, should it be installed, is not looked at: its
own serving side would wait for another system's calls.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_ATTRIBUTES: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "vastai": {"Deployment": ("nanopod", "Deployment")},
    "vastai.data": {"Query": ("nanopod.data.query", "Query"), "query": ("nanopod.data.query", "")},
    "vastai.data.query": {},
    "vastai.serverless": {},
    "vastai.serverless.remote": {"Deployment": ("nanopod", "Deployment")},
}
_WHOLE: Final[Mapping[str, str]] = {"vastai.data.query": "nanopod.data.query"}
"""Modules all of whose names are those of another."""


class _Finder:
    """Finds the modules above, before any that is installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """A specification for a module of the table, else None."""
        if name not in _ATTRIBUTES:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module that looks its names up when they are asked for."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Give it its names."""
        name = module.__name__
        if name in _WHOLE:
            source = importlib.import_module(_WHOLE[name])
            module.__dict__.update({key: value for key, value in vars(source).items() if not key.startswith("__")})
            return

        def find(attribute: str) -> Any:
            there = _ATTRIBUTES[name].get(attribute)
            if there is None:
                raise AttributeError(f"{name}.{attribute} is not offered here; nanopod has {sorted(_ATTRIBUTES[name])}")
            found = importlib.import_module(there[0])
            return getattr(found, there[1]) if there[1] else found

        module.__dict__["__getattr__"] = find


def install() -> None:
    """Have `import vastai` mean this from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
