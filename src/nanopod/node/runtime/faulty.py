"""Contexts that fail on purpose: in a cloud that was started with faults, for tests of what users build."""

from __future__ import annotations

import json
import os
from typing import Final

VARIABLE: Final = "NANOPOD_FAULTS"
"""Names the file that says what is to fail; unset in every other cloud."""


def check_context(name: str) -> None:
    """Raise `RuntimeError` when the context of this name is to fail."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with open(path) as file:
            broken = json.load(file).get("contexts", ())
    except (OSError, ValueError, AttributeError):
        return
    if name in broken:
        raise RuntimeError(f"{name} fails on purpose (an injected fault; it ends with t.heal() or kind=clear)")
