"""What remote functions print, in the caller's terminal while their calls run.

Lines come whole. Those of standard error go to standard error; while several calls run, each line says which it is of.
`NANOPOD_LOGS=0` turns it off. Workers, which are callers too, do not repeat in their own log what others printed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from nanopod.model.calls import Log

_OFF: Final = frozenset({"0", "false", "no", "off"})
CALL_CHARS: Final = 4
to_stderr: bool = False
"""Everything goes to standard error: standard output belongs to something else."""


def is_on() -> bool:
    """Whether lines are shown in this process; off in workers, and where `NANOPOD_LOGS` says so."""
    text = os.environ.get("NANOPOD_LOGS", "").strip().lower()
    if not text:
        return os.environ.get("NANOPOD_MODE", "").strip().lower() != "serve"
    return text not in _OFF


def show(log: Log, function: str, *, several: bool) -> None:
    """One line of a call of `function`; nothing happens when nobody reads it any more."""
    prefix = f"[{function or 'call'} {log.id.hex()[-CALL_CHARS:]}] " if several else ""
    out = sys.stderr if log.stream == "stderr" or to_stderr else sys.stdout
    with contextlib.suppress(OSError, ValueError):
        print(prefix + log.line, file=out, flush=True)
