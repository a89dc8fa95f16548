"""nanopod: an open, self-hostable spot-GPU inference cloud.

Everything a user imports is re-exported here lazily (PEP 562), so that `import nanopod` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment as Deployment
    from nanopod.client.sdk import current_call as current_call
    from nanopod.model.errors import *  # noqa: F403

_SDK = ("Deployment", "current_call")


def __getattr__(name: str) -> Any:
    """The SDK's names and the error classes, imported on first use."""
    import importlib

    if name in _SDK:
        return getattr(importlib.import_module("nanopod.client.sdk"), name)
    errors = importlib.import_module("nanopod.model.errors")
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, errors.NanopodError):
        return found
    raise AttributeError(f"module 'nanopod' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_SDK]
