"""nanopod: an open, self-hostable spot-GPU inference cloud.

Everything a user imports is re-exported here lazily (PEP 562), so that `import nanopod` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nanopod.client.background import BlockingCallInLoop as BlockingCallInLoop
    from nanopod.client.call import Call as Call
    from nanopod.client.call import gather as gather
    from nanopod.client.classes import enter as enter
    from nanopod.client.classes import exit as exit
    from nanopod.client.classes import method as method
    from nanopod.client.marks import Batch as Batch
    from nanopod.client.marks import Cron as Cron
    from nanopod.client.marks import Period as Period
    from nanopod.client.marks import Retries as Retries
    from nanopod.client.multiplex import multiplexed as multiplexed
    from nanopod.client.sdk import Deployment as Deployment
    from nanopod.client.sdk import current_call as current_call
    from nanopod.client.secrets import Secret as Secret
    from nanopod.client.shared import Dict as Dict
    from nanopod.client.shared import Queue as Queue
    from nanopod.client.testing import Trial as Trial
    from nanopod.client.volumes import Volume as Volume
    from nanopod.model.errors import *  # noqa: F403
    from nanopod.model.registry import Notice as Notice

_ROOMS: Final[dict[str, tuple[str, ...]]] = {
    "nanopod.client.background": ("BlockingCallInLoop",),
    "nanopod.client.call": ("Call", "gather"),
    "nanopod.client.classes": ("enter", "exit", "method"),
    "nanopod.client.multiplex": ("multiplexed",),
    "nanopod.client.sdk": ("Deployment", "current_call"),
    "nanopod.client.marks": ("Batch", "Cron", "Period", "Retries"),
    "nanopod.client.secrets": ("Secret",),
    "nanopod.client.shared": ("Dict", "Queue"),
    "nanopod.client.testing": ("Trial",),
    "nanopod.client.volumes": ("Volume",),
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
