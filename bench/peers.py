"""Other people's packages, installed on demand in environments of their own below `.venv/peers`, for comparison."""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEERS = Path(os.environ.get("NANOPOD_PEERS") or ROOT / ".venv" / "peers")
INSTALL_S_MAX = 480


class Unavailable(RuntimeError):
    """The package index cannot be reached, or has no package for this Python."""


def python_with(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of environment `name`, which has exactly these requirements. Raises `Unavailable`."""
    home = PEERS / name
    python = home / "bin" / "python"
    wanted = "\n".join(requirements)
    ready = home / "ready"
    if ready.exists() and ready.read_text() == wanted:
        return python
    venv.create(home, with_pip=True, clear=True)
    try:
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements],
            check=True, timeout=INSTALL_S_MAX, capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{wanted!r} cannot be installed: {error.stderr[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{wanted!r} was not installed within {INSTALL_S_MAX} s") from error
    ready.write_text(wanted)
    return python
