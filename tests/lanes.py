"""The whole suite, a few directories at a time: most tests wait for real processes, so that two share a core well.

Each directory is one run of pytest, with its own clouds, databases and temporary directories; the longest go first,
and the output of each is shown whole when it ends. Arguments go to every run. LANES says how many run at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Final

TESTS: Final = Path(__file__).parent
LONGEST_FIRST: Final = (
    "e2e", "unit", "integration/clients", "integration/gateway", "integration/node", "integration/server",
    "integration/serving", "integration/market", "conformance", "properties", "integration/manifests",
    "integration/vast", "integration/rollout", "integration/scaling", "integration/client", "integration/devloop",
)  # fmt: skip
NOTHING_COLLECTED: Final = 5
STOP_S_MAX: Final = 60.0


def directories() -> list[str]:
    """What one run each takes, so that together they take all of `tests/`."""
    found = [entry for entry in TESTS.iterdir() if entry.is_dir() and entry.name not in ("integration", "__pycache__")]
    inside = [entry for entry in (TESTS / "integration").iterdir() if entry.name != "__pycache__"]
    found += [entry for entry in inside if entry.is_dir() or entry.name.startswith("test_")]
    names = sorted(str(entry.relative_to(TESTS)) for entry in found)
    return sorted(names, key=lambda name: LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(names))


class Lanes:
    """Takes directories until none is left, or until it is told to stop."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._todo = directories()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self.codes: dict[str, int] = {}

    def work(self) -> None:
        """One lane."""
        while True:
            with tempfile.TemporaryFile() as output:
                with self._lock:
                    if self._stopping or not self._todo:
                        return
                    name = self._todo.pop(0)
                    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *self._arguments]
                    command.append(str(TESTS / name))
                    began = time.monotonic()
                    # In a group of its own: Ctrl-C reaches it through us, once; a second one would cut its fixtures short.
                    process = subprocess.Popen(
                        command, stdout=output, stderr=output, cwd=TESTS.parent, process_group=0
                    )  # fmt: skip
                    self._running.add(process)
                code = process.wait()
                with self._lock:
                    self._running.discard(process)
                    self.codes[name] = code
                    self._show(name, code, time.monotonic() - began, output)

    def _show(self, name: str, code: int, took_s: float, output: IO[bytes]) -> None:
        if code == NOTHING_COLLECTED:
            return
        print(f"\n== tests/{name}: {'passed' if code == 0 else f'FAILED ({code})'} after {took_s:.0f} s", flush=True)
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.buffer.flush()

    def stop(self) -> None:
        """Start no more, and tell those that run to end as at Ctrl-C."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def main() -> int:
    """Run everything; the status of the worst run."""
    lanes = Lanes(sys.argv[1:])
    count = int(os.environ.get("LANES") or max(2, min(4, os.cpu_count() or 1)))
    threads = [threading.Thread(target=lanes.work, daemon=True) for _ in range(count)]
    began = time.monotonic()
    interrupted = False
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        interrupted = True
        lanes.stop()
        for thread in threads:
            thread.join(STOP_S_MAX)
    failed = sorted(name for name, code in lanes.codes.items() if code not in (0, NOTHING_COLLECTED))
    empty = bool(lanes.codes) and all(code == NOTHING_COLLECTED for code in lanes.codes.values())
    verdict = (
        "interrupted"
        if interrupted
        else f"failed: {', '.join(failed)}"
        if failed
        else "no tests"
        if empty
        else "passed"
    )
    print(f"\n{len(lanes.codes)} runs in {time.monotonic() - began:.0f} s, {count} at a time: {verdict}", flush=True)
    return 130 if interrupted else 1 if failed else NOTHING_COLLECTED if empty else 0


if __name__ == "__main__":
    sys.exit(main())
