"""What the routes share while the server runs: keys, tickets, requests on their way, workers of Vast's own make."""

from __future__ import annotations

import contextlib
import hmac
import os
import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nanopod.server.vast.tickets import Tickets, WorkerSigner, derived, new_key

FRESH_S: Final = 30.0
"""A worker that did not report for so long gets no more calls."""
WORKERS_MAX: Final = 10_000
MEASURED_CALLS: Final = 20
"""After so many calls a worker's throughput is what was measured, not what it says."""


@dataclass(slots=True)
class ForeignWorker:
    """A worker that runs Vast's own program and reports here. Loads are units and units per second."""

    worker_id: int
    deployment: int
    url: str
    seen_at: float
    first_at: float
    ready_at: float = 0.0
    error: str = ""
    claimed_perf: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    routed: dict[int, tuple[float, float]] = field(default_factory=dict)
    """{request number: (load, when)} of calls that it was given."""
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def usable(self, now: float) -> bool:
        """True while it takes calls."""
        return not self.error and self.claimed_perf > 0 and now - self.seen_at < FRESH_S

    @property
    def perf(self) -> float:
        """Load per second: measured once enough calls are known, because its own figure bypasses HTTP."""
        return statistics.median(self.measured) if len(self.measured) >= MEASURED_CALLS else self.claimed_perf

    @property
    def load(self) -> float:
        """Load of the calls that it was given and did not end yet."""
        return sum(load for load, _ in self.routed.values())


class Vast:
    """The routes' memory. Losing it costs a genuine worker's next report (10 s) and unused tickets, nothing else."""

    def __init__(self, secret: bytes, key_file: Path) -> None:
        self._secret = secret
        self._key_file = key_file
        self._signer: WorkerSigner | None = None
        self.tickets = Tickets(secret)
        self.workers: dict[int, ForeignWorker] = {}
        self.last_request = 0

    @property
    def signer(self) -> WorkerSigner:
        """The RSA key for genuine workers, made when it is first needed."""
        if self._signer is None:
            self._signer = WorkerSigner(_kept(self._key_file))
        return self._signer

    def endpoint_key(self, number: int) -> str:
        """The key that routes calls to one deployment and can do nothing else."""
        return f"{number}.{derived(self._secret, f'vast endpoint {number}')}"

    def worker_key(self, number: int) -> str:
        """The key of a deployment's workers: reports, and the download of the code."""
        return f"{number}.{derived(self._secret, f'vast worker {number}')}"

    def deployment_of(self, key: str, kind: str) -> int | None:
        """The deployment that an endpoint's (`kind` "endpoint") or a worker's key belongs to; None for a wrong one."""
        number = key.partition(".")[0]
        if not number.isdigit() or len(number) > 18:
            return None
        right = self.endpoint_key(int(number)) if kind == "endpoint" else self.worker_key(int(number))
        return int(number) if hmac.compare_digest(right, key) else None

    def next_request(self) -> int:
        """A request number that was not used before."""
        self.last_request += 1
        return self.last_request

    def workers_of(self, number: int, now: float) -> list[ForeignWorker]:
        """Usable workers of a deployment, the least busy first."""
        found = [worker for worker in self.workers.values() if worker.deployment == number and worker.usable(now)]
        return sorted(found, key=lambda worker: (worker.load / (worker.perf or 1.0), worker.worker_id))

    def forget(self, number: int) -> None:
        """A deployment is gone, and so are its workers."""
        for worker_id in [worker_id for worker_id, worker in self.workers.items() if worker.deployment == number]:
            del self.workers[worker_id]


def _kept(path: Path) -> bytes:
    """The key in `path`; made and kept there, readable by this user alone, when there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    pem = new_key()
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(pem)
        os.fsync(file.fileno())
    os.replace(fresh, path)
    return pem
