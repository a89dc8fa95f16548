"""An environment with what is too large for everybody's: torch, transformers and a load generator that needs them.

It takes more than a gigabyte, so it is made (once) in continuous integration only, or when LOAD_GENERATORS is set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench.peers import Unavailable, python_with

GUIDELLM = "0.8.1"
TORCH = "2.13.0"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def large() -> Path:
    """Its interpreter; this package is installed there as well."""
    if not (os.environ.get("CI") or os.environ.get("LOAD_GENERATORS")):
        pytest.skip("set LOAD_GENERATORS=1 to install guidellm, torch and transformers for this")
    tools = (
        "hypothesis>=6.100",
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "jinja2>=3",
        "scikit-learn>=1.4",
        "-e",
        str(ROOT),
    )
    try:
        return python_with(f"guidellm-{GUIDELLM}", (f"guidellm=={GUIDELLM}", f"torch=={TORCH}", *tools))
    except Unavailable as error:
        pytest.skip(str(error))
