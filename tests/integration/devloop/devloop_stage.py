"""Commands as a person types them, against a cloud of the tests' own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.cloud import Cloud

WAIT_S_MAX = 60.0


def eventually(look: Callable[[], Any], what: str, wait_s_max: float = WAIT_S_MAX) -> Any:
    """What `look` finds once it is true."""
    limit = time.monotonic() + wait_s_max
    while not (found := look()):
        assert time.monotonic() < limit, f"{what} did not come within {wait_s_max:.0f} s"
        time.sleep(0.01)
    return found


class Terminal:
    """Commands against one cloud, in one directory."""

    def __init__(self, cloud: Cloud, directory: Path) -> None:
        self.cloud = cloud
        self.directory = directory
        self.env = {**cloud.client_env(), "PYTHONUNBUFFERED": "1", "TERM": "dumb"}

    def write(self, name: str, text: str) -> Path:
        """A file, replaced as a whole."""
        path = self.directory / name
        part = path.with_suffix(".part")
        part.write_text(text)
        part.replace(path)
        return path

    def run(self, *words: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "nanopod", *map(str, words)], env=self.env, cwd=self.directory, input=stdin,
            capture_output=True, text=True, timeout=WAIT_S_MAX,
        )  # fmt: skip

    def good(self, *words: str | Path) -> str:
        """What a command that must succeed printed."""
        done = self.run(*words)
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def json(self, *words: str | Path) -> Any:
        """The JSON that a command printed."""
        return json.loads(self.good(*words, "--json"))

    @contextlib.contextmanager
    def started(self, *words: str | Path) -> Iterator[Running]:
        """A command that goes on; it is interrupted, or killed, at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "nanopod", *map(str, words)], env=self.env, cwd=self.directory,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            running.close()


class Running:
    """A command that goes on, and what it printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._parts: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._parts.append(line)

    @property
    def text(self) -> str:
        """Everything that it printed."""
        return "".join(self._parts)

    def says(self, text: str) -> None:
        """Wait until it printed something."""

        def look() -> bool:
            assert text in self.text or self.process.poll() is None, f"it ended: {self.text}"
            return text in self.text

        try:
            eventually(look, repr(text))
        except AssertionError as error:
            raise AssertionError(f"{error}; it said: {self.text}") from None

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(WAIT_S_MAX)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Forget it."""
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()


def environment_of(pid: int) -> dict[str, str]:
    """A process's environment as the kernel shows it."""
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def words_of(pid: int) -> list[str]:
    """A process's arguments as the kernel shows them."""
    with contextlib.suppress(OSError):
        return [word for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if word]
    return []


def fork_servers(cloud: Cloud) -> list[int]:
    """Fork servers of a cloud."""
    found = []
    for pid in cloud.processes():
        words = words_of(pid)
        if "nanopod.node.zygote" in words and os.path.exists(f"/proc/{pid}"):
            found.append(pid)
    return found
