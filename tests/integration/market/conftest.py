"""Both databases, as the conformance suite starts them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SOURCE = Path(__file__).parents[2] / "conformance" / "conftest.py"
_spec = importlib.util.spec_from_file_location("conformance_databases", _SOURCE)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module
_spec.loader.exec_module(_module)
server = _module.server
backend = _module.backend
