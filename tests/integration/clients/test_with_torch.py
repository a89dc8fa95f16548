"""What needs torch and transformers, in an environment that has them: model formats, values, the reference engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN_S_MAX = 300
MODULES = (
    "tests/unit/serving/test_serving_torch.py",
    "tests/integration/test_reference_vs_torch.py",
    "tests/unit/model/test_codec.py::test_tensors",
)
pytestmark = pytest.mark.timeout(700)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_skipped_elsewhere_passes(large: Path, module: str) -> None:
    argv = [str(large), "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(ROOT / module)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "could not import" not in done.stdout, done.stdout[-2000:]
