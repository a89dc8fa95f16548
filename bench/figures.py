"""What every benchmark shares: the figure it prints, percentiles, CPU time of a process tree."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figure:
    """One result. `value` is a ratio unless `unit` says otherwise; `yardstick` names what it is divided by."""

    name: str
    value: float
    unit: str
    yardstick: str
    bar: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    def show(self) -> None:
        """Print the one JSON line."""
        print(json.dumps({**self.__dict__, "value": round(self.value, 4)}), flush=True)


def say(text: str) -> None:
    """Progress, on stderr: stdout holds figures only."""
    print(text, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def cpu_s(pids: Sequence[int]) -> float:
    """User plus system time of these processes, seconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def pss_mib(pids: Sequence[int]) -> float:
    """Proportional set size of these processes, MiB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
