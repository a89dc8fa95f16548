"""nanopod: an open, self-hostable spot-GPU inference cloud.

Everything a user imports is re-exported here lazily (PEP 562), so that `import nanopod` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nanopod.client.marks import Batch as Batch
    from nanopod.client.marks import Cron as Cron
    from nanopod.client.marks import Period as Period
    from nanopod.client.marks import Retries as Retries
    from nanopod.client.sdk import Deployment as Deployment
    from nanopod.client.sdk import current_call as current_call
    from nanopod.model.errors import *  # noqa: F403
    from nanopod.model.registry import Notice as Notice

_ROOMS: Final[dict[str, tuple[str, ...]]] = {
    "nanopod.client.sdk": ("Deployment", "current_call"),
    "nanopod.client.marks": ("Batch", "Cron", "Period", "Retries"),
    "nanopod.model.registry": ("Notice",),
}
"""{module: names that users import from here}; the error classes besides."""
_NAMES: Final = {name: module for module, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """The SDK's names and the error classes, imported on first use."""
    import importlib

    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    errors = importlib.import_module("nanopod.model.errors")
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, errors.NanopodError):
        return found
    raise AttributeError(f"module 'nanopod' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
