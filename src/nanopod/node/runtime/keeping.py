"""What benchmarks and calls showed of a deployment on one kind of machine, for the next worker of that kind.

```
<benchmarks>/<key>.json     key: a digest of code, image, and model of the GPU (or of the processor)
```
A file that is missing or damaged only costs a benchmark. The newest `FILES_MAX` are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.node.records import Start

FILES_MAX: Final = 256
FILE_BYTES_MAX: Final = 256 << 10
_log: Final = logging.getLogger(__name__)


class Shown(msgspec.Struct, frozen=True):
    """What a function's benchmark showed, as STATE tells it; times in milliseconds."""

    perf: float
    rounds: int
    at_once: int
    errors: int
    p50_ms: float
    p99_ms: float


class Findings(msgspec.Struct, frozen=True):
    """What is known of the functions of a deployment."""

    perf: dict[str, float]
    """Units of load per second that were last measured, by function."""
    benchmarks: dict[str, Shown] = {}
    """What the benchmarks showed; empty when there are none."""


_decode: Final = msgspec.json.Decoder(Findings).decode
_encode: Final = msgspec.json.Encoder().encode


class Keeping:
    """One file of findings. Everything here blocks, for milliseconds."""

    def __init__(self, directory: Path, key: str) -> None:
        self._directory = directory
        self._path = directory / f"{key}.json"

    @classmethod
    def of(cls, start: Start) -> Keeping | None:
        """Of this worker's deployment and kind of machine; None where nothing is kept: in local mode, and while it
        is not known what would have to be the same."""
        app, kind = start.instance.app, start.gpu or start.cpu
        code = app.fingerprints.code or app.bundle
        if start.local or not start.benchmarks_dir or not code or not kind:
            return None
        parts = (code, app.fingerprints.image, kind)
        return cls(Path(start.benchmarks_dir), hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32])

    def read(self) -> Findings | None:
        """What is kept; None when there is nothing, or nothing that makes sense."""
        try:
            with open(self._path, "rb") as file:
                found = _decode(file.read(FILE_BYTES_MAX))
        except (OSError, msgspec.MsgspecError):
            return None
        if not all(0 < perf < math.inf for perf in found.perf.values()):
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path)  # the ones that are used are kept
        return found

    def write(self, findings: Findings) -> None:
        """Keep these instead. Where that fails the next worker measures for itself."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A name of its own: workers of one kind may write at the same time. Readable by this user alone.
            fd, part = tempfile.mkstemp(dir=self._directory, suffix=".part")
            try:
                with open(fd, "wb") as file:
                    file.write(_encode(findings))
                os.replace(part, self._path)
            except BaseException:
                os.unlink(part)
                raise
            self._prune()
        except OSError as error:
            _log.warning("what was measured is not kept: %s", error)

    def _prune(self) -> None:
        aged: list[tuple[float, str]] = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    aged.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(aged, reverse=True)[FILES_MAX:]:
            with contextlib.suppress(OSError):
                os.unlink(path)


def usable(findings: Findings | None, benchmarked: set[str], functions: set[str]) -> dict[str, float] | None:
    """The perf of each function that a worker may begin with; None: it is to be measured.

    `benchmarked` are the functions with a benchmark: if there are any, they and no others must have been measured.
    """
    if findings is None or (benchmarked and not benchmarked == findings.benchmarks.keys() == findings.perf.keys()):
        return None
    return {name: perf for name, perf in findings.perf.items() if name in functions}


def told(shown: Shown) -> dict[str, Any]:
    """What a worker says of a benchmark that an earlier one ran."""
    return {**msgspec.structs.asdict(shown), "kept": True}
